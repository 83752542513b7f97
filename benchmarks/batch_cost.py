"""Cost of many videos: processor time of `lfdm batch` for a video, on one core.

python -m benchmarks.batch_cost --out benchmarks/results/batch-cost.json
"""

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from lfdm.distributed.requests import VideoRequest
from lfdm.distributed.worker import BatchSettings, VideoWorker
from lfdm.folders.sources import bundled_images

MODELS = ("puppets64",)
BATCH = 8
BATCHES = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/batch-cost.json"))
    out = parser.parse_args().out
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for model in MODELS:
        images = bundled_images(model)
        with tempfile.TemporaryDirectory(prefix="lfdm-cost-") as folder:
            started = time.process_time()
            worker = VideoWorker(BatchSettings(model=model, out=folder, batch_size=BATCH), "cpu")
            loading = time.process_time() - started
            seconds = []
            for number in range(1 + BATCHES):  # the first one warms up
                batch = [
                    VideoRequest(image=str(images[i % len(images)]), condition="wave", seed=number * BATCH + i)
                    for i in range(BATCH)
                ]
                started = time.process_time()
                results = worker.make(batch, [one.key for one in batch])
                seconds.append((time.process_time() - started) / BATCH)
                assert all(result.file for result in results), results
        cost = sum(seconds[1:]) / BATCHES
        rows.append({"model": model, "core_seconds_per_video": round(cost, 3), "videos_per_core_hour": round(3600 / cost)})
        rows[-1] |= {"loading_core_seconds": round(loading, 2), "batch_size": BATCH, "videos": BATCH * BATCHES}
        print(rows[-1], flush=True)
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ""
    )
    out.write_text(json.dumps({"cpu": cpu or platform.machine(), "torch": torch.__version__, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
