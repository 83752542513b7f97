"""Bars in a notebook."""

import pytest

from lfdm.data.progress import TqdmBars
from lfdm.training.reports import StepReport, show_steps


def test_every_work_has_a_bar_until_it_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    bars = TqdmBars()
    bars("decoding clips", 1, 2)
    show_steps(bars)(StepReport(step=5, num_steps=5, metrics={"loss": 0.25}, steps_per_second=1.0))
    bars("decoding clips", 2, 2)
    bars("decoding clips", 3, 3)  # a second work of this name
    shown = capsys.readouterr().err
    assert "decoding clips: 100%" in shown
    assert "2/2" in shown
    assert "3/3" in shown
    assert "training: 100%" in shown
    assert "loss 0.2500" in shown
