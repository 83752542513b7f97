"""Tracks of points in a motion, and the maps that networks see of them."""

import math

import pytest
import torch

from lfdm.motion.motion import Motion
from lfdm.motion.tracks import FLOW_SCALE, LIMB, MIN_WEIGHT, WIDTHS, Tracks, find_tracks, near_tracks, track_maps
from lfdm.motion.warp import identity_grid


def turning(num_frames: int, size: int, step: float = 0.05) -> Motion:
    """The source turns by `step` radians from frame to frame."""
    position = identity_grid(size, size, corners=False)
    grids = []
    for k in range(num_frames):
        c, s = math.cos(k * step), math.sin(k * step)
        grids.append(position @ torch.tensor([[c, -s], [s, c]]).T)
    return Motion.from_grid(torch.stack(grids)[None], torch.ones(1, 1, num_frames, size, size), corners=False)


def test_points_are_followed_to_a_fraction_of_a_cell() -> None:
    motion = turning(6, 32)
    source = torch.tensor([[0.5, 0.1], [-0.3, 0.4], [0.01, 0.0]])
    tracks = find_tracks(motion, source)
    for k in range(6):
        c, s = math.cos(k * 0.05), math.sin(k * 0.05)
        back = tracks.position[:, k] @ torch.tensor([[c, -s], [s, c]]).T
        assert (back - source).abs().max() < 0.2 / 16  # a fifth of a cell
    assert tracks.visible.all()


def test_hidden_and_missing_points_are_not_visible() -> None:
    motion = turning(3, 16)
    motion.occlusion[:, :, 2] = 0
    tracks = find_tracks(motion, torch.tensor([[0.2, 0.2], [3.0, 0.0]]))
    assert tracks.visible.tolist() == [[True, True, False], [False, False, False]]


def test_maps_spread_flow_around_the_position_and_displacement_around_the_source() -> None:
    source, position = torch.tensor([[-0.9, -0.9]]), torch.tensor([[0.4, 0.9]])
    maps = track_maps(source, position, torch.tensor([1]), (2, 32, 32)).view(2, len(WIDTHS), 3, 2, 32, 32)
    assert maps[:, :, :, 0].abs().max() == 0
    flow = torch.tensor([-1.3, -1.8]) * FLOW_SCALE / (1 + MIN_WEIGHT)
    for i, width in enumerate(WIDTHS):
        torch.testing.assert_close(maps[0, i, :2, 1, 30, 22], flow)
        torch.testing.assert_close(maps[1, i, :2, 1, 1, 1], -flow)
        assert maps[0, i, 2, 1, 30, 22] == 1
        assert maps[0, i, 2, 1, 30, 25] == pytest.approx(math.exp(-9 / (2 * (32 * width) ** 2)), rel=1e-3)


def test_nearness_is_1_at_the_position_and_falls_off_like_a_limb() -> None:
    maps = track_maps(torch.tensor([[-0.9, -0.9]]), torch.tensor([[0.4, 0.9]]), torch.tensor([1]), (2, 32, 32))
    near = near_tracks(maps[None])
    assert near.shape == (1, 1, 2, 32, 32)
    assert near[0, 0, 1, 30, 22] == 1
    assert near[0, 0, 1, 30, 25] == pytest.approx(math.exp(-9 / (2 * (32 * WIDTHS[LIMB]) ** 2)), rel=1e-3)
    assert near[0, 0, 0].max() == 0
    assert near[0, 0, 1, 1, 1] < 1e-6  # the source is another place


def test_nearer_points_count_more_and_points_outside_are_left_out() -> None:
    source = torch.tensor([[0.5, 0.5], [-0.6, -0.6], [0.1, 0.1]])
    position = torch.tensor([[0.6, 0.6], [-0.6, -0.6], [1.2, 0.6]])
    tracks = Tracks(source, position[:, None], torch.ones(3, 1, dtype=torch.bool))
    narrow, *_, wide = tracks.maps((16, 16))[:9, 0].split(3)
    moved = -0.1 * FLOW_SCALE
    assert narrow[0, 12, 12] == pytest.approx(moved, rel=0.01)
    assert narrow[:2, 3, 3].abs().max() < 1e-3
    assert 0.3 * moved > wide[0, 8, 8] > 0.7 * moved  # between both
    assert tracks.maps((16, 16))[[2, 5, 8]].max() == 1
