"""Guidance of networks that follow tracks."""

import pytest
import torch

from lfdm.config.models import TRACK_CHANNELS
from lfdm.denoiser.network import DenoiserContext
from lfdm.diffusion.guidance import Guidance, guided_prediction
from tests.denoiser.test_track_inputs import train_track_inputs
from tests.denoiser.test_unet3d import inputs, tiny_unet


@pytest.mark.parametrize("labels", [1, 2])
@torch.no_grad()
def test_guidance_moves_away_from_motion_without_tracks(labels: int) -> None:
    network = tiny_unet(track_inputs=True)
    train_track_inputs(network)
    sample, _, condition, latent = inputs()
    timestep, tracks, negative = torch.tensor(500.0), torch.randn(2, TRACK_CHANNELS, *sample.shape[2:]), torch.randn(2, 6)
    context = DenoiserContext(condition=condition, latent=latent, tracks=tracks)
    guidance = Guidance(negative=negative, scale=3.0)
    spans, weights = torch.randn(2, 6), torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.5, 1.0]])
    if labels == 2:
        guidance = Guidance(negative=negative, scale=3.0, spans=spans, weights=weights)
    found = guided_prediction(network, context, guidance)(sample, timestep)
    free = network(sample, timestep, negative, latent)
    if labels == 1:
        followed = network(sample, timestep, condition, latent, tracks=tracks)
    else:
        parts = [network(sample, timestep, one.expand(2, -1), latent, tracks=tracks) for one in spans]
        followed = sum(weight.view(1, 1, -1, 1, 1) * part for weight, part in zip(weights, parts, strict=True))
    torch.testing.assert_close(found, free + 3 * (followed - free), atol=1e-4, rtol=1e-4)
