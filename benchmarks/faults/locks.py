"""Start a second run in the folder of a first one: it is refused, and the first ends as if there had been no second."""

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.faults.campaign import Campaign
from benchmarks.faults.kills import Job, jobs
from benchmarks.faults.processes import Child, start, write_slowly
from benchmarks.faults.tiny import Commands
from lfdm.data.index import CACHE_DIR
from lfdm.folders.run_folder import differences

PROMISE = (
    "A second run in a folder that is in use is refused in one line that names folder and process; a dead process holds no lock."
)
SECONDS = 280.0
"""Longest wait for a first run to take its lock."""
WORKERS = "--autoencoder-training.optimization.num-workers 2"


def run(*, num_rounds: int = 2, short: bool = False) -> Campaign:
    """Start second runs.

    Args:
        num_rounds: Rounds over all commands.
        short: Only one command.
    """
    campaign = Campaign(name="locks", promise=PROMISE, aim="the second refused, never mixed")
    with tempfile.TemporaryDirectory() as folder:
        commands = Commands(root=Path(folder) / "inputs")
        commands.prepare(models=not short)
        for job in jobs(commands)[1:2] if short else jobs(commands):
            place = Path(folder) / "place"
            expected = _run_alone(job, place)
            for number in range(num_rounds):
                _collide(campaign, job, place, expected, f"round {number + 1}")
            _free_after_kill(campaign, job.name, job.words, place)
        _free_after_kill(
            campaign,
            "train autoencoder with loader processes",
            lambda out: commands.autoencoder(out, WORKERS),
            Path(folder) / "place",
        )
        for number in range(num_rounds):
            _build_one_cache(campaign, commands, Path(folder), f"round {number + 1}")
    return campaign


def _run_alone(job: Job, place: Path) -> dict[str, Any]:
    """Return what a command makes in a folder that no other run uses."""
    place.mkdir()
    ended = start(job.words(place / "out"), place.parent / "first.log").wait()
    if ended.code:
        raise RuntimeError(f"{job.name} fails without a second run: {ended.output}")
    made = job.outcome(place / "out")
    shutil.rmtree(place)
    return made


def _collide(campaign: Campaign, job: Job, place: Path, expected: dict[str, Any], case: str) -> None:
    """Start a command twice at once; the first must make what is `expected`."""
    place.mkdir()
    out, log = place / "out", place.parent / "log"
    first = start(job.words(out), place.parent / "first.log", write_slowly)
    if not _wait_for_lock(first, place):
        raise RuntimeError(f"{job.name} took no lock: {first.wait().output}")
    second = start(job.words(out), log).wait()
    named = f"is in use by process {first.pid} on " in second.last_line and str(out) in second.last_line
    campaign.expect(f"{job.name}: second refused", case, second.is_one_line and named, f"{second.code}, {second.output}")
    ended = first.wait()
    seen = [ended.output] if ended.code else list(differences(expected, job.outcome(out)))
    campaign.expect(f"{job.name}: the first is undisturbed", case, not seen, "; ".join(seen))
    shutil.rmtree(place)


def _free_after_kill(
    campaign: Campaign, name: str, words: Callable[[Path], list[str]], place: Path, begin: Callable[..., Child] = start
) -> None:
    """Kill a process that holds a lock, and run the command at once."""
    place.mkdir()
    first = begin(words(place / "out"), place.parent / "first.log")
    if not _wait_for_lock(first, place):
        raise RuntimeError(f"{name} took no lock: {first.wait().output}")
    time.sleep(0.5)  # for loader processes, which hold a copy of what the parent has open
    first.kill()
    second = start(words(place / "out"), place.parent / "log").wait()
    campaign.expect(f"{name}: runs after the first was killed", "", second.code == 0, second.output)
    shutil.rmtree(place)


def _wait_for_lock(child: Child, place: Path) -> bool:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and child.is_running():
        locks = [*place.glob(".*.lock"), *place.glob("*/.lock")]
        if any(lock.read_text() for lock in locks if lock.exists()):
            return True
        time.sleep(0.001)
    return False


def _build_one_cache(campaign: Campaign, commands: Commands, folder: Path, case: str) -> None:
    """Start two trainings with different run folders and no cache: one decodes the clips, the other waits."""
    shutil.rmtree(commands.data / CACHE_DIR, ignore_errors=True)
    children = [start(commands.autoencoder(folder / f"cache-{name}"), folder / f"{name}.log", write_slowly) for name in "ab"]
    ended = [child.wait() for child in children]
    caches = list((commands.data / CACHE_DIR).iterdir())
    held = [one.code for one in ended] == [0, 0] and len(caches) == 1
    campaign.expect("two trainings build one cache", case, held, f"{caches}, {[one.output for one in ended]}")
    for name in "ab":
        shutil.rmtree(folder / f"cache-{name}", ignore_errors=True)
