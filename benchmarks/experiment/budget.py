"""Equal training time: measure steps, fit them into a budget, and record the time a training took.

Time is processor time on a CPU, so that other jobs on the machine do not count, and wall time with a GPU.
"""

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch

from lfdm.config.training import OptimizationConfig, with_num_steps
from lfdm.errors import UserError
from lfdm.folders.files import write_bytes
from lfdm.folders.model_folder import read_json
from lfdm.folders.run_folder import STATE_NAME, find_checkpoints
from lfdm.training.loop import TrainingTask, train
from lfdm.training.reports import StepReport

NEVER = 10**9
"""Step interval that a short trial never reaches."""


def clock() -> float:
    """Return seconds of processor time of this process, or of wall time with a GPU."""
    return time.monotonic() if torch.cuda.is_available() else time.process_time()


@dataclass(frozen=True)
class Trial:
    """A training to be timed."""

    name: str
    task: TrainingTask
    optimization: OptimizationConfig


def measure_steps(trials: Sequence[Trial], *, num_steps: int = 3, num_rounds: int = 5) -> dict[str, float]:
    """Return the median seconds of a complete training step of each trial; trials take turns.

    The first step of every round is not counted.
    """
    seconds: dict[str, list[float]] = {trial.name: [] for trial in trials}
    for _ in range(num_rounds):
        for trial in trials:
            seconds[trial.name] += _time_steps(trial, num_steps)
    return {name: median(values) for name, values in seconds.items()}


def _time_steps(trial: Trial, num_steps: int) -> list[float]:
    times: list[float] = []
    config = replace(
        with_num_steps(trial.optimization, num_steps + 1),
        log_steps=1,
        checkpoint_steps=NEVER,
        checkpoint_minutes=float(NEVER),
        sample_steps=NEVER,
    )
    with tempfile.TemporaryDirectory() as folder:
        train(trial.task, config, Path(folder), report=lambda _: times.append(clock()))
    return [after - before for before, after in pairwise(times)]


def steps_within(seconds: float, step_seconds: float, *, what: str) -> int:
    """Return the number of steps that fit into `seconds`; UserError if none does."""
    steps = int(seconds // step_seconds)
    if steps < 1:
        raise UserError(f"the budget leaves {seconds:.0f} s to {what}, whose step takes {step_seconds:.1f} s; give more minutes")
    return steps


class TrainingClock:
    """A `report` of `train` that records training time over all sessions of a run.

    Steps that were lost and repeated after a stop count once. The record lies next to the run folder `run`.
    """

    def __init__(self, run: Path) -> None:
        self.path = run.with_name(f"{run.name}.clock.json")
        checkpoints = find_checkpoints(run)
        step = int(read_json(checkpoints[-1] / STATE_NAME)["step"]) if checkpoints else 0
        stored = json.loads(self.path.read_text()) if self.path.exists() else []
        self.marks: list[tuple[int, float]] = [(int(at), float(seconds)) for at, seconds in stored if at <= step]
        """(step, seconds up to that step)."""
        self._before = self.seconds
        self._started = clock()

    @property
    def seconds(self) -> float:
        """Seconds up to the last report."""
        return self.marks[-1][1] if self.marks else 0.0

    def __call__(self, report: StepReport) -> None:
        self.marks.append((report.step, round(self._before + clock() - self._started, 2)))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(self.path, json.dumps(self.marks).encode())
