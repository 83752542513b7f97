"""Reports of a training to its caller: a summary at the start, then metrics; and bars that show them in a notebook."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from accelerate import Accelerator
from torch import nn

from lfdm.config.training import OptimizationConfig
from lfdm.training.processes import samples_at_once

if TYPE_CHECKING:
    from tqdm import tqdm


@dataclass(frozen=True)
class StepReport:
    """Progress of a training: mean metrics and steps per second since the last report."""

    step: int
    num_steps: int
    metrics: dict[str, float]
    steps_per_second: float


class TqdmBars:
    """Bars of tqdm, which suit notebooks and terminals: `progress=bars` for any work, `report=bars.step` for a training."""

    def __init__(self) -> None:
        self._bars: dict[str, tqdm[Any]] = {}

    def __call__(self, work: str, done: int, total: int, /, *, note: str = "") -> None:
        """Show the state of a work on the bar of its name, with a note behind it."""
        from tqdm.auto import tqdm

        if work not in self._bars:
            self._bars[work] = tqdm(desc=work, total=total)
        bar = self._bars[work]
        bar.total = total
        bar.set_postfix_str(note, refresh=False)
        bar.update(done - bar.n)
        if done >= total:
            self._bars.pop(work).close()

    def step(self, report: StepReport) -> None:
        """Show the steps and the loss of a training."""
        self("training", report.step, report.num_steps, note=f"loss {report.metrics.get('loss', float('nan')):.4f}")


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """A training that is about to start and, once a few steps have run, its estimated time and memory."""

    out: Path
    """Run folder."""
    device: str
    """For example `cpu`, or `cuda:0 (NVIDIA H200)`."""
    precision: Literal["float32", "bfloat16"]
    """Precision of forward and backward passes."""
    num_processes: int
    """Processes that share every batch."""
    trained_parameters: int
    """Parameters that are trained,"""
    parameters: int
    """out of all parameters of the module."""
    num_clips: int
    """Training clips."""
    batch_size: int
    """Samples per step, over all processes."""
    micro_batch_size: int
    """Samples that a process computes at once."""
    num_steps: int
    """Steps of the whole run."""
    start_step: int
    """Steps that a resumed run has already done."""
    seconds_left: float | None = None
    """Estimated time to the end; None before the first steps."""
    peak_memory: int | None = None
    """Bytes used at most: of the GPU where there is one, otherwise of this process. None before the first steps."""


def summarize(
    module: nn.Module,
    config: OptimizationConfig,
    out: Path,
    accelerator: Accelerator,
    *,
    num_clips: int,
    start_step: int,
    bf16: bool,
) -> RunSummary:
    """Summarize a training that is about to start; `module` is what it trains."""
    device = str(accelerator.device)
    if accelerator.device.type == "cuda":
        device += f" ({torch.cuda.get_device_name(accelerator.device)})"
    return RunSummary(
        out=out,
        device=device,
        precision="bfloat16" if bf16 else "float32",
        num_processes=accelerator.num_processes,
        trained_parameters=sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        num_clips=num_clips,
        batch_size=config.batch_size,
        micro_batch_size=samples_at_once(config, accelerator),
        num_steps=config.num_steps,
        start_step=start_step,
    )
