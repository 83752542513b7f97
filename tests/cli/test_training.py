"""The terminal output of trainings."""

from dataclasses import replace
from pathlib import Path

import pytest

from lfdm.cli.console import progress_bar
from lfdm.cli.training import _callbacks
from lfdm.data.index import ClipRecord, write_index
from lfdm.training.reports import RunSummary


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
