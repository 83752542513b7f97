"""Kill every command that writes, at random times and while it writes: nothing is lost, and resuming is exact."""

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.faults.campaign import Campaign
from benchmarks.faults.processes import MAX_SECONDS, POLL_SECONDS, Child, Finished, start, start_process, write_slowly
from benchmarks.faults.tiny import Commands
from lfdm.data.index import CACHE_DIR, CLIP_INDEX_NAME, read_index
from lfdm.data.video import read_video
from lfdm.distributed.results import MANIFEST
from lfdm.folders.files import OLD_SUFFIX, TEMPORARY_SUFFIX, file_sha256
from lfdm.folders.lock import LOCK_NAME
from lfdm.folders.model_folder import WEIGHTS_NAME, read_json, read_tensors
from lfdm.folders.run_folder import MODEL_DIR, STATE_NAME, differences, find_checkpoints
from lfdm.training.checkpoint import TRAINING_NAME, checkpoint_path
from lfdm.training.log import METRICS_NAME

KILLS_PER_RUN = 4
"""Kills before a run may end and is compared."""
WRITING_SECONDS = 0.2
"""Longest wait from the sight of a temporary file to the kill: with slow writes, a checkpoint takes about as long."""
MAX_FILES = 8
"""A kill comes after the sight of fewer temporary files than this."""
CACHE_CHANCE = 0.5
"""Chance that a run makes the cache of the data set anew."""
PIPELINE = ("autoencoder", "unet", "condition")
"""Folders of the pipeline that `lfdm adapt` publishes in its run folder."""
RESULTS_NAME = "results.json"
VARYING_RESULTS = ("date", "seconds", "versions", "num_processes")
"""Results that differ from run to run."""
PROMISE = "A command that is killed at any moment loses no checkpoint or result, and the same command resumes bit for bit."


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command to kill."""

    name: str
    words: Callable[[Path], list[str]]
    """The words of the command that writes a folder."""
    complete: Callable[[Path], int]
    """How much is complete in the folder, by the names of its files; a number that must never fall."""
    read: Callable[[Path], None]
    """Reads all that is complete, and raises for what is damaged."""
    outcome: Callable[[Path], dict[str, Any]]
    """Results that an uninterrupted and a resumed run must have in common, bit for bit."""
    weight: int
    """Share of the kills."""


def jobs(commands: Commands) -> list[Job]:
    """Return the commands to kill."""
    data_set = {"complete": has_index, "read": read_data_set, "outcome": digests, "weight": 10}
    training = {"complete": newest_step, "read": read_checkpoints, "outcome": training_outcome}
    return [
        Job(name="data puppets", words=commands.puppets, **data_set),
        Job(name="data folder", words=commands.folder, **data_set),
        Job(name="train autoencoder", words=commands.autoencoder, **training, weight=30),
        Job(name="train diffusion", words=commands.diffusion, **training, weight=25),
        Job(name="adapt", words=commands.adapt, **training, weight=10),
        Job(
            name="evaluate",
            words=commands.evaluate,
            complete=num_batches,
            read=read_batches,
            outcome=evaluation_outcome,
            weight=15,
        ),
        Job(name="batch", words=commands.batch, complete=num_videos, read=read_videos, outcome=batch_outcome, weight=10),
    ]


def has_index(out: Path) -> int:
    """Return 1 for a data set, 0 for none."""
    return int((out / CLIP_INDEX_NAME).is_file())


def read_data_set(out: Path) -> None:
    """Check that the clips of a data set exist; one without its index is half made."""
    if out.exists():
        missing = [record.path for record in read_index(out) if not (out / record.path).is_file()]
        if missing:
            raise ValueError(f"clips are missing: {missing}")


def newest_step(out: Path) -> int:
    """Return the step of the newest checkpoint, 0 for none."""
    return max((int(path.name.removeprefix("step-")) for path in find_checkpoints(out)), default=0)


def read_checkpoints(out: Path) -> None:
    """Read all checkpoints of a run."""
    for checkpoint in find_checkpoints(out):
        for weights in (checkpoint / TRAINING_NAME, *checkpoint.glob(f"*/{WEIGHTS_NAME}")):
            read_tensors(weights)
        if checkpoint_path(out, read_json(checkpoint / STATE_NAME)["step"]) != checkpoint:
            raise ValueError(f"{checkpoint} holds another step")


def num_batches(out: Path) -> int:
    """Return the number of stored batches and results of an evaluation."""
    return len(list((out / "cache").rglob("[0-9]*.npz"))) + (out / RESULTS_NAME).exists()


def read_batches(out: Path) -> None:
    """Read all stored batches and the results of an evaluation."""
    for path in (out / "cache").rglob("[0-9]*.npz"):
        with np.load(path) as arrays:
            for name in arrays.files:
                np.asarray(arrays[name])
    if (out / RESULTS_NAME).exists():
        read_json(out / RESULTS_NAME)


def num_videos(out: Path) -> int:
    """Return the number of videos of a batch."""
    return len(list(out.glob("*.mp4")))


def read_videos(out: Path) -> None:
    """Read all videos and the manifest of a batch."""
    for path in out.glob("*.mp4"):
        read_video(path)
    if (out / MANIFEST).exists():
        _read_lines(out / MANIFEST)


def batch_outcome(out: Path) -> dict[str, Any]:
    """Return digests of the videos of a batch, and its manifest without what varies."""
    lines = [{name: value for name, value in line.items() if name != "seconds"} for line in _read_lines(out / MANIFEST)]
    videos = {path.name: file_sha256(path) for path in sorted(out.glob("*.mp4"))}
    return {"manifest": lines, "videos": videos}


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def digests(folder: Path) -> dict[str, Any]:
    """Return a digest of every file of a folder except caches."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and CACHE_DIR not in path.relative_to(folder).parts]
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}


