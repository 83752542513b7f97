"""The paper's sampling, all 1,000 steps of it, against METHOD section 4 written out with tables in float64."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from lfdm.config.models import UNetConfig
from lfdm.config.presets import MUG128, Preset
from lfdm.pipeline.inputs import sample_generators
from lfdm.pipeline.pipeline import LatentFlowPipeline

SEED = 7


def make_pipeline(tiny: Preset) -> LatentFlowPipeline:
    unet = UNetConfig(
        latent_channels=8,
        condition_dim=6,
        dim=8,
        channel_multipliers=(1,),
        num_heads=1,
        head_dim=8,
        num_resnets=1,
        spatial_attention_levels=(False,),
        temporal_attention_levels=(False,),
    )
    autoencoder = replace(tiny.autoencoder, predictor=replace(tiny.autoencoder.predictor, padding=3))
    pipe = LatentFlowPipeline.from_preset(replace(MUG128, image_size=32, num_frames=2, autoencoder=autoencoder, unet=unet))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_thousand_steps_are_those_of_the_paper(tiny_paper_preset: Preset) -> None:
    """The published formulas, given the predictions of every step, must arrive at the samples that the network was given."""
    pipe = make_pipeline(tiny_paper_preset)
    calls: list[tuple[Tensor, int, Tensor]] = []

    def note(_: nn.Module, arguments: tuple[Tensor, Tensor, Tensor], prediction: Tensor) -> None:
        calls.append((arguments[0], int(arguments[1]), prediction))

    pipe.unet.register_forward_hook(note)
    image, condition = torch.rand(1, 3, 32, 32), torch.randn(1, 6)
    out = pipe(image, condition, generator=SEED, output_type="pt")
    assert [timestep for _, timestep, _ in calls] == list(range(999, -1, -1))
    *samples, last = sample_as_published([prediction for *_, prediction in calls])
    for (given, timestep, _), sample in zip(calls, samples, strict=True):
        torch.testing.assert_close(given, sample, rtol=0, atol=1e-3, msg=f"at timestep {timestep}")
    motion = torch.cat((out.motion.grid().permute(0, 4, 1, 2, 3), out.motion.occlusion), dim=1)
    torch.testing.assert_close(motion, torch.cat((last[:, :2], (last[:, 2:] + 1) / 2), dim=1), rtol=0, atol=1e-3)
    assert float(motion.std()) > 0.1  # it is not all clamped to one value


def sample_as_published(predictions: list[Tensor]) -> list[Tensor]:
    """The samples (1, 3, 2, 8, 8) from noise on, one more than predictions."""
    steps = np.arange(1001) / 1000
    abar = np.cos((steps + 0.008) / 1.008 * np.pi / 2) ** 2
    beta = np.minimum(1 - abar[1:] / abar[:-1], 0.9999)
    abar = np.cumprod(1 - beta)
    before = np.concatenate(([1.0], abar[:-1]))
    x0_factor, xt_factor = beta * np.sqrt(before) / (1 - abar), (1 - before) * np.sqrt(1 - beta) / (1 - abar)
    log_variance = np.log(np.maximum(beta * (1 - before) / (1 - abar), 1e-20))
    (generator,) = sample_generators(SEED, 1)
    samples = [torch.randn(1, 3, 2, 8, 8, generator=generator)]
    for t, noise in zip(range(999, -1, -1), predictions, strict=True):
        x = samples[-1]
        x0 = float(np.sqrt(1 / abar[t])) * x - float(np.sqrt(1 / abar[t] - 1)) * noise
        s = x0.abs().flatten().quantile(0.9).clamp(min=1)
        x = float(x0_factor[t]) * x0.clamp(-s, s) / s + float(xt_factor[t]) * x
        if t > 0:
            x = x + float(np.exp(log_variance[t] / 2)) * torch.randn(x.shape, generator=generator)
        samples.append(x)
    return samples
