"""Global soft matching of driving frames against a source image (as in GMFlow, arXiv 2111.13680).

Shapes: b source images, b * t driving frames, clip by clip · cells of 2x2 pixels, (h, w) = (H, W) / 2.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from lfdm.autoencoder.convolution import channels_last
from lfdm.motion.warp import identity_grid

INITIAL_LOG_SCALE = 2.5
"""Log of the factor of cosine similarities: at exp(2.5) = 12 matches start soft, so that gradients reach wrong matches, too."""
INITIAL_DISTANCE_WEIGHT = 1.0
"""Weight of squared distance before softplus: crossing the whole image costs less than half of the best similarity."""
ATTENTION_WIDTH_MULTIPLE = 8
"""CUDA's fused attention needs channels in multiples of this."""


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """n images as the dense predictor sees them."""

    half: Tensor
    """Features at stride 2, (n, c, h, w)."""
    quarter: Tensor
    """Features at stride 4, (n, c', h/2, w/2)."""
    pixels: Tensor
    """RGB values of the four pixels of every cell, (n, 12, h, w)."""

    def select_frames(self, b: int, frames: slice) -> "ImageFeatures":
        """Return the same `frames` of each of the b clips."""
        parts = (self.half, self.quarter, self.pixels)
        return ImageFeatures(*(channels_last(x.unflatten(0, (b, -1))[:, frames].flatten(0, 1)) for x in parts))


@dataclass(frozen=True, eq=False)
class Match:
    """The expected counterpart of every driving cell in the source."""

    flow: Tensor
    """Displacement to its position, in half images, (b * t, 2, h, w)."""
    pixels: Tensor
    """Its pixels, (b * t, 12, h, w)."""
    evidence: Tensor
    """Quality of the match: similarity of features, difference of pixels, variance of the position, (b * t, 3, h, w)."""


class Matching(nn.Module):
    """Soft matching of every driving cell against all source cells, by features of strides 2 and 4.

    The score of a pair is a scaled cosine similarity minus a weight times the squared distance: of two equal matches the
    nearer one is likelier. With an expected flow, the distance is to the position that it predicts and the weight is larger.
    Both terms are one inner product, so that fused attention never stores the scores of all pairs.
    """

    def __init__(self, widths: tuple[int, int], channels: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)
        self.log_scale = nn.Parameter(torch.tensor(INITIAL_LOG_SCALE))
        self.distance_weight = nn.Parameter(torch.tensor(INITIAL_DISTANCE_WEIGHT))

    def forward(self, source: ImageFeatures, driving: ImageFeatures, expected: Tensor | None = None, pull: float = 1.0) -> Match:
        """Match b * t driving frames against b source images.

        Args:
            expected: expected flow (b * t, 2, h, w); None = no motion.
            pull: factor of the distance's weight where a flow is expected.
        """
        keys, queries = self.features(source.half, source.quarter), self.features(driving.half, driving.quarter)
        b, channels, h, w = keys.shape
        grid = identity_grid(h, w, corners=False, device=keys.device).permute(2, 0, 1)[None]  # (1, 2, h, w)
        square = grid.square().sum(1, keepdim=True)
        centre = grid if expected is None else grid + expected.detach()
        with torch.autocast(keys.device.type, enabled=False):
            weight = F.softplus(self.distance_weight) * (1.0 if expected is None else pull)
            key = _concatenate(keys, grid, -weight * square)
            query = _concatenate(self.log_scale.exp() * queries, 2 * weight * centre, torch.ones_like(square))
            value = _concatenate(keys, grid, square, source.pixels.float())
            sizes = (channels, 2, 1, source.pixels.shape[1])
            width = ATTENTION_WIDTH_MULTIPLE * math.ceil(max(key.shape[1], sum(sizes)) / ATTENTION_WIDTH_MULTIPLE)
            query, key, value = (_to_tokens(x, b, width) for x in (query, key, value))
            mean = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        mean = rearrange(mean, "b 1 (t h w) c -> (b t) c h w", h=h, w=w)
        feature, position, mean_square, pixels = mean[:, : sum(sizes)].split(sizes, dim=1)
        variance = (mean_square - position.square().sum(1, keepdim=True)).clamp(min=0)
        similarity = (feature * queries).sum(1, keepdim=True)
        difference = (pixels - driving.pixels).abs().mean(1, keepdim=True)
        return Match(position - grid, pixels, torch.cat((similarity, difference, variance), dim=1))

    def features(self, half: Tensor, quarter: Tensor) -> Tensor:
        """Return the compared features, of norm 1: (n, match_channels, h, w) from features at strides 2 and 4."""
        half, quarter = (projection(x) for projection, x in zip(self.projections, (half, quarter), strict=True))
        return F.normalize((half + resize_to(quarter, half)).float(), dim=1)


def _concatenate(*parts: Tensor) -> Tensor:
    """Concatenate channels, repeating parts of batch size 1; the first part has the full batch size."""
    return torch.cat([part.expand(parts[0].shape[0], -1, -1, -1) for part in parts], dim=1)


def _to_tokens(x: Tensor, b: int, width: int) -> Tensor:
    """(b * t, c, h, w) -> (b, 1, t * h * w, width), padded with channels of zeros."""
    return F.pad(rearrange(x, "(b t) c h w -> b 1 (t h w) c", b=b), (0, width - x.shape[1])).contiguous()


def resize_to(x: Tensor, like: Tensor) -> Tensor:
    """Resize (n, c, h, w) bilinearly to height and width of `like`."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
