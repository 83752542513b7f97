"""Motion of a model's frame, drawn over the whole picture."""

import pytest
import torch

from lfdm.motion.frame_box import FrameBox
from lfdm.motion.motion import Motion

SIZE = (100, 200)


def shift(x: float, y: float, cells: tuple[int, int] = (8, 8)) -> Motion:
    motion = Motion.identity(1, 2, cells, corners=False)
    motion.flow[:, 0], motion.flow[:, 1] = x, y
    motion.occlusion.fill_(0.25)
    return motion


@pytest.mark.parametrize(
    ("box", "cells"),
    [
        (FrameBox(0, 50, 100, 100), (8, 16)),  # a crop
        (FrameBox(-50, 0, 200, 200), (4, 8)),  # pad: borders above and below
        (FrameBox(0, 0, 100, 200), (8, 8)),  # stretch
    ],
)
def test_displacements_in_pixels_stay_and_cells_keep_their_size(box: FrameBox, cells: tuple[int, int]) -> None:
    made = box.motion_over_picture(shift(0.2, -0.1), SIZE)
    assert made.size == cells
    x, y = (made.flow[0, axis, 1] * SIZE[1 - axis] / 2 for axis in range(2))
    middle = cells[0] // 2, cells[1] // 2
    assert float(x[middle]) == pytest.approx(0.2 * box.width / 2)
    assert float(y[middle]) == pytest.approx(-0.1 * box.height / 2)
    assert float(made.occlusion[0, 0, 1][middle]) == pytest.approx(0.25)


def test_outside_of_a_crop_nothing_moves_and_all_is_visible() -> None:
    made = FrameBox(0, 50, 100, 100).motion_over_picture(shift(0.2, 0.1), SIZE)
    moving = made.flow[0, 0, 0] != 0
    assert moving[:, 4:12].all()
    assert not moving[:, :4].any()
    assert not moving[:, 12:].any()
    assert torch.equal(made.occlusion[0, 0, 0] == 1, ~moving)


def test_the_frame_of_the_picture_itself_changes_nothing() -> None:
    motion = Motion(torch.randn(2, 2, 3, 8, 16), torch.rand(2, 1, 3, 8, 16), False)
    made = FrameBox(0, 0, *SIZE).motion_over_picture(motion, SIZE)
    torch.testing.assert_close(made.flow, motion.flow)
    torch.testing.assert_close(made.occlusion, motion.occlusion)
