"""Regions as Gaussians: their position, shape and relative motion (MRAA, arXiv 2104.11280).

A region is the Gaussian of a heat map: its mean is where it is, its covariance how it is stretched and turned. The motion of a
region between two images is the affine map between its two Gaussians.

Shapes: n images · K regions · points and matrices in (x, y) order, in the coordinates of `lfdm.motion.warp.identity_grid`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lfdm.motion.warp import identity_grid

MIN_VARIANCE = 1e-8
"""Smallest variance of a region, a standard deviation of 1e-4 half images: anything below is rounding of float32 moments."""
MIN_ANISOTROPY = 1e-6
"""Axes whose variances differ by a smaller part of their mean have no direction: it would be rounding."""


@dataclass(frozen=True, eq=False)
class Regions:
    """K Gaussian regions of n images, float32."""

    shift: Tensor
    """Means (n, K, 2)."""
    covariance: Tensor
    """Covariance matrices (n, K, 2, 2)."""
    affine: Tensor
    """Matrices A (n, K, 2, 2) with A A^T = covariance, whose columns are the principal axes in the image, longest first."""
    heatmap: Tensor
    """Heat maps (n, K, h', w'), which sum to 1 over space."""

    def repeat_interleave(self, repeats: int) -> "Regions":
        """Repeat the regions of every image `repeats` times in a row."""
        parts = (self.shift, self.covariance, self.affine, self.heatmap)
        return Regions(*(part.repeat_interleave(repeats, dim=0) for part in parts))


def heatmap_regions(heatmap: Tensor, *, corners: bool, aspect: float = 1.0) -> Regions:
    """Return the Gaussians of heat maps (n, K, h', w') that sum to 1 over space; a map spans the image whatever its size.

    `aspect` is the image's width divided by its height.
    """
    grid = identity_grid(heatmap.shape[-2], heatmap.shape[-1], corners=corners, device=heatmap.device)
    heatmap = heatmap.float()
    shift = (heatmap.unsqueeze(-1) * grid).sum((-3, -2))  # (n, K, 2)
    x, y = (grid - shift[:, :, None, None]).unbind(-1)  # (n, K, h', w')
    xx, xy, yy = ((heatmap * product).sum((-2, -1)) for product in (x * x, x * y, y * y))
    covariance = _matrix_2x2(xx, xy, xy, yy)
    return Regions(shift, covariance, principal_axes(covariance, aspect=aspect), heatmap)


def principal_axes(covariance: Tensor, *, aspect: float = 1.0) -> Tensor:
    """Return A = U diag(sqrt(l1), sqrt(l2)) of S = U diag(l1, l2) U^T with l1 >= l2, for covariance matrices (..., 2, 2).

    In an image of another `aspect` than 1, the axes are those of the Gaussian in pixels, so that a region that turns keeps
    them; A A^T = S holds in the given coordinates.

    Closed form, on the device: U is a rotation by atan2(2 S01, S00 - S11) / 2, l = m +- r. Variances are clamped to
    `MIN_VARIANCE` so that A is invertible. Gradients are finite everywhere: where both axes have the same length their
    direction is undefined and passes no gradient.
    """
    if aspect != 1.0:
        scale = covariance.new_tensor((aspect, 1.0))  # to half heights
        return principal_axes(covariance * scale[:, None] * scale) / scale[:, None]
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


def relative_affine(source: Regions, driving: Regions) -> Tensor:
    """Return R = A_source A_driving^-1 (n, K, 2, 2), a region's linear motion from driving back to source.

    Its sign is corrected so that R[0, 0] >= 0, since the axes of a Gaussian have no sign (MRAA, section 3.2).
    """
    return positive_first(multiply_2x2(source.affine, invert_2x2(driving.affine)))


def region_heat(regions: Regions, grid: Tensor) -> Tensor:
    """Evaluate exp(-(z - mean)^T S^-1 (z - mean) / 2) at every point z of `grid` (h, w, 2): (n, K, h, w)."""
    offset = grid - regions.shift[:, :, None, None]
    whitened = transform(invert_2x2(regions.affine), offset)
    return torch.exp(-0.5 * whitened.square().sum(-1))


def transform(matrix: Tensor, points: Tensor) -> Tensor:
    """Apply matrices (n, K, 2, 2) to points (n, K, h, w, 2) or (h, w, 2), elementwise: (n, K, h, w, 2)."""
    x, y = points.unsqueeze(-1).unbind(-2)
    columns = matrix[:, :, None, None].unbind(-1)
    return columns[0] * x + columns[1] * y


def multiply_2x2(left: Tensor, right: Tensor) -> Tensor:
    """Multiply matrices (..., 2, 2) elementwise, which neither TF32 nor autocast rounds."""
    return (left.unsqueeze(-1) * right.unsqueeze(-3)).sum(-2)


def invert_2x2(matrix: Tensor) -> Tensor:
    """Invert matrices (..., 2, 2) by their adjugate."""
    a, b, c, d = matrix.flatten(-2).unbind(-1)
    return _matrix_2x2(d, -b, -c, a) / (a * d - b * c)[..., None, None]


def positive_first(matrix: Tensor) -> Tensor:
    """Negate those of the matrices (..., 2, 2) whose first entry is negative."""
    return torch.where(matrix[..., :1, :1] < 0, -matrix, matrix)


def _matrix_2x2(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Rows (a, b), (c, d) from tensors of one shape (...): (..., 2, 2)."""
    return torch.stack((a, b, c, d), dim=-1).unflatten(-1, (2, 2))
