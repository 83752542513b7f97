"""The preset, a complete configuration of both models, and the named presets. Change one with `dataclasses.replace`."""

import math
from dataclasses import dataclass, field, replace

from lfdm.config.checks import check, check_at_most, check_number, check_types
from lfdm.config.diffusion import DiffusionConfig
from lfdm.config.models import AutoencoderConfig, UNetConfig
from lfdm.config.predictors import DenseConfig, RegionConfig
from lfdm.config.training import AutoencoderTrainingConfig, DiffusionTrainingConfig, FrameSampler, OptimizationConfig
from lfdm.config.video import MAX_FPS, MIN_FPS, MIN_MOTION_SIDE, MIN_SIDE, Fit, Size, SizeSetting
from lfdm.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A complete configuration: both models, their training and sampling."""

    name: str
    """Name of the configuration."""
    image_size: SizeSetting
    """Height x width of frames in pixels, or one number for squares."""
    fit: Fit = "pad"
    """Black borders (pad), the central part (crop) or stretching for frames of another shape."""
    num_frames: int = 16
    """Frames of a training clip and, by default, of a video."""
    fps: float = 8.0
    """Frames per second of written videos."""
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    """Stage-1 model."""
    unet: UNetConfig = field(default_factory=UNetConfig)
    """Stage-2 model."""
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    """Diffusion process and sampling."""
    autoencoder_training: AutoencoderTrainingConfig
    """Stage-1 training."""
    diffusion_training: DiffusionTrainingConfig
    """Stage-2 training."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", Size.parse(self.image_size, "image_size").setting)
        check_types(self)
        check(self.num_frames >= 2, "num_frames", self.num_frames, "at least 2")
        check_at_most(self, 1000, "num_frames")
        check_number("fps", self.fps, low=MIN_FPS, high=MAX_FPS)
        given, channels = self.unet.latent_channels, self.autoencoder.latent_channels
        check(given == channels, "unet.latent_channels", given, f"{channels}, as the auto-encoder gives")
        stride = 2**self.autoencoder.num_downs
        multiple = self.side_multiple
        least = max(MIN_SIDE, self.autoencoder.min_size, MIN_MOTION_SIDE * stride)
        fits = all(side >= least and side % multiple == 0 for side in self.size)
        allowed = f"a multiple of {multiple} (for these two models), at least {least}, or HEIGHTxWIDTH of two such numbers"
        check(fits, "image_size", self.image_size, allowed)
        given, channels = self.unet.sample_channels, self.diffusion.sample_channels
        check(given == channels, "unet.sample_channels", given, f"{channels}, as diffusion.codec gives")
        measurable = self.diffusion_training.cache_motion or not self.diffusion.normalize
        check(measurable, "diffusion.normalize", True, "False without diffusion_training.cache_motion, on which it is measured")
        if self.diffusion.codec == "learned":
            sampler, corners = self.diffusion_training.frame_sampler, self.autoencoder.corners
            check(sampler == "uniform", "diffusion_training.frame_sampler", sampler, "'uniform' with diffusion.codec='learned'")
            check(not corners, "autoencoder.corners", corners, "False with diffusion.codec='learned'")
            check(self.num_frames > 2, "num_frames", self.num_frames, "at least 3 with diffusion.codec='learned'")
        exponent = self.diffusion_training.energy_exponent
        known = exponent == 0 or self.diffusion.codec == "learned"
        check(known, "diffusion_training.energy_exponent", exponent, "0 without diffusion.codec='learned'")
        distilled = self.unet.flow_map or self.unet.max_guidance is not None or self.diffusion.sampler == "flow_map"
        check(not distilled, "unet.flow_map", True, "False in a preset, as max_guidance=None: `lfdm train few-steps` trains both")
        tracks = self.unet.track_inputs
        known = self.diffusion.codec == "flow" and not self.autoencoder.corners and self.diffusion_training.cache_motion
        allowed = "False without diffusion.codec='flow', autoencoder.corners=False and diffusion_training.cache_motion"
        check(known or not tracks, "unet.track_inputs", tracks, allowed)
        predictor = self.autoencoder.predictor
        for loss, weight in self.autoencoder_training.auxiliary_weights().items():
            known = loss in predictor.losses or weight == 0
            check(known, f"autoencoder_training.{loss}_weight", weight, f"0 with the predictor {predictor.type!r}")

    @property
    def size(self) -> Size:
        """Size of frames."""
        return Size.parse(self.image_size)

    @property
    def side_multiple(self) -> int:
        """The number that height and width of frames must be multiples of."""
        return math.lcm(self.autoencoder.size_multiple, 2**self.autoencoder.num_downs * self.unet.size_multiple)


FLOW64 = Preset(
    name="flow64",
    image_size=64,
    autoencoder=AutoencoderConfig(
        channels=24,
        max_channels=48,
        num_downs=1,
        num_res_blocks=4,
        predictor=DenseConfig(match_channels=32),
        corners=False,
        padding_mode="border",
    ),
    unet=UNetConfig(
        latent_channels=48,
        condition_dim=64,
        dim=48,
        channel_multipliers=(1, 2, 4),
        patch_size=2,
        num_resnets=1,
        num_heads=4,
        head_dim=16,
        spatial_attention_levels=(False, False, False),
        temporal_attention_levels=(False, True, True),
        separate_heads=False,
    ),
    autoencoder_training=AutoencoderTrainingConfig(
        optimization=OptimizationConfig(
            num_steps=4000, batch_size=8, learning_rate=6e-4, warmup_steps=100, mixed_precision="auto"
        ),
        first_frame_probability=0.7,
        ssim_weight=0.05,
    ),
    diffusion_training=DiffusionTrainingConfig(
        optimization=OptimizationConfig(
            num_steps=10_000, batch_size=8, learning_rate=6e-4, warmup_steps=200, mixed_precision="auto"
        ),
        flip_probability=0.0,
    ),
)


