"""How a training is described on the terminal."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lfdm.training.reports import RunSummary


def describe_run(summary: "RunSummary") -> str:
    """Return what is shown when a training starts or, once a few steps have run, its estimated time and memory."""
    if summary.seconds_left is not None:
        memory = "" if summary.peak_memory is None else f", {summary.peak_memory / 2**30:.1f} GiB of memory"
        return f"estimate      {duration(summary.seconds_left)} left{memory}"
    processes = f", {summary.num_processes} processes" if summary.num_processes > 1 else ""
    share = summary.batch_size // summary.num_processes
    micro = f", computed {summary.micro_batch_size} at once" if summary.micro_batch_size < share else ""
    done = f"; {summary.start_step:,} done" if summary.start_step else ""
    rows = {
        "device": f"{summary.device}, {summary.precision}{processes}",
        "parameters": f"{summary.trained_parameters:,} trained of {summary.parameters:,}",
        "clips": f"{summary.num_clips:,}",
        "steps": f"{summary.num_steps:,} of {summary.batch_size} samples{micro}{done}",
        "run folder": str(summary.out),
    }
    return "\n".join(f"{name:<14}{value}" for name, value in rows.items())


def duration(seconds: float) -> str:
    """Return a rounded duration.

    >>> duration(80), duration(3000), duration(40_000)
    ('80 s', '50 min', '11.1 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
