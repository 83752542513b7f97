"""Stage 1 on its own: loading it from where it is found, and what it can do."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lfdm.config.presets import Preset
from lfdm.errors import UserError
from lfdm.folders.run_folder import find_checkpoints
from lfdm.pipeline.pipeline import LatentFlowPipeline
from lfdm.pipeline.transfer import Stage1Pipeline
from lfdm.training.stage1 import train_autoencoder


@pytest.fixture(scope="module")
def run(tiny_preset: Preset, puppets_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage-1 run of one step."""
    training = tiny_preset.autoencoder_training
    training = replace(training, optimization=replace(training.optimization, num_steps=1))
    out = tmp_path_factory.mktemp("runs") / "stage1"
    train_autoencoder(replace(tiny_preset, fit="crop", fps=5.0, autoencoder_training=training), puppets_dir, out)
    return out


@pytest.fixture
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 40, 32, 3), dtype=np.uint8)


def test_a_stage_1_run_its_checkpoint_and_its_model_transfer_motion(run: Path, frames: np.ndarray) -> None:
    checkpoint = find_checkpoints(run)[-1]
    videos = []
    for folder in (run, checkpoint, checkpoint / "autoencoder"):
        pipe = Stage1Pipeline.from_pretrained(folder)
        assert pipe.config == {"image_size": 32, "fit": "crop", "fps": 5.0}
        videos.append(pipe.transfer(frames[0], frames, output_type="uint8").frames)
    assert all(np.array_equal(video, videos[0]) for video in videos)
    assert np.asarray(videos[0]).shape == (1, 5, 32, 32, 3)


def test_it_does_what_the_whole_pipeline_does(tiny_preset: Preset, frames: np.ndarray, tmp_path: Path) -> None:
    whole = LatentFlowPipeline.from_preset(tiny_preset, ["wave"])
    whole.save_pretrained(tmp_path / "model")
    stage1 = Stage1Pipeline.from_pretrained(tmp_path / "model")
    one, other = (pipe.transfer(frames[0], frames, motion_strength=0.5) for pipe in (whole, stage1))
    assert torch.equal(one.motion.flow, other.motion.flow)
    one, other = (np.asarray(pipe.animate(frames[1], one.motion, output_type="uint8").frames) for pipe in (whole, stage1))
    assert np.array_equal(one, other)


def test_a_stage_1_run_does_not_generate_and_a_model_needs_its_run(run: Path, tiny_preset: Preset, tmp_path: Path) -> None:
    for folder in (run, find_checkpoints(run)[-1]):
        with pytest.raises(FileNotFoundError, match=r"stage-1 run.*train diffusion"):
            LatentFlowPipeline.from_pretrained(folder)
    LatentFlowPipeline.from_preset(tiny_preset).autoencoder.save_pretrained(tmp_path / "alone")
    with pytest.raises(UserError, match=r"alone.*image size"):
        Stage1Pipeline.from_pretrained(tmp_path / "alone")
    with pytest.raises(FileNotFoundError, match="no autoencoder"):
        Stage1Pipeline.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="fit must be"):
        Stage1Pipeline.from_pretrained(run, fit="cover")  # type: ignore[arg-type]
