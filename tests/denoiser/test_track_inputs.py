"""The input for tracks of the motion U-Net."""

import pytest
import torch

from lfdm.config.models import TRACK_CHANNELS
from lfdm.denoiser.network import DenoiserContext
from lfdm.denoiser.track_inputs import GAIN
from lfdm.denoiser.unet3d import MotionUNet3D
from lfdm.errors import UserError
from lfdm.motion.tracks import FLOW_SCALE, WIDTHS
from tests.denoiser.test_unet3d import inputs, tiny_unet


def test_tracks_change_nothing_until_they_are_trained() -> None:
    plain, tracked = tiny_unet(), tiny_unet(track_inputs=True)
    sample, timestep, condition, latent = inputs()
    maps = torch.randn(2, TRACK_CHANNELS, *sample.shape[2:])
    expected = plain(sample, timestep, condition, latent)
    assert torch.equal(tracked(sample, timestep, condition, latent), expected)
    assert torch.equal(tracked(sample, timestep, condition, latent, tracks=maps), expected)
    train_track_inputs(tracked)
    assert torch.equal(tracked(sample, timestep, condition, latent, tracks=torch.zeros_like(maps)), expected)
    context = DenoiserContext(condition=condition, latent=latent, tracks=maps)
    followed = tracked(sample, timestep, condition, **tracked.prepare(context))
    assert (followed - expected).abs().max() > 0.1
    torch.testing.assert_close(tracked(sample, timestep, condition, latent, tracks=maps), followed)


def train_track_inputs(network: MotionUNet3D) -> None:
    """Give the layers that start at zero some weights."""
    assert network.tracks is not None
    for layer in (network.tracks.into, network.tracks.weights.out):
        torch.nn.init.normal_(layer.weight, std=0.1, generator=torch.Generator().manual_seed(0))


def test_the_flow_of_tracks_reaches_the_output_where_it_is_weighted() -> None:
    network = tiny_unet(track_inputs=True)
    sample, timestep, condition, latent = inputs()
    assert network.tracks is not None
    torch.nn.init.constant_(network.tracks.weights.out.bias, 1 / (GAIN * len(WIDTHS)))
    maps = torch.zeros(2, TRACK_CHANNELS, *sample.shape[2:])
    maps[:, [0, 3, 6]] = 1
    change = network(sample, timestep, condition, latent, tracks=maps) - network(sample, timestep, condition, latent)
    torch.testing.assert_close(change[:, 0], torch.ones_like(change[:, 0]), atol=1e-5, rtol=1e-5)
    assert change[:, 1:].abs().max() < 1e-5


def test_the_image_is_moved_along_with_the_tracks() -> None:
    """Maps that move everything by one patch show the image moved by one patch."""
    network = tiny_unet(track_inputs=True)
    assert network.tracks is not None
    train_track_inputs(network)
    latent = torch.randn(1, 5, 8, 8)
    maps = torch.zeros(1, TRACK_CHANNELS, 1, 8, 8)
    still, moved = maps.clone(), maps.clone()
    still[:, 5] = moved[:, 5] = 1
    moved[:, 3] = FLOW_SCALE * 2 / 8 * network.patch_size
    appearance = network.tracks.maps_in.weight.data
    appearance[:, : TRACK_CHANNELS * network.patch_size**2] = 0
    before, after = (network.tracks.embed(latent, one)[0, 0] for one in (still, moved))
    torch.testing.assert_close(after[2:-2, 2:-3], before[2:-2, 3:-2], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("track_inputs", [False, True])
def test_tracks_need_the_input_and_its_shape(track_inputs: bool) -> None:
    sample, timestep, condition, latent = inputs()
    with pytest.raises(UserError, match="track"):
        tiny_unet(track_inputs=track_inputs)(sample, timestep, condition, latent, tracks=torch.zeros(2, 3, *sample.shape[2:]))
