"""Settings of the motion predictors. `type` names the predictor in JSON and in `lfdm.autoencoder.predictors.registry`."""

from dataclasses import dataclass, replace
from typing import Literal

from lfdm.config.checks import check, check_at_most, check_not_negative, check_positive, check_types

MAX_WIDTH = 8192
"""Most channels of any layer; a larger number is a typing error."""
MAX_STRIDES = 10
"""Most widths of the dense predictor: each halves the size."""
TEACHER_TRACKING = 100.0
"""`tracking` of the teacher of the loss `tracking_distillation`, where the student has none."""


@dataclass(frozen=True, kw_only=True)
class PredictorConfig:
    """Base class of the settings of motion predictors."""

    type: str
    """Name of the predictor."""

    @property
    def losses(self) -> tuple[str, ...]:
        """Names of the predictor's auxiliary losses; each has a weight `<name>_weight` in `AutoencoderTrainingConfig`."""
        return ()

    def size_multiple(self, num_downs: int) -> int:
        """Return the number that height and width of images must be multiples of, for motion at stride 2^num_downs."""
        return 2**num_downs

    def min_size(self, num_downs: int) -> int:
        """Return the smallest height and width of images."""
        return self.size_multiple(num_downs)

    def check_autoencoder(self, *, corners: bool) -> None:
        """Raise UserError if an auto-encoder of these settings cannot have this predictor."""

    def tracking_teacher(self) -> "PredictorConfig":
        """Return the settings of the teacher of the loss `tracking_distillation`, which has the same weights."""
        raise NotImplementedError(f"{self.type} has no loss tracking_distillation")


@dataclass(frozen=True, kw_only=True)
class DenseConfig(PredictorConfig):
    """Our own predictor: global matching on the motion's grid, then refinement, without regions."""

    type: Literal["dense"] = "dense"
    """Name of the predictor."""
    channels: tuple[int, ...] = (32, 64, 96, 128, 128)
    """Widths at strides 1, 2, 4, 8, 16 of the image, reduced until the motion has stride 2 in it."""
    match_channels: int = 64
    """Channels of the features compared in global matching."""
    max_residual: float = 0.6
    """Largest change of the flow in one refinement, in half images."""
    tracking: float = 0.0
    """Pull of a match towards the position tracked from the previous frame, relative to the pull to zero motion; 0 = off."""

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "channels", "match_channels", "max_residual")
        check_not_negative(self, "tracking")
        check_at_most(self, MAX_WIDTH, "channels", "match_channels")
        usable = 4 <= len(self.channels) <= MAX_STRIDES and all(width % 8 == 0 for width in self.channels)
        check(usable, "channels", self.channels, f"4 to {MAX_STRIDES} multiples of 8")

    @property
    def losses(self) -> tuple[str, ...]:
        return "match", "tracking_distillation"

    def min_size(self, num_downs: int) -> int:
        return 2 ** (len(self.channels) + num_downs - 2)  # its coarsest features have a cell left

    def check_autoencoder(self, *, corners: bool) -> None:
        check(not corners, "corners", corners, "False with the dense predictor (pixel centres)")

    def tracking_teacher(self) -> "DenseConfig":
        return replace(self, tracking=self.tracking or TEACHER_TRACKING)


@dataclass(frozen=True, kw_only=True)
class RegionConfig(PredictorConfig):
    """The paper's predictor (MRAA, arXiv 2104.11280): regions found without labels, one affine motion each."""

    type: Literal["regions"] = "regions"
    """Name of the predictor."""
    num_regions: int = 10
    """Number of regions."""
    temperature: float = 0.1
    """Softmax temperature of the region heat maps."""
    channels: int = 32
    """First width of the region and background networks."""
    flow_channels: int = 64
    """First width of the network that combines region motions."""
    max_channels: int = 1024
    """Most channels of the three networks."""
    depth: int = 5
    """Halvings inside each of the three networks."""
    padding: int = 3
    """Padding of the 7x7 heat-map convolution: 3 in mug128, 0 in mhad128 and natops128."""

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "num_regions", "temperature", "channels", "flow_channels", "max_channels", "depth")
        check_at_most(self, MAX_WIDTH, "num_regions", "channels", "flow_channels", "max_channels")
        check_at_most(self, 10, "depth")
        check(0 <= self.padding <= 3, "padding", self.padding, "0 to 3")
        least = max(self.channels, self.flow_channels)
        check(self.max_channels >= least, "max_channels", self.max_channels, f"at least {least}, the first width")

    @property
    def losses(self) -> tuple[str, ...]:
        return ("equivariance",)

    def size_multiple(self, num_downs: int) -> int:
        return 2 ** (self.depth + num_downs)

    def min_size(self, num_downs: int) -> int:
        return max(self.size_multiple(num_downs), 2**num_downs * (7 - 2 * self.padding))  # the heat map has a pixel left
