"""Every setting of the models and trainings: frozen dataclasses, checked when made, one line under each field.

`AutoencoderConfig` and `UNetConfig` are the keyword arguments of the two models, word for word. Imports no torch.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Literal

from lfdm.config.checks import (
    MAX_SEED,
    check,
    check_at_most,
    check_integer,
    check_not_negative,
    check_number,
    check_positive,
    check_probability,
    check_types,
)
from lfdm.config.checks import from_json as from_json
from lfdm.config.checks import to_json as to_json

Fit = Literal["pad", "crop"]
PanelFormat = Literal["gif", "mp4", "png"]
PanelKind = Literal["source", "generated", "warped", "flow", "grid", "arrows", "occlusion", "overlay", "regions"]
FrameSampler = Literal["uniform", "random", "very_random"]
PredictionType = Literal["epsilon", "v_prediction", "velocity"]
SchedulerName = Literal["ddpm", "ddim", "dpmsolver++", "unipc"]
MixedPrecision = Literal["auto", "no", "bf16"]
MIN_FPS = 0.01
MAX_FPS = 1000.0

MAX_GUIDANCE_SCALE = 100.0
MAX_HUE_JITTER = 0.5
FLOW_CHANNELS = 2
"""The first channels of a motion: flow x and y. The rest is occlusion."""
MAX_WIDTH = 8192
"""Most channels of any layer: beyond it there is a slip of the finger."""

TEXT_ENCODER = "bert-base-cased"
"""The paper's text model."""

SCHEDULERS: dict[PredictionType, tuple[SchedulerName, ...]] = {
    "epsilon": ("ddpm", "ddim", "dpmsolver++", "unipc"),
    "v_prediction": ("ddpm", "ddim", "dpmsolver++", "unipc"),
    "velocity": ("dpmsolver++", "unipc"),
}
"""The schedulers that are offered for each kind of prediction; more can be set in Python."""


def _check_hue(color_jitter: tuple[float, ...]) -> None:
    """UserError where the fourth amount, that of hue, is more than half a turn of the colour circle."""
    check(color_jitter[3] <= MAX_HUE_JITTER, "color_jitter", color_jitter, "at most 0.5 in its last value, the hue")


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


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """What is diffused and how it is sampled."""

    motion_codec: Literal["flow", "grid"] = "flow"
    """Displacement (our own) or the absolute sampling grid (paper)."""
    normalize: bool = True
    """Scale every motion channel to zero mean and unit variance, measured on the training set."""
    prediction_type: PredictionType = "velocity"
    """What the U-Net predicts: noise, v (arXiv 2202.00512), or velocity on the straight path (2210.02747; our own)."""
    scheduler: SchedulerName = "dpmsolver++"
    """Default sampler."""
    num_inference_steps: int = 10
    """Default number of sampling steps."""
    guidance_scale: float = 1.0
    """Default classifier-free guidance; 1 = the conditional prediction alone."""
    dynamic_thresholding: bool = False
    """Clip x0 by its 0.9 quantile at every step (paper); shrinks normalised motion, so off in our own recipe."""
    clamp_to_range: bool = True
    """Clamp x0 per channel to the range seen in training (our own)."""
    still_first_frame: bool = True
    """Frame 0 of a video is the image itself: no flow, everything visible (our own)."""
    condition: Literal["labels", "text"] = "labels"
    """Fixed label embeddings, or those of a text encoder."""
    text_encoder: str = TEXT_ENCODER
    """Hugging Face text model for condition='text': a name of the Hub or a local folder."""
    text_pooling: Literal["mean", "attention"] = "mean"
    """How its tokens become one embedding: their mean (paper), or weighted by a learned query (our own)."""
    learned_null: bool = False
    """The null condition is a stored vector (natops128) instead of zeros."""

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "num_inference_steps")
        check_number("guidance_scale", self.guidance_scale, low=0, high=MAX_GUIDANCE_SCALE)
        check(self.num_inference_steps <= 1000, "num_inference_steps", self.num_inference_steps, "at most 1000")
        offered = SCHEDULERS[self.prediction_type]
        allowed = f"one of {', '.join(offered)} with prediction_type={self.prediction_type!r}"
        check(self.scheduler in offered, "scheduler", self.scheduler, allowed)
        pools = self.condition == "text" or self.text_pooling == "mean"
        check(pools, "text_pooling", self.text_pooling, "'mean' with condition='labels'")
        embeds = self.condition == "text" or self.text_encoder == TEXT_ENCODER
        check(embeds, "text_encoder", self.text_encoder, f"{TEXT_ENCODER!r}, its default, with condition='labels'")
        thresholds = self.dynamic_thresholding
        check(not (thresholds and self.prediction_type == "velocity"), "dynamic_thresholding", True, "False with velocity")
        check(not (thresholds and self.clamp_to_range), "clamp_to_range", True, "False with dynamic_thresholding")
        check(self.motion_codec == "flow" or not self.normalize, "normalize", True, "False with motion_codec='grid'")
        check(self.normalize or not self.clamp_to_range, "clamp_to_range", True, "False without normalize (no stored range)")


