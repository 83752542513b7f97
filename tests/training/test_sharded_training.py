"""Trainings on clips in shards."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from lfdm.config.presets import Preset
from lfdm.data.sharding import write_shards
from lfdm.errors import UserError
from lfdm.folders.run_folder import find_checkpoints
from lfdm.training.stage1 import train_autoencoder

pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'lfdm[scale]'")


@pytest.fixture(scope="module")
def shards(puppets_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clips of `puppets_dir`, two in a shard. Read only."""
    out = tmp_path_factory.mktemp("shards")
    write_shards(puppets_dir, out, shard_mb=0.04, num_workers=1)
    return out


def with_optimization(preset: Preset, **changes: Any) -> Preset:
    training = preset.autoencoder_training
    optimization = replace(training.optimization, **changes)
    return replace(preset, autoencoder_training=replace(training, optimization=optimization))


def assert_same_weights(run: Path, other: Path) -> None:
    one, two = (load_file(find_checkpoints(folder)[-1] / "training.safetensors") for folder in (run, other))
    assert one.keys() == two.keys()
    assert [name for name in one if not np.array_equal(one[name], two[name])] == []


def test_stage_1_resumes_on_shards_with_other_workers(tiny_preset: Preset, shards: Path, tmp_path: Path) -> None:
    """A run that is stopped and goes on with two loader processes equals one that is not."""
    train_autoencoder(tiny_preset, shards, tmp_path / "whole")
    train_autoencoder(with_optimization(tiny_preset, checkpoint_steps=5), str(shards), tmp_path / "parts")
    shutil.rmtree(find_checkpoints(tmp_path / "parts")[-1])
    train_autoencoder(with_optimization(tiny_preset, checkpoint_steps=5, num_workers=2), shards, tmp_path / "parts")
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


def test_what_shards_cannot_do_is_one_line(tiny_preset: Preset, shards: Path, tmp_path: Path) -> None:
    by_subject = replace(tiny_preset, autoencoder_training=replace(tiny_preset.autoencoder_training, pairs_by="subject"))
    with pytest.raises(UserError, match="pairs_by"):
        train_autoencoder(by_subject, shards, tmp_path / "run")
