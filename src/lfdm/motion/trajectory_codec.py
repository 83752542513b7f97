"""`TrajectoryCodec`: the motion of a whole clip as one image of trajectory coefficients, whatever the number of frames.

Shapes: sample (b, 2 K + K_o + 1, 1, h, w): the coefficients of `lfdm.motion.trajectories`, normalised, and one entry of the frame
axis that networks for video have.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from lfdm.config.checks import check_arguments, check_integer
from lfdm.config.diffusion import TRAJECTORY_COEFFICIENTS, VISIBILITY_COEFFICIENTS
from lfdm.config.registration import register_to_config
from lfdm.errors import UserError
from lfdm.motion.codec import MIN_STD, MotionCodec, check_statistics
from lfdm.motion.motion import Motion
from lfdm.motion.time_basis import NUM_KNOTS, TimeBasis, instants
from lfdm.motion.trajectories import Trajectories, TrajectoryBasis

Rows = Sequence[Sequence[float]]
FAR = 0.125
"""Displacement in half images, relative to most of the image, from which a cell has all of the priority."""
IN_FRONT = 3.0
"""Priority of cells that move far; those that stand still have 0."""


class TrajectoryCodec(MotionCodec):
    """Coefficients of functions of time for displacement and visibility of the source's cells, and their priority.

    More frames of one sample are the same motion, slower. Until it is `measured`, a codec has the functions of a random walk and
    no statistics.

    Args:
        num_coefficients, num_visibility_coefficients: K of displacement in x and in y each, and K_o.
        displacement, visibility: knots of the functions, (K, n) and (K_o, n), see `TimeBasis`.
        displacement_variance, visibility_variance: mean squares of their coefficients, (K,) and (K_o,).
        mean, std, low, high: of each channel, before normalisation; None = not normalised, not clamped.
    """

    needs_trajectories = True
    corners = False

    @register_to_config
    def __init__(
        self,
        *,
        num_coefficients: int = TRAJECTORY_COEFFICIENTS,
        num_visibility_coefficients: int = VISIBILITY_COEFFICIENTS,
        displacement: Rows | None = None,
        visibility: Rows | None = None,
        displacement_variance: Sequence[float] | None = None,
        visibility_variance: Sequence[float] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        low: Sequence[float] | None = None,
        high: Sequence[float] | None = None,
    ) -> None:
        check_arguments(TrajectoryCodec, self.config)
        counts = {"num_coefficients": num_coefficients, "num_visibility_coefficients": num_visibility_coefficients}
        for name, count in counts.items():
            check_integer(name, count, 1, NUM_KNOTS - 1)
        self.basis = TrajectoryBasis(
            _basis("displacement", num_coefficients, displacement, displacement_variance),
            _basis("visibility", num_visibility_coefficients, visibility, visibility_variance),
        )
        statistics = {"mean": mean, "std": std, "low": low, "high": high}
        check_statistics(self.basis.num_channels, **statistics)
        self._statistics = {name: None if values is None else torch.tensor(values) for name, values in statistics.items()}

    def sample_shape(self, num_frames: int, height: int, width: int) -> tuple[int, ...]:
        del num_frames
        return (self.basis.num_channels, 1, height, width)

    def encode(self, motion: Any) -> Tensor:
        """Return the sample of `Trajectories`; UserError for anything else."""
        if not isinstance(motion, Trajectories):
            raise UserError(f"motion must be Trajectories for this codec; got {type(motion).__name__}")
        return self._normalize(self.basis.fit(motion, moving_in_front(motion)).unsqueeze(2))

    def decode(self, sample: Tensor, num_frames: int) -> Motion:
        if sample.ndim != 5 or sample.shape[1:3] != (self.basis.num_channels, 1) or num_frames < 1:
            raise UserError(f"sample must be (b, {self.basis.num_channels}, 1, h, w); got {tuple(sample.shape)}")
        mean, std = self._channels("mean", sample), self._channels("std", sample)
        coefficients = sample if mean is None or std is None else sample * std + mean
        return self.basis.motion(coefficients[:, :, 0], num_frames, (sample.shape[-2], sample.shape[-1]))

    def clamp(self, sample: Tensor) -> Tensor:
        low, high = self._channels("low", sample), self._channels("high", sample)
        if low is None or high is None:
            return sample
        return torch.minimum(torch.maximum(sample, self._normalize(low)), self._normalize(high))

    def measured(self, motions: Iterable[Any], *, clamp: bool = True) -> Self:
        """Return this codec with the basis and statistics of training trajectories; `motions` is iterated three times.

        Raises:
            UserError: no trajectories, or values that are not finite.
        """
        counts = {name: self.config[name] for name in ("num_coefficients", "num_visibility_coefficients")}
        basis = TrajectoryBasis.from_trajectories(lambda: motions, *counts.values())
        settings: dict[str, Any] = counts | {
            "displacement": basis.displacement.knots.tolist(),
            "visibility": basis.visibility.knots.tolist(),
            "displacement_variance": basis.displacement.variance.tolist(),
            "visibility_variance": basis.visibility.variance.tolist(),
        }
        raw = type(self)(**settings)
        total, squares, count = torch.zeros(basis.num_channels).double(), torch.zeros(basis.num_channels).double(), 0
        low, high = torch.full_like(total, math.inf), torch.full_like(total, -math.inf)
        for motion in motions:
            values = raw.encode(motion).double().transpose(0, 1).flatten(1)
            total, squares, count = total + values.sum(1), squares + values.square().sum(1), count + values.shape[1]
            low, high = torch.minimum(low, values.amin(1)), torch.maximum(high, values.amax(1))
        if not torch.isfinite(squares).all():
            raise UserError("motions must be finite; got NaN or infinite values")
        mean = total / count
        std = (squares / count - mean.square()).clamp(min=0).sqrt().clamp(min=MIN_STD)
        limits: dict[str, Any] = {"low": low.tolist(), "high": high.tolist()} if clamp else {}
        return type(self)(**settings, mean=mean.tolist(), std=std.tolist(), **limits)

    def _normalize(self, values: Tensor) -> Tensor:
        mean, std = self._channels("mean", values), self._channels("std", values)
        return values if mean is None or std is None else (values - mean) / std

    def _channels(self, name: str, like: Tensor) -> Tensor | None:
        values = self._statistics[name]
        return None if values is None else values.to(like).view(1, -1, 1, 1, 1)


def moving_in_front(trajectories: Trajectories) -> Tensor:
    """Return the priority (b, 1, h, w) that puts cells in front that move far relative to most of the image."""
    moved = trajectories.displacement
    drift = moved.flatten(3).median(dim=3).values[..., None, None]
    farthest = (moved - drift).norm(dim=1).amax(dim=1, keepdim=True)
    return IN_FRONT * (farthest / FAR).clamp(max=1)


def _basis(name: str, count: int, knots: Rows | None, variance: Sequence[float] | None) -> TimeBasis:
    """Return the functions that are given, or those of a random walk."""
    if (knots is None) != (variance is None):
        raise UserError(f"{name} and {name}_variance must be given together; got {knots} and {variance}")
    if knots is None or variance is None:
        tau = instants(NUM_KNOTS)
        return TimeBasis.from_moments(torch.minimum(tau[:, None], tau[None]), count)
    if len(knots) != count or len({len(row) for row in knots}) != 1:
        raise UserError(f"{name} must be {count} rows of one length; got {len(knots)} of {sorted({len(row) for row in knots})}")
    return TimeBasis(torch.tensor(knots, dtype=torch.float64), torch.tensor(variance, dtype=torch.float64))