@dataclass(frozen=True, kw_only=True)
class OptimizationConfig:
    """One training run's optimizer, schedule, checkpoints and logs."""

    num_steps: int
    """Optimizer steps in all."""
    batch_size: int
    """Samples per step, over all processes."""
    learning_rate: float
    """Adam's learning rate after warm-up."""
    epoch_repeats: int = 1
    """How often an epoch visits every clip, all visits shuffled together."""
    last_batch: Literal["join", "drop", "keep"] = "join"
    """An epoch's incomplete last batch: filled from the next epoch, dropped, or kept short."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Adam's moment decays."""
    schedule: Literal["cosine", "milestones"] = "cosine"
    """Decay to zero by a cosine, or x0.1 at each milestone."""
    milestones: tuple[int, ...] = ()
    """Steps of the x0.1 decays (schedule='milestones')."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    max_grad_norm: float | None = 1.0
    """Clip the gradient's norm; None = never."""
    ema_decay: float = 0.999
    """Decay of the averaged weights; 0 = no average."""
    mixed_precision: MixedPrecision = "no"
    """Autocast type of the forward pass; `auto` = bf16 where the device computes in it natively."""
    seed: int = 0
    """Seed of initial weights, sample order, augmentation and noise."""
    num_workers: int = 0
    """Loader processes."""
    checkpoint_steps: int = 1000
    """Write a checkpoint every so many steps,"""
    checkpoint_minutes: float = 5.0
    """and at least every so many minutes."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept."""
    log_steps: int = 20
    """Steps between logged scalars."""
    sample_steps: int = 1000
    """Steps between sample panels."""

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "num_steps", "batch_size", "learning_rate", "checkpoint_steps", "checkpoint_minutes")
        check_positive(self, "epoch_repeats")
        check_positive(self, "keep_checkpoints", "log_steps", "sample_steps", "milestones")
        check_at_most(self, 100_000, "batch_size")
        check_at_most(self, 1000, "num_workers")
        check_not_negative(self, "warmup_steps", "num_workers")
        check_integer("seed", self.seed, 0, MAX_SEED)
        check(all(0 <= beta < 1 for beta in self.betas), "betas", self.betas, "two numbers in [0, 1)")
        check(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "in [0, 1)")
        check(self.max_grad_norm is None or self.max_grad_norm > 0, "max_grad_norm", self.max_grad_norm, "positive or None")
        matched = bool(self.milestones) == (self.schedule == "milestones")
        check(matched, "milestones", self.milestones, "given with schedule='milestones', and with it alone")
        check(sorted(self.milestones) == list(self.milestones), "milestones", self.milestones, "in rising order")


