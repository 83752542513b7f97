"""The interface of motion predictors. A new one is a settings class, a subclass of `MotionPredictor` and a line in the registry.

Shapes: source (b, 3, H, W) · driving (b, 3, t, H, W), both in [0, 1] · motion size (h, w) = (H, W) / stride.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor, nn

from lfdm.config.predictors import PredictorConfig
from lfdm.errors import UserError
from lfdm.motion.motion import Motion


@dataclass(frozen=True, eq=False)
class LossInputs:
    """Training data for auxiliary losses, for pairs of a source and one driving frame."""

    driving: Tensor
    """Driving frames (b, 3, H, W) in [0, 1]."""
    sample: Callable[[Callable[[int, torch.Generator], Tensor]], Tensor]
    """Returns these frames' rows of `generate(n, generator)`, a random tensor (n, ...) for the whole batch."""
    teacher_flow: Tensor | None = None
    """Flow (b, 2, h, w) of a teacher that tracks the whole clip, in half images (`tracking_distillation`)."""
    has_teacher_flow: Tensor | None = None
    """Which pairs have a teacher flow (b,)."""


AuxiliaryLoss: TypeAlias = Callable[[LossInputs], Tensor]
"""A loss that trains a motion predictor, as a function that returns a scalar: it costs nothing unless it is called."""


@dataclass(frozen=True, eq=False)
class MotionEstimate:
    """The motion of driving frames, and the auxiliary losses of its predictor by name."""

    motion: Motion
    """At (h, w): what stage 2 learns to generate."""
    losses: Mapping[str, AuxiliaryLoss] = field(default_factory=dict)
    refine: Callable[[], Motion] | None = None
    """Returns the same motion on a finer grid, where the predictor can see more of it; it costs nothing unless it is called."""

    def finest(self) -> Motion:
        """Return the motion on the finest grid that the predictor has."""
        return self.motion if self.refine is None else self.refine()


class MotionPredictor(nn.Module):
    """Base class: estimates flow and occlusion of driving frames relative to a source image, at 1/stride of their size.

    Args:
        config: the predictor's own settings.
        corners: coordinate convention of the motion (see `lfdm.motion.warp`).
        padding_mode: padding outside the image when warping.
    """

    has_regions = False
    """`region_heat` is available."""

    def __init__(self, config: PredictorConfig, *, stride: int, corners: bool, padding_mode: str) -> None:
        super().__init__()
        self.kind = config.type
        self.stride, self.corners, self.padding_mode = stride, corners, padding_mode

    def predict(self, source: Tensor, driving: Tensor, before: tuple[Tensor, Tensor] | None = None) -> MotionEstimate:
        """Estimate the motion of driving frames (b, 3, t, H, W) relative to the source (b, 3, H, W).

        Args:
            before: the frame before the first driving frame (b, 3, H, W) and its flow (b, 2, h, w), where the driving frames
                continue a video. A predictor that does not track ignores it.

        Returns:
            Motion at (h, w). Single driving frames (t = 1) also have every loss that `PredictorConfig.losses` names.
        """
        raise NotImplementedError

    def track_points(self, video: Tensor) -> Tensor:  # noqa: ARG002 - for predictors that can
        """Return how far the cells of frame 0 have moved in the frames of a video (b, 3, t, H, W): (b, 2, t, h, w).

        Raises:
            UserError: a predictor that cannot track.
        """
        raise UserError(f"points can only be tracked by the predictor 'dense'; got {self.kind!r}")

    def region_heat(self, frames: Tensor) -> Tensor:  # noqa: ARG002 - for predictors with regions
        """Return the heat maps (n, K, h, w), of peak 1, of the K regions in frames (n, 3, H, W).

        Raises:
            UserError: a predictor without regions.
        """
        raise UserError(f"region_heat must be called on a predictor with regions; got {self.kind!r}")
