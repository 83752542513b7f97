"""What stage 2 diffuses: a `Motion` as a normalised tensor, and back.

Shapes: sample (b, 3, t, h, w), channels x, y, occlusion · see `lfdm.motion.motion`.
"""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, Self

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor

from lfdm.errors import UserError
from lfdm.folders.files import check_holds_only, replace_folder
from lfdm.folders.model_folder import CONFIG_NAME, build_from_config
from lfdm.motion.motion import Motion

Triple = tuple[float, float, float]
MIN_STD = 1e-3
"""A channel that hardly varies (occlusion of still clips) is not blown up beyond this."""


class MotionCodec(ConfigMixin):
    """Maps motion to diffusion samples and back; one JSON file, no weights.

    The three channels are displacement (`flow`, our own) or absolute position (`grid`, LFDM) in x and y, and
    2 * occlusion - 1; with `mean` and `std` each is normalised.

    Args:
        kind: `flow` or `grid`.
        corners: coordinate convention of the motion, see `lfdm.motion.warp`.
        still_first_frame: frame 0 of a decoded motion is no motion at all, everything visible.
        mean, std: of each channel before normalisation, measured on the training set; None = not normalised.
        low, high: range of each channel before normalisation, for `clamp`; None = not clamped.
    """

    config_name = CONFIG_NAME

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
        if kind not in ("flow", "grid"):
            raise UserError(f"kind must be 'flow' or 'grid'; got {kind!r}")
        self.kind, self.corners, self.still_first_frame = kind, corners, still_first_frame
        self.mean, self.std = _triple("mean", mean), _triple("std", std)
        self.low, self.high = _triple("low", low), _triple("high", high)
        if (self.mean is None) != (self.std is None) or (self.low is None) != (self.high is None):
            raise UserError(f"mean and std, low and high come in pairs; got {mean}, {std}, {low}, {high}")
        if self.std is not None and min(self.std) <= 0:
            raise UserError(f"std must be positive; got {self.std}")
        if self.low is not None and self.high is not None and any(a > b for a, b in zip(self.low, self.high, strict=True)):
            raise UserError(f"low must not exceed high; got {self.low} and {self.high}")

    @classmethod
    def measure(
        cls,
        motions: Iterable[Motion],
        *,
        kind: Literal["flow", "grid"] = "flow",
        corners: bool = False,
        still_first_frame: bool = True,
        clamp: bool = True,
    ) -> Self:
        """A target normalised by the statistics of `motions`, which may come in batches of any size.

        Raises:
            UserError: no motions, one of the other convention, or values that are not finite.
        """
        raw = cls(kind=kind, corners=corners, still_first_frame=still_first_frame)
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
            raise UserError("no motion to measure")
        if not torch.isfinite(squares).all():
            raise UserError("the motion holds values that are not finite")
        mean = total / count
        std = (squares / count - mean.square()).clamp(min=0).sqrt().clamp(min=MIN_STD)
        limits = (low.tolist(), high.tolist()) if clamp else (None, None)
        return cls(
            kind=kind,
            corners=corners,
            still_first_frame=still_first_frame,
            mean=mean.tolist(),
            std=std.tolist(),
            low=limits[0],
            high=limits[1],
        )

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """From a folder's config.json; UserError for unknown keys."""
        return build_from_config(Path(folder), cls)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the folder whole; UserError where it holds anything else."""
        check_holds_only(Path(folder), (CONFIG_NAME,), "the folder of a motion target")
        arguments = {name: value for name, value in self.config.items() if not name.startswith("_")}
        text = json.dumps({"_class_name": type(self).__name__, **arguments}, indent=2) + "\n"

        def write(temporary: Path) -> None:
            (temporary / CONFIG_NAME).write_text(text)

        replace_folder(Path(folder), write)

    @property
    def clamps(self) -> bool:
        """Whether `clamp` does anything."""
        return self.low is not None

    def encode(self, motion: Motion) -> Tensor:
        """The diffusion sample (b, 3, t, h, w) of a motion; UserError for one of the other convention."""
        if motion.corners != self.corners:
            raise UserError(f"this target's motion has corners={self.corners}; got corners={motion.corners}")
        position = motion.flow if self.kind == "flow" else motion.grid().permute(0, 4, 1, 2, 3)
        sample = torch.cat((position, 2 * motion.occlusion - 1), dim=1)
        if self.mean is None or self.std is None:
            return sample
        return (sample - _channels(self.mean, sample)) / _channels(self.std, sample)

    def decode(self, sample: Tensor) -> Motion:
        """The motion of a diffusion sample (b, 3, t, h, w), occlusion clamped to [0, 1]."""
        if sample.ndim != 5 or sample.shape[1] != 3:
            raise UserError(f"a sample is (b, 3, t, h, w); got {tuple(sample.shape)}")
        if self.mean is not None and self.std is not None:
            sample = sample * _channels(self.std, sample) + _channels(self.mean, sample)
        position, occlusion = sample[:, :2], ((sample[:, 2:] + 1) / 2).clamp(0, 1)
        if self.kind == "flow":
            motion = Motion(position, occlusion, self.corners)
        else:
            motion = Motion.from_grid(position.permute(0, 2, 3, 4, 1), occlusion, corners=self.corners)
        return motion.from_rest() if self.still_first_frame else motion

    def clamp(self, sample: Tensor) -> Tensor:
        """A predicted clean sample (b, 3, t, h, w), each channel clamped to the range of the training set."""
        if self.low is None or self.high is None:
            return sample
        low, high = _channels(self.low, sample), _channels(self.high, sample)
        if self.mean is not None and self.std is not None:
            mean, std = _channels(self.mean, sample), _channels(self.std, sample)
            low, high = (low - mean) / std, (high - mean) / std
        return torch.minimum(torch.maximum(sample, low), high)


def _triple(name: str, values: Sequence[float] | None) -> Triple | None:
    if values is None:
        return None
    if len(values) != 3 or not all(math.isfinite(value) for value in values):
        raise UserError(f"{name} must be three finite numbers (x, y, occlusion); got {values}")
    return (float(values[0]), float(values[1]), float(values[2]))


def _channels(values: Triple, like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, 3, 1, 1, 1)
