"""The settings of a run folder: stored and compared."""

import json
from pathlib import Path

import pytest

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.errors import UserError
from lfdm.folders.model_folder import WEIGHTS_NAME
from lfdm.folders.run_folder import find_layout, prepare_run


def test_prepare_run_names_every_difference(tmp_path: Path) -> None:
    settings = {"stage": "network", "data": "a", "optimization": {"learning_rate": 0.1, "betas": (0.5, 0.9), "num_workers": 0}}
    prepare_run(tmp_path / "run", settings)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["optimization"]["betas"] == [0.5, 0.9]
    prepare_run(tmp_path / "run", settings)
    other = {"stage": "network", "data": "b", "optimization": {"learning_rate": 0.2, "betas": (0.5, 0.9), "num_workers": 0}}
    with pytest.raises(UserError, match=r"data is 'a' there, 'b' here; optimization\.learning_rate is 0\.1 there, 0\.2 here\."):
        prepare_run(tmp_path / "run", other)
    prepare_run(tmp_path / "run", other, free=("data", "optimization"))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"] == "b"


def test_settings_without_effect_on_weights_may_change_and_are_stored(tmp_path: Path) -> None:
    prepare_run(tmp_path, {"optimization": {"num_workers": 0, "num_steps": 5, "seed": 1}})
    prepare_run(tmp_path, {"optimization": {"num_workers": 4, "num_steps": 9, "seed": 1}})
    assert json.loads((tmp_path / "config.json").read_text())["optimization"] == {"num_workers": 4, "num_steps": 9, "seed": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_prepare_run_leaves_other_folders_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="exists and is not a run folder"):
        prepare_run(tmp_path, {})
    with pytest.raises(UserError, match="exists and is not a run folder"):
        prepare_run(tmp_path / "thesis.tex", {})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    prepare_run(tmp_path / "run", {"stage": "autoencoder"})
    with pytest.raises(UserError, match="is a training run without a checkpoint yet"):
        LatentFlowAutoencoder.from_pretrained(tmp_path / "run")


def test_a_stage_1_run_is_named_with_what_to_do(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints" / "step-00000001"
    (checkpoint / "autoencoder").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="holds no model"):
        find_layout(tmp_path)
    (checkpoint / "state.json").touch()
    (checkpoint / "autoencoder" / WEIGHTS_NAME).touch()
    with pytest.raises(FileNotFoundError, match=r"is a stage-1 run: .*train diffusion PRESET --autoencoder"):
        find_layout(tmp_path)
    with pytest.raises(UserError, match=r"is a training run, .*step-00000001/autoencoder$"):
        LatentFlowAutoencoder.from_pretrained(tmp_path)