def _larger(doublings: int, micro_batch_size: int | None = None) -> Preset:
    """Return FLOW64 for images 2^doublings times as large. The grid of the motion stays 32x32, and so does all of stage 2.

    Args:
        micro_batch_size: of stage 1, for a GPU with 8 GB.
    """
    size = FLOW64.size.height * 2**doublings
    training = FLOW64.autoencoder_training
    return replace(
        FLOW64,
        name=f"flow{size}",
        image_size=size,
        autoencoder=replace(FLOW64.autoencoder, num_downs=FLOW64.autoencoder.num_downs + doublings, upsampling="convex"),
        autoencoder_training=replace(training, optimization=replace(training.optimization, micro_batch_size=micro_batch_size)),
    )


FLOW128 = _larger(1)
FLOW256 = _larger(2, micro_batch_size=4)
FLOW512 = _larger(3, micro_batch_size=2)

LEARNED64 = replace(
    FLOW64,
    name="learned64",
    unet=replace(
        FLOW64.unet,
        sample_channels=DiffusionConfig(codec="learned").sample_channels,
        dim=64,
        spatial_attention_levels=(False, True, True),
        temporal_attention_levels=(False, False, False),
    ),
    diffusion=replace(FLOW64.diffusion, codec="learned"),
)
"""The motion of a clip as one image: the cost of sampling does not depend on the number of frames. Experimental: it has not been
trained through, and its motion is coarser than that of `flow64`."""

# The paper's recipe, its epochs converted to steps of the published training sets of 465, 431 and 4800 clips.
_PAPER_UNET = UNetConfig()
_PAPER_DIFFUSION = DiffusionConfig(
    codec="grid",
    normalize=False,
    prediction_type="epsilon",
    sampler="ddpm",
    num_inference_steps=1000,
    dynamic_thresholding=True,
    clamp_to_range=False,
    still_first_frame=False,
    condition="text",
)


def _paper_autoencoder_training(
    num_steps: int, milestones: tuple[int, int], *, epoch_repeats: int = 100
) -> AutoencoderTrainingConfig:
    return AutoencoderTrainingConfig(
        optimization=OptimizationConfig(
            num_steps=num_steps,
            batch_size=100,
            epoch_repeats=epoch_repeats,
            last_batch="drop",
            learning_rate=2e-4,
            betas=(0.5, 0.999),
            schedule="milestones",
            milestones=milestones,
            max_grad_norm=None,
            ema_decay=0.0,
            num_workers=2,
        ),
        pairs_by="clip",
        first_frame_probability=0.0,
        distinct_frames=False,
        swap_probability=0.5,
        flip_probability=0.5,
        mirror_sided_labels=True,
        color_jitter=(0.1, 0.1, 0.1, 0.1),
        l1_weight=0.0,
        warped_weight=0.0,
        inpainted_weight=0.0,
        match_weight=0.0,
        smoothness_weight=0.0,
        perceptual_weight=10.0,
        perceptual_weights_path="vgg19-dcbb9e9d.pth",
        perceptual_scales=4,
        equivariance_weight=10.0,
    )


def _paper_diffusion_training(
    num_steps: int, batch_size: int, milestones: tuple[int, int], sampler: FrameSampler
) -> DiffusionTrainingConfig:
    return DiffusionTrainingConfig(
        optimization=OptimizationConfig(
            num_steps=num_steps,
            batch_size=batch_size,
            last_batch="keep",
            learning_rate=2e-4,
            betas=(0.9, 0.99),
            schedule="milestones",
            milestones=milestones,
            max_grad_norm=None,
            ema_decay=0.0,
            num_workers=2,
        ),
        frame_sampler=sampler,
        condition_dropout=0.1,
        flip_probability=0.0,
        color_jitter=(64 / 255, 0.25, 0.25, 0.04),
        cache_motion=False,
        panel_inference_steps=50,  # the paper's 1,000 would take a quarter of the training time
    )


MUG128 = Preset(
    name="mug128",
    image_size=128,
    num_frames=40,
    unet=_PAPER_UNET,
    diffusion=_PAPER_DIFFUSION,
    autoencoder_training=_paper_autoencoder_training(46_500, (27_900, 41_850)),
    diffusion_training=_paper_diffusion_training(111_600, 5, (74_400, 93_000), "very_random"),
)

MHAD128 = replace(
    MUG128,
    name="mhad128",
    autoencoder=AutoencoderConfig(predictor=RegionConfig(padding=0)),
    autoencoder_training=replace(_paper_autoencoder_training(43_100, (25_860, 38_790)), pairs_by="subject"),
    diffusion_training=_paper_diffusion_training(86_400, 6, (57_600, 72_000), "random"),
)

NATOPS128 = replace(
    MUG128,
    name="natops128",
    autoencoder=AutoencoderConfig(predictor=RegionConfig(padding=0)),
    unet=replace(_PAPER_UNET, upsample="nearest"),
    diffusion=replace(_PAPER_DIFFUSION, learned_null=True),
    autoencoder_training=_paper_autoencoder_training(24_000, (14_400, 21_600), epoch_repeats=5),
    # with the paper's learning rate; the published script uses 1e-4 here
    diffusion_training=_paper_diffusion_training(33_600, 20, (19_200, 24_000), "random"),
)

_ALL = (FLOW64, FLOW128, FLOW256, FLOW512, LEARNED64, MUG128, MHAD128, NATOPS128)
PRESETS: dict[str, Preset] = {preset.name: preset for preset in _ALL}


def get_preset(name: str) -> Preset:
    """Return the named preset; UserError with the known names if there is none."""
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]
