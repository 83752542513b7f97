"""Settings of the trainings: optimizer and schedule, and the losses and augmentation of each stage."""

from dataclasses import dataclass, field, fields, replace
from typing import Literal

from lfdm.config.checks import (
    MAX_SEED,
    check,
    check_at_most,
    check_integer,
    check_not_negative,
    check_positive,
    check_probability,
    check_types,
)
from lfdm.config.diffusion import MAX_GUIDANCE_SCALE, NUM_TRAIN_TIMESTEPS

FrameSampler = Literal["uniform", "random", "very_random"]
Background = Literal["white", "random"]
MixedPrecision = Literal["auto", "no", "bf16"]

MAX_HUE_JITTER = 0.5
AUXILIARY_LOSSES = ("match", "equivariance", "tracking_distillation")
"""Losses that only some motion predictors have (`PredictorConfig.losses`); the weight of each is `<name>_weight`."""


def _check_hue(color_jitter: tuple[float, ...]) -> None:
    """Raise UserError if the hue shift, the fourth amount, is more than half a turn of the colour circle."""
    check(color_jitter[3] <= MAX_HUE_JITTER, "color_jitter", color_jitter, "at most 0.5 in its last value, the hue")


@dataclass(frozen=True, kw_only=True)
class OptimizationConfig:
    """Optimizer, schedule, checkpoints and logs of one training."""

    num_steps: int
    """Total number of optimizer steps."""
    batch_size: int
    """Samples per step, over all processes."""
    micro_batch_size: int | None = None
    """Most samples that a process computes at once, None = all; same gradient, but batch norm sees one micro-batch at a time."""
    learning_rate: float
    """Adam's learning rate after warm-up."""
    epoch_repeats: int = 1
    """Visits of every clip in one epoch, all shuffled together."""
    last_batch: Literal["join", "drop", "keep"] = "join"
    """An epoch's incomplete last batch: filled from the next epoch, dropped, or kept short."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Adam's moment decays."""
    schedule: Literal["cosine", "milestones", "constant"] = "cosine"
    """Learning rate after warm-up: cosine decay to zero, x0.1 at each milestone, or constant."""
    milestones: tuple[int, ...] = ()
    """Steps of the x0.1 decays (schedule='milestones')."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    max_grad_norm: float | None = 1.0
    """Norm to which gradients are clipped; None = no clipping."""
    ema_decay: float = 0.999
    """Decay of the averaged weights; 0 = no averaging."""
    mixed_precision: MixedPrecision = "no"
    """Autocast type of the forward pass; `auto` = bf16 if the device supports it natively."""
    seed: int = 0
    """Seed of initial weights, sample order, augmentation and noise."""
    num_workers: int = 0
    """Data loader processes."""
    checkpoint_steps: int = 1000
    """Steps between checkpoints."""
    checkpoint_minutes: float = 5.0
    """Most minutes between checkpoints."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints to keep."""
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
        micro = self.micro_batch_size
        allowed = f"1 to batch_size ({self.batch_size}), or None"
        check(micro is None or 1 <= micro <= self.batch_size, "micro_batch_size", micro, allowed)
        check_at_most(self, 1000, "num_workers")
        check_not_negative(self, "warmup_steps", "num_workers")
        check_integer("seed", self.seed, 0, MAX_SEED)
        check(all(0 <= beta < 1 for beta in self.betas), "betas", self.betas, "two numbers in [0, 1)")
        check(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "in [0, 1)")
        check(self.max_grad_norm is None or self.max_grad_norm > 0, "max_grad_norm", self.max_grad_norm, "positive or None")
        check(self.warmup_steps <= self.num_steps, "warmup_steps", self.warmup_steps, f"at most num_steps ({self.num_steps})")
        used = self.schedule == "milestones"
        check(bool(self.milestones) == used, "milestones", self.milestones, "given with schedule='milestones', and only then")
        ordered = list(self.milestones) == sorted(self.milestones) and all(step < self.num_steps for step in self.milestones)
        check(ordered, "milestones", self.milestones, f"in rising order and below num_steps ({self.num_steps})")


