"""Equal time for unequal methods: what a training step costs, how many fit into a budget, how long a training really took.

The clock is processor time where training runs on the CPU, so that other work on the machine takes nothing from anybody, and wall
time where there is a GPU.
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
"""Steps between things that a short trial does without."""


def clock() -> float:
    """Seconds of processor time of this process, or of wall time where there is a GPU."""
    return time.monotonic() if torch.cuda.is_available() else time.process_time()


@dataclass(frozen=True)
class Trial:
    """A training whose steps are to be timed."""

    name: str
    task: TrainingTask
    optimization: OptimizationConfig


def measure_steps(trials: Sequence[Trial], *, num_steps: int = 3, num_rounds: int = 5) -> dict[str, float]:
    """Seconds of a step of each trial, loading, averaging of weights and all: medians over rounds in which they take turns.

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
    """Whole steps that fit into a budget; UserError where not one does."""
    steps = int(seconds // step_seconds)
    if steps < 1:
        raise UserError(f"the budget leaves {seconds:.0f} s to {what}, whose step takes {step_seconds:.1f} s; give more minutes")
    return steps


class TrainingClock:
    """The time that a training has taken so far, over all its sessions, as a `report` of `train`.

    Steps that were lost when a session was stopped, and are done again, count once.

    Args:
        run: the run folder, where the clock is kept, too.
    """

    def __init__(self, run: Path) -> None:
        self.path = run.with_name(f"{run.name}.clock.json")
        checkpoints = find_checkpoints(run)
        step = int(read_json(checkpoints[-1] / STATE_NAME)["step"]) if checkpoints else 0
        stored = json.loads(self.path.read_text()) if self.path.exists() else []
        self.marks: list[tuple[int, float]] = [(int(at), float(seconds)) for at, seconds in stored if at <= step]
        """Steps and the seconds until then."""
        self._before = self.seconds
        self._started = clock()

    @property
    def seconds(self) -> float:
        """Up to the last report."""
        return self.marks[-1][1] if self.marks else 0.0

    def __call__(self, report: StepReport) -> None:
        self.marks.append((report.step, round(self._before + clock() - self._started, 2)))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(self.path, json.dumps(self.marks).encode())