def training_outcome(out: Path) -> dict[str, Any]:
    """Return digests of the last checkpoint and of the pipelines in a run folder, the steps kept, and the logged losses."""
    log = _read_lines(out / METRICS_NAME)
    steps = [path.name for path in find_checkpoints(out)]
    parts = {"last checkpoint": find_checkpoints(out)[-1], **{name: out / name for name in (MODEL_DIR, *PIPELINE)}}
    losses = {"log": [(line["step"], line["loss"]) for line in log]}
    return {"checkpoints": steps, **losses, **{name: digests(part) for name, part in parts.items()}}


def evaluation_outcome(out: Path) -> dict[str, Any]:
    """Return the results of an evaluation without what varies."""
    results = read_json(out / RESULTS_NAME)
    results["generation"].pop("seconds_per_video")
    return {name: value for name, value in results.items() if name not in VARYING_RESULTS}


def leftovers(folder: Path) -> list[str]:
    """Return hidden files below a folder that a finished run should have removed."""
    endings = (TEMPORARY_SUFFIX, OLD_SUFFIX, LOCK_NAME)
    return [str(path.relative_to(folder)) for path in folder.rglob(".*") if path.name.endswith(endings)]


def run(*, num_kills: int = 100, num_real: int = 5, seed: int = 0, only: str = "", short: bool = False) -> Campaign:
    """Kill commands and let them resume.

    Args:
        num_kills: Kills of forked commands, half of them while the command writes.
        num_real: Kills of processes started as a user starts them, in addition.
        seed: Seed of the times.
        only: Part of the names of the commands to kill; by default all.
        short: 4 kills of a single command instead.
    """
    campaign = Campaign(name="kills", promise=PROMISE, aim="0 lost checkpoints or results, resumed runs equal bit for bit")
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        commands = Commands(root=Path(folder) / "inputs")
        commands.prepare(models=not short)
        if short:
            _Killer(campaign, jobs(commands)[2], commands, Path(folder) / "short", rng).kill(KILLS_PER_RUN)
            return campaign
        chosen = [job for job in jobs(commands) if only in job.name]
        total = sum(job.weight for job in chosen)
        for job in chosen:
            count = max(1, round(num_kills * job.weight / total))
            _Killer(campaign, job, commands, Path(folder) / job.name.replace(" ", "-"), rng).kill(count)
        if num_real:
            _Killer(campaign, jobs(commands)[2], commands, Path(folder) / "real", rng, real=True).kill(num_real)
    campaign.notes.append(
        "Killed commands are children forked from a process that has imported everything; those of the line *own process* were "
        "started by `python -m lfdm`. Half of the kills come when a temporary file is seen, with every write slowed down; the "
        "others at a random time. Numbers are compared in float32 on one thread."
    )
    return campaign


