"""The paper's motion predictor: regions found without labels, one affine motion each.

Sources: MRAA (arXiv 2104.11280), LFDM (arXiv 2303.13744). A region is the Gaussian of a heatmap: where it is (mean) and
how it is stretched and turned (covariance). What a region does between two images is the affine map between its two
Gaussians; a network decides, pixel by pixel, which region's motion holds.

Shapes: image (n, 3, H, W) in [0, 1] · K regions · motion size (h, w) = (H, W) / stride · points and matrices in (x, y)
order, in the coordinates of `lfdm.motion.warp.identity_grid`.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from lfdm.autoencoder.layers import AntiAliasDownsample, Hourglass, ImageEncoder
from lfdm.motion.motion import Motion
from lfdm.motion.warp import identity_grid, warp

# Smallest variance a region may have, a standard deviation of 1e-4 half images: below lies rounding of float32 moments.
MIN_VARIANCE = 1e-8
# Axes whose variances differ by less than this part of their mean have no direction: it would be rounding.
MIN_ANISOTROPY = 1e-6


@dataclass(frozen=True)
class Regions:
    """K Gaussian regions of n images, float32.

    `shift` (n, K, 2) is the mean, `covariance` (n, K, 2, 2), `affine` (n, K, 2, 2) the matrix A with A A^T = covariance
    whose columns are the principal axes, longest first; `heatmap` (n, K, h', w') sums to 1 over space.
    """

    shift: Tensor
    covariance: Tensor
    affine: Tensor
    heatmap: Tensor

    def repeat_interleave(self, repeats: int) -> "Regions":
        """Every image's regions `repeats` times in a row."""
        parts = (self.shift, self.covariance, self.affine, self.heatmap)
        return Regions(*(part.repeat_interleave(repeats, dim=0) for part in parts))


def multiply_2x2(left: Tensor, right: Tensor) -> Tensor:
    """Product of matrices (..., 2, 2), elementwise: neither TF32 nor autocast rounds it."""
    return (left.unsqueeze(-1) * right.unsqueeze(-3)).sum(-2)


def invert_2x2(matrix: Tensor) -> Tensor:
    """Inverse of matrices (..., 2, 2) by their adjugate."""
    a, b, c, d = matrix.flatten(-2).unbind(-1)
    return _matrix_2x2(d, -b, -c, a) / (a * d - b * c)[..., None, None]


def positive_first(matrix: Tensor) -> Tensor:
    """Matrices (..., 2, 2), negated where their first entry is negative."""
    return torch.where(matrix[..., :1, :1] < 0, -matrix, matrix)


def principal_axes(covariance: Tensor) -> Tensor:
    """A = U diag(sqrt(l1), sqrt(l2)) of S = U diag(l1, l2) U^T with l1 >= l2, for covariance matrices (..., 2, 2).

    Closed form, on the device: U is a rotation by atan2(2 S01, S00 - S11) / 2, l = m +- r. The variances are held at
    `MIN_VARIANCE` so that A can be inverted. Gradients are finite everywhere: where the two axes are equally long, the
    direction, which is undefined there, passes none.
    """
    s00, s01, s11 = covariance[..., 0, 0], covariance[..., 0, 1], covariance[..., 1, 1]
    mean, half = (s00 + s11) / 2, (s00 - s11) / 2
    squared = half**2 + s01**2
    round_shape = squared <= (MIN_ANISOTROPY * mean) ** 2
    radius = torch.where(round_shape, 0.0, torch.where(round_shape, 1.0, squared).sqrt())
    angle = torch.atan2(torch.where(round_shape, 0.0, s01), torch.where(round_shape, 1.0, half)) / 2
    long = (mean + radius).clamp(min=MIN_VARIANCE).sqrt()
    short = (mean - radius).clamp(min=MIN_VARIANCE).sqrt()
    cos, sin = angle.cos(), angle.sin()
    return _matrix_2x2(cos * long, -sin * short, sin * long, cos * short)


def heatmap_regions(heatmap: Tensor, *, corners: bool) -> Regions:
    """The Gaussians of heatmaps (n, K, h', w') that sum to 1 over space; the map spans the image whatever its size."""
    grid = identity_grid(heatmap.shape[-2], heatmap.shape[-1], corners=corners, device=heatmap.device)
    heatmap = heatmap.float()
    shift = (heatmap.unsqueeze(-1) * grid).sum((-3, -2))  # (n, K, 2)
    x, y = (grid - shift[:, :, None, None]).unbind(-1)  # (n, K, h', w')
    xx, xy, yy = ((heatmap * product).sum((-2, -1)) for product in (x * x, x * y, y * y))
    covariance = _matrix_2x2(xx, xy, xy, yy)
    return Regions(shift, covariance, principal_axes(covariance), heatmap)


