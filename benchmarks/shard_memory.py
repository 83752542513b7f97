"""Memory of trainings on shards by the number of clips: peak of the anonymous pages, without mapped files.

    python -m benchmarks.shard_memory --out benchmarks/results/shard-memory.json

Pages of a mapped shard belong to the system, which takes them back when others need them; they are left out (RssAnon of
/proc/self/status, read every few milliseconds). Every measurement has a process of its own, which reads as many clips of the
small as of the large data, or trains for as many steps.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.experiment.tables import RESULTS_DIR, write_results
from benchmarks.speed.measuring import device_name
from lfdm.config.presets import PRESETS
from lfdm.config.video import Size
from lfdm.data.index import read_index
from lfdm.data.puppets.data_set import write_puppets
from lfdm.data.shard_file import SHARD_LIST_NAME
from lfdm.data.sharding import write_shards
from lfdm.data.training_clips import find_clips
from lfdm.folders.model_folder import read_json
from lfdm.training.batches import ShardOrder
from lfdm.training.stage1 import train_autoencoder
from lfdm.training.stage2 import train_diffusion

DATA = {"read": (10, 1.0), "stage 1": (10, 1.0), "stage 2": (2, 0.2)}
"""Subjects, of eight clips each, and megabytes of a shard: so small that the small data fill a window of shards, too. Stage 2
encodes all clips before it begins, which takes long."""
FACTORS = {"read": (1, 10, 1000), "stage 1": (1, 10), "stage 2": (1, 10)}
"""Copies of each shard by the work: links, of which each is opened and mapped as a file of its own."""
READS = 3200
"""Clips that are read: forty epochs of 80 clips, four of 800."""
STEPS = {"stage 1": 100, "stage 2": 30}
POLL_SECONDS = 0.002


def copy_shards(shards: Path, out: Path, factor: int) -> Path:
    """Make shards of `factor` times as many clips, by links to files."""
    if out.exists():
        return out
    out.mkdir()
    content = read_json(shards / SHARD_LIST_NAME)
    split = content["splits"]["train"]
    copies = [{**shard, "file": f"{copy}-{shard['file']}"} for copy in range(factor) for shard in split["shards"]]
    for shard in copies:
        os.link(shards / shard["file"].partition("-")[2], out / shard["file"])
    split["shards"] = copies
    (out / SHARD_LIST_NAME).write_text(json.dumps(content))
    return out


class PeakMemory:
    """Peak of this process's anonymous memory within the block, in MB."""

    def __enter__(self) -> "PeakMemory":
        self.peak, self._ended = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.is_set():
            status = Path("/proc/self/status").read_text()
            self.peak = max(self.peak, int(status.split("RssAnon:")[1].split()[0]) / 1024)
            time.sleep(POLL_SECONDS)


def read_clips(shards: Path, num_clips: int) -> None:
    """Read `num_clips` in the order of a training."""
    clips = find_clips(shards).open(Size(64, 64), "pad")
    order = ShardOrder(0, clips.shard_sizes or (), 1, clips.prefetch)
    for _, index in order(0, num_clips):
        clips.clip(clips.usable(index))


def train(work: str, shards: Path, out: Path) -> None:
    """Train a stage of `flow64` for a few steps with a batch of one sample."""
    preset = PRESETS["flow64"]
    changes: dict[str, Any] = {"num_steps": STEPS[work], "batch_size": 1, "warmup_steps": 0, "sample_steps": 10**6}
    first, second = (
        replace(stage, optimization=replace(stage.optimization, num_workers=0, **changes))
        for stage in (preset.autoencoder_training, preset.diffusion_training)
    )
    preset = replace(preset, autoencoder_training=first, diffusion_training=second)
    if work == "stage 1":
        train_autoencoder(preset, shards, out)
    else:
        train_diffusion(preset, shards, "puppets64", out)


def measure(work: str, shards: Path) -> None:
    """Do one kind of work and print its peak."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="lfdm-memory-") as folder, PeakMemory() as memory:
        if work == "read":
            read_clips(shards, READS)
        else:
            train(work, shards, Path(folder) / "run")
    print(json.dumps(memory.peak))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS_DIR / "shard-memory.json")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--work", nargs="+", default=["read", "stage 1", "stage 2"])
    parser.add_argument("--measure", nargs=2, metavar=("WORK", "SHARDS"), help="in this process")
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure[0], Path(arguments.measure[1]))
        return
    stored = read_json(arguments.out)["rows"] if arguments.out.exists() else []
    rows: list[dict[str, Any]] = [row for row in stored if row["work"] not in arguments.work]
    for work in arguments.work:
        with tempfile.TemporaryDirectory(prefix="lfdm-shards-") as folder:
            rows += measure_work(work, Path(folder), arguments.rounds)
    cpu = device_name(torch.device("cpu"))
    write_results({"cpu": cpu, "reads": READS, "steps": STEPS, "rows": rows}, arguments.out)


def measure_work(work: str, root: Path, rounds: int) -> list[dict[str, Any]]:
    """Measure one kind of work on all sizes of data, each time in a new process."""
    subjects, shard_mb = DATA[work]
    write_puppets(root / "puppets", num_subjects=subjects, num_takes=1, test_fraction=0, truth="none", num_workers=1)
    write_shards(root / "puppets", root / "shards", shard_mb=shard_mb, num_workers=1)
    rows: list[dict[str, Any]] = []
    for factor in FACTORS[work]:
        shards, peaks = copy_shards(root / "shards", root / f"shards-{factor}", factor), []
        for _ in range(rounds):
            command = [sys.executable, "-m", "benchmarks.shard_memory", "--measure", work, str(shards)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            peaks.append(round(json.loads(done.stdout.splitlines()[-1]), 1))
        sizes = [path.stat().st_size for path in shards.glob("*.arrow")]
        data = {
            "clips": len(read_index(root / "puppets")) * factor,
            "shards": len(sizes),
            "stored_mb": round(sum(sizes) / 1e6, 1),
        }
        rows.append({"work": work, **data, "shard_mb": shard_mb, "peak_mb": peaks})
        print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    main()
