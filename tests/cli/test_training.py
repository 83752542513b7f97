"""The terminal output of trainings."""

from dataclasses import replace
from pathlib import Path

import pytest

from lfdm.cli.console import progress_bar
from lfdm.cli.training import _callbacks
from lfdm.data.index import ClipRecord, write_index
from lfdm.training.reports import RunSummary


def test_without_a_terminal_progress_is_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 1.0, 40.0, 40.0, 41.0, 42.0, 42.0])
    monkeypatch.setattr("lfdm.cli.console.time.monotonic", lambda: next(times))
    with progress_bar() as bars:
        for done in (1, 20, 30, 100):
            bars("training", done, 100, note=f"loss {1 / done:.2f}")
    assert capsys.readouterr().err.splitlines() == ["training 20/100 loss 0.05", "training 100/100 loss 0.01"]


def test_labels_without_training_clips_are_named_at_the_start(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    wave = ClipRecord(path="a", label="wave", subject="ann", split="train", frames=2, fps=8, width=8, height=8)
    jump = replace(wave, path="b", label="jump", subject="bob", split="test")
    write_index(tmp_path, [wave, jump])
    summary = RunSummary(
        out=tmp_path,
        device="cpu",
        precision="float32",
        num_processes=1,
        trained_parameters=1,
        parameters=1,
        num_clips=1,
        batch_size=1,
        micro_batch_size=1,
        num_steps=1,
        start_step=0,
    )
    with progress_bar() as bars:
        _callbacks(bars, tmp_path)["summary"](summary)
        _callbacks(bars)["summary"](summary)
    printed = capsys.readouterr().err
    assert printed.count("warning: labels without training clips, which a model cannot learn: jump") == 1