def relative_affine(source: Regions, driving: Regions) -> Tensor:
    """R = A_source A_driving^-1 (n, K, 2, 2): how a region is stretched and turned from driving back to source.

    Its sign is corrected so that R[0, 0] >= 0, since the axes of a Gaussian have no sign (MRAA, section 3.2).
    """
    return positive_first(multiply_2x2(source.affine, invert_2x2(driving.affine)))


def region_heat(regions: Regions, grid: Tensor) -> Tensor:
    """exp(-(z - mean)^T S^-1 (z - mean) / 2) at every point of `grid` (h, w, 2), (n, K, h, w)."""
    offset = grid - regions.shift[:, :, None, None]
    whitened = _transform(invert_2x2(regions.affine), offset)
    return torch.exp(-0.5 * whitened.square().sum(-1))


@dataclass(frozen=True)
class RegionMotion:
    """`motion`, and for the training of the regions: those of the driving frames (b * t images, clip by clip)."""

    motion: Motion
    driving: Regions


class RegionPredictor(nn.Module):
    """K heatmaps of an image, as Gaussians."""

    def __init__(
        self,
        *,
        num_regions: int,
        temperature: float,
        channels: int,
        max_channels: int,
        depth: int,
        padding: int,
        stride: int,
        corners: bool,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.corners = corners
        self.downsample = AntiAliasDownsample(3, stride)
        self.hourglass = Hourglass(3, channels=channels, depth=depth, max_channels=max_channels)
        self.head = nn.Conv2d(self.hourglass.out_channels, num_regions, 7, padding=padding)

    def forward(self, image: Tensor) -> Regions:
        logits = self.head(self.hourglass(self.downsample(image))).float()  # (n, K, h', w')
        heatmap = torch.softmax(logits.flatten(2) / self.temperature, dim=-1).view_as(logits)
        return heatmap_regions(heatmap, corners=self.corners)


class BackgroundPredictor(nn.Module):
    """One affine motion for all that is no region, the identity at first."""

    def __init__(self, *, channels: int, max_channels: int, depth: int) -> None:
        super().__init__()
        self.encoder = ImageEncoder(6, channels=channels, depth=depth, max_channels=max_channels)
        self.head = nn.Linear(min(max_channels, channels * 2**depth), 6)
        nn.init.zeros_(self.head.weight)
        with torch.no_grad():
            self.head.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]))

    def forward(self, source: Tensor, driving: Tensor) -> Tensor:
        """From images (n, 3, H, W) each to the first two rows of B (n, 2, 3), driving point -> source point."""
        features = self.encoder(torch.cat((source, driving), dim=1))[-1]
        return self.head(features.mean((-2, -1))).float().unflatten(-1, (2, 3))


