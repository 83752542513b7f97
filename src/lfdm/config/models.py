"""Settings of the two models: the keyword arguments of `LatentFlowAutoencoder` and `MotionUNet3D`, word for word."""

from dataclasses import dataclass
from typing import Literal

from lfdm.config.checks import check, check_at_most, check_not_negative, check_positive, check_types

FLOW_CHANNELS = 2
"""The first channels of a motion: flow x and y. The rest is occlusion."""
MAX_WIDTH = 8192
"""Most channels of any layer; a larger number is a typing error."""


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Stage 1, the arguments of `LatentFlowAutoencoder`; the defaults are the paper's."""

    channels: int = 64
    """Encoder channels at full size; doubled at every halving."""
    max_channels: int = 256
    """Most encoder channels."""
    num_downs: int = 2
    """Halvings between image and latent: flow and latent have stride 2^num_downs."""
    num_res_blocks: int = 6
    """Residual blocks of the decoder at the latent's size."""
    motion: Literal["dense", "regions"] = "regions"
    """Motion predictor: `dense` (our own: matching, then refinement) or `regions` (the paper's, MRAA)."""
    corners: bool = True
    """Coordinate convention: published end-point identity (True) or pixel centres (False), see lfdm.motion.warp."""
    padding_mode: Literal["zeros", "border"] = "zeros"
    """What a warp reads outside the image."""
    dense_channels: tuple[int, ...] = (32, 64, 96, 128, 128)
    """Widths of the dense predictor at strides 1, 2, 4, 8, 16."""
    dense_match_stride: int = 4
    """Stride of the cells that the dense predictor matches: 2 finds limbs a few pixels wide; 4 is that of early models."""
    dense_match_channels: int = 64
    """Channels compared in the dense predictor's global matching."""
    dense_max_residual: float = 0.6
    """The most one refinement moves, in half images."""
    dense_tracking: float = 0.0
    """How many times as strongly as to nearness a match is drawn to where the frame before had it; 0: each frame on its own."""
    num_regions: int = 10
    """Regions of the paper's predictor."""
    region_temperature: float = 0.1
    """Softmax temperature of the region heat maps."""
    region_channels: int = 32
    """First width of the region and background networks."""
    region_flow_channels: int = 64
    """First width of the network that combines region motions."""
    region_max_channels: int = 1024
    """Most channels of the three region networks."""
    region_depth: int = 5
    """Halvings inside each of the three region networks."""
    region_padding: int = 3
    """Padding of the 7x7 heat-map convolution: 3 in mug128, 0 in mhad128 and natops128."""

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "channels", "max_channels", "num_downs", "dense_channels", "dense_match_channels")
        check_positive(self, "dense_max_residual", "num_regions", "region_temperature", "region_channels")
        check_positive(self, "region_flow_channels", "region_max_channels", "region_depth")
        check_not_negative(self, "num_res_blocks", "region_padding", "dense_tracking")
        check(self.region_padding <= 3, "region_padding", self.region_padding, "0 to 3")
        check(self.dense_match_stride in (2, 4), "dense_match_stride", self.dense_match_stride, "2 or 4")
        check_at_most(self, MAX_WIDTH, "channels", "max_channels", "dense_channels", "dense_match_channels", "num_regions")
        check_at_most(self, MAX_WIDTH, "region_channels", "region_flow_channels", "region_max_channels")
        check_at_most(self, 10, "num_downs", "region_depth")
        check_at_most(self, 100, "num_res_blocks")
        least = max(self.region_channels, self.region_flow_channels)
        check(
            self.region_max_channels >= least,
            "region_max_channels",
            self.region_max_channels,
            f"at least {least}, the first width",
        )
        if self.motion == "dense":
            check(self.num_downs in (1, 2), "num_downs", self.num_downs, "1 or 2 with motion='dense' (stride 2 or 4)")
            check(not self.corners, "corners", self.corners, "False with motion='dense' (pixel centres)")
            usable = len(self.dense_channels) >= 4 and all(width % 8 == 0 for width in self.dense_channels)
            check(usable, "dense_channels", self.dense_channels, "four or more multiples of 8")
        self.check_can_follow("dense_tracking", self.dense_tracking)

    def check_can_follow(self, name: str, value: float) -> None:
        """Raise UserError where the setting `name` is not 0 and this model could not follow a video from frame to frame."""
        follows = self.motion == "dense" and self.dense_match_stride == 2
        check(follows or value == 0, name, value, "0 unless dense motion matches at stride 2")

    @property
    def latent_channels(self) -> int:
        """Channels of the latent."""
        return min(self.max_channels, self.channels * 2**self.num_downs)

    @property
    def size_multiple(self) -> int:
        """Height and width of images must be multiples of this."""
        if self.motion == "regions":
            return 2 ** (self.region_depth + self.num_downs)
        return 2 ** (len(self.dense_channels) - 1)


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Stage 2, the arguments of `MotionUNet3D`; the defaults are the paper's."""

    sample_channels: int = 3
    """Channels of the motion: flow x, flow y, occlusion."""
    latent_channels: int = 256
    """Channels of the image latent (the auto-encoder's last width)."""
    condition_dim: int = 768
    """Size of the condition embedding."""
    dim: int = 64
    """First width."""
    channel_multipliers: tuple[int, ...] = (1, 2, 4, 8)
    """Width of every level, times dim; each level after the first halves the size."""
    patch_size: int = 1
    """Motion and latent are folded by this before the network: 2 makes it about four times cheaper."""
    frame_patch_size: int = 1
    """So many frames of motion become one position in time: 2 makes the network about twice as cheap."""
    num_resnets: int = 2
    """Residual blocks per level."""
    num_heads: int = 8
    """Attention heads."""
    head_dim: int = 32
    """Channels of one head."""
    num_groups: int = 8
    """Groups of the group norms."""
    spatial_attention_levels: tuple[bool, ...] | None = None
    """Which levels have spatial linear attention; None = all, as published."""
    temporal_attention_levels: tuple[bool, ...] | None = None
    """Which levels have attention over frames; None = all, as published."""
    input_kernel: int = 7
    """Kernel of the first convolution."""
    separate_heads: bool = True
    """Flow and occlusion each have their own last residual block."""
    relative_position_buckets: int = 32
    """Buckets of frame distance in the attention over frames."""
    relative_position_max_distance: int = 32
    """Frame distance from which on all share the last bucket."""
    upsample: Literal["transpose", "nearest"] = "transpose"
    """Transposed convolution, or (natops128) nearest x2 and a convolution with reflected border."""

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "sample_channels", "latent_channels", "condition_dim", "dim", "channel_multipliers", "patch_size")
        check_positive(self, "frame_patch_size", "num_resnets", "num_heads", "head_dim", "num_groups", "input_kernel")
        check_at_most(self, MAX_WIDTH, "latent_channels", "condition_dim", "dim", "channel_multipliers", "head_dim")
        check_at_most(self, 100, "patch_size", "frame_patch_size", "num_resnets", "num_heads", "input_kernel")
        levels, buckets = len(self.channel_multipliers), self.relative_position_buckets
        check(self.sample_channels > FLOW_CHANNELS, "sample_channels", self.sample_channels, "3 or more (flow and occlusion)")
        check(levels > 0, "channel_multipliers", self.channel_multipliers, "at least one")
        groups = f"even, at least 4 and a multiple of num_groups ({self.num_groups})"
        check(self.dim >= 4 and self.dim % 2 == 0 and self.dim % self.num_groups == 0, "dim", self.dim, groups)
        check(self.head_dim % 2 == 0, "head_dim", self.head_dim, "even")
        check(self.input_kernel % 2 == 1, "input_kernel", self.input_kernel, "odd")
        check(buckets >= 4 and buckets % 4 == 0, "relative_position_buckets", buckets, "4 or another multiple of 4")
        distance = self.relative_position_max_distance
        check(distance > buckets // 4, "relative_position_max_distance", distance, f"more than {buckets // 4}")
        for name in ("spatial_attention_levels", "temporal_attention_levels"):
            value = getattr(self, name)
            check(value is None or len(value) == levels, name, value, f"{levels} values, one per level, or None")

    @property
    def size_multiple(self) -> int:
        """Height and width of the latent must be multiples of this."""
        return self.patch_size * 2 ** (len(self.channel_multipliers) - 1)