class _Killer:
    """Kills one job again and again, in `folder`."""

    def __init__(
        self, campaign: Campaign, job: Job, commands: Commands, folder: Path, rng: np.random.Generator, *, real: bool = False
    ) -> None:
        self.campaign, self.job, self.commands, self.folder, self.rng, self.real = campaign, job, commands, folder, rng, real
        self.out = folder / "out"
        self.kills = self.best = 0
        folder.mkdir()

    def kill(self, count: int) -> None:
        """Kill the job `count` times, and compare every few kills what it has made when it ends by itself."""
        reference = self.folder / "reference"
        seconds = self._start(reference, slow=False).wait().seconds
        expected = self.job.outcome(reference)
        while self.kills < count:
            shutil.rmtree(self.out, ignore_errors=True)
            if self.rng.random() < CACHE_CHANCE:
                shutil.rmtree(self.commands.data / CACHE_DIR, ignore_errors=True)
            self.best, killed = 0, 0
            while killed < KILLS_PER_RUN and self.kills < count and self._kill_once(seconds):
                killed += 1
            self._compare(expected, f"after {killed} kills, the last of them number {self.kills}")

    def _start(self, out: Path, *, slow: bool) -> Child:
        words, log = self.job.words(out), self.folder / "log"
        return start_process(words, log) if self.real else start(words, log, write_slowly if slow else None)

    def _kill_once(self, seconds: float) -> bool:
        """Kill one run and check what is left; False if it ended before."""
        while_writing = self.kills % 2 == 1 and not self.real
        child = self._start(self.out, slow=while_writing)
        after = self.rng.uniform(0, seconds)
        if while_writing:
            self._watch(child, MAX_SECONDS, num_files=int(self.rng.integers(1, MAX_FILES)))
            after = time.monotonic() - child.started + self.rng.uniform(0, WRITING_SECONDS)
        self._watch(child, after)
        was_running = child.is_running()
        ended = child.kill()
        if not was_running:
            held = ended.code == 0 or self._is_made(ended)
            return self.campaign.expect(f"{self.job.name}: ended before the kill", "", held, ended.output) and False
        self.kills += 1
        kind = "own process" if self.real else "while writing" if while_writing else "at any time"
        with self.campaign.case(f"{self.job.name}: killed, {kind}", f"kill {self.kills}, after {ended.seconds:.3f} s"):
            self.job.read(self.out)
            left = self.job.complete(self.out)
            if left < self.best:
                raise ValueError(f"lost: {self.best} was complete, {left} is left")
        return True

    def _watch(self, child: Child, until: float, *, num_files: int | None = None) -> None:
        """Watch the folder until `until` seconds after the start, the end of the command or its `num_files`-th temporary file."""
        seen: set[str] = set()
        while time.monotonic() < child.started + until and child.is_running():
            with suppress(FileNotFoundError):  # removed while it is listed
                self.best = max(self.best, self.job.complete(self.out))
                if num_files is not None:
                    seen.update(leftovers(self.folder))
                    if len(seen) >= num_files:
                        return
            time.sleep(POLL_SECONDS)

    def _is_made(self, ended: Finished) -> bool:
        return "already holds a clip data set" in ended.output

    def _compare(self, expected: object, case: str) -> None:
        """Let the run end and compare it with the uninterrupted one."""
        ended = self._start(self.out, slow=False).wait()
        kind = f"{self.job.name}: resumed and compared"
        if ended.code and not self._is_made(ended):
            self.campaign.expect(kind, case, False, ended.output)
            return
        seen = [*differences(expected, self.job.outcome(self.out)), *(f"left {name}" for name in leftovers(self.folder))]
        self.campaign.expect(kind, case, not seen, "; ".join(seen))
