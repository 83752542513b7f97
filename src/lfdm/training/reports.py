"""Reports of a training to its caller: a summary at the start, then metrics."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

import torch
from accelerate import Accelerator
from torch import nn

from lfdm.config.training import OptimizationConfig
from lfdm.data.progress import NotedProgress, Progress
from lfdm.training.processes import samples_at_once


@dataclass(frozen=True)
class StepReport:
    """Progress of a training: mean metrics and steps per second since the last report."""

    step: int
    num_steps: int
    metrics: dict[str, float]
    steps_per_second: float


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


class Callbacks(TypedDict, total=False):
    """The callbacks that every training takes, for code that hands them on."""

    report: Callable[[StepReport], None] | None
    summary: Callable[[RunSummary], None] | None
    progress: Progress | None


def show_steps(bars: NotedProgress) -> Callable[[StepReport], None]:
    """Return the `report` callback that shows the steps, the loss and the speed of a training on `bars`."""

    def report(step: StepReport) -> None:
        loss = step.metrics.get("loss", float("nan"))
        bars("training", step.step, step.num_steps, note=f"loss {loss:.4f}, {step.steps_per_second:.2f} steps/s")

    return report


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
