"""Tracks of points in a motion, and the maps that networks see of them."""

import math

import pytest
import torch

from lfdm.motion.motion import Motion
from lfdm.motion.tracks import FLOW_SCALE, MASK_SCALE, Tracks, find_tracks, track_maps
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


def test_maps_hold_flow_at_the_position_and_displacement_at_the_source() -> None:
    source, position = torch.tensor([[-0.9, -0.9]]), torch.tensor([[0.4, 0.9]])
    maps = track_maps(source, position, torch.tensor([1]), (2, 4, 4))
    assert maps[:, 0].abs().max() == 0
    flow = [-1.3 * FLOW_SCALE, -1.8 * FLOW_SCALE]
    assert maps[:, 1, 3, 2].tolist() == pytest.approx([*flow, MASK_SCALE, 0, 0, 0], abs=1e-4)
    assert maps[:, 1, 0, 0].tolist() == pytest.approx([0, 0, 0, -flow[0], -flow[1], MASK_SCALE], abs=1e-4)
    assert maps[:, 1, 2, 1].tolist() == pytest.approx([*flow, MASK_SCALE / 2, 0, 0, 0], abs=1e-4)  # a neighbour
    assert maps.count_nonzero() == 3 * (6 + 4)


def test_points_in_one_cell_are_averaged_and_outside_ones_left_out() -> None:
    source = torch.tensor([[0.1, 0.1], [0.2, 0.2], [0.1, 0.1]])
    position = torch.tensor([[0.6, 0.6], [0.6, 0.6], [1.2, 0.6]])
    tracks = Tracks(source, position[:, None], torch.ones(3, 1, dtype=torch.bool))
    maps = tracks.maps((2, 2))
    assert maps[:3, 0, 1, 1].tolist() == pytest.approx([-0.45 * FLOW_SCALE, -0.45 * FLOW_SCALE, MASK_SCALE], abs=1e-4)
    assert (maps[2] == MASK_SCALE).sum() == 1
