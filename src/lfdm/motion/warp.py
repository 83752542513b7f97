"""Sampling grids and the one call of `grid_sample`.

Shapes: x (b, c, H, W) · flow (b, 2, t, h, w), channel order (x, y) · grid (b, t, h, w, 2), last axis (x, y).
Two coordinate conventions (never mixed): `corners=True`, the published one, in which -1 and 1 of the identity grid are the
centres of the outermost pixels, although sampling takes them as the image's edges; `corners=False`, pixel centres, in which
the identity grid gives an image back bit for bit at power-of-two sizes.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def identity_grid(height: int, width: int, *, corners: bool, device: torch.device | str | None = None) -> Tensor:
    """The grid of no motion, float32, (height, width, 2) with last axis (x, y)."""
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
    """Displacement (b, 2, t, h, w) to absolute sampling grid (b, t, h, w, 2)."""
    identity = identity_grid(*flow.shape[-2:], corners=corners, device=flow.device)
    return identity + flow.permute(0, 2, 3, 4, 1)


def grid_to_flow(grid: Tensor, *, corners: bool) -> Tensor:
    """Absolute sampling grid (b, t, h, w, 2) to displacement (b, 2, t, h, w)."""
    identity = identity_grid(*grid.shape[2:4], corners=corners, device=grid.device)
    return (grid - identity).permute(0, 4, 1, 2, 3)


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Every frame of (b, c, t, h, w) to `size`, bilinear, `align_corners=False`; no work where sizes agree."""
    if tuple(x.shape[-2:]) == size:
        return x
    frames = rearrange(x, "b c t h w -> (b t) c h w")
    frames = F.interpolate(frames, size=size, mode="bilinear", align_corners=False)
    return rearrange(frames, "(b t) c h w -> b c t h w", b=x.shape[0])


def warp(x: Tensor, grid: Tensor, *, padding_mode: str) -> Tensor:
    """Sample `x` (b, c, H, W) bilinearly at `grid` (b, t, h, w, 2) -> (b, c, t, h, w).

    The frames are laid below each other in one tall grid, so that `x` is never repeated. Runs in float32 (coordinates in
    half precision would be off by pixels) and returns the dtype of `x`. `padding_mode` is `zeros`, `border` or `reflection`.
    Where coordinates are not finite the result is NaN (on a GPU, what torch makes of them).
    """
    t, h = grid.shape[1:3]
    tall = rearrange(grid, "b t h w xy -> b (t h) w xy").float()
    lost = ~tall.isfinite().all(-1) if tall.device.type == "cpu" else None
    if lost is not None and not lost.any():
        lost = None
    if lost is not None:  # on a CPU their gradient is written outside of the image, which ends the process
        tall = tall.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    with torch.autocast(x.device.type, enabled=False):
        sampled = F.grid_sample(x.float(), tall, mode="bilinear", padding_mode=padding_mode, align_corners=False)
    if lost is not None:
        sampled = sampled.masked_fill(lost.unsqueeze(1), float("nan"))
    return rearrange(sampled, "b c (t h) w -> b c t h w", t=t, h=h).to(x.dtype)
