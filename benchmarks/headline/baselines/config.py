"""Sizes of the baselines, chosen so that each has as many parameters as our whole system, within a fifth. Imports no torch."""

from dataclasses import dataclass, field

from lfdm.config.checks import check, check_not_negative, check_positive, check_types

MAX_PARAMETER_RATIO = 1.2


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig:
    """A `ClipDenoiser` and its training."""

    dim: int
    """First width."""
    channel_multipliers: tuple[int, ...]
    """Width of every level, times dim."""
    patch_size: int = 1
    """Height and width are folded into channels by this."""
    predicts_clean: bool = False
    """The network gives x0, from which the prediction follows: see `ClipDenoiser`."""
    num_heads: int = 4
    """Attention heads."""
    head_dim: int = 16
    """Channels of one head."""
    batch_size: int = 4
    """Clips per step."""
    learning_rate: float = 2e-3
    """Adam's; everything else of the optimizer is as for our own stage 2. Both are the best of short trials (docs/log.md)."""

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "dim", "channel_multipliers", "patch_size", "num_heads", "head_dim", "batch_size", "learning_rate")


@dataclass(frozen=True, kw_only=True)
class FrameAutoencoderConfig:
    """The `AutoencoderKL` of the LDM baseline and its training."""

    channels: tuple[int, ...] = (24, 48, 96)
    """Width of every level; each but the last halves the size."""
    layers_per_block: int = 2
    """Residual blocks per level."""
    num_groups: int = 8
    """Groups of the group norms."""
    kl_weight: float = 1e-6
    """Weight of the divergence from unit normal latents (arXiv 2112.10752, appendix G)."""
    ssim_weight: float = 0.05
    """Weight of 1 - SSIM beside the mean absolute error, as in our own stage 1."""

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "channels", "layers_per_block", "num_groups")
        check_not_negative(self, "kl_weight", "ssim_weight")
        check(len(self.channels) >= 2, "channels", self.channels, "two levels or more")


@dataclass(frozen=True, kw_only=True)
class BaselinesConfig:
    """All baselines that are trained."""

    vdm: DenoiserConfig = field(default_factory=lambda: DenoiserConfig(dim=24, channel_multipliers=(1, 2, 4, 8)))
    """Pixels, the published form."""
    vdm_folded: DenoiserConfig = field(
        default_factory=lambda: DenoiserConfig(dim=48, channel_multipliers=(1, 2, 4), patch_size=4, predicts_clean=True)
    )
    """Pixels, 4x4 of them folded into channels: 16x16 positions for frames of 64x64, as many as our own network works on."""
    ldm: DenoiserConfig = field(default_factory=lambda: DenoiserConfig(dim=40, channel_multipliers=(1, 2, 4)))
    """Latents of frames at stride 4: as many positions."""
    frames: FrameAutoencoderConfig = field(default_factory=FrameAutoencoderConfig)
    """What makes these latents."""


def check_parameters(counts: dict[str, int]) -> None:
    """UserError where a method has not as many parameters as `ours`, within a fifth. `counts` by method."""
    ours = counts["ours"]
    for method, count in counts.items():
        fits = ours / MAX_PARAMETER_RATIO <= count <= ours * MAX_PARAMETER_RATIO
        check(fits, f"parameters of {method}", count, f"{ours} (ours) within a factor of {MAX_PARAMETER_RATIO}")
