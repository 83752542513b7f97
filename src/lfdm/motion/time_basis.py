"""Smooth functions of time that span how points of a clip move (principal components of training trajectories).

A clip lasts from tau = 0, its first frame, to tau = 1, its last, whatever its number of frames: frame k of t is at
k / (t - 1). All functions are zero at tau = 0, so that frame 0 stands still exactly.

Shapes: curves (b, c, t, h, w), c quantities of every cell over time, 0 in frame 0 · weight (b, 1, t, h, w) · coefficients
(b, c K, h, w), the K of the first quantity first · moments (n, n).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from lfdm.errors import UserError

NUM_KNOTS = 16
"""Instants at which functions are stored; between them they are cubic."""
MIN_FRAMES = 3
"""Fewest frames of a clip whose curves are interpolated: its ends are extended as parabolas."""
SMALLEST_VARIANCE = 1e-12
"""Lower bound of a coefficient's variance, so that a function that never occurs has a finite ridge."""


def instants(num_frames: int) -> Tensor:
    """Return tau of the frames of a clip: (num_frames,) float64 from 0 to 1; a single frame is at 0."""
    return torch.arange(num_frames, dtype=torch.float64) / max(1, num_frames - 1)


def interpolation(tau: Tensor, num_knots: int) -> Tensor:
    """Return the matrix (t, num_knots) that interpolates values at evenly spaced knots at `tau` (t,) in [0, 1].

    Cubic (Catmull-Rom): passes through the knots and reproduces parabolas.
    """
    values = torch.eye(num_knots, dtype=torch.float64)
    before = 3 * values[:1] - 3 * values[1:2] + values[2:3]
    after = 3 * values[-1:] - 3 * values[-2:-1] + values[-3:-2]
    values = torch.cat((before, values, after))
    position = tau.double() * (num_knots - 1)
    left = position.floor().clamp(0, num_knots - 2).long()
    u = (position - left).unsqueeze(1)
    weights = (u * (u * (2 - u) - 1) / 2, 1 + u * u * (3 * u - 5) / 2, u * (1 + u * (4 - 3 * u)) / 2, u * u * (u - 1) / 2)
    return sum((weight * values[left + k] for k, weight in enumerate(weights)), torch.zeros(len(tau), num_knots).double())


@dataclass(frozen=True, eq=False)
class TimeBasis:
    """K functions of time."""

    knots: Tensor
    """Values (K, n) float64 at n evenly spaced instants, 0 at the first; the mean square of each function is 1."""
    variance: Tensor
    """Mean square (K,) float64 of the coefficients of training curves, from the largest."""

    def __post_init__(self) -> None:
        count, num_knots = self.knots.shape if self.knots.ndim == 2 else (0, 0)
        if count < 1 or num_knots < NUM_KNOTS or self.variance.shape != (count,):
            raise UserError(
                f"knots must be (K, n) with n of {NUM_KNOTS} or more, and variance (K,); "
                f"got {tuple(self.knots.shape)} and {tuple(self.variance.shape)}"
            )
        if self.knots[:, 0].any() or not self.knots.isfinite().all() or not (self.variance > 0).all():
            raise UserError("knots must be finite and 0 at the first instant, and variance positive")

    @classmethod
    def from_curves(cls, batches: Iterable[tuple[Tensor, Tensor]], count: int) -> Self:
        """Return the `count` principal components of batches of curves and weights.

        The moment of two instants is the mean product of the curves there, over cells with a weight at both.

        Raises:
            UserError: no curves, or clips with fewer than `MIN_FRAMES` frames.
        """
        total = torch.zeros(NUM_KNOTS, NUM_KNOTS, dtype=torch.float64)
        weights = torch.zeros_like(total)
        for curves, weight in batches:
            if curves.shape[2] < MIN_FRAMES:
                raise UserError(f"clips must have at least {MIN_FRAMES} frames; got {curves.shape[2]}")
            to_knots = interpolation(instants(NUM_KNOTS), curves.shape[2])
            known = rearrange((to_knots.abs() @ _over_time(weight)).clamp(max=1), "n cells -> n 1 cells")
            curve = rearrange(to_knots @ _over_time(curves), "n (cells c) -> n c cells", c=curves.shape[1]) * known
            total += torch.einsum("ncx,mcx->nm", curve, curve)
            weights += curves.shape[1] * torch.einsum("nix,mix->nm", known, known)
        if not weights.any():
            raise UserError("curves are empty; at least one is needed for a basis")
        return cls.from_moments(total / weights.clamp(min=SMALLEST_VARIANCE), count)

    @classmethod
    def from_moments(cls, moments: Tensor, count: int) -> Self:
        """Return the `count` principal components of second moments (n, n) of curves at n instants; the first is dropped."""
        size = len(moments)
        if not 1 <= count < size:
            raise UserError(f"count must be from 1 to {size - 1}; got {count}")
        if not moments.isfinite().all():
            raise UserError("curves must be finite; got NaN or infinite values")
        variance, vectors = torch.linalg.eigh(moments.double()[1:, 1:])
        variance, vectors = variance.flip(0)[:count], vectors.flip(1)[:, :count]
        vectors = vectors * torch.where(vectors.sum(0) < 0, -1.0, 1.0)
        knots = F.pad(vectors.T, (1, 0)) * size**0.5
        return cls(knots, (variance / size).clamp(min=SMALLEST_VARIANCE))

    def __len__(self) -> int:
        return len(self.knots)

    def at(self, tau: Tensor) -> Tensor:
        """Return the functions at `tau` (t,) in [0, 1]: (t, K) float64."""
        return interpolation(tau, self.knots.shape[1]) @ self.knots.T

    def evaluate(self, coefficients: Tensor, tau: Tensor) -> Tensor:
        """Return the curves (b, c, t, h, w) of coefficients (b, c K, h, w) at `tau` (t,): linear in the coefficients."""
        functions = self.at(tau).to(coefficients)
        return torch.einsum("tk,bckhw->bcthw", functions, coefficients.unflatten(1, (-1, len(self))))

    def fit(self, curves: Tensor, weight: Tensor, *, ridge: float) -> Tensor:
        """Return the coefficients (b, c K, h, w) whose curves are nearest to curves (b, c, t, h, w), by weighted least squares.

        Minimises the sum over frames of weight * error^2, plus ridge * coefficient^2 / variance: `ridge` is the variance of
        the errors of curves whose weight is 1. Frames without weight are filled in by what training curves do.
        """
        functions = self.at(instants(curves.shape[2]))
        weight = weight[:, 0].double()
        normal = torch.einsum("tk,bthw,tl->bhwkl", functions, weight, functions) + torch.diag(ridge / self.variance)
        projected = torch.einsum("tk,bthw,bcthw->bhwkc", functions, weight, curves.double())
        solution = torch.linalg.solve(normal, projected)
        return rearrange(solution, "b h w k c -> b (c k) h w").to(curves.dtype)


def _over_time(x: Tensor) -> Tensor:
    """(b, c, t, h, w) -> (t, b h w c) float64."""
    return rearrange(x.double(), "b c t h w -> t (b h w c)")
