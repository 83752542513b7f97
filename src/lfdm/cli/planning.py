"""`lfdm train ... --plan`: what a training would take, and what is wrong with its clips."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from lfdm.cli.checking import print_check
from lfdm.cli.console import ProgressBars, Values, progress_bar
from lfdm.cli.run_summary import describe_run, duration
from lfdm.config.presets import Preset
from lfdm.config.sizes import SizeStage
from lfdm.errors import UserError

if TYPE_CHECKING:
    from lfdm.training.planning import TrainingPlan


def plan_stage1(config: Preset, data: str, out: Path, init: str | None, stages: Sequence[SizeStage]) -> Values:
    """Plan a training of stage 1; UserError for one that grows, whose sizes are planned one by one."""
    from lfdm.training.planning import plan_autoencoder

    if stages:
        raise UserError(f"--plan has no effect with --sizes; plan each size with --size, the last one being {stages[-1].size}")
    return _plan(lambda bars: plan_autoencoder(config, data, out, init=init, progress=bars), config, data)


def plan_stage2(config: Preset, data: str, autoencoder: str, out: Path, init: str | None) -> Values:
    """Plan a training of stage 2."""
    from lfdm.training.planning import plan_diffusion

    return _plan(lambda bars: plan_diffusion(config, data, autoencoder, out, init=init, progress=bars), config, data)


def _plan(measure: "Callable[[ProgressBars], TrainingPlan]", config: Preset, data: str) -> Values:
    from lfdm.data.checking.data_check import check_data

    with progress_bar() as bars:
        plan = measure(bars)
        checked = check_data(data, progress=bars)
    memory = "unknown" if plan.peak_memory is None else f"{plan.peak_memory / 2**30:.1f} GiB"
    print(describe_run(plan.summary))
    rows = {
        "frames": f"{config.num_frames} of {config.size}",
        "epochs": f"{plan.epochs:,.1f}",
        "time": f"{duration(plan.training_seconds)} of training at {plan.seconds_per_step:.2f} s a step, after "
        f"{duration(plan.preparation_seconds)} of preparing the clips",
        "memory": memory,
    }
    if plan.expected_accuracy is not None:
        rows["to expect"] = f"{plan.expected_accuracy:.0%} of actions recognised, if they are as hard as those of puppets"
    for name, value in rows.items():
        print(f"{name:<14}{value}")
    for warning in checked.warnings:
        print_check(warning)
    summary = {name: value for name, value in asdict(plan.summary).items() if name not in ("seconds_left", "peak_memory")}
    measured = {name: value for name, value in asdict(plan).items() if name != "summary"}
    times = {"training_seconds": plan.training_seconds}
    return {**summary, **measured, **times, "warnings": [asdict(warning) for warning in checked.warnings]}
