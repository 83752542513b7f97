"""Figures in pixels are right for frames that are not square."""

import numpy as np
import pytest
import torch

from lfdm.config.video import Size
from lfdm.evaluation.generation import _mean_length
from lfdm.evaluation.metrics.motion import displacement_px, warp_px
from lfdm.evaluation.stage1 import flow_length
from lfdm.motion.motion import Motion

SIZE = Size(32, 64)
MOVED = (6.0, -8.0)
"""Displacement in pixels, (x, y): 10 pixels long."""


def constant_motion() -> Motion:
    flow = torch.tensor([2 * MOVED[0] / SIZE.width, 2 * MOVED[1] / SIZE.height]).view(1, 2, 1, 1, 1).expand(1, 2, 3, 16, 32)
    return Motion(flow.contiguous(), torch.ones(1, 1, 3, 16, 32))


def test_lengths_of_flow_are_in_pixels() -> None:
    motion = constant_motion()
    assert flow_length(motion, SIZE).item() == pytest.approx(10)
    flow = motion.flow.numpy()
    assert _mean_length(flow, np.zeros_like(flow), image_size=SIZE).item() == pytest.approx(10)


def test_displacement_and_warp_agree_in_pixels() -> None:
    displacement = displacement_px(constant_motion(), SIZE)
    assert displacement.shape == (1, 2, 3, *SIZE)
    torch.testing.assert_close(displacement[0, :, 1, 5, 7], torch.tensor(MOVED))
    image = torch.rand(1, 3, *SIZE)
    warped = warp_px(image, displacement)[:, :, 1]
    torch.testing.assert_close(warped[..., 8:, :-6], image[..., :-8, 6:], atol=1e-5, rtol=0)
