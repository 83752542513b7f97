"""A dry run: how long a training takes and how much memory, measured by a few of its steps; nothing is kept."""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lfdm.config.presets import Preset
from lfdm.config.training import AutoencoderTrainingConfig, DiffusionTrainingConfig
from lfdm.data.index import link_clips, read_index
from lfdm.data.progress import Progress
from lfdm.data.shard_file import SHARD_LIST_NAME
from lfdm.errors import UserError
from lfdm.folders.files import expand_home
from lfdm.folders.remote import StoredFolder
from lfdm.folders.run_folder import find_checkpoints
from lfdm.training.expectation import expected_accuracy
from lfdm.training.processes import process_state
from lfdm.training.reports import RunSummary, StepReport
from lfdm.training.stage1 import train_autoencoder
from lfdm.training.stage2 import train_diffusion

MEASURED_STEPS = 6
"""Steps that are run; the first, which is slower, does not count."""
MEASURED_CLIPS = 8
"""Most clips that are decoded and encoded to measure the preparation."""
NEVER = 10**9


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """Estimated time and memory of a training on this device."""

    summary: RunSummary
    """Device, precision, parameters, clips and steps of the run."""
    epochs: float
    """How often each clip is seen."""
    seconds_per_step: float
    """Median of the measured steps."""
    preparation_seconds: float
    """Time to decode and encode all clips, which happens once for a data set and stage 1."""
    peak_memory: int | None
    """Bytes used at most, see `RunSummary`."""
    expected_accuracy: float | None = None
    """Expected share of generated actions that are recognised, see `lfdm.training.expectation`."""

    @property
    def training_seconds(self) -> float:
        """Time of the steps that are left."""
        return self.seconds_per_step * max(self.summary.num_steps - self.summary.start_step, 0)


def plan_autoencoder(
    preset: Preset, data: str | Path, out: Path, *, init: str | Path | None = None, progress: Progress | None = None
) -> TrainingPlan:
    """Measure `train_autoencoder` of the same arguments by `MEASURED_STEPS`; nothing is written outside a temporary folder.

    Raises as `train_autoencoder` does, and UserError for several processes.
    """
    training = preset.autoencoder_training
    measured = replace(preset, autoencoder_training=_without_files(training))
    return _measure(partial(train_autoencoder, measured, init=init), preset.name, training, data, out, progress)


def plan_diffusion(
    preset: Preset,
    data: str | Path,
    autoencoder: str | Path,
    out: Path,
    *,
    init: str | Path | None = None,
    progress: Progress | None = None,
) -> TrainingPlan:
    """Measure `train_diffusion` of the same arguments by `MEASURED_STEPS`; nothing is written outside a temporary folder.

    Raises as `train_diffusion` does, and UserError for several processes.
    """
    training = preset.diffusion_training
    measured = replace(preset, diffusion_training=_without_files(training))
    run = partial(train_diffusion, measured, autoencoder=autoencoder, init=init)
    plan = _measure(run, preset.name, training, data, out, progress)
    return replace(plan, expected_accuracy=expected_accuracy(read_index(_clip_data_set(data))))


def _without_files(training: Any) -> Any:
    """Return the settings of a training that reports every step, and draws and stores nothing on its way."""
    rare = {"log_steps": 1, "sample_steps": NEVER, "checkpoint_steps": NEVER, "checkpoint_minutes": 1e6}
    return replace(training, optimization=replace(training.optimization, **rare))


def _measure(
    run: Callable[..., Path],
    name: str,
    training: AutoencoderTrainingConfig | DiffusionTrainingConfig,
    data: str | Path,
    out: Path,
    progress: Progress | None,
) -> TrainingPlan:
    if process_state().num_processes > 1:
        raise UserError(f"a plan of {name} is measured by one process; got {process_state().num_processes}")
    data = _clip_data_set(data)
    records = [record for record in read_index(data) if record.split == "train"]
    if not records:
        raise UserError(f"{data} has no training clips (split 'train')")
    chosen = records[:: -(-len(records) // MEASURED_CLIPS)]
    watch, summaries, seconds = _Stopwatch(progress), list[RunSummary](), list[float]()

    def report(step: StepReport) -> None:
        seconds.append(1 / step.steps_per_second)
        if progress is not None:
            progress("measuring steps", step.step, MEASURED_STEPS)

    with tempfile.TemporaryDirectory(prefix="lfdm-plan-") as temporary:
        folder = Path(temporary)
        link_clips(data, folder / "data", chosen)
        places = {"data": folder / "data", "out": folder / "run", "cache_dir": folder / "cache"}
        run(**places, report=report, summary=summaries.append, progress=watch, stop_after=MEASURED_STEPS)
    optimization = training.optimization
    done = max((int(path.name.rpartition("-")[2]) for path in find_checkpoints(expand_home(out))), default=0)
    return TrainingPlan(
        summary=replace(summaries[0], out=out, num_clips=len(records), num_steps=optimization.num_steps, start_step=done),
        epochs=optimization.num_steps * optimization.batch_size / len(records),
        seconds_per_step=statistics.median(seconds[1:] or seconds),
        preparation_seconds=watch.seconds_per_item() * len(records),
        peak_memory=summaries[-1].peak_memory,
    )


def _clip_data_set(data: str | Path) -> Path:
    """Return the folder of a clip data set; UserError for shards, whose clips cannot be read one by one."""
    folder = StoredFolder(str(data)).local
    if folder is None or (folder / SHARD_LIST_NAME).is_file():
        raise UserError(f"a plan needs a clip data set, such as the one that the shards were made of; got {data}")
    return folder


class _Stopwatch:
    """A `Progress` that times each work by its items after the first."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress
        self.begun: dict[str, float] = {}
        self.per_item: dict[str, float] = {}

    def __call__(self, work: str, done: int, total: int, /) -> None:
        now = time.monotonic()
        start = self.begun.setdefault(work, now)
        if done > 1:
            self.per_item[work] = (now - start) / (done - 1)
        if self.progress is not None:
            self.progress(work, done, total)

    def seconds_per_item(self) -> float:
        """Return the time of one item in all works together; 0 where none had two items."""
        return sum(self.per_item.values())
