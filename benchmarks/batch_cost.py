"""Cost of many videos: processor time of `lfdm batch` for a video of the bundled model, on one core.

python -m benchmarks.batch_cost --out benchmarks/results/batch-cost.json
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.experiment.tables import RESULTS_DIR, write_results
from benchmarks.speed.measuring import device_name
from lfdm.distributed.requests import VideoRequest
from lfdm.distributed.worker import BatchSettings, VideoWorker
from lfdm.folders.sources import bundled_images

MODEL = "puppets64"
BATCH_SIZES = (1, 8)
VIDEOS = 24
"""Videos that are measured, after one batch that warms up."""


def core_seconds(action: Callable[[], Any]) -> tuple[float, Any]:
    """Return the processor time of `action`, which other work of the machine changes little, and its result."""
    started = time.process_time()
    result = action()
    return time.process_time() - started, result


def measure(batch_size: int, folder: str) -> dict[str, float | int]:
    """Make videos, which are written as mp4 files."""
    settings, images = BatchSettings(model=MODEL, out=folder, batch_size=batch_size), bundled_images(MODEL)
    loading, worker = core_seconds(lambda: VideoWorker(settings, "cpu"))
    total = 0.0
    for number in range(1 + VIDEOS // batch_size):
        seeds = range(number * batch_size, (number + 1) * batch_size)
        batch = [VideoRequest(image=str(images[seed % len(images)]), condition="wave", seed=seed) for seed in seeds]
        seconds, results = core_seconds(lambda batch=batch: worker.make(batch, [request.key for request in batch]))
        assert all(result.file for result in results), results
        total += seconds if number else 0.0
    cost = total / VIDEOS
    figures = {"core_seconds_per_video": round(cost, 3), "videos_per_core_hour": round(3600 / cost)}
    return {"batch_size": batch_size, "videos": VIDEOS, "loading_core_seconds": round(loading, 2), **figures}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS_DIR / "batch-cost.json")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="lfdm-cost-") as folder:
        rows = [measure(batch_size, folder) for batch_size in BATCH_SIZES]
        config = VideoWorker(BatchSettings(model=MODEL, out=folder), "cpu").pipe.config
    made = {"model": MODEL, "num_inference_steps": config["num_inference_steps"], "num_frames": config["num_frames"]}
    write_results({"cpu": device_name(torch.device("cpu")), "torch": torch.__version__, **made, "rows": rows}, out)
    print(out.read_text())


if __name__ == "__main__":
    main()
