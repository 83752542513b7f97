"""Stage-2 training: from a stage-1 model and clips to a folder that the pipeline loads."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lfdm.config import DiffusionConfig, Preset, UNetConfig, to_json
from lfdm.models.autoencoder import LatentFlowAutoencoder
from lfdm.models.loading import find_checkpoints, read_tensors
from lfdm.pipeline import LatentFlowPipeline
from lfdm.training.diffusion import train_diffusion
from lfdm.training.loop import StepReport


@pytest.fixture(scope="module")
def stage1(tiny_preset: Preset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained auto-encoder whose motion is not still."""
    folder = tmp_path_factory.mktemp("stage1") / "model"
    torch.manual_seed(0)
    model = LatentFlowAutoencoder(**to_json(tiny_preset.autoencoder))
    with torch.no_grad():
        for parameter in itertools.chain(model.motion_predictor.parameters(), model.buffers()):
            if parameter.is_floating_point():
                parameter.add_(0.05 * torch.randn_like(parameter).abs())
    model.save_pretrained(folder)
    return folder


def with_steps(preset: Preset, num_steps: int, **changes: object) -> Preset:
    training = preset.diffusion_training
    optimization = replace(training.optimization, num_steps=num_steps, sample_steps=2)
    return replace(preset, diffusion_training=replace(training, optimization=optimization, **changes))


def test_a_run_folder_is_a_pipeline_with_measured_statistics(
    tiny_preset: Preset, puppets_dir: Path, stage1: Path, tmp_path: Path
) -> None:
    metrics = []
    checkpoint = train_diffusion(
        with_steps(tiny_preset, 2), puppets_dir, stage1, tmp_path / "run", report=lambda step: metrics.append(step.metrics)
    )
    assert (checkpoint / "unet" / "config.json").is_file()
    assert np.isfinite(metrics[-1]["loss"])
    assert list((tmp_path / "run" / "samples").iterdir())
    pipe = LatentFlowPipeline.from_pretrained(tmp_path / "run")
    assert pipe.condition.labels == ("jump", "wave")
    assert pipe.motion_target.std is not None
    assert min(pipe.motion_target.std) > 0
    out = pipe(torch.rand(3, 32, 32), "wave", num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(0))
    assert isinstance(out.frames, np.ndarray)
    assert out.frames.shape == (1, 4, 32, 32, 3)
    trained = LatentFlowAutoencoder.from_pretrained(stage1).state_dict()
    for name, value in pipe.autoencoder.state_dict().items():
        assert torch.equal(value, trained[name]), name


def test_the_same_command_makes_the_same_weights(tiny_preset: Preset, puppets_dir: Path, stage1: Path, tmp_path: Path) -> None:
    """Noise, timesteps and dropped conditions are functions of (seed, step); resuming itself is tested in test_loop."""
    folders = [train_diffusion(with_steps(tiny_preset, 3), puppets_dir, stage1, tmp_path / name) for name in ("a", "b")]
    first, second = (read_tensors(folder / "training.safetensors") for folder in folders)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_stopped_training_continues_bit_for_bit(tiny_preset: Preset, puppets_dir: Path, stage1: Path, tmp_path: Path) -> None:
    """Stopped in the middle of an epoch, after the checkpoint, with two loader workers."""
    preset = with_steps(tiny_preset, 7)
    optimization = replace(preset.diffusion_training.optimization, checkpoint_steps=3, log_steps=1, num_workers=2)
    preset = replace(preset, diffusion_training=replace(preset.diffusion_training, optimization=optimization))

    def stop(report: StepReport) -> None:
        if report.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_diffusion(preset, puppets_dir, stage1, tmp_path / "stopped", report=stop)
    assert [path.name for path in find_checkpoints(tmp_path / "stopped")] == ["step-00000003"]
    folders = [train_diffusion(preset, puppets_dir, stage1, tmp_path / name) for name in ("stopped", "whole")]
    for file in ("training.safetensors", "unet/diffusion_pytorch_model.safetensors"):
        first, second = (read_tensors(folder / file) for folder in folders)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_motion_can_be_estimated_at_every_step(tiny_preset: Preset, puppets_dir: Path, stage1: Path, tmp_path: Path) -> None:
    preset = with_steps(tiny_preset, 2, cache_motion=False)
    preset = replace(preset, diffusion=DiffusionConfig(normalize=False, clamp_to_range=False))
    train_diffusion(preset, puppets_dir, stage1, tmp_path / "run")
    assert LatentFlowPipeline.from_pretrained(tmp_path / "run").motion_target.mean is None


@pytest.mark.parametrize(
    ("preset_changes", "training_changes", "message"),
    [
        ({"diffusion": DiffusionConfig(condition="text")}, {}, "label embeddings"),
        ({"diffusion": DiffusionConfig(learned_null=True)}, {}, "learned_null"),
        ({}, {"cache_motion": False}, "normalize=True needs cache_motion=True"),
        ({"unet": UNetConfig(latent_channels=16, head_dim=7)}, {}, "head_dim is 7"),
    ],
)
def test_settings_that_cannot_be_trained_are_refused(
    preset_changes: dict[str, object],
    training_changes: dict[str, object],
    message: str,
    tiny_preset: Preset,
    puppets_dir: Path,
    stage1: Path,
    tmp_path: Path,
) -> None:
    preset = replace(with_steps(tiny_preset, 2, **training_changes), **preset_changes)
    with pytest.raises(ValueError, match=message):
        train_diffusion(preset, puppets_dir, stage1, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_stage_1_of_another_configuration_is_refused(
    tiny_preset: Preset, puppets_dir: Path, stage1: Path, tmp_path: Path
) -> None:
    other = replace(tiny_preset, autoencoder=replace(tiny_preset.autoencoder, num_res_blocks=2))
    with pytest.raises(ValueError, match="num_res_blocks is 1 there, 2 here"):
        train_diffusion(other, puppets_dir, stage1, tmp_path / "run")
