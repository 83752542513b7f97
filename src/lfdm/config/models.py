"""Settings of the two models: the keyword arguments of `LatentFlowAutoencoder` and `MotionUNet3D`, word for word."""

from dataclasses import dataclass, field
from typing import Literal

from lfdm.config.checks import check, check_at_most, check_not_negative, check_positive, check_types
from lfdm.config.predictors import MAX_WIDTH, PredictorConfig, RegionConfig

MAX_LEVELS = 10
"""Most levels of the U-Net: each halves the size."""
FLOW_CHANNELS = 2
"""Leading channels of a motion: flow x and y, before occlusion."""
TRACK_CHANNELS = 18
"""Channels of the maps of tracks, see `lfdm.motion.tracks.track_maps`."""


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Stage 1, the arguments of `LatentFlowAutoencoder`; the defaults are the paper's."""

    channels: int = 64
    """Encoder channels at full size, doubled at every halving."""
    max_channels: int = 256
    """Largest number of encoder channels."""
    num_downs: int = 2
    """Halvings between image and latent: flow and latent have stride 2^num_downs."""
    num_res_blocks: int = 6
    """Residual blocks of the decoder at the latent's size."""
    predictor: PredictorConfig = field(default_factory=RegionConfig)
    """Motion predictor: `DenseConfig` (our own) or `RegionConfig` (the paper's)."""
    corners: bool = True
    """Coordinate convention: the paper's end-point identity grid (True) or pixel centres (False)."""
    padding_mode: Literal["zeros", "border"] = "zeros"
    """Padding outside the image when warping."""
    upsampling: Literal["bilinear", "convex"] = "bilinear"
    """Upsampling of motion to the image's size: bilinear, or weighted by a network that sees the moved image (our own)."""

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "channels", "max_channels", "num_downs")
        check_not_negative(self, "num_res_blocks")
        check_at_most(self, MAX_WIDTH, "channels", "max_channels")
        check_at_most(self, 10, "num_downs")
        check_at_most(self, 100, "num_res_blocks")
        allowed = self.upsampling == "bilinear" or not self.corners
        check(allowed, "upsampling", self.upsampling, "'bilinear' with corners=True")
        self.predictor.check_autoencoder(corners=self.corners)

    @property
    def latent_channels(self) -> int:
        """Channels of the latent."""
        return min(self.max_channels, self.channels * 2**self.num_downs)

    @property
    def size_multiple(self) -> int:
        """The number that height and width of images must be multiples of."""
        return self.predictor.size_multiple(self.num_downs)

    @property
    def min_size(self) -> int:
        """Smallest height and width of images."""
        return self.predictor.min_size(self.num_downs)


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Stage 2, the arguments of `MotionUNet3D`; the defaults are the paper's."""

    sample_channels: int = 3
    """Channels of the motion: flow x, flow y, occlusion."""
    latent_channels: int = 256
    """Channels of the image latent, the last width of the auto-encoder."""
    condition_dim: int = 768
    """Size of the condition embedding."""
    dim: int = 64
    """Channels of the first level."""
    channel_multipliers: tuple[int, ...] = (1, 2, 4, 8)
    """Channels of every level, in units of dim; each level after the first halves the size."""
    patch_size: int = 1
    """Side of the square of cells folded into channels at the input; 2 makes the network about four times cheaper."""
    num_resnets: int = 2
    """Residual blocks of each level."""
    num_heads: int = 8
    """Attention heads."""
    head_dim: int = 32
    """Channels of each head."""
    num_groups: int = 8
    """Groups of the group norms."""
    spatial_attention_levels: tuple[bool, ...] | None = None
    """Levels with spatial linear attention; None = all, as published."""
    temporal_attention_levels: tuple[bool, ...] | None = None
    """Levels with attention over frames; None = all, as published."""
    input_kernel: int = 7
    """Kernel size of the first convolution."""
    separate_heads: bool = True
    """Separate last residual blocks for flow and occlusion."""
    relative_position_buckets: int = 32
    """Buckets of frame distance in the attention over frames."""
    relative_position_max_distance: int = 32
    """Frame distance from which all share the last bucket."""
    upsample: Literal["transpose", "nearest"] = "transpose"
    """Transposed convolution, or nearest-neighbour upsampling and a convolution with reflected border."""
    flow_map: bool = False
    """Prediction of the mean over a time interval instead of a point in time, for few steps (`lfdm train few-steps`)."""
    max_guidance: float | None = None
    """Largest guidance scale that the network takes as an input, from 1; None = guidance combines two predictions."""
    track_inputs: bool = False
    """Input for tracks of points, which training takes from the clips' motion; without tracks the network moves freely."""

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "sample_channels", "latent_channels", "condition_dim", "dim", "channel_multipliers", "patch_size")
        check_positive(self, "num_resnets", "num_heads", "head_dim", "num_groups", "input_kernel")
        check_at_most(self, MAX_WIDTH, "latent_channels", "condition_dim", "dim", "channel_multipliers", "head_dim")
        check_at_most(self, 100, "patch_size", "num_resnets", "num_heads", "input_kernel")
        levels, buckets = len(self.channel_multipliers), self.relative_position_buckets
        check(self.sample_channels > FLOW_CHANNELS, "sample_channels", self.sample_channels, "3 or more (flow and occlusion)")
        check(0 < levels <= MAX_LEVELS, "channel_multipliers", self.channel_multipliers, f"1 to {MAX_LEVELS} numbers")
        groups = f"even, at least 4 and a multiple of num_groups ({self.num_groups})"
        check(self.dim >= 4 and self.dim % 2 == 0 and self.dim % self.num_groups == 0, "dim", self.dim, groups)
        check(self.head_dim % 2 == 0, "head_dim", self.head_dim, "even")
        check(self.input_kernel % 2 == 1, "input_kernel", self.input_kernel, "odd")
        check(buckets >= 4 and buckets % 4 == 0, "relative_position_buckets", buckets, "4 or another multiple of 4")
        guidance = self.max_guidance
        check(guidance is None or guidance > 1, "max_guidance", guidance, "above 1, or None")
        distance = self.relative_position_max_distance
        check(distance > buckets // 4, "relative_position_max_distance", distance, f"more than {buckets // 4}")
        for name in ("spatial_attention_levels", "temporal_attention_levels"):
            value = getattr(self, name)
            check(value is None or len(value) == levels, name, value, f"{levels} values, one per level, or None")

    @property
    def size_multiple(self) -> int:
        """The number that height and width of the latent must be multiples of."""
        return self.patch_size * 2 ** (len(self.channel_multipliers) - 1)
