"""Motion at the size of a picture: the outline in the picture decides where a surface ends."""

import torch
from torch import Tensor

from lfdm.motion.frame_box import FrameBox
from lfdm.motion.guided_upsampling import fit_nodes, sample_points, upsample_motion, visible_share, warp_points
from lfdm.motion.motion import Motion

CELLS, MODEL, FULL = 16, 32, 256
SQUARE = slice(96, 160)
"""Rows and columns of a red square on a grey picture."""
SHIFT = 40
"""Pixels by which it moves to the right: 5 of the model's."""


def picture(shift: int = 0) -> Tensor:
    y, x = torch.meshgrid(torch.arange(FULL), torch.arange(FULL), indexing="ij")
    texture = 0.5 + 0.05 * torch.sin(x / 3) * torch.cos(y / 4)
    made = texture.expand(3, -1, -1).clone()
    made[:, SQUARE, SQUARE.start + shift : SQUARE.stop + shift] = torch.tensor((0.8, 0.1, 0.1)).view(3, 1, 1)
    return made[None]


def small(image: Tensor) -> Tensor:
    return torch.nn.functional.interpolate(image, size=(MODEL, MODEL), mode="area")


def moved_square() -> Motion:
    """The motion of the square on the model's coarse grid, with the cells that it left hidden."""
    cell = FULL // CELLS
    square = torch.zeros(FULL, FULL)
    square[SQUARE, SQUARE.start + SHIFT : SQUARE.stop + SHIFT] = 1
    left = torch.zeros(FULL, FULL)
    left[SQUARE, SQUARE.start : SQUARE.start + SHIFT] = 1
    inside, hidden = (torch.nn.functional.avg_pool2d(x[None, None], cell)[0, 0] for x in (square, left))
    flow = torch.zeros(1, 2, 1, CELLS, CELLS)
    flow[0, 0, 0] = -inside * SHIFT / (FULL / 2)
    return Motion(flow, (1 - hidden)[None, None, None])


def points() -> tuple[Tensor, Tensor]:
    y, x = torch.meshgrid(torch.arange(FULL).float(), torch.arange(FULL).float(), indexing="ij")
    return x.flatten(), y.flatten()


def upsampled(motion: Motion, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return flow, occlusion and least occlusion (4, FULL, FULL), and the decoded frame at full size (3, FULL * FULL)."""
    x, y = points()
    blurred = sample_points(small(target), (x + 0.5) / 8 - 0.5, (y + 0.5) / 8 - 0.5, mode="bicubic").clamp(0, 1)
    nodes = fit_nodes(motion, small(source), small(target), (2 * CELLS, 2 * CELLS))[0]
    made = upsample_motion(nodes, source, blurred, x, y, FrameBox(0, 0, FULL, FULL))
    return made.view(4, FULL, FULL), blurred


def composed(motion: Tensor, source: Tensor, blurred: Tensor) -> Tensor:
    """Return the frame (3, FULL, FULL)."""
    warped = warp_points(source, motion[:2].flatten(1), *points())
    occlusion, least = motion[2:].flatten(1)
    share = visible_share(occlusion, least, warped, blurred - 0.05, blurred + 0.05)
    return torch.lerp(blurred, warped, share).view(3, FULL, FULL)


def test_flow_ends_at_the_outline_in_the_picture_and_not_where_coarse_cells_mix() -> None:
    source, target = picture(), picture(SHIFT)
    flow = upsampled(moved_square(), source, target)[0][0, 128]
    right = SQUARE.stop + SHIFT
    assert flow[right - 40 : right - 8].sub(-SHIFT).abs().max() < 5
    assert flow[right + 16 :].abs().max() < 5
    steps = flow[right - 8 : right + 8].diff()
    assert steps.max() > SHIFT / 3  # interpolated from cell to cell, no step is larger than a sixteenth


def test_the_frame_is_sharp_and_the_place_that_was_left_is_filled_from_the_decoder() -> None:
    source, target = picture(), picture(SHIFT)
    made, blurred = upsampled(moved_square(), source, target)
    frame = composed(made, source, blurred)
    error = (frame - target[0]).abs()
    assert error.mean() < 0.5 * (blurred.view_as(error) - target[0]).abs().mean()
    edge = frame[0, 128, SQUARE.stop + SHIFT - 8 : SQUARE.stop + SHIFT + 8]
    assert edge.diff().abs().max() > 0.2  # the 0.3 from red to grey: within about one pixel, not 8
    left = (slice(SQUARE.start + 8, SQUARE.stop - 8), slice(SQUARE.start + 4, SQUARE.start + SHIFT - 12))
    assert error[(slice(None), *left)].max() < 0.15  # no red is left behind


def test_no_motion_gives_the_picture_back_bit_for_bit() -> None:
    source = picture()
    motion = Motion.identity(1, 1, (CELLS, CELLS), corners=False)
    made, blurred = upsampled(motion, source, source)
    assert torch.equal(made[:2], torch.zeros(2, FULL, FULL))
    assert torch.equal(composed(made, source, blurred), source[0])


def test_a_rotation_stays_smooth_and_exact_inside_a_surface() -> None:
    centres = (torch.arange(CELLS) + 0.5) / CELLS * 2 - 1
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    flow = torch.stack((-0.2 * y, 0.2 * x))[None, :, None]
    motion = Motion(flow, torch.ones(1, 1, 1, CELLS, CELLS))
    grey = torch.full((1, 3, FULL, FULL), 0.5)
    made = upsampled(motion, grey, grey)[0]
    fine = (torch.arange(FULL) + 0.5) / FULL * 2 - 1
    y, x = torch.meshgrid(fine, fine, indexing="ij")
    exact = torch.stack((-0.2 * y, 0.2 * x)) * FULL / 2
    inner = slice(32, -32)
    assert (made[:2] - exact)[:, inner, inner].abs().max() < 0.5


def test_planes_of_any_number_are_warped_together() -> None:
    x, y = points()
    planes = torch.rand(1, 5, FULL, FULL)
    flow = torch.zeros(2, FULL * FULL)
    flow[0] = 3
    warped = warp_points(planes, flow, x, y).view(5, FULL, FULL)
    assert torch.allclose(warped[..., 2:-6], planes[0, ..., 5:-3], atol=1e-3)
