"""A comparison at miniature size: every network has about 110,000 parameters, so that the limits on parameter counts hold."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.headline.baselines.config import BaselinesConfig, DenoiserConfig, FrameAutoencoderConfig
from benchmarks.headline.baselines.denoiser import ClipDenoiser
from benchmarks.headline.methods import ComparisonSettings
from benchmarks.headline.planning import missing_package
from lfdm.config.presets import Preset
from lfdm.evaluation.settings import ClassifierTraining, EvaluationConfig


@pytest.fixture(scope="session")
def needs_package() -> None:
    """Skip if the package of the VDM and LDM baselines is missing."""
    reason = missing_package()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def quick_preset(tiny_preset: Preset) -> Preset:
    """`tiny_preset` with two sampling steps, logging often."""
    stage1, stage2 = tiny_preset.autoencoder_training, tiny_preset.diffusion_training
    return replace(
        tiny_preset,
        diffusion=replace(tiny_preset.diffusion, num_inference_steps=2),
        autoencoder_training=replace(stage1, optimization=replace(stage1.optimization, log_steps=2)),
        diffusion_training=replace(stage2, optimization=replace(stage2.optimization, log_steps=2)),
    )


@pytest.fixture(scope="session")
def quick_evaluation() -> EvaluationConfig:
    """Evaluation networks with two training steps."""
    training = ClassifierTraining(num_steps=2, batch_size=4)
    return EvaluationConfig(num_diversity_clips=0, allow_small=True, classifier=training, frame_network=training)


@pytest.fixture(scope="session")
def tiny_denoiser_config() -> DenoiserConfig:
    """A denoiser of pixels of 32x32."""
    return DenoiserConfig(dim=12, channel_multipliers=(1, 2), num_heads=2, head_dim=8, batch_size=2)


@pytest.fixture(scope="session")
def tiny_settings(
    quick_preset: Preset, puppets_dir: Path, tiny_denoiser_config: DenoiserConfig, quick_evaluation: EvaluationConfig
) -> ComparisonSettings:
    """A comparison of all methods except the folded VDM, with a fraction of a second of training each."""
    baselines = BaselinesConfig(
        vdm=tiny_denoiser_config,
        ldm=replace(tiny_denoiser_config, dim=8),
        frames=FrameAutoencoderConfig(channels=(8, 16), layers_per_block=1, num_groups=4),
    )
    return ComparisonSettings(
        preset=quick_preset, data=puppets_dir, baselines=baselines, budget_minutes=0.008, evaluation=quick_evaluation
    )


@pytest.fixture
def tiny_denoiser(needs_package: None) -> ClipDenoiser:
    """A denoiser of clips of 3 channels with the labels jump and wave."""
    del needs_package
    return ClipDenoiser(
        labels=("jump", "wave"), sample_channels=3, dim=8, channel_multipliers=(1, 2), num_heads=2, head_dim=8, condition_dim=8
    ).eval()
