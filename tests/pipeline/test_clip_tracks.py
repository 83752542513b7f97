"""Tracks of real motion as drags."""

import pytest
import torch

from lfdm.config.video import Size
from lfdm.errors import UserError
from lfdm.motion.frame_box import FrameBox
from lfdm.motion.motion import Motion
from lfdm.pipeline.clip_tracks import moving_points, track_points

SIZE, BOX = Size(64, 128), FrameBox(0, 0, 64, 128)


def sliding() -> Motion:
    """The right third of the image goes down by a sixteenth of its height in each of 5 frames; frame 2 hides everything."""
    motion = Motion.identity(1, 5, (32, 32), corners=False)
    for k in range(5):
        motion.flow[:, 1, k, :, 20:] = -k / 8
    motion.occlusion[:, :, 2] = 0
    return motion


def test_points_are_followed_in_pixels_of_the_clip() -> None:
    still, moving = track_points(sliding(), [(20, 30), (100, 10)], SIZE, BOX)
    for drag, rate in ((still, 0), (moving, 4)):
        assert [step[0] for step in drag.path] == [0.25, 0.75, 1]
        assert drag.visible == ((0.25, 0.25), (0.75, 1.0))
        for time, x, y in drag.path:
            assert (x, y) == pytest.approx((drag.source[0], drag.source[1] + rate * 4 * time), abs=0.05)


def test_points_that_move_most_are_found_apart() -> None:
    points = moving_points(sliding(), 3, BOX)
    assert len(points) == 3
    assert min(x for x, _ in points) >= 78
    apart = torch.cdist(torch.tensor(points), torch.tensor(points)) + 100 * torch.eye(3)
    assert apart.min() > 5


def test_points_outside_and_unseen_points() -> None:
    with pytest.raises(UserError, match="130,3"):
        track_points(sliding(), [(130, 3)], SIZE, BOX)
    motion = sliding()
    motion.occlusion[:, :, 1:] = 0
    with pytest.raises(UserError, match="not seen"):
        track_points(motion, [(20, 30)], SIZE, BOX)
