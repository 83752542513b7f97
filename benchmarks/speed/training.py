"""Measure the throughput of both training stages, the waiting for the loader, and host synchronisations.

    python -m benchmarks.speed training                # both stages at 64x64 and 128x128
    python -m benchmarks.speed training --only diffusion --sizes mug128 --batch 4 --gradient-checkpointing

Uses the training loop itself on clips of noise, with cached motion, in bfloat16 if the device supports it. Adds figures to
`results/speed-<device>.json`.
"""

import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch.utils.data import DataLoader

from benchmarks.experiment.tables import RESULTS_DIR
from benchmarks.speed.measuring import device_name, synchronize
from benchmarks.speed.models import Models, benchmark_preset, random_clips, write_random_vgg19
from benchmarks.speed.records import Results, results_path
from lfdm.config.presets import Preset
from lfdm.config.training import with_num_steps
from lfdm.data.cache import ClipCache
from lfdm.training.encoded_clips import open_encoded_clips
from lfdm.training.loop import TrainingTask, _Trainer
from lfdm.training.stage1 import AutoencoderTask
from lfdm.training.stage2 import DiffusionTask

Stage = Literal["autoencoder", "diffusion"]
NUM_CLIPS = 32


@dataclass(kw_only=True)
class Options:
    """Options of the measurement."""

    only: tuple[Stage, ...] = ("autoencoder", "diffusion")
    """Stages to train."""
    sizes: tuple[str, ...] = ("flow64", "mug128")
    """Presets; `tiny` is a miniature for tests."""
    batch: int = 16
    """Clips or pairs per step."""
    steps: int = 8
    """Measured steps, after one that is not."""
    num_workers: int | None = None
    """Loader workers; those of the preset if omitted."""
    gradient_checkpointing: bool = False
    """Activation checkpointing in stage 2."""
    device: Literal["cuda", "cpu"] | None = None
    out: Path = RESULTS_DIR
    """Folder of the JSON file."""


@dataclass(frozen=True)
class Measured:
    """Seconds of the measured steps, seconds spent waiting for the loader, and host synchronisations."""

    seconds: float
    waiting: float
    synchronisations: int | None


class _TimedLoader:
    """A loader that records how long it is waited for, after its first batch."""

    def __init__(self, loader: Iterable[Any], device: torch.device) -> None:
        self.loader, self.device, self.waiting, self.start = loader, device, 0.0, 0.0

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.loader)
        yield next(batches)
        synchronize(self.device)
        self.start = time.perf_counter()
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self.waiting += time.perf_counter() - started
            if batch is None:
                return
            yield batch


class _MeasuredTrainer(_Trainer):
    """The training loop with a timed loader and without saving."""

    timed: _TimedLoader

    def _loader(self, stop: int) -> DataLoader[Any]:
        self.timed = _TimedLoader(super()._loader(stop), self.device)
        return self.timed  # pyright: ignore[reportReturnType] - the loop iterates over it, no more

    def _save(self) -> None:
        synchronize(self.device)
        self.end = time.perf_counter()

    def _report(self, log: Any) -> None:
        """Skip reading the losses, which waits for the device."""


def measure(task: TrainingTask, preset: Preset, stage: Stage, *, batch: int, steps: int, workers: int | None) -> Measured:
    """Train `steps` steps after a first one."""
    config = _training(preset, stage).optimization
    num_workers = config.num_workers if workers is None else workers
    config = replace(
        with_num_steps(config, steps + 1), batch_size=batch, last_batch="join", num_workers=num_workers, sample_steps=10**6,
        checkpoint_steps=10**6, checkpoint_minutes=1e6, mixed_precision="auto",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as out:
        trainer = _MeasuredTrainer(task, config, Path(out), None)
        synchronisations = _count_synchronisations(lambda: trainer.run(steps + 1), trainer.device)
    return Measured(trainer.end - trainer.timed.start, trainer.timed.waiting, synchronisations)


def _training(preset: Preset, stage: Stage) -> Any:
    return preset.autoencoder_training if stage == "autoencoder" else preset.diffusion_training


def _count_synchronisations(call: Callable[[], object], device: torch.device) -> int | None:
    """Count host synchronisations during `call` by torch's sync debug mode; None on a CPU."""
    if device.type != "cuda":
        call()
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def make_task(preset: Preset, stage: Stage, folder: Path, device: torch.device) -> TrainingTask:
    """Return a new task on clips of noise; stage 2 has its motion and first frames cached."""
    models = Models(preset, device, folder, dtype=torch.float32)
    clips: ClipCache = random_clips(folder / "training", preset, num_clips=NUM_CLIPS, label=models.label)
    if stage == "autoencoder":
        config = preset.autoencoder_training
        if config.perceptual_weights_path is not None:
            config = replace(config, perceptual_weights_path=str(write_random_vgg19(folder / "vgg19.pth")))
        return AutoencoderTask(models.pipeline.autoencoder.requires_grad_(True), config, clips)
    encoded = open_encoded_clips(models.pipeline.autoencoder.requires_grad_(False), clips, preset.diffusion_training)
    return DiffusionTask(models.pipeline, preset.diffusion_training, clips, encoded)


def run(options: Options) -> Path:
    """Measure, print and store; return the path of the results."""
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    path = results_path(device_name(device), options.out)
    results = Results.load(path) if path.exists() else Results(device=device_name(device))
    console = Console()
    for size in options.sizes:
        for stage in options.only:
            with tempfile.TemporaryDirectory() as folder:
                preset = benchmark_preset(size)
                training = replace(preset.diffusion_training, gradient_checkpointing=options.gradient_checkpointing)
                preset = replace(preset, diffusion_training=training)
                task = make_task(preset, stage, Path(folder), device)
                found = measure(task, preset, stage, batch=options.batch, steps=options.steps, workers=options.num_workers)
            entry = {
                "stage": stage,
                "preset": size,
                "image_size": preset.image_size,
                "batch": options.batch,
                "gradient_checkpointing": stage == "diffusion" and options.gradient_checkpointing,
                "steps": options.steps,
                "steps_per_second": options.steps / found.seconds,
                "share_waiting_for_loader": found.waiting / found.seconds,
                "synchronisations_per_step": None
                if found.synchronisations is None
                else found.synchronisations / (options.steps + 1),
            }
            others = [old for old in results.throughput if (old["stage"], old["preset"]) != (stage, size)]
            results.throughput = [*others, entry]
            results.save(path)
            waits = entry["synchronisations_per_step"]
            console.print(
                f"{stage} {size} batch {options.batch}: {entry['steps_per_second']:.3g} steps/s, "
                f"{entry['share_waiting_for_loader']:.1%} waiting for the loader, host synchronisations per step: "
                f"{'not applicable' if waits is None else f'{waits:.2f}'}",
                highlight=False,
                soft_wrap=True,
            )
    return path