@dataclass(frozen=True, kw_only=True)
class AutoencoderTrainingConfig:
    """Stage 1: pairs, augmentation and losses. A weight of 0 leaves a loss out."""

    optimization: OptimizationConfig
    """Optimizer, schedule, checkpoints."""
    first_frame_probability: float = 0.5
    """How often the source is the clip's first frame, which is what sampling animates."""
    distinct_frames: bool = True
    """Never pair a frame with itself."""
    pairs_by: Literal["clip", "subject"] = "clip"
    """Draw both frames from one clip, or the clip from all clips of the subject (mhad128)."""
    flip_probability: float = 0.5
    """Mirror both frames, where they are not swapped (never where the label says left or right)."""
    mirror_sided_labels: bool = False
    """Mirror those, too, as published: stage 1 never sees labels."""
    swap_probability: float = 0.5
    """Swap source and driving frame in time."""
    color_jitter: tuple[float, float, float, float] = (0.1, 0.1, 0.1, 0.1)
    """Brightness, contrast, saturation (factors 1 +- x) and hue (shift +- x)."""
    l1_weight: float = 1.0
    """Mean absolute error of the prediction at scales 1, 1/2, 1/4."""
    warped_weight: float = 1.0
    """The same of the warped image, so that the flow carries the motion rather than the decoder."""
    inpainted_weight: float = 0.5
    """The same of the painted image before the last blend, so that the decoder learns to paint where flow fails."""
    match_weight: float = 1.0
    """Mean absolute error of the driving frame put together from matched source cells (dense predictor)."""
    ssim_weight: float = 0.0
    """1 - SSIM of the prediction."""
    smoothness_weight: float = 0.02
    """Edge-aware first differences of the flow."""
    occlusion_weight: float = 0.0
    """Mean of 1 - occlusion: what can be warped is not called hidden, which leaves stage 2 a simpler map to draw."""
    perceptual_weight: float = 0.0
    """VGG feature distance of the prediction."""
    perceptual_weights_path: str | None = None
    """torchvision's VGG-19 state dict or the VGG-16 safetensors file."""
    perceptual_scales: int = 4
    """Scales (1, 1/2, ...) of the perceptual loss."""
    equivariance_weight: float = 0.0
    """Equivariance of region means and affine frames under random warps (regions predictor)."""
    tracking_distillation_weight: float = 0.0
    """Distance, for single frames, to the motion that the starting weights find by following the clip from frame to frame."""

    def __post_init__(self) -> None:
        check_types(self)
        check_probability(self, "first_frame_probability", "flip_probability", "swap_probability", "color_jitter")
        _check_hue(self.color_jitter)
        weights = [f.name for f in fields(self) if f.name.endswith("_weight")]
        check_not_negative(self, *weights)
        check(any(getattr(self, name) > 0 for name in weights), "l1_weight", 0.0, "positive, or another weight be")
        check_positive(self, "perceptual_scales")
        path = self.perceptual_weights_path
        given = (self.perceptual_weight > 0) == bool(path)
        check(given, "perceptual_weights_path", path, "given with perceptual_weight > 0, and with it alone")


def _adaptation_steps() -> OptimizationConfig:
    return OptimizationConfig(num_steps=1000, batch_size=8, learning_rate=2e-5)


