"""Named configurations: both models of each can be built and have the sizes that are stated."""

import pytest
import torch

from lfdm.config import Preset, to_json
from lfdm.models.autoencoder import LatentFlowAutoencoder
from lfdm.models.unet3d import MotionUNet3D
from lfdm.presets import PRESETS, get_preset

PUBLISHED = {"mug128": (66_004_557, 42_731_203), "mhad128": (66_004_557, 42_731_203), "natops128": (66_004_557, 42_129_859 - 768)}
"""Parameters of the two published models; natops128 counts its null condition, which is not part of our U-Net."""

every_preset = pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)


def build(preset: Preset) -> tuple[LatentFlowAutoencoder, MotionUNet3D]:
    with torch.device("meta"):
        return LatentFlowAutoencoder(**to_json(preset.autoencoder)), MotionUNet3D(**to_json(preset.unet))


def num_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@every_preset
def test_both_models_fit_each_other_and_the_image_size(preset: Preset) -> None:
    autoencoder, unet = build(preset)
    assert preset.image_size % autoencoder.size_multiple == 0
    assert autoencoder.size_multiple == preset.autoencoder.size_multiple
    with torch.device("meta"):
        latent = autoencoder.encode(torch.empty(2, 3, preset.image_size, preset.image_size)).latent
        motion = torch.empty(2, 3, preset.num_frames, *latent.shape[-2:])
        prediction = unet(motion, torch.zeros(2), torch.empty(2, preset.unet.condition_dim), latent)
    assert latent.shape[1] == preset.autoencoder.latent_channels
    assert prediction.shape == motion.shape


@pytest.mark.parametrize(("name", "counts"), PUBLISHED.items())
def test_paper_presets_have_the_published_sizes(name: str, counts: tuple[int, int]) -> None:
    assert tuple(map(num_parameters, build(get_preset(name)))) == counts


@pytest.mark.parametrize("name", ["puppets64", "lpc64"])
def test_own_models_fit_into_the_bundle_at_half_precision(name: str) -> None:
    assert max(2 * num_parameters(model) for model in build(get_preset(name))) <= 12_000_000


def test_presets_go_by_their_own_names_and_unknown_ones_are_refused() -> None:
    assert all(get_preset(name).name == name for name in PRESETS)
    with pytest.raises(ValueError, match="unknown preset 'mug64'; known: puppets64, lpc64, mug128, mhad128, natops128"):
        get_preset("mug64")


@every_preset
def test_learning_rate_milestones_lie_inside_the_training(preset: Preset) -> None:
    for training in (preset.autoencoder_training, preset.diffusion_training):
        assert all(0 < step < training.optimization.num_steps for step in training.optimization.milestones)
