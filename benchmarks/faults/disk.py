"""Run commands that write on disks that are full, read-only or limited: one line, the last good state, nothing half written."""

import errno
import hashlib
import os
import re
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.faults.campaign import Campaign
from benchmarks.faults.kills import digests, leftovers, read_batches, read_checkpoints, read_data_set
from benchmarks.faults.processes import Finished
from benchmarks.faults.processes import run as run_command
from benchmarks.faults.tiny import Commands
from lfdm.data.video import read_video
from lfdm.errors import UserError
from lfdm.folders.run_folder import CHECKPOINTS_DIR, differences

DISK_MEGABYTES = 64
FRACTIONS = (0.1, 0.5)
"""Room that is left, or limit of a file's size, as a fraction of what the command needs."""
SHORT = ("data folder", "train autoencoder", "generate .mp4")
"""Names of the commands of a short run."""
PROMISE = (
    "Where a disk is full, read-only or limited, a command ends with one line that names the file and the disk, keeps the last "
    "good state and leaves nothing half written."
)
TEMPORARY_NAME = re.compile(r"\.[0-9a-f]{8}\.(tmp|old)")


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command that writes `out`."""

    name: str
    words: Callable[[Path], list[str]]
    out: str
    """Name of the file or folder that it writes."""
    read: Callable[[Path], None] | None = None
    """Reads what a stopped run has left, and raises for what is damaged; by default it must equal the files of a whole run."""
    begin: Callable[[Path], list[str]] | None = None
    """Words of a shorter run, whose checkpoint must survive."""


def jobs(commands: Commands) -> list[Job]:
    """Return the commands that write."""
    short = replace(commands, num_steps=commands.num_steps // 2)

    def generate(out: Path) -> list[str]:
        return commands.generate(out, f"--panel --motion {out.parent / 'motion.safetensors'}")

    return [
        Job(name="data puppets", words=commands.puppets, out="data"),
        Job(name="data folder", words=commands.folder, out="data", read=read_data_set),
        Job(name="train autoencoder", words=commands.autoencoder, out="run", read=read_checkpoints, begin=short.autoencoder),
        Job(name="train diffusion", words=commands.diffusion, out="run", read=read_checkpoints, begin=short.diffusion),
        Job(name="adapt", words=commands.adapt, out="run", read=read_checkpoints, begin=short.adapt),
        Job(name="evaluate", words=commands.evaluate, out="results", read=read_batches),
        *(Job(name=f"generate {kind}", words=generate, out=f"video{kind}") for kind in (".mp4", ".webm", ".gif", "")),
        Job(name="transfer", words=commands.transfer, out="video.mp4"),
    ]


def run(*, only: str = "", short: bool = False) -> Campaign:
    """Try all commands on all disks. Full and read-only disks are mounted, for which it must run as `unshare -rm python -m ...`.

    Args:
        only: Part of the names of the commands to try; by default all.
        short: Only a few commands, and one size each.
    """
    campaign = Campaign(name="disk", promise=PROMISE, aim="one line, last good state intact, nothing half written")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        commands = Commands(root=folder / "inputs", num_steps=8)
        commands.prepare()
        chosen = [job for job in jobs(commands) if only in job.name and (not short or job.name in SHORT)]
        fractions = FRACTIONS[1:] if short else FRACTIONS
        mount = folder / "disk"
        mount.mkdir()
        for job in chosen:
            tried = _Tried(campaign, job, folder)
            for fraction in fractions:
                tried.limited(fraction)
            tried.quota()
            with tmpfs(mount) as mounted:
                if mounted:
                    for fraction in fractions:
                        tried.full(mount, fraction)
                    tried.read_only(mount)
    campaign.notes.append(
        "A full and a read-only disk are a tmpfs; a limit is RLIMIT_FSIZE; a used-up quota is simulated by an error of every "
        "write. Left out: `lfdm demo` (writes as `generate` does), `lfdm import` (needs released checkpoints), `lfdm serve`, "
        "`lfdm batch`."
    )
    if not any("full" in kind for kind in campaign.counts):
        campaign.notes.append("No disk could be mounted: full and read-only disks are left out.")
    return campaign


class _Tried:
    """One command on all disks."""

    def __init__(self, campaign: Campaign, job: Job, folder: Path) -> None:
        self.campaign, self.job, self.log, self.plain = campaign, job, folder / "log", folder / "plain"
        ended = self._run(folder / "reference")
        if ended.code:
            raise RuntimeError(f"{job.name} fails without a fault: {ended.output}")
        self.expected = _contents(folder / "reference")
        files = [path.stat().st_size for path in (folder / "reference").rglob("*") if path.is_file()]
        self.largest, self.needed = max(files), sum(files)
        shutil.rmtree(folder / "reference")
        self.begun = folder / "begun"
        shutil.rmtree(self.begun, ignore_errors=True)
        self.begun.mkdir()
        if job.begin is not None:
            run_command(job.begin(self.begun / job.out), self.log)

    def limited(self, fraction: float) -> None:
        limit = int(fraction * self.largest)
        with self._begun(self.plain) as kept:
            ended = self._run(self.plain, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
            self._check("limit of sizes", f"{limit} bytes", self.plain, ended, kept)

    def quota(self) -> None:
        with self._begun(self.plain) as kept:
            ended = self._run(self.plain, _use_up_quota)
            self._check("quota", "every write", self.plain, ended, kept)

    def full(self, mount: Path, fraction: float) -> None:
        room = int(fraction * self.needed)
        with self._begun(mount / "place") as kept:
            filler = mount / "filler"
            _fill(filler, room)
            ended = self._run(mount / "place")
            self._check("full disk", f"{room} bytes free", mount / "place", ended, kept)
            filler.unlink()
            self._continue(mount / "place", f"{room} bytes were free")

    def read_only(self, mount: Path) -> None:
        with self._begun(mount / "place") as kept:
            subprocess.run(["mount", "-o", "remount,ro", str(mount)], check=True)
            ended = self._run(mount / "place")
            self._check("read-only disk", "", mount / "place", ended, kept)
            subprocess.run(["mount", "-o", "remount,rw", str(mount)], check=True)

    def _run(self, place: Path, prepare: Callable[[], None] | None = None) -> Finished:
        return run_command(self.job.words(place / self.job.out), self.log, prepare)

    @contextmanager
    def _begun(self, place: Path) -> Iterator[dict[str, str]]:
        """Copy the good state to a new folder, and give its checkpoints' digests."""
        shutil.copytree(self.begun, place)
        try:
            yield digests(place / self.job.out / CHECKPOINTS_DIR)
        finally:
            shutil.rmtree(place)

    def _check(self, disk: str, case: str, place: Path, ended: Finished, kept: dict[str, str]) -> None:
        kind = f"{self.job.name}: {disk}"
        if ended.code == 0:
            self.campaign.counts[f"{kind}, but it fits"] += 1
            return
        seen = []
        if not ended.is_one_line or ended.output.count("lfdm: ") != 1:
            seen.append(f"not one line: exit code {ended.code}, {ended.output}")
        elif "could not be written: " not in ended.last_line or TEMPORARY_NAME.search(ended.last_line):
            seen.append(f"does not say what to do: {ended.last_line}")
        seen += [f"left {name}" for name in leftovers(place)]
        seen += self._damage(place, kept)
        self.campaign.expect(kind, case, not seen, "; ".join(seen))

    def _damage(self, place: Path, kept: dict[str, str]) -> list[str]:
        """Return what is wrong with the files that a stopped run has left."""
        if self.job.read is None:
            found = _contents(place)
            return [f"{name} is half written" for name, value in found.items() if self.expected.get(name) != value]
        try:
            self.job.read(place / self.job.out)
        except Exception as error:
            return [f"damaged: {error}"]
        now = digests(place / self.job.out / CHECKPOINTS_DIR)
        return list(differences(kept, {name: now.get(name) for name in kept}))

    def _continue(self, place: Path, case: str) -> None:
        """Run the same command with room."""
        ended = self._run(place)
        held = ended.code == 0 or "exists" in ended.output or "already holds" in ended.output  # it had fitted
        self.campaign.expect(f"{self.job.name}: the same command with room", case, held, ended.output)


def _contents(folder: Path) -> dict[str, str]:
    """Return a digest of every file of a folder; of a WebM, which holds random bytes, that of its decoded frames."""
    found = digests(folder)
    for path in folder.rglob("*.webm"):
        try:
            found[path.relative_to(folder).as_posix()] = hashlib.sha256(read_video(path).tobytes()).hexdigest()
        except UserError as error:
            found[path.relative_to(folder).as_posix()] = str(error)
    return found


def _use_up_quota() -> None:
    """Let every whole file that is written fail as over a quota. For use in a child."""

    def write_bytes(path: Path, _: bytes) -> int:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(path))

    Path.write_bytes = write_bytes  # type: ignore[method-assign]


def _fill(path: Path, room: int) -> None:
    """Write a file that leaves `room` bytes of its disk free."""
    free = shutil.disk_usage(path.parent).free
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(free - room, 1))


@contextmanager
def tmpfs(folder: Path) -> Iterator[bool]:
    """Mount an empty disk for the block; give False where that is not allowed."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MEGABYTES}m", "none", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)