@dataclass(frozen=True, kw_only=True)
class AdaptationConfig:
    """Decoder adaptation: the losses of stage 1 that reach the decoder, on clips of a new domain."""

    optimization: OptimizationConfig = field(default_factory=_adaptation_steps)
    """Optimizer, schedule, checkpoints."""
    first_frame_probability: float = 0.5
    """How often the source is the clip's first frame, which is what sampling animates."""
    flip_probability: float = 0.5
    """Mirror both frames, where they are not swapped."""
    color_jitter: tuple[float, float, float, float] = (0.1, 0.1, 0.1, 0.1)
    """Brightness, contrast, saturation (factors 1 +- x) and hue (shift +- x)."""
    l1_weight: float = 1.0
    """Mean absolute error of the prediction at scales 1, 1/2, 1/4."""
    inpainted_weight: float = 0.5
    """The same of the painted image before the last blend."""
    ssim_weight: float = 0.0
    """1 - SSIM of the prediction."""
    perceptual_weight: float = 0.0
    """VGG feature distance of the prediction (10 in the paper's stage 1, where it is the only loss)."""
    perceptual_weights_path: str | None = None
    """torchvision's VGG-19 state dict or the VGG-16 safetensors file."""
    perceptual_scales: int = 4
    """Scales (1, 1/2, ...) of the perceptual loss."""

    def __post_init__(self) -> None:
        check_types(self)
        self.losses()

    def losses(self) -> AutoencoderTrainingConfig:
        """These as settings of stage 1, without the losses that train motion alone; UserError where they are impossible."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        off = dict.fromkeys(("warped_weight", "match_weight", "smoothness_weight"), 0.0)
        return AutoencoderTrainingConfig(**given, **off, mirror_sided_labels=True)  # labels play no part


@dataclass(frozen=True, kw_only=True)
class DiffusionTrainingConfig:
    """Stage 2: targets, losses and augmentation."""

    optimization: OptimizationConfig
    """Optimizer, schedule, checkpoints."""
    frame_sampler: FrameSampler = "uniform"
    """How num_frames are drawn from a clip."""
    condition_dropout: float = 0.1
    """How often a sample trains the null condition; 1 = an unconditional model, without labels."""
    min_snr_gamma: float | None = None
    """Min-SNR loss weight (arXiv 2303.09556); None = unweighted, which docs/ablation.md found better."""
    flip_probability: float = 0.5
    """Mirror image and motion (never where the label says left or right)."""
    color_jitter: tuple[float, float, float, float] = (0.1, 0.1, 0.1, 0.1)
    """Jitter of the image that the latent is made from (of the whole clip where motion is not cached); motion stays as it is."""
    cache_motion: bool = True
    """Estimate all motion once, before training, instead of at every step."""
    gradient_checkpointing: bool = False
    """Compute each block of the U-Net again in the backward pass: a fraction of the memory for a fifth to a third more time."""

    def __post_init__(self) -> None:
        check_types(self)
        check_probability(self, "condition_dropout", "flip_probability", "color_jitter")
        _check_hue(self.color_jitter)
        check(self.min_snr_gamma is None or self.min_snr_gamma > 0, "min_snr_gamma", self.min_snr_gamma, "positive or None")


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A whole system: both models, how they are trained and how videos are sampled."""

    name: str
    """What it is called."""
    image_size: int
    """Frames are image_size x image_size."""
    fit: Fit = "pad"
    """How other shapes are fitted: black borders, or a centre crop."""
    num_frames: int = 16
    """Frames of a training clip, and by default of a video."""
    fps: float = 8.0
    """Frames per second of written videos."""
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    """Stage-1 model."""
    unet: UNetConfig = field(default_factory=UNetConfig)
    """Stage-2 model."""
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    """Targets and sampling."""
    autoencoder_training: AutoencoderTrainingConfig
    """Stage-1 training."""
    diffusion_training: DiffusionTrainingConfig
    """Stage-2 training."""

    def __post_init__(self) -> None:
        check_types(self)
        check(self.num_frames >= 2, "num_frames", self.num_frames, "at least 2")
        check_at_most(self, 1000, "num_frames")
        check_at_most(self, 2048, "image_size")
        check_number("fps", self.fps, low=MIN_FPS, high=MAX_FPS)
        given, channels = self.unet.latent_channels, self.autoencoder.latent_channels
        check(given == channels, "unet.latent_channels", given, f"{channels}, as the auto-encoder gives")
        multiple = math.lcm(self.autoencoder.size_multiple, 2**self.autoencoder.num_downs * self.unet.size_multiple)
        fits = self.image_size >= 16 and self.image_size % multiple == 0
        check(fits, "image_size", self.image_size, f"a multiple of {multiple} (for these two models), at least 16")
        check(self.unet.sample_channels == 3, "unet.sample_channels", self.unet.sample_channels, "3: flow x, flow y, occlusion")
        map_size = self.image_size // 2**self.autoencoder.num_downs + 2 * self.autoencoder.region_padding - 6
        usable = self.autoencoder.motion == "dense" or map_size >= 1
        check(usable, "autoencoder.region_padding", self.autoencoder.region_padding, "3 for images this small")
        losses = self.autoencoder_training
        for name, motion in (("match_weight", "dense"), ("equivariance_weight", "regions")):
            works = self.autoencoder.motion == motion or getattr(losses, name) == 0
            check(works, f"autoencoder_training.{name}", getattr(losses, name), f"0 unless autoencoder.motion is {motion!r}")
        self.autoencoder.check_can_follow(
            "autoencoder_training.tracking_distillation_weight", losses.tracking_distillation_weight
        )
