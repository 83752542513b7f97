"""Measure how cost and memory grow with the image's size, from flow64 to flow512.

    python -m benchmarks.speed scaling        # about five minutes of one core

All sizes are measured in turns, in seconds of processor time of one thread, which other processes disturb less than the
clock. Writes `results/scaling-<device>.json`.
"""

import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.experiment.tables import RESULTS_DIR, write_results
from benchmarks.speed.measuring import device_name, measure_memory
from benchmarks.speed.models import Models, benchmark_preset
from benchmarks.speed.records import results_path
from benchmarks.speed.scaling_table import OPERATIONS, PREFIX, render
from benchmarks.speed.workloads import TrainingStep
from lfdm.folders.model_folder import read_json
from lfdm.training.batches import BatchRandomness
from lfdm.training.stage1 import AutoencoderTask
from lfdm.training.stage2 import ConditionedUNet, DiffusionTask

PAIRS = 2
"""Pairs of a stage-1 step: one is rebuilt from each of the two motions."""
FRAMES = 4
"""Frames of a clip whose motion is estimated or that is decoded."""

Calls = Mapping[str, Callable[[], object]]


@dataclass(kw_only=True)
class Options:
    """Options of the measurement."""

    presets: tuple[str, ...] = ("flow64", "flow128", "flow256", "flow512")
    """Presets, the reference first."""
    only: tuple[str, ...] = tuple(OPERATIONS)
    """Operations to measure; stored results of the others stay."""
    repeats: int = 3
    """Runs to time, and as many to measure memory, after one to warm up; medians count."""
    out: Path = RESULTS_DIR
    """Folder of the JSON file."""


def run(options: Options) -> Path:
    """Measure, print and store; return the path of the results."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    device = torch.device("cpu")
    try:
        with tempfile.TemporaryDirectory() as folder:
            rows = _measure(options, device, Path(folder))
        name = device_name(device)
    finally:
        torch.set_num_threads(threads)
    path = results_path(name, options.out)
    path = path.with_name(path.name.replace("speed-", PREFIX))
    if path.exists():
        rows = [row for row in read_json(path)["rows"] if row["operation"] not in options.only] + rows
    write_results({"device": name, "torch": torch.__version__, "rows": rows}, path)
    Console().print(render(options.out), highlight=False, markup=False)
    return path


def _measure(options: Options, device: torch.device, folder: Path) -> list[dict[str, Any]]:
    rows, calls = [], {}
    for name in options.presets:
        preset = benchmark_preset(name)
        models = Models(preset, device, folder / name, dtype=torch.float32)
        for operation, call in _calls(models).items():
            if operation in options.only:
                call()  # loads kernels
                count = {"stage1_step": PAIRS, "stage2_step": 1}.get(operation, FRAMES)
                rows.append({"preset": name, "size": min(preset.size), "operation": operation, "count": count, "seconds": []})
                calls[name, operation] = call
    peaks: list[list[int]] = [[] for _ in rows]
    for _ in range(options.repeats):
        for row, peak in zip(rows, peaks, strict=True):
            call = calls[row["preset"], row["operation"]]
            with measure_memory(device) as memory:
                call()
            peak.append(memory.bytes or 0)
            started = time.process_time()
            call()
            row["seconds"].append(time.process_time() - started)
    return [row | {"peak_bytes": statistics.median(peak)} for row, peak in zip(rows, peaks, strict=True)]


def _calls(models: Models) -> Calls:
    """Return the calls by operation."""
    preset, pipeline = models.preset, models.pipeline
    autoencoder, config = pipeline.autoencoder.eval(), preset.autoencoder_training
    videos = models.videos(PAIRS)[:, :, :FRAMES]
    video, pixels = videos[:1], (255 * videos).byte()
    with torch.no_grad():
        features = autoencoder.encode(video[:, :, 0])
        motion = autoencoder.estimate_motion(video[:, :, 0], video)
    pairs = {"source": pixels[:, :, 0], "driving": pixels[:, :, 1]}
    stage1 = AutoencoderTask(copy.deepcopy(autoencoder), config, models.clips)
    stored = {"latent": features.latent.half(), "motion": models.samples(1).half()}
    cached = {**stored, "label": torch.zeros(1, dtype=torch.long)}
    stage2 = DiffusionTask(pipeline, preset.diffusion_training, models.clips, None)
    stage2.module = ConditionedUNet(copy.deepcopy(pipeline.unet), pipeline.condition)

    def randomness(count: int) -> BatchRandomness:
        return BatchRandomness.of_whole_batch(torch.Generator().manual_seed(0), count)

    def inference(call: Callable[[], object]) -> Callable[[], object]:
        return torch.no_grad()(call)

    return {
        "stage1_step": TrainingStep(
            stage1.module, lambda module: stage1.loss(module, pairs, randomness(PAIRS))["loss"], config.optimization, models
        ),
        "motion": inference(lambda: autoencoder.estimate_motion(video[:, :, 0], video, refine=True)),
        "decode": inference(lambda: autoencoder.decode(features, motion)),
        "stage2_step": TrainingStep(
            stage2.module,
            lambda module: stage2.loss(module, cached, randomness(1))["loss"],
            preset.diffusion_training.optimization,
            models,
        ),
    }
