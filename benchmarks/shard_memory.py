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
from lfdm.data.puppets.data_set import write_puppets
from lfdm.data.shard_file import SHARD_LIST_NAME
from lfdm.data.sharding import write_shards
from lfdm.data.training_clips import find_clips
from lfdm.folders.model_folder import read_json
from lfdm.training.batches import ShardOrder
from lfdm.training.stage1 import train_autoencoder
from lfdm.training.stage2 import train_diffusion

SHARD_MB = 1.0
"""Small, so that the small data fill all windows of shards, too."""
FACTORS = {"read": (1, 10, 1000), "stage 1": (1, 10), "stage 2": (1, 10)}
"""Copies of each shard by the work: links, of which each is opened and mapped as a file of its own."""
READS = 3200
"""Clips that are read: forty epochs of 80 clips, four of 800."""
STEPS = 100
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


def train_stage1(shards: Path, out: Path) -> None:
    preset = PRESETS["flow64"]
    optimization = replace(
        preset.autoencoder_training.optimization, num_steps=STEPS, batch_size=1, warmup_steps=0, num_workers=0, sample_steps=10**6
    )
    small = replace(preset, autoencoder_training=replace(preset.autoencoder_training, optimization=optimization))
    train_autoencoder(small, shards, out)


def train_stage2(shards: Path, out: Path) -> None:
    preset = PRESETS["flow64"]
    optimization = replace(
        preset.diffusion_training.optimization, num_steps=STEPS, batch_size=1, warmup_steps=0, num_workers=0, sample_steps=10**6
    )
    small = replace(preset, diffusion_training=replace(preset.diffusion_training, optimization=optimization))
    train_diffusion(small, shards, "puppets64", out)


def measure(work: str, shards: Path) -> None:
    """Do one kind of work and print its peak."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="lfdm-memory-") as folder, PeakMemory() as memory:
        if work == "read":
            read_clips(shards, READS)
        else:
            {"stage 1": train_stage1, "stage 2": train_stage2}[work](shards, Path(folder) / "run")
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
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="lfdm-shards-") as folder:
        root = Path(folder)
        write_puppets(root / "puppets", num_subjects=10, num_takes=1, test_fraction=0, truth="none", num_workers=1)
        write_shards(root / "puppets", root / "shards", shard_mb=SHARD_MB, num_workers=1)
        for work in arguments.work:
            for factor in FACTORS[work]:
                shards = copy_shards(root / "shards", root / f"shards-{factor}", factor)
                command = [sys.executable, "-m", "benchmarks.shard_memory", "--measure", work, str(shards)]
                peaks = []
                for _ in range(arguments.rounds):
                    done = subprocess.run(command, check=True, capture_output=True, text=True)
                    peaks.append(round(json.loads(done.stdout.splitlines()[-1]), 1))
                sizes = [path.stat().st_size for path in shards.glob("*.arrow")]
                data = {"clips": 80 * factor, "shards": len(sizes), "stored_mb": round(sum(sizes) / 1e6, 1)}
                row = {"work": work, **data, "peak_mb": peaks}
                rows.append(row)
                print(row, flush=True)
    write_results(
        {"cpu": device_name(torch.device("cpu")), "shard_mb": SHARD_MB, "reads": READS, "steps": STEPS, "rows": rows},
        arguments.out,
    )


if __name__ == "__main__":
    main()
