"""The terminal output of trainings."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lfdm.cli.console import progress_bar
from lfdm.cli.training import PresetOptions, _show_summary, _with_size
from lfdm.config.presets import FLOW64, MUG128, Preset
from lfdm.data.index import ClipRecord, write_index
from lfdm.errors import UserError
from lfdm.training.reports import RunSummary
from tests.command_line import Lfdm


def test_without_a_terminal_progress_is_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 1.0, 40.0, 40.0, 41.0, 42.0, 42.0])
    monkeypatch.setattr("lfdm.cli.console.time.monotonic", lambda: next(times))
    with progress_bar() as bars:
        for done in (1, 20, 30, 100):
            bars("training", done, 100, note=f"loss {1 / done:.2f}")
    assert capsys.readouterr().err.splitlines() == ["training 20/100 loss 0.05", "training 100/100 loss 0.01"]


def clips_of(folder: Path, *sizes: tuple[int, int]) -> str:
    record = ClipRecord(path="a", label="wave", subject="ann", split="train", frames=2, fps=8, width=8, height=8)
    write_index(folder, [replace(record, path=f"{i}", height=h, width=w) for i, (h, w) in enumerate(sizes)])
    return str(folder)


@pytest.mark.parametrize(
    ("preset", "clips", "size"),
    [
        (FLOW64, [(112, 64)] * 2, (112, 64)),
        (FLOW64, [(128, 224), (720, 1280)], (64, 112)),
        (FLOW64, [(128, 128)], (64, 64)),
        (MUG128, [(112, 64)], (128, 128)),
    ],
)
def test_the_clips_shape_is_trained_at_the_presets_short_side(
    tmp_path: Path, preset: Preset, clips: list[tuple[int, int]], size: tuple[int, int]
) -> None:
    """A preset whose networks cannot have the shape keeps its own."""
    data = clips_of(tmp_path, *clips)
    options = PresetOptions.of(preset)
    assert _with_size(options, data, None).size == size
    assert _with_size(options, data, preset.image_size) == preset
    assert _with_size(PresetOptions.of(FLOW64), data, (32, 48)).size == (32, 48)


def test_settings_are_checked_with_the_size_that_is_given(tmp_path: Path) -> None:
    """At the preset's own size these networks would have too small a grid."""
    deep = replace(PresetOptions.of(FLOW64), autoencoder=replace(FLOW64.autoencoder, num_downs=4))
    data = clips_of(tmp_path, (128, 128))
    assert _with_size(deep, data, 128).size == (128, 128)
    with pytest.raises(UserError, match=r"^image_size must be .*at least 128.*got 64$"):
        _with_size(deep, data, None)


def test_clips_of_several_shapes_and_two_sizes_are_refused(tmp_path: Path) -> None:
    data = clips_of(tmp_path, (64, 112), (64, 64), (64, 64))
    with pytest.raises(UserError, match=r"^size must be given .*got None for clips of 64x64 \(2 clips\), 112x64 \(1 clips\)$"):
        _with_size(PresetOptions.of(FLOW64), data, None)
    assert _with_size(PresetOptions.of(FLOW64), data, 64).size == (64, 64)


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
        _show_summary(bars, str(tmp_path))(summary)
        _show_summary(bars)(summary)
    printed = capsys.readouterr().err
    assert printed.count("warning: labels without training clips, which a model cannot learn: jump") == 1


def test_a_plan_prints_steps_time_memory_and_warnings(lfdm: Lfdm, puppets_dir: Path) -> None:
    options = ["--data", puppets_dir, "--out", "run", "--plan", "--size", 32]
    small = ["--autoencoder-training.optimization.batch-size", 1, "--autoencoder-training.optimization.num-steps", 200]
    code, printed, err = lfdm("train", "autoencoder", "flow64", *options, *small)
    assert code == 0, err
    rows = {line.split()[0]: line for line in printed.splitlines()}
    assert rows.keys() >= {"device", "clips", "steps", "time", "memory", "frames", "warning"}
    assert "200 of 1 samples" in rows["steps"]
    assert "clips per label" in rows["warning"]
    assert list(Path.cwd().iterdir()) == []
    code, printed, err = lfdm("train", "autoencoder", "flow64", *options, *small, "--json")
    assert code == 0, err
    plan = json.loads(printed)
    assert (plan["num_steps"], plan["num_clips"], plan["epochs"]) == (200, 8, 25)
    assert [warning["name"] for warning in plan["warnings"]] == ["clips per label"]
    code, printed, err = lfdm("train", "autoencoder", "flow64", *options[:5], "--sizes", "32:5", "64:5")
    assert (code, printed, err.count("\n")) == (2, "", 1)
    assert "--sizes" in err
