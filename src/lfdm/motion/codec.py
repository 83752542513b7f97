"""Codecs: what stage 2 diffuses, as a tensor computed from a `Motion` and turned back into one.

Shapes: motion see `lfdm.motion.motion` · h, w size of the image latent · sample (b, *codec.sample_shape(num_frames, h, w)).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from lfdm.config.checks import check_arguments
from lfdm.config.registration import register_to_config
from lfdm.errors import UserError
from lfdm.folders.components import Component
from lfdm.motion.motion import Motion

Triple = tuple[float, float, float]
MIN_STD = 1e-3
"""Lower bound of a measured standard deviation, so that a nearly constant channel (occlusion of still clips) is not amplified."""


class SampleSpace(ABC):
    """The samples of a video: their shape, the limits of their values, and the motion that is decoded from them."""

    has_frame_axis: ClassVar[bool] = False
    """Samples are (b, c, t, h, w), one entry per frame: a long clip can be sampled in windows."""

    @abstractmethod
    def sample_shape(self, num_frames: int, height: int, width: int) -> tuple[int, ...]:
        """Return the shape of one sample, channels first; UserError for a length that is not supported."""

    @abstractmethod
    def decode(self, sample: Tensor, num_frames: int) -> Motion:
        """Return the motion of `num_frames` frames that a sample stands for."""

    def clamp(self, sample: Tensor) -> Tensor:
        """Move a predicted clean sample to the nearest valid one, such as into the range of the training data."""
        return sample

    def hold_first_frame(self, sample: Tensor) -> Tensor:
        """Set the known values of frame 0, if any, in a predicted clean sample."""
        return sample

    def over_time(self, weights: Tensor) -> Tensor:
        """Return the weights of conditions in each frame, (n, t), as those in each entry of axis 2 of a sample.

        Raises:
            UserError: one entry stands for the whole video.
        """
        raise UserError(
            f"labels over time need one sample per frame, or several latents (more frames without slow motion); a sample of "
            f"this model stands for all {weights.shape[1]} frames"
        )


class MotionCodec(Component, SampleSpace):
    """Maps motion to the samples that stage 2 diffuses, and back.

    A pipeline can load every subclass that is imported. A codec without weights is one JSON file, as here; one with weights
    is also a model: class X(Model, MotionCodec).
    """

    corners: bool
    """Coordinate convention of the motion, see `lfdm.motion.warp`."""

    @abstractmethod
    def encode(self, motion: Motion) -> Tensor:
        """Return the sample of a motion.

        Raises:
            UserError: the other coordinate convention.
        """

    def energy(self, height: int, width: int) -> Tensor | None:
        """Return the variance of each entry of a sample before normalisation, (c, ...); None for codecs that do not say."""
        del height, width
        return None

    def measured(self, motions: Iterable[Motion], *, clamp: bool = True) -> Self:
        """Return this codec with the statistics of training motions; `clamp` stores their range, too.

        Args:
            motions: what `encode` takes; may be iterated several times.
        """
        del motions, clamp
        return self


class FrameCodec(MotionCodec):
    """One motion map per frame: samples are (b, 3, t, h, w).

    The channels are displacement (`flow`, our own) or absolute position (`grid`, LFDM) in x and y, and 2 * occlusion - 1,
    each normalised by `mean` and `std` where these are given.

    Args:
        kind: `flow` or `grid`.
        corners: coordinate convention of the motion.
        still_first_frame: frame 0 of a decoded motion is no motion, everything visible.
        mean, std: of each channel before normalisation, measured on the training set; None = not normalised.
        low, high: range of each channel before normalisation; None = not clamped.
    """

    has_frame_axis = True

    @register_to_config
    def __init__(
        self,
        *,
        kind: Literal["flow", "grid"] = "flow",
        corners: bool = False,
        still_first_frame: bool = True,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        low: Sequence[float] | None = None,
        high: Sequence[float] | None = None,
    ) -> None:
        check_arguments(FrameCodec, self.config)
        self.kind, self.corners, self.still_first_frame = kind, corners, still_first_frame
        self.mean, self.std = _triple("mean", mean), _triple("std", std)
        self.low, self.high = _triple("low", low), _triple("high", high)
        check_statistics(3, mean=self.mean, std=self.std, low=self.low, high=self.high)

    def measured(self, motions: Iterable[Motion], *, clamp: bool = True) -> Self:
        """Return this codec, normalised by the statistics of `motions`, which may come in batches of any size.

        Raises:
            UserError: no motions, one of the other convention, or values that are not finite.
        """
        settings: dict[str, Any] = {"kind": self.kind, "corners": self.corners, "still_first_frame": self.still_first_frame}
        raw = type(self)(**settings)
        count = 0
        total, squares = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
        low, high = torch.full((3,), math.inf, dtype=torch.float64), torch.full((3,), -math.inf, dtype=torch.float64)
        for motion in motions:
            values = raw.encode(motion).detach().cpu().double().transpose(0, 1).flatten(1)  # (3, n)
            count += values.shape[1]
            total += values.sum(1)
            squares += values.square().sum(1)
            low, high = torch.minimum(low, values.amin(1)), torch.maximum(high, values.amax(1))
        if count == 0:
            raise UserError("motions is empty; at least one is needed to measure their statistics")
        if not torch.isfinite(squares).all():
            raise UserError("motions must be finite; got NaN or infinite values")
        mean = total / count
        std = (squares / count - mean.square()).clamp(min=0).sqrt().clamp(min=MIN_STD)
        limits: dict[str, Any] = {"low": low.tolist(), "high": high.tolist()} if clamp else {}
        return type(self)(**settings, mean=mean.tolist(), std=std.tolist(), **limits)

    def sample_shape(self, num_frames: int, height: int, width: int) -> tuple[int, ...]:
        return (3, num_frames, height, width)

    def over_time(self, weights: Tensor) -> Tensor:
        return weights

    def encode(self, motion: Motion) -> Tensor:
        if motion.corners != self.corners:
            raise UserError(f"motion must have corners={self.corners}, as this codec; got corners={motion.corners}")
        position = motion.flow if self.kind == "flow" else motion.grid().permute(0, 4, 1, 2, 3)
        sample = torch.cat((position, 2 * motion.occlusion - 1), dim=1)
        if self.mean is None or self.std is None:
            return sample
        return (sample - _channels(self.mean, sample)) / _channels(self.std, sample)

    def decode(self, sample: Tensor, num_frames: int) -> Motion:
        """Return the motion of the first `num_frames` frames, occlusion clamped to [0, 1]."""
        if sample.ndim != 5 or sample.shape[1] != 3 or sample.shape[2] < num_frames:
            raise UserError(f"sample must be (b, 3, t, h, w) with t of {num_frames} or more; got {tuple(sample.shape)}")
        sample = sample[:, :, :num_frames]
        if self.mean is not None and self.std is not None:
            sample = sample * _channels(self.std, sample) + _channels(self.mean, sample)
        position, occlusion = sample[:, :2], ((sample[:, 2:] + 1) / 2).clamp(0, 1)
        if self.kind == "flow":
            motion = Motion(position, occlusion, self.corners)
        else:
            motion = Motion.from_grid(position.permute(0, 2, 3, 4, 1), occlusion, corners=self.corners)
        return motion.from_rest() if self.still_first_frame else motion

    def clamp(self, sample: Tensor) -> Tensor:
        if self.low is None or self.high is None:
            return sample
        low, high = _channels(self.low, sample), _channels(self.high, sample)
        if self.mean is not None and self.std is not None:
            mean, std = _channels(self.mean, sample), _channels(self.std, sample)
            low, high = (low - mean) / std, (high - mean) / std
        return torch.minimum(torch.maximum(sample, low), high)

    def hold_first_frame(self, sample: Tensor) -> Tensor:
        if not self.still_first_frame:
            return sample
        size = (sample.shape[-2], sample.shape[-1])
        still = Motion.identity(len(sample), 1, size, corners=self.corners, device=sample.device)
        return torch.cat((self.encode(still).to(sample.dtype), sample[:, :, 1:]), dim=2)


def check_statistics(
    num_channels: int,
    *,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    low: Sequence[float] | None,
    high: Sequence[float] | None,
) -> None:
    """Raise UserError unless mean and std, low and high come in pairs, with a number for each channel, std > 0, low <= high."""
    if (mean is None) != (std is None) or (low is None) != (high is None):
        raise UserError(f"mean and std, low and high must be given in pairs; got {mean}, {std}, {low}, {high}")
    for name, values in {"mean": mean, "std": std, "low": low, "high": high}.items():
        if values is not None and len(values) != num_channels:
            raise UserError(f"{name} must have {num_channels} numbers; got {len(values)}")
    if std is not None and min(std) <= 0:
        raise UserError(f"std must be positive; got {std}")
    if low is not None and high is not None and any(a > b for a, b in zip(low, high, strict=True)):
        raise UserError(f"low must not exceed high; got {low} and {high}")


def _triple(name: str, values: Sequence[float] | None) -> Triple | None:
    if values is None:
        return None
    if len(values) != 3:
        raise UserError(f"{name} must be three numbers (x, y, occlusion); got {values}")
    return (float(values[0]), float(values[1]), float(values[2]))


def _channels(values: Triple, like: Tensor) -> Tensor:
    # filled on the device: torch.tensor(values) would make the host wait for it
    return torch.cat([like.new_full((1, 1, 1, 1, 1), value) for value in values], dim=1)
