"""Windows over long clips, and what a network is told of the frames that it sees."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lfdm.config.registration import register_to_config
from lfdm.denoiser.network import DenoiserContext, DenoiserNetwork
from lfdm.diffusion.guidance import Guidance
from lfdm.diffusion.process import prediction_from_clean
from lfdm.diffusion.sampling import MotionSampler
from lfdm.diffusion.schedulers import MotionScheduler
from lfdm.diffusion.windows import blend_windows, plan_windows
from lfdm.motion.codec import FrameCodec


@pytest.mark.parametrize(("num_frames", "longest"), [(17, 16), (64, 16), (33, 16), (100, 7)])
def test_windows_cover_every_frame_with_weights_of_sum_1(num_frames: int, longest: int) -> None:
    windows = plan_windows(num_frames, longest=longest)
    total = torch.zeros(num_frames)
    for window in windows:
        assert len(window.frames) == longest
        assert (window.frames.diff() == 1).all()
        total[window.frames] += window.weights
    torch.testing.assert_close(total, torch.ones(num_frames))
    assert len(windows) <= 2 * num_frames / longest + 2  # the cost grows only with the length


def test_one_pass_needs_no_windows() -> None:
    assert plan_windows(16, longest=16) == ()


def test_blending_gives_back_what_every_window_agrees_on() -> None:
    sample, windows = torch.randn(2, 3, 40, 4, 4), plan_windows(40, longest=16)
    predict = blend_windows(windows, [lambda x, t: 2 * x + t] * len(windows))
    torch.testing.assert_close(predict(sample, torch.tensor(3.0)), 2 * sample + 3)


class ClockNetwork(DenoiserNetwork):
    """Predicts a motion that tells, in every frame, the frame's position in the clip."""

    @register_to_config
    def __init__(self) -> None:
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(()))

    def prepare(self, context: DenoiserContext) -> dict[str, Any]:
        return {"latent": context.latent, "frames": context.frames}

    def forward(
        self, sample: Tensor, timestep: Tensor | float, condition: Tensor, latent: Tensor, *, frames: Tensor | None = None
    ) -> Tensor:
        del condition, latent
        assert frames is not None
        assert len(frames) == sample.shape[2]
        clean = (0.01 * frames.float()).view(1, 1, -1, 1, 1).expand_as(sample)
        sigma = float(timestep) / 1000
        return prediction_from_clean(clean, sample, 1 - sigma, sigma, "velocity")


@pytest.mark.parametrize("num_frames", [6, 50])
def test_a_network_is_told_which_frames_it_sees(num_frames: int) -> None:
    """Per-frame control of long clips needs it: every window gets its own positions."""
    sampler = MotionSampler(ClockNetwork(), FrameCodec(still_first_frame=False), MotionScheduler(), "velocity")
    sample = sampler.sample(
        DenoiserContext(condition=torch.zeros(1, 1), latent=torch.zeros(1, 1, 4, 4)),
        Guidance(negative=torch.zeros(1, 1)),
        num_frames=num_frames,
        num_steps=4,
        generators=[torch.Generator().manual_seed(0)],
        windows=plan_windows(num_frames, longest=16),
        callback=lambda _, __, x: x,
    )
    expected = (0.01 * torch.arange(num_frames)).view(1, 1, -1, 1, 1).expand_as(sample)
    torch.testing.assert_close(sample, expected, rtol=0, atol=1e-4)
