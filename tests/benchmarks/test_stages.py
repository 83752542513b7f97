"""Stages, budgets and clocks."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.experiment.budget import TrainingClock, steps_within
from benchmarks.experiment.stages import LeftOutError, Stage, StageFolder
from lfdm.errors import UserError
from lfdm.folders.run_folder import CHECKPOINTS_DIR, STATE_NAME
from lfdm.training.reports import StepReport


class Work:
    """Stages that record when they run."""

    def __init__(self, tmp_path: Path) -> None:
        self.ran: list[str] = []
        self.folder = StageFolder(tmp_path)
        self.broken = ""

    def stage(self, name: str, *needs: str, group: str = "") -> Stage:
        def run() -> dict[str, Any]:
            if name == self.broken:
                raise KeyboardInterrupt
            self.ran.append(name)
            return {"name": name}

        return Stage(name, run, needs, group)


def test_stages_run_once_and_resume(tmp_path: Path) -> None:
    work = Work(tmp_path)
    stages = [work.stage("a"), work.stage("b", "a"), work.stage("c", "b")]
    work.broken = "b"
    with pytest.raises(KeyboardInterrupt):
        work.folder.run(stages, say=lambda _: None)
    work.broken = ""
    work.folder.run(stages, say=lambda _: None)
    assert work.ran == ["a", "b", "c"]
    assert work.folder.result("b") == {"name": "b"}


def test_only_some_stages_run_and_their_needs_are_checked(tmp_path: Path) -> None:
    work = Work(tmp_path)
    stages = [work.stage("a"), work.stage("b", "a", group="late"), work.stage("c", group="late")]
    with pytest.raises(UserError, match="'b' needs a"):
        work.folder.run(stages, ["late"], say=lambda _: None)
    work.folder.run(stages, ["a"], say=lambda _: None)
    work.folder.run(stages, ["late"], say=lambda _: None)
    assert work.ran == ["a", "b", "c"]
    with pytest.raises(UserError, match=r"unknown stages \['d'\]; known: a, b, c, late"):
        work.folder.run(stages, ["d"], say=lambda _: None)
    with pytest.raises(UserError, match="not finished"):
        work.folder.result("d")


def test_stages_that_need_a_skipped_stage_are_skipped(tmp_path: Path) -> None:
    work = Work(tmp_path)

    def refuse() -> dict[str, Any]:
        raise LeftOutError("no package")

    stages = [Stage("a", refuse), work.stage("b", "a"), work.stage("c")]
    assert work.folder.run(stages, say=lambda _: None) == {"a": "no package", "b": "no package"}
    assert work.ran == ["c"]
    assert not work.folder.done("a")


def test_steps_within_a_budget() -> None:
    assert steps_within(10.0, 3.0, what="vdm") == 3
    with pytest.raises(UserError, match="vdm"):
        steps_within(2.0, 3.0, what="vdm")


def test_the_clock_drops_lost_steps(tmp_path: Path) -> None:
    run = tmp_path / "run"
    clock = TrainingClock(run)
    for step in (10, 20, 30):
        clock(StepReport(step, 100, {}, 1.0))
    seconds = dict(clock.marks)
    checkpoint = run / CHECKPOINTS_DIR / "step-00000020"
    checkpoint.mkdir(parents=True)
    (checkpoint / STATE_NAME).write_text('{"step": 20}')
    again = TrainingClock(run)
    assert again.seconds == seconds[20]
    again(StepReport(30, 100, {}, 1.0))
    assert [mark[0] for mark in again.marks] == [10, 20, 30]
    assert again.seconds >= seconds[20]
