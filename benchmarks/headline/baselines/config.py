"""Settings of the baselines, sized to have as many parameters as our system within a fifth. Imports no torch."""

from dataclasses import dataclass, field

from lfdm.config.checks import check, check_not_negative, check_positive, check_types

MAX_PARAMETER_RATIO = 1.2


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig:
    """A `ClipDenoiser` and its training."""

    dim: int
    """Width of the first level, in channels."""
    channel_multipliers: tuple[int, ...]
    """Width of every level, in multiples of `dim`."""
    patch_size: int = 1
    """Side of the patches folded into channels, in pixels."""
    predicts_clean: bool = False
    """True if the network outputs x0, which is converted to the prediction; see `ClipDenoiser`."""
    num_heads: int = 4
    """Attention heads."""
    head_dim: int = 16
    """Channels of one head."""
    batch_size: int = 4
    """Clips per step."""
    learning_rate: float = 2e-3
    """Learning rate of Adam, like the batch size the best of short trials (docs/log.md); the rest is stage 2's."""

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "dim", "channel_multipliers", "patch_size", "num_heads", "head_dim", "batch_size", "learning_rate")


@dataclass(frozen=True, kw_only=True)
class FrameAutoencoderConfig:
    """The `AutoencoderKL` of the LDM baseline and its training."""

    channels: tuple[int, ...] = (24, 48, 96)
    """Width of every level, in channels; every level except the last halves the size."""
    layers_per_block: int = 2
    """Residual blocks per level."""
    num_groups: int = 8
    """Groups of the group norms."""
    kl_weight: float = 1e-6
    """Weight of the KL divergence from unit normal latents (arXiv 2112.10752, appendix G)."""
    ssim_weight: float = 0.05
    """Weight of 1 - SSIM relative to the mean absolute error, as in our stage 1."""

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "channels", "layers_per_block", "num_groups")
        check_not_negative(self, "kl_weight", "ssim_weight")
        check(len(self.channels) >= 2, "channels", self.channels, "two levels or more")


@dataclass(frozen=True, kw_only=True)
class BaselinesConfig:
    """Settings of all trained baselines."""

    vdm: DenoiserConfig = field(default_factory=lambda: DenoiserConfig(dim=24, channel_multipliers=(1, 2, 4, 8)))
    """VDM on pixels, as published."""
    vdm_folded: DenoiserConfig = field(
        default_factory=lambda: DenoiserConfig(dim=48, channel_multipliers=(1, 2, 4), patch_size=4, predicts_clean=True)
    )
    """VDM on patches of 4x4 pixels: 16x16 positions for frames of 64x64, as many as in our network."""
    ldm: DenoiserConfig = field(default_factory=lambda: DenoiserConfig(dim=40, channel_multipliers=(1, 2, 4)))
    """LDM on frame latents at stride 4: as many positions."""
    frames: FrameAutoencoderConfig = field(default_factory=FrameAutoencoderConfig)
    """Auto-encoder of the frame latents."""


def check_parameters(counts: dict[str, int]) -> None:
    """Raise UserError for a method whose parameter count differs from that of `ours` by more than a fifth."""
    ours = counts["ours"]
    for method, count in counts.items():
        similar = ours / MAX_PARAMETER_RATIO <= count <= ours * MAX_PARAMETER_RATIO
        check(similar, f"parameters of {method}", count, f"{ours} (ours) within a factor of {MAX_PARAMETER_RATIO}")
