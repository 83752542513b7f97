"""Dry runs measure a training and leave nothing behind."""

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.config.presets import Preset
from lfdm.config.serialization import to_json
from lfdm.data.shard_file import SHARD_LIST_NAME
from lfdm.errors import UserError
from lfdm.training import planning
from lfdm.training.planning import MEASURED_STEPS, TrainingPlan, plan_autoencoder, plan_diffusion
from lfdm.training.stage1 import train_autoencoder


def files_below(*folders: Path) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for caches, which a plan must leave empty, and one for temporary files."""
    for name in ("home", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("LFDM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "home"


def check_plan(plan: TrainingPlan, preset: Preset, steps_done: int = 0) -> None:
    optimization = preset.autoencoder_training.optimization
    assert (plan.summary.num_steps, plan.summary.num_clips) == (optimization.num_steps, 8)
    assert plan.summary.start_step == steps_done
    assert plan.epochs == optimization.num_steps * optimization.batch_size / 8
    assert plan.seconds_per_step > 0
    assert plan.training_seconds == pytest.approx(plan.seconds_per_step * (optimization.num_steps - steps_done))
    assert plan.preparation_seconds > 0
    assert plan.peak_memory is None or plan.peak_memory > 2**20


def test_a_plan_measures_both_stages_and_writes_nothing(
    tiny_preset: Preset, puppets_dir: Path, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage1 = tmp_path / "stage1"
    LatentFlowAutoencoder(**to_json(tiny_preset.autoencoder)).save_pretrained(stage1)
    before, out, seen = files_below(puppets_dir, stage1), tmp_path / "run", set[str]()
    plan = plan_autoencoder(tiny_preset, puppets_dir, out, progress=lambda work, done, total: seen.add(f"{work} {done}/{total}"))
    check_plan(plan, tiny_preset)
    assert plan.expected_accuracy is None
    assert f"measuring steps {MEASURED_STEPS}/{MEASURED_STEPS}" in seen
    monkeypatch.setattr(planning, "expected_accuracy", lambda _: 0.5)
    plan = plan_diffusion(tiny_preset, puppets_dir, stage1, out)
    check_plan(plan, tiny_preset)
    assert plan.expected_accuracy == 0.5
    assert files_below(puppets_dir, stage1) == before
    assert files_below(home, out) == []
    assert list((tmp_path / "temporary").glob("lfdm-*")) == []


@pytest.mark.usefixtures("home")
def test_a_plan_of_a_run_that_has_begun_counts_the_steps_that_are_left(
    tiny_preset: Preset, puppets_dir: Path, tmp_path: Path
) -> None:
    train_autoencoder(tiny_preset, puppets_dir, tmp_path / "run", stop_after=3)
    before = {path: path.stat().st_mtime_ns for path in files_below(tmp_path / "run")}
    check_plan(plan_autoencoder(tiny_preset, puppets_dir, tmp_path / "run"), tiny_preset, steps_done=3)
    assert {path: path.stat().st_mtime_ns for path in files_below(tmp_path / "run")} == before


def test_a_plan_refuses_what_the_training_refuses(tiny_preset: Preset, puppets_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        plan_autoencoder(tiny_preset, tmp_path / "nowhere", tmp_path / "run")
    training = replace(tiny_preset.autoencoder_training, background="random")
    with pytest.raises(UserError, match="background"):
        plan_autoencoder(replace(tiny_preset, autoencoder_training=training), puppets_dir, tmp_path / "run")
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / SHARD_LIST_NAME).write_text("{}")
    for shards in (tmp_path / "shards", "s3://bucket/shards"):
        with pytest.raises(UserError, match="clip data set"):
            plan_autoencoder(tiny_preset, shards, tmp_path / "run")
    with pytest.raises(UserError, match="unknown model 'nowhere'"):
        plan_diffusion(tiny_preset, puppets_dir, "nowhere", tmp_path / "run")
