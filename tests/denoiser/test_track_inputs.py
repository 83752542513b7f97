"""The input for tracks of the motion U-Net."""

import pytest
import torch

from lfdm.denoiser.network import DenoiserContext
from lfdm.errors import UserError
from tests.denoiser.test_unet3d import inputs, tiny_unet


def test_tracks_change_nothing_until_they_are_trained() -> None:
    plain, tracked = tiny_unet(), tiny_unet(track_inputs=True)
    sample, timestep, condition, latent = inputs()
    maps = torch.randn(2, 6, *sample.shape[2:])
    expected = plain(sample, timestep, condition, latent)
    assert torch.equal(tracked(sample, timestep, condition, latent), expected)
    assert torch.equal(tracked(sample, timestep, condition, latent, tracks=maps), expected)
    assert tracked.track_in is not None
    torch.nn.init.normal_(tracked.track_in.weight)
    assert torch.equal(tracked(sample, timestep, condition, latent, tracks=torch.zeros_like(maps)), expected)
    context = DenoiserContext(condition=condition, latent=latent, tracks=maps)
    followed = tracked(sample, timestep, condition, **tracked.prepare(context))
    assert (followed - expected).abs().max() > 0.1


@pytest.mark.parametrize("track_inputs", [False, True])
def test_tracks_need_the_input_and_its_shape(track_inputs: bool) -> None:
    sample, timestep, condition, latent = inputs()
    with pytest.raises(UserError, match="track"):
        tiny_unet(track_inputs=track_inputs)(sample, timestep, condition, latent, tracks=torch.zeros(2, 3, *sample.shape[2:]))
