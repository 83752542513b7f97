"""Strength of parts at their places in the source."""

import pytest
import torch
from torch import Tensor

from lfdm.errors import UserError
from lfdm.motion.motion import Motion
from lfdm.motion.part_strength import find_part, scale_at_source

STEP = 2 / 32


def two_squares() -> Motion:
    """Squares of 6 cells: one goes 8 cells to the right in frame 1, the other 4 cells down; the rest is still."""
    motion = Motion.identity(1, 2, (32, 32), corners=False)
    motion.flow[:, 0, 1, 4:10, 12:18] = -8 * STEP
    motion.occlusion[:, :, 1, 4:10, 4:10] = 0
    motion.flow[:, 1, 1, 24:30, 20:26] = -4 * STEP
    motion.occlusion[:, :, 1, 20:24, 20:26] = 0
    return motion


def amount(value: float) -> Tensor:
    """The first square has the strength `value`."""
    map_ = torch.ones(1, 1, 32, 32)
    map_[:, :, 4:10, 4:10] = value
    return map_


@pytest.mark.parametrize(("value", "cells"), [(0.0, 0), (0.5, 4), (1.5, 12)])
def test_a_part_moves_by_its_share(value: float, cells: int) -> None:
    motion = scale_at_source(two_squares(), amount(value))
    inner = motion.flow[0, :, 1, 5:9, 5 + cells : 9 + cells]
    torch.testing.assert_close(inner[0], torch.full((4, 4), -cells * STEP), atol=5e-4, rtol=0)
    assert (motion.occlusion[0, 0, 1, 5:9, 5 + cells : 9 + cells] > 0.99).all()
    if value != 1.5:
        assert motion.flow[0, :, 1, 5:9, 14:17].abs().max() < 5e-4  # the old place shows the source
    assert torch.equal(motion.flow[:, :, 1, 20:, 18:], two_squares().flow[:, :, 1, 20:, 18:])
    assert torch.equal(motion.flow[:, :, 0], two_squares().flow[:, :, 0])


def test_an_amount_of_1_changes_nothing() -> None:
    motion = scale_at_source(two_squares(), amount(1.0))
    assert torch.equal(motion.flow, two_squares().flow)
    assert torch.equal(motion.occlusion, two_squares().occlusion)


def test_a_point_chooses_its_part() -> None:
    part = find_part(two_squares(), torch.tensor([-1 + 7 * STEP, -1 + 7 * STEP]))
    assert (part[0, 0, 4:10, 4:10] > 0.9).all()
    assert part[0, 0, 20:30, 18:28].max() < 0.1
    assert part[0, 0, 16:, :].max() < 0.1


def test_the_published_coordinates_are_refused() -> None:
    with pytest.raises(UserError, match="corners"):
        scale_at_source(Motion.identity(1, 2, (8, 8), corners=True), torch.ones(1, 1, 8, 8))
