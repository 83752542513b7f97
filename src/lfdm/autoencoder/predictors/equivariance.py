"""Equivariance of the regions: the regions of a warped frame must be the warped regions of the frame (FOMM, arXiv 2003.00196).

Shapes: frame (b, 3, H, W) in [0, 1] · points (b, n, 2), order (x, y) · matrices (b, n, 2, 2) · C = 25 control points.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from lfdm.autoencoder.predictors.region_geometry import Regions, invert_2x2, multiply_2x2, positive_first
from lfdm.motion.warp import identity_grid, warp

AFFINE_STD = 0.05
CONTROL_STD = 0.005
CONTROL_POINTS = 5
"""Control points along each side of the image."""
NUM_AFFINE = 6
"""Entries of Theta."""
LOG_OFFSET = 1e-6


def warp_noise(batch_size: int, generator: torch.Generator) -> Tensor:
    """Sample the noise (batch_size, 31) of as many warps, on the generator's device."""
    return torch.randn(batch_size, NUM_AFFINE + CONTROL_POINTS**2, generator=generator, device=generator.device)


@dataclass(frozen=True, eq=False)
class RandomWarp:
    """One smooth warp per sample: T(z) = Theta (z, 1) + s(z) (1, 1), s(z) = sum_c w_c d_c^2 ln(d_c + 1e-6).

    d_c is the L1 distance to control point c, and the same s moves x and y, as in the published losses.
    """

    theta: Tensor
    """Affine part (b, 2, 3)."""
    weights: Tensor
    """Weights w_c (b, C)."""
    centres: Tensor
    """Control points (C, 2)."""
    corners: bool
    """Coordinate convention (see `lfdm.motion.warp`)."""

    @classmethod
    def from_noise(cls, noise: Tensor, *, corners: bool) -> Self:
        """Return Theta = [I|0] + N(0, 0.05^2), w_c ~ N(0, 0.005^2) from standard normal noise (b, 31), see `warp_noise`."""
        theta = torch.eye(2, 3, device=noise.device) + AFFINE_STD * noise[:, :NUM_AFFINE].unflatten(1, (2, 3))
        centres = identity_grid(CONTROL_POINTS, CONTROL_POINTS, corners=corners, device=noise.device).flatten(0, 1)
        return cls(theta, CONTROL_STD * noise[:, NUM_AFFINE:], centres, corners)

    def __call__(self, points: Tensor) -> Tensor:
        """Evaluate T at `points`: (b, n, 2)."""
        linear = (self.theta[:, None, :, :2] * points.unsqueeze(-2)).sum(-1) + self.theta[:, None, :, 2]
        distance = self._offsets(points).abs().sum(-1)  # (b, n, C)
        bend = (self.weights[:, None] * distance**2 * torch.log(distance + LOG_OFFSET)).sum(-1, keepdim=True)
        return linear + bend

    def jacobian(self, points: Tensor) -> Tensor:
        """Evaluate the Jacobian J_ij = dT_i / dz_j at `points` in closed form: (b, n, 2, 2)."""
        offsets = self._offsets(points)
        distance = offsets.abs().sum(-1)  # (b, n, C)
        slope = 2 * distance * torch.log(distance + LOG_OFFSET) + distance**2 / (distance + LOG_OFFSET)
        bend = ((self.weights[:, None] * slope).unsqueeze(-1) * offsets.sign()).sum(-2)  # (b, n, 2)
        return self.theta[:, None, :, :2] + bend.unsqueeze(-2)

    def transform(self, frame: Tensor) -> Tensor:
        """Return the frame (b, 3, H, W) whose pixel at z is that of `frame` at T(z), reflected at the edges."""
        height, width = frame.shape[-2:]
        points = identity_grid(height, width, corners=self.corners, device=frame.device).flatten(0, 1)
        grid = self(points.expand(frame.shape[0], -1, -1)).unflatten(1, (1, height, width))
        return warp(frame, grid, padding_mode="reflection").squeeze(2)

    def _offsets(self, points: Tensor) -> Tensor:
        return points.unsqueeze(-2) - self.centres  # (b, n, C, 2)


@dataclass(frozen=True, eq=False)
class EquivarianceLosses:
    """Scalar losses; the published weight of both is 10."""

    shift: Tensor
    """Error of the regions' positions."""
    affine: Tensor
    """Error of the regions' axes."""


def equivariance_losses(random_warp: RandomWarp, driving: Regions, transformed: Regions) -> EquivarianceLosses:
    """Compare the regions of a frame with T of the regions of the same frame after `random_warp.transform`.

    shift = mean |mu_driving - T(mu_transformed)|; affine = mean |I - M| with M = A_driving^-1 J A_transformed, its sign
    corrected as in `relative_affine`. Nothing is detached.
    """
    shift = (driving.shift - random_warp(transformed.shift)).abs().mean()
    moved = multiply_2x2(random_warp.jacobian(transformed.shift), transformed.affine)
    matrix = positive_first(multiply_2x2(invert_2x2(driving.affine), moved))
    identity = torch.eye(2, device=matrix.device)
    return EquivarianceLosses(shift, (identity - matrix).abs().mean())
