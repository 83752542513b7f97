"""Softmax splatting: bring values of a source image to where its points have moved (arXiv 2003.05534).

Warping reads the source for every target pixel and needs backward flow; splatting writes every source cell to the four target
cells around its new position. Where several cells land, those of larger weight win.

Shapes: values (b, c, t, h, w) at the source's cells · grid (b, t, h, w, 2), their positions in the target, last axis (x, y), with
pixel centres: n cells lie at (2 i + 1) / n - 1, as in `lfdm.motion.warp` with corners=False.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

TINY = 1e-20
"""Smallest denominator; reached only where nothing lands, whose mean is then 0."""
BORDER = 3
"""Rows and columns added around the target, for what lands outside."""
HOLE_COVERAGE = 0.25
"""Coverage below which a target cell counts as a hole."""


@dataclass(frozen=True, eq=False)
class Splat:
    """Sums of what landed in the cells of t target images of size (H, W)."""

    mean: Tensor
    """Weighted mean of the values (b, c, t, H, W), 0 where nothing landed."""
    coverage: Tensor
    """Sum of the bilinear shares times `visibility` (b, 1, t, H, W): 1 = as dense as the source's own cells, at equal sizes."""


def softmax_splat(
    values: Tensor, grid: Tensor, priority: Tensor, size: tuple[int, int], *, visibility: Tensor | None = None
) -> Splat:
    """Splat `values` to `grid` with the weight visibility * exp(priority), shared bilinearly among four target cells.

    Cells that land outside the target are dropped. Runs in float32 at least; memory is linear in the number of cells.

    Args:
        priority: (b, 1, t, h, w), or (b, 1, 1, h, w) for all frames; 5 more means about 150 times the weight.
        size: (H, W) of the target.
        visibility: (b, 1, t, h, w) in [0, 1]; None = everything is visible.
    """
    b, channels, t = values.shape[:3]
    height, width = size
    precision = torch.promote_types(values.dtype, torch.float32)
    shown = torch.ones_like(values[:, :1]) if visibility is None else visibility
    shown = shown.to(precision)
    weight = shown * torch.exp(priority - priority.detach().amax((1, 2, 3, 4), keepdim=True)).to(precision)
    carried = torch.cat((values.to(precision) * weight, weight, shown), dim=1)
    carried = rearrange(carried, "b c t h w -> (b t) c (h w)")
    x, y = rearrange(grid.to(precision), "b t h w xy -> xy (b t) (h w)")
    # a border of one cell before and two after the target takes what lands outside
    x, y = (((x + 1) * width - 1) / 2).clamp(-1, width), (((y + 1) * height - 1) / 2).clamp(-1, height)
    left, top = x.detach().floor(), y.detach().floor()
    right_share, lower_share = x - left, y - top
    left_share, upper_share = 1 - right_share, 1 - lower_share
    row = width + BORDER
    index = (top.long() + 1) * row + left.long() + 1
    landed = carried.new_zeros(b * t, channels + 2, (height + BORDER) * row)
    shares = (left_share * upper_share, right_share * upper_share, left_share * lower_share, right_share * lower_share)
    for offset, share in zip((0, 1, row, row + 1), shares, strict=True):
        part = carried * share.unsqueeze(1)
        landed = landed.scatter_add(2, (index + offset).unsqueeze(1).expand_as(part), part)
    landed = rearrange(landed, "(b t) c (h w) -> b c t h w", b=b, w=row)[..., 1 : height + 1, 1 : width + 1]
    total = landed[:, channels : channels + 1]
    mean = torch.where(total > TINY, landed[:, :channels] / total.clamp(min=TINY), 0)
    return Splat(mean, landed[:, channels + 1 :])