def with_num_steps(config: OptimizationConfig, num_steps: int) -> OptimizationConfig:
    """Return `config` with another length: warm-up takes at most a tenth of it, and milestones beyond it are dropped."""
    milestones = tuple(step for step in config.milestones if step < num_steps)
    return replace(
        config,
        num_steps=num_steps,
        warmup_steps=min(config.warmup_steps, num_steps // 10),
        milestones=milestones,
        schedule="constant" if config.milestones and not milestones else config.schedule,
    )


@dataclass(frozen=True, kw_only=True)
class AutoencoderTrainingConfig:
    """Stage 1: pairs of frames, augmentation and losses. A weight of 0 disables a loss."""

    optimization: OptimizationConfig
    """Optimizer, schedule, checkpoints."""
    first_frame_probability: float = 0.5
    """Probability that the source is the clip's first frame, as in sampling."""
    distinct_frames: bool = True
    """Pairs of two different frames only."""
    pairs_by: Literal["clip", "subject"] = "clip"
    """Source of a pair: the clip itself, or a random clip of the same subject."""
    flip_probability: float = 0.5
    """Probability of mirroring both frames if they are not swapped; never if the label names a side."""
    mirror_sided_labels: bool = False
    """Also mirror clips whose label names a side, as published; stage 1 does not use labels."""
    swap_probability: float = 0.5
    """Probability of swapping source and driving frame."""
    color_jitter: tuple[float, float, float, float] = (0.1, 0.1, 0.1, 0.1)
    """Brightness, contrast, saturation (factors 1 +- x) and hue (shift +- x)."""
    background: Background = "white"
    """Background under clips with alpha: white, or a random one in every sample."""
    l1_weight: float = 1.0
    """Mean absolute error of the prediction at scales 1, 1/2, 1/4."""
    warped_weight: float = 1.0
    """The same for the warped image, so that the flow carries the motion and not the decoder."""
    inpainted_weight: float = 0.5
    """The same for the inpainted image before the last blend, so that the decoder learns to fill where the flow fails."""
    match_weight: float = 1.0
    """Mean absolute error of the driving frame assembled from matched source cells (dense predictor)."""
    ssim_weight: float = 0.0
    """1 - SSIM of the prediction."""
    smoothness_weight: float = 0.02
    """Edge-aware smoothness: first differences of the flow."""
    occlusion_weight: float = 0.0
    """Mean of 1 - occlusion, which discourages marking warpable areas as hidden and simplifies the map that stage 2 learns."""
    perceptual_weight: float = 0.0
    """VGG feature distance of the prediction."""
    perceptual_weights_path: str | None = None
    """torchvision's VGG-19 state dict or the VGG-16 safetensors file."""
    perceptual_scales: int = 4
    """Scales (1, 1/2, ...) of the perceptual loss."""
    equivariance_weight: float = 0.0
    """Equivariance of region centres and affine frames under random warps (region predictor)."""
    tracking_distillation_weight: float = 0.0
    """Distance of the flow of single frames to the flow that the initial weights find by tracking the clip (dense predictor)."""

    def __post_init__(self) -> None:
        check_types(self)
        check_probability(self, "first_frame_probability", "flip_probability", "swap_probability", "color_jitter")
        _check_hue(self.color_jitter)
        weights = [f.name for f in fields(self) if f.name.endswith("_weight")]
        check_not_negative(self, *weights)
        check(any(getattr(self, name) > 0 for name in weights), "l1_weight", 0.0, "positive, or another weight be")
        check_positive(self, "perceptual_scales")
        path, scales, default = self.perceptual_weights_path, self.perceptual_scales, AutoencoderTrainingConfig.perceptual_scales
        used = self.perceptual_weight > 0
        check(bool(path) == used, "perceptual_weights_path", path, "given with perceptual_weight > 0, and only then")
        check(used or scales == default, "perceptual_scales", scales, f"{default}, its default, without perceptual_weight")
        mirrors = self.flip_probability > 0
        check(mirrors or not self.mirror_sided_labels, "mirror_sided_labels", True, "False with flip_probability=0")

    def auxiliary_weights(self) -> dict[str, float]:
        """Return the weight of every auxiliary loss of the motion predictors by its name."""
        return {name: getattr(self, f"{name}_weight") for name in AUXILIARY_LOSSES}


def _adaptation_steps() -> OptimizationConfig:
    return OptimizationConfig(num_steps=1000, batch_size=8, learning_rate=2e-5)


@dataclass(frozen=True, kw_only=True)
class AdaptationConfig:
    """Decoder adaptation to clips of a new domain: the losses of stage 1 that depend on the decoder."""

    optimization: OptimizationConfig = field(default_factory=_adaptation_steps)
    """Optimizer, schedule, checkpoints."""
    first_frame_probability: float = 0.5
    """Probability that the source is the clip's first frame, as in sampling."""
    flip_probability: float = 0.5
    """Probability of mirroring both frames if they are not swapped."""
    color_jitter: tuple[float, float, float, float] = (0.1, 0.1, 0.1, 0.1)
    """Brightness, contrast, saturation (factors 1 +- x) and hue (shift +- x)."""
    l1_weight: float = 1.0
    """Mean absolute error of the prediction at scales 1, 1/2, 1/4."""
    inpainted_weight: float = 0.5
    """The same for the inpainted image before the last blend."""
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
        """Return the settings of stage 1 with these losses and without those of motion; UserError if they are not allowed."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        off = dict.fromkeys(("warped_weight", "match_weight", "smoothness_weight"), 0.0)
        mirror = self.flip_probability > 0  # also clips whose labels name a side: labels are not used
        return AutoencoderTrainingConfig(**given, **off, mirror_sided_labels=mirror)


@dataclass(frozen=True, kw_only=True)
class DiffusionTrainingConfig:
    """Stage 2: frames, losses and augmentation."""

    optimization: OptimizationConfig
    """Optimizer, schedule, checkpoints."""
    frame_sampler: FrameSampler = "uniform"
    """How num_frames are chosen from a clip."""
    condition_dropout: float = 0.1
    """Probability of training the null condition; 1 = an unconditional model without labels."""
    min_snr_gamma: float | None = None
    """Min-SNR loss weight (arXiv 2303.09556); None = unweighted, which was better in docs/ablation.md."""
    energy_exponent: float = 0.0
    """Power of a coefficient's share of the energy that its error is weighted by; 0 = all the same (codec "learned")."""
    flip_probability: float = 0.5
    """Probability of mirroring image and motion; never if the label names a side."""
    color_jitter: tuple[float, float, float, float] = (0.1, 0.1, 0.1, 0.1)
    """As in stage 1, in a few versions of each first frame; with cache_motion=False in new ones of the whole clip."""
    background: Background = "white"
    """As in stage 1; cached motion is estimated over white."""
    cache_motion: bool = True
    """Estimate all motion and encode the first frames once before training instead of at every step."""
    exact_motion: bool = False
    """Exact flow of the figure from the clips' truth files (`lfdm data puppets --truth all`) instead of stage 1's estimate."""
    gradient_checkpointing: bool = False
    """Recompute each block of the U-Net in the backward pass: a fraction of the memory for a fifth to a third more time."""
    panel_inference_steps: int = 10
    """Sampling steps of the videos in sample panels."""

    def __post_init__(self) -> None:
        check_types(self)
        check_probability(self, "condition_dropout", "flip_probability", "color_jitter")
        _check_hue(self.color_jitter)
        check_integer("panel_inference_steps", self.panel_inference_steps, 1, NUM_TRAIN_TIMESTEPS)
        check(0 <= self.energy_exponent <= 1, "energy_exponent", self.energy_exponent, "0 to 1")
        check(self.cache_motion or not self.exact_motion, "exact_motion", True, "False without cache_motion")
        check(self.min_snr_gamma is None or self.min_snr_gamma > 0, "min_snr_gamma", self.min_snr_gamma, "positive or None")


def _distillation_steps() -> OptimizationConfig:
    return OptimizationConfig(num_steps=8000, batch_size=8, learning_rate=1e-4, warmup_steps=50, mixed_precision="auto")


@dataclass(frozen=True, kw_only=True)
class FewStepsConfig(DiffusionTrainingConfig):
    """Distillation of stage 2 to few sampling steps, with the clips and the augmentation of stage 2."""

    optimization: OptimizationConfig = field(default_factory=_distillation_steps)
    """Optimizer, schedule, checkpoints."""
    max_guidance: float = 4.0
    """Largest guidance scale to learn, from 1."""
    guidance_steps: int = 0
    """First steps, in which the network learns only to take the guidance scale as an input."""
    target: Literal["composed", "derivative"] = "composed"
    """Target of an interval: steps of teacher and student one after the other, or MeanFlow's, see `lfdm.diffusion.mean_flow`."""
    instant_fraction: float = 0.25
    """Part of a batch that keeps learning the velocity while the rest learns intervals."""
    tangent_warmup_steps: int = 500
    """Steps after the first in which the weight of the derivative in the target rises to 1 (target='derivative')."""
    num_inference_steps: int = 4
    """Default number of sampling steps of the trained model."""
    flip_probability: float = 0.0
    """Probability of mirroring image and motion; never if the label names a side."""
    panel_inference_steps: int = 4
    """Sampling steps of the videos in sample panels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(1 < self.max_guidance <= MAX_GUIDANCE_SCALE, "max_guidance", self.max_guidance, "above 1, at most 100")
        check_not_negative(self, "guidance_steps", "tangent_warmup_steps")
        check_probability(self, "instant_fraction")
        check_integer("num_inference_steps", self.num_inference_steps, 1, NUM_TRAIN_TIMESTEPS)
        check(self.min_snr_gamma is None, "min_snr_gamma", self.min_snr_gamma, "None: distillation has weights of its own")
