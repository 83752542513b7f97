"""Motion brought from its own grid to the sizes at which the decoder warps.

Stage 2 generates motion on the latent's grid, and a predictor refines it to half the image's size at best. Both reach the
image's size through the same upsampling, so that the decoder meets the same kind of motion in training and in sampling.

Shapes: image (b, 3, H, W) in [0, 1] · motion see `lfdm.motion.motion`.
"""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from lfdm.motion.motion import Motion
from lfdm.motion.upsampling import bilinear_logits, convex_double
from lfdm.motion.warp import flow_to_grid, warp

Motions: TypeAlias = Mapping[tuple[int, int], Motion]
"""A motion at several sizes (h, w)."""

CONVEX_REACH = 2.5
"""Distance in cells up to which a cell influences pixels by convex upsampling, however often the motion is doubled."""
WIDTH = 32
"""Channels of the network."""
INPUT_CHANNELS = 15
"""RGB of the four pixels of every cell, the flow's difference to its surroundings, and occlusion."""


class MotionUpsampler(nn.Module):
    """Double a motion's resolution as often as needed, each fine cell a weighted mean of the coarse cells around it.

    A flow is given on the driving frame's grid, and a generated one comes without that frame. Its edges are found in the moved
    source image: each cell shows the pixels that it would show if all of it had its own flow. Where a limb ends inside a cell,
    its pixels change colour, and those outside of the limb take the flow of another cell. All sizes share these weights.
    Training starts at bilinear interpolation. Zero flow and full visibility stay exactly that.
    """

    def __init__(self, *, padding_mode: str) -> None:
        super().__init__()
        self.padding_mode = padding_mode
        last = nn.Conv2d(WIDTH, len(bilinear_logits()), 3, padding=1)
        nn.init.zeros_(last.weight)
        last.bias = nn.Parameter(bilinear_logits())
        self.network = nn.Sequential(
            nn.Conv2d(INPUT_CHANNELS, WIDTH, 3, padding=1), nn.SiLU(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.SiLU(), last
        )

    def forward(self, image: Tensor, motion: Motion) -> Motion:
        """Double a motion (h, w) with the image (b, 3, 2h, 2w), reduced to the motion's new size."""
        b = image.shape[0]
        flow, occlusion = (rearrange(x, "b c t h w -> (b t) c h w") for x in (motion.flow.float(), motion.occlusion.float()))
        nearest = F.interpolate(flow, scale_factor=2, mode="nearest")
        grid = flow_to_grid(rearrange(nearest.detach(), "(b t) c h w -> b c t h w", b=b), corners=False)
        moved = rearrange(warp(2 * image - 1, grid, padding_mode=self.padding_mode), "b c t h w -> (b t) c h w")
        x = torch.cat((F.pixel_unshuffle(moved, 2), _contrast(flow).to(moved), occlusion.detach().to(moved)), dim=1)
        fine = convex_double(torch.cat((flow, occlusion), dim=1), self.network(x))
        fine = rearrange(fine, "(b t) c h w -> b c t h w", b=b)
        return Motion(fine[:, :2], fine[:, 2:], corners=False)


def motions_at(upsampler: MotionUpsampler | None, image: Tensor, motion: Motion, sizes: Sequence[tuple[int, int]]) -> Motions:
    """Return a motion at every one of `sizes`: upsampled bilinearly, or by `upsampler`; reduced by averaging."""
    if upsampler is None:
        return {size: motion.resize(size) for size in sizes}
    finer = [motion]
    height, width = max(sizes)
    while 2 * finer[-1].size[0] <= height and 2 * finer[-1].size[1] <= width:
        h, w = finer[-1].size
        finer.append(upsampler(F.interpolate(image, size=(2 * h, 2 * w), mode="area"), finer[-1]))
    known = {one.size: one for one in finer}
    return {size: known[size] if size in known else _resized(finer, size) for size in sizes}


def _resized(motions: Sequence[Motion], size: tuple[int, int]) -> Motion:
    """Resize the motion whose size is nearest to `size` from above, or the finest one if all are smaller."""
    larger = [motion for motion in motions if motion.size[0] >= size[0] and motion.size[1] >= size[1]]
    if not larger:
        return motions[-1].resize(size)
    return larger[0].reduced(size)


def _contrast(flow: Tensor) -> Tensor:
    """Return the difference of a flow (n, 2, h, w) to its mean over 3x3 cells, in cells, squashed to [-1, 1]."""
    difference = flow.detach() - F.avg_pool2d(flow.detach(), 3, 1, 1, count_include_pad=False)
    cells = difference.new_tensor((flow.shape[-1] / 2, flow.shape[-2] / 2)).view(1, 2, 1, 1)
    return torch.tanh(difference * cells)