class RegionFlowPredictor(nn.Module):
    """Which motion holds where: masks over the background's and the regions' motions, and the occlusion."""

    def __init__(
        self,
        *,
        num_regions: int,
        channels: int,
        max_channels: int,
        depth: int,
        stride: int,
        corners: bool,
        padding_mode: str,
    ) -> None:
        super().__init__()
        self.corners = corners
        self.padding_mode = padding_mode
        self.downsample = AntiAliasDownsample(3, stride)
        self.hourglass = Hourglass(4 * (num_regions + 1), channels=channels, depth=depth, max_channels=max_channels)
        self.mask = nn.Conv2d(self.hourglass.out_channels, num_regions + 1, 7, padding=3)
        self.occlusion = nn.Conv2d(self.hourglass.out_channels, 1, 7, padding=3)

    def forward(self, image: Tensor, source: Regions, driving: Regions, background: Tensor) -> Motion:
        """Motion of b * t frames against b images (b, 3, H, W).

        `source` holds the regions of the b images; `driving` and `background` (b * t, 2, 3) belong to the frames, clip
        by clip.
        """
        image = self.downsample(image)  # (b, 3, h, w)
        b, t = image.shape[0], driving.shift.shape[0] // image.shape[0]
        grid = identity_grid(image.shape[-2], image.shape[-1], corners=self.corners, device=image.device)
        motions = self._motions(grid, source.repeat_interleave(t), driving, background)  # (b t, K + 1, h, w, 2)
        heat = region_heat(driving, grid) - region_heat(source, grid).repeat_interleave(t, dim=0)
        heat = torch.cat((torch.zeros_like(heat[:, :1]), heat), dim=1)

        points = rearrange(motions, "(b t) m h w xy -> b (t m) h w xy", b=b)
        warped = warp(image, points, padding_mode=self.padding_mode)  # (b, 3, t (K + 1), h, w)
        warped = rearrange(warped, "b c (t m) h w -> (b t) m c h w", t=t)
        known = torch.cat((heat.unsqueeze(2).to(warped.dtype), warped), dim=2).flatten(1, 2)  # (b t, 4 (K + 1), h, w)

        hidden = self.hourglass(known)
        masks = torch.softmax(self.mask(hidden).float(), dim=1)
        occlusion = torch.sigmoid(self.occlusion(hidden).float())
        sampled = (masks.unsqueeze(-1) * motions).sum(1)  # (b t, h, w, 2)
        return Motion.from_grid(
            rearrange(sampled, "(b t) h w xy -> b t h w xy", b=b),
            rearrange(occlusion, "(b t) c h w -> b c t h w", b=b),
            corners=self.corners,
        )

    @staticmethod
    def _motions(grid: Tensor, source: Regions, driving: Regions, background: Tensor) -> Tensor:
        """Where each candidate motion sends every point of `grid`: (n, K + 1, h, w, 2), background first."""
        moved = _transform(background[:, None, :, :2], grid) + background[:, None, None, None, :, 2]
        offset = grid - driving.shift[:, :, None, None]
        regions = _transform(relative_affine(source, driving), offset) + source.shift[:, :, None, None]
        return torch.cat((moved, regions), dim=1)


class RegionMotionPredictor(nn.Module):
    """Flow and occlusion at (H, W) / stride from a source image and driving frames.

    Args:
        temperature: of the heatmaps' softmax.
        channels: of the hourglass of the regions, and of the encoder of the background.
        flow_channels: of the hourglass that masks the motions.
        depth: number of halvings; H and W must be multiples of `stride * 2**depth`.
        padding: of the last convolution of the heatmaps; 0 makes the map 6 cells smaller.
        corners: the coordinate convention (see `lfdm.motion.warp`).
    """

    def __init__(
        self,
        *,
        num_regions: int,
        temperature: float,
        channels: int,
        flow_channels: int,
        max_channels: int,
        depth: int,
        padding: int,
        stride: int,
        corners: bool,
        padding_mode: str,
    ) -> None:
        super().__init__()
        self.region_predictor = RegionPredictor(
            num_regions=num_regions,
            temperature=temperature,
            channels=channels,
            max_channels=max_channels,
            depth=depth,
            padding=padding,
            stride=stride,
            corners=corners,
        )
        self.background_predictor = BackgroundPredictor(channels=channels, max_channels=max_channels, depth=depth)
        self.flow_predictor = RegionFlowPredictor(
            num_regions=num_regions,
            channels=flow_channels,
            max_channels=max_channels,
            depth=depth,
            stride=stride,
            corners=corners,
            padding_mode=padding_mode,
        )

    def forward(self, source: Tensor, driving: Tensor) -> Motion:
        """Motion of driving (b, 3, t, H, W) against source (b, 3, H, W), whose regions are found once per clip."""
        return self.match(source, driving).motion

    def match(self, source: Tensor, driving: Tensor) -> RegionMotion:
        """As `forward`, with the regions of the driving frames."""
        t = driving.shape[2]
        frames = rearrange(driving, "b c t h w -> (b t) c h w")
        background = self.background_predictor(source.repeat_interleave(t, dim=0), frames)
        regions = self.region_predictor(frames)
        motion = self.flow_predictor(source, self.region_predictor(source), regions, background)
        return RegionMotion(motion, regions)


def _matrix_2x2(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Rows (a, b), (c, d) from tensors of one shape (...): (..., 2, 2)."""
    return torch.stack((a, b, c, d), dim=-1).unflatten(-1, (2, 2))


def _transform(matrix: Tensor, points: Tensor) -> Tensor:
    """Matrices (n, K, 2, 2) applied to points (n, K, h, w, 2) or (h, w, 2), elementwise: (n, K, h, w, 2)."""
    x, y = points.unsqueeze(-1).unbind(-2)
    columns = matrix[:, :, None, None].unbind(-1)
    return columns[0] * x + columns[1] * y
