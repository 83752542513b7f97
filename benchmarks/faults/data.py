"""Train on broken data: clips that are cut, missing or of another length, a damaged cache, a clip deleted in mid-run."""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.faults.campaign import Campaign
from benchmarks.faults.processes import Finished, start
from benchmarks.faults.processes import run as run_command
from benchmarks.faults.tiny import Commands
from lfdm.data.index import CACHE_DIR, read_index
from lfdm.data.video import write_video
from lfdm.folders.run_folder import CHECKPOINTS_DIR, find_checkpoints

PROMISE = "A training goes on without broken clips and names each of them once; a cache that changed on the disk is made anew."
SHARE = 0.1
"""Share of the training clips that is broken."""
PAGE = 4096


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A copy of the data set, to be broken, and a run folder."""

    data: Path
    out: Path
    log: Path


def run(*, num_rounds: int = 2, seed: int = 0, short: bool = False) -> Campaign:
    """Break the data of trainings.

    Args:
        num_rounds: Rounds over all commands and kinds of damage.
        seed: Seed of the choice of clips and bytes.
        short: Only stage 2.
    """
    campaign = Campaign(name="data", promise=PROMISE, aim="training goes on, each named once")
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        commands = Commands(root=folder / "inputs")
        commands.prepare()
        trainings = {"train diffusion": commands.diffusion}
        if not short:
            trainings |= {"train autoencoder": commands.autoencoder, "adapt": commands.adapt}
        for number in range(num_rounds):
            for command, words in trainings.items():
                for trial in (_broken_clips, _damaged_cache, _deleted_clip):
                    place = _Place(data=folder / "data", out=folder / "out", log=folder / "log")
                    shutil.copytree(commands.data, place.data, ignore=shutil.ignore_patterns(CACHE_DIR))
                    trial(campaign, command, lambda p=place, w=words: w(p.out, data=p.data), place, rng, f"round {number + 1}")
                    shutil.rmtree(place.data)
                    shutil.rmtree(place.out, ignore_errors=True)
    return campaign


def _broken_clips(
    campaign: Campaign, command: str, words: Callable[[], list[str]], place: _Place, rng: np.random.Generator, case: str
) -> None:
    """Break a tenth of the training clips in four ways; the second run, from the cache, also names them."""
    clips = [place.data / record.path for record in read_index(place.data) if record.split == "train"]
    chosen = [clips[int(i)] for i in rng.choice(len(clips), max(4, round(SHARE * len(clips))), replace=False)]
    ways = (_cut, Path.unlink, _shorten, _garble)
    for path, way in zip(chosen, ways * len(chosen), strict=False):
        way(path)
    for run_name in ("first run", "from the cache"):
        ended = run_command(words(), place.log)
        _expect(campaign, f"{command}: broken clips, {run_name}", case, ended, chosen)
        shutil.rmtree(place.out, ignore_errors=True)


def _damaged_cache(
    campaign: Campaign, command: str, words: Callable[[], list[str]], place: _Place, rng: np.random.Generator, case: str
) -> None:
    """Overwrite one page of each cached file after a training, and train again."""
    run_command(words(), place.log)
    shutil.rmtree(place.out)
    files = [path for path in (place.data / CACHE_DIR).rglob("*") if path.suffix in (".u8", ".f16")]
    for path in files:
        content = bytearray(path.read_bytes())
        at = int(rng.integers(0, max(1, len(content) - PAGE)))
        content[at : at + PAGE] = rng.bytes(len(content[at : at + PAGE]))
        path.write_bytes(content)
    ended = run_command(words(), place.log)
    lines = [line for line in ended.output.splitlines() if "damaged and made anew" in line]
    held = ended.code == 0 and len(lines) == len(files) and all(".avi" in line for line in lines)
    campaign.expect(f"{command}: a page of each cache overwritten", case, held, f"{ended.code}, {ended.output}")


def _deleted_clip(
    campaign: Campaign, command: str, words: Callable[[], list[str]], place: _Place, rng: np.random.Generator, case: str
) -> None:
    """Delete a clip once the first checkpoint is there, then kill the training and resume it."""
    clips = [place.data / record.path for record in read_index(place.data) if record.split == "train"]
    path = clips[int(rng.integers(len(clips)))]
    child = start(words(), place.log)
    while child.is_running() and not find_checkpoints(place.out):
        pass
    path.unlink()
    ended = child.wait()
    campaign.expect(f"{command}: a clip deleted in mid-run", case, ended.code == 0, f"{ended.code}, {ended.output}")
    newest = find_checkpoints(place.out)[-1]
    shutil.rmtree(newest)
    ended = run_command(words(), place.log)
    _expect(campaign, f"{command}: resumed without the deleted clip", case, ended, [path])
    campaign.expect(f"{command}: resumed to the end", case, newest.is_dir(), sorted((place.out / CHECKPOINTS_DIR).iterdir()))


def _expect(campaign: Campaign, kind: str, case: str, ended: Finished, broken: list[Path]) -> None:
    named = [sum(str(path) in line for line in ended.output.splitlines()) for path in broken]
    held = ended.code == 0 and named == [1] * len(broken) and "Traceback" not in ended.output
    campaign.expect(kind, case, held, f"{ended.code}, named {named} times, {ended.output}")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _shorten(path: Path) -> None:
    """Replace a clip by a whole one of fewer frames than the table says."""
    write_video(path, np.zeros((3, 32, 32, 3), np.uint8), fps=8)


def _garble(path: Path) -> None:
    path.write_bytes(b"RIFF" + bytes(path.stat().st_size))
