"""Sampling grids, and warping by `grid_sample`.

Shapes: x (b, c, H, W) · flow (b, 2, t, h, w), channel order (x, y), in half images · grid (b, t, h, w, 2), last axis (x, y).

`corners` names the coordinate convention, that is the identity grid to which flow is added. Sampling itself is always done
with `align_corners=False`, where -1 and 1 are the outer edges of the image:

- False, pixel centres: n pixels lie at (2 i + 1) / n - 1. Zero flow reproduces an image, bit for bit at power-of-two sizes.
- True, end points: n pixels lie at 2 i / (n - 1) - 1, from exactly -1 to exactly 1. This is the paper's grid, made for
  `align_corners=True` but sampled without it: zero flow stretches an image by n / (n - 1), half a pixel at its edges. Networks
  trained with it compensate, so that published checkpoints need it.
The two must never be mixed.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from lfdm.motion.tracing import is_exporting


def identity_grid(height: int, width: int, *, corners: bool, device: torch.device | str | None = None) -> Tensor:
    """Return the grid of zero flow, float32 (height, width, 2), last axis (x, y)."""
    axes = []
    for size in (height, width):
        if corners:
            axis = torch.linspace(-1, 1, size, device=device)
        else:
            axis = (2 * torch.arange(size, device=device, dtype=torch.float32) + 1) / size - 1
        axes.append(axis)
    y, x = torch.meshgrid(*axes, indexing="ij")
    return torch.stack((x, y), dim=-1)


def flow_to_grid(flow: Tensor, *, corners: bool) -> Tensor:
    """Convert flow (b, 2, t, h, w) to an absolute sampling grid (b, t, h, w, 2)."""
    identity = identity_grid(*flow.shape[-2:], corners=corners, device=flow.device)
    return identity + flow.permute(0, 2, 3, 4, 1)


def grid_to_flow(grid: Tensor, *, corners: bool) -> Tensor:
    """Convert an absolute sampling grid (b, t, h, w, 2) to flow (b, 2, t, h, w)."""
    identity = identity_grid(*grid.shape[2:4], corners=corners, device=grid.device)
    return (grid - identity).permute(0, 4, 1, 2, 3)


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize every frame of (b, c, t, h, w) to `size` bilinearly with `align_corners=False`; no-op if it has that size."""
    if tuple(x.shape[-2:]) == size:
        return x
    frames = rearrange(x, "b c t h w -> (b t) c h w")
    frames = F.interpolate(frames, size=size, mode="bilinear", align_corners=False)
    return rearrange(frames, "(b t) c h w -> b c t h w", b=x.shape[0])


def warp(x: Tensor, grid: Tensor, *, padding_mode: str, mode: Literal["bilinear", "nearest"] = "bilinear") -> Tensor:
    """Sample `x` (b, c, H, W), by default bilinearly, at `grid` (b, t, h, w, 2): (b, c, t, h, w), in the dtype of `x`.

    The frames are stacked in one tall grid, so that `x` is never repeated. Runs in float32: coordinates in half precision
    would be off by pixels. Coordinates that are not finite give NaN on a CPU; on a GPU torch decides.

    Args:
        padding_mode: `zeros`, `border` or `reflection`.
    """
    t, h = grid.shape[1:3]
    tall = rearrange(grid, "b t h w xy -> b (t h) w xy").float()
    invalid = None
    if tall.device.type == "cpu" and not is_exporting() and not (finite := tall.isfinite()).all():
        invalid = ~finite.all(-1, keepdim=True).movedim(-1, 1)  # torch would write their gradient outside the image and crash
        tall = tall.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    with torch.autocast(x.device.type, enabled=False):
        sampled = F.grid_sample(x.float(), tall, mode=mode, padding_mode=padding_mode, align_corners=False)
    if invalid is not None:
        sampled = sampled.masked_fill(invalid, float("nan"))
    return rearrange(sampled, "b c (t h) w -> b c t h w", t=t, h=h).to(x.dtype)
