"""Many small clips: processor time of `lfdm data folder`, all of it and the first process', and memory by their number.

    python -m benchmarks.ingest --out benchmarks/results/ingest.json

Processor time does not depend on what else a machine does. What the first process does for each clip is not shared out among
the others, so that it bounds the clips a second of any number of cores.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.experiment.tables import RESULTS_DIR
from benchmarks.speed.measuring import device_name
from lfdm.data.video import write_video

FRAMES, SIDE, FPS = 16, 64, 8
DISTINCT = 50
"""Clips that are encoded; the others are links to them."""
LABELS = 10


def write_tree(root: Path, num_clips: int) -> None:
    """Write `num_clips` mp4 files of moving squares, in folders of labels."""
    rng = np.random.default_rng(0)
    for number in range(num_clips):
        path = root / f"label{number % LABELS}" / f"{number:06d}.mp4"
        if number < DISTINCT:
            frames = np.full((FRAMES, SIDE, SIDE, 3), rng.integers(0, 128, 3), np.uint8)
            for index, frame in enumerate(frames):
                x, y = rng.integers(0, SIDE // 2, 2)
                frame[y : y + 16, (x + index) % SIDE :][:, :16] = rng.integers(128, 256, 3)
            write_video(path, frames, fps=FPS)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(root / f"label{number % DISTINCT % LABELS}" / f"{number % DISTINCT:06d}.mp4", path)


def convert(tree: Path, out: Path, num_workers: int) -> dict[str, float]:
    """Convert a tree in a process of its own; return its time, its and its workers' processor time, and its own peak memory.

    `first_seconds` is the processor time of the first process, without its start and imports.
    """
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from lfdm.data.corpora.folder import write_folder\n"
        "started = time.process_time()\n"
        "write_folder(sys.argv[1], sys.argv[2], size=64, num_workers=int(sys.argv[3]))\n"
        "status = Path('/proc/self/status').read_text()\n"
        "print(status.split('VmHWM:')[1].split()[0], time.process_time() - started)\n"
    )
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    command = [sys.executable, "-c", code, str(tree), str(out), str(num_workers)]
    peak, first = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    seconds, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    core_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    times = {"seconds": seconds, "core_seconds": core_seconds, "first_seconds": float(first)}
    return {name: round(value, 1) for name, value in {**times, "peak_mb": int(peak) / 1024}.items()}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, nargs="+", default=[2000, 20000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS_DIR / "ingest.json")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for num_clips in arguments.clips:
        with tempfile.TemporaryDirectory(prefix="lfdm-ingest-") as folder:
            write_tree(Path(folder) / "tree", num_clips)
            for workers in arguments.workers:
                measured = convert(Path(folder) / "tree", Path(folder) / f"set-{workers}", workers)
                measured["clips_per_core_second"] = round(num_clips / measured["core_seconds"], 1)
                rows.append({"clips": num_clips, "processes": workers, **measured})
                print(rows[-1], flush=True)
    result = {"cpu": device_name(torch.device("cpu")), "clip": f"mp4, {FRAMES} frames of {SIDE}x{SIDE}", "rows": rows}
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
