"""Named configurations: both models of each can be built and have the sizes that are stated."""

from dataclasses import dataclass, replace

import pytest
import torch

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.autoencoder.predictors import equivariance
from lfdm.config.diffusion import NUM_TRAIN_TIMESTEPS
from lfdm.config.predictors import RegionConfig
from lfdm.config.presets import PRESETS, Preset, get_preset
from lfdm.config.serialization import to_json
from lfdm.config.training import OptimizationConfig
from lfdm.denoiser.unet3d import MotionUNet3D
from lfdm.diffusion import process as diffusion_process
from lfdm.diffusion import schedulers as diffusion_schedulers
from lfdm.errors import UserError
from lfdm.motion.codecs import make_codec
from lfdm.training.batches import steps_per_epoch

PUBLISHED = {"mug128": (66_004_557, 42_731_203), "mhad128": (66_004_557, 42_731_203), "natops128": (66_004_557, 42_129_859 - 768)}
"""Parameters of the two published models; natops128 counts its null condition, which is not part of our U-Net."""

every_preset = pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)


def build(preset: Preset) -> tuple[LatentFlowAutoencoder, MotionUNet3D]:
    with torch.device("meta"):
        return LatentFlowAutoencoder(**to_json(preset.autoencoder)), MotionUNet3D(**to_json(preset.unet))


def num_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@every_preset
def test_both_models_agree_with_each_other_and_the_image_size(preset: Preset) -> None:
    autoencoder, unet = build(preset)
    assert all(side % autoencoder.size_multiple == 0 for side in preset.size)
    assert autoencoder.size_multiple == preset.autoencoder.size_multiple
    codec = make_codec(preset.diffusion, corners=preset.autoencoder.corners)
    with torch.device("meta"):
        latent = autoencoder.encode(torch.empty(2, 3, *preset.size)).latent
        motion = torch.empty(2, *codec.sample_shape(preset.num_frames, *latent.shape[-2:]))
        prediction = unet(motion, torch.zeros(2), torch.empty(2, preset.unet.condition_dim), latent)
    assert latent.shape[1] == preset.autoencoder.latent_channels
    assert prediction.shape == motion.shape


@pytest.mark.parametrize(("name", "counts"), PUBLISHED.items())
def test_paper_presets_have_the_published_sizes(name: str, counts: tuple[int, int]) -> None:
    assert tuple(map(num_parameters, build(get_preset(name)))) == counts


@pytest.mark.parametrize("name", ["flow64"])
def test_own_models_are_small_enough_for_the_bundle(name: str) -> None:
    assert max(2 * num_parameters(model) for model in build(get_preset(name))) <= 12_000_000


def test_presets_are_found_by_name_and_unknown_ones_are_refused() -> None:
    assert all(get_preset(name).name == name for name in PRESETS)
    with pytest.raises(
        UserError,
        match="unknown preset 'mug64'; known: flow64, flow128, flow256, flow512, learned64, mug128, mhad128, natops128",
    ):
        get_preset("mug64")


@dataclass(frozen=True)
class Figures:
    """METHOD.md sections 3 to 5, written out for one data set."""

    clips: int
    region_padding: int
    pairs_by: str
    epoch_repeats: int
    steps1: int
    """Stage-1 steps per epoch, of 100 epochs; x0.1 at epochs 60 and 90."""
    batch2: int
    steps2: int
    """Stage-2 steps per epoch."""
    epochs2: tuple[int, int, int]
    """Stage-2 epochs: x0.1, x0.1, end."""
    sampler: str
    upsample: str
    learned_null: bool


FIGURES = {
    "mug128": Figures(465, 3, "clip", 100, 465, 5, 93, (800, 1000, 1200), "very_random", "transpose", False),
    "mhad128": Figures(431, 0, "subject", 100, 431, 6, 72, (800, 1000, 1200), "random", "transpose", False),
    "natops128": Figures(4800, 0, "clip", 5, 240, 20, 240, (80, 100, 140), "random", "nearest", True),
}
TOTALS = {"mug128": (46_500, 111_600), "mhad128": (43_100, 86_400), "natops128": (24_000, 33_600)}

paper_preset = pytest.mark.parametrize(
    ("preset", "figures"), [(get_preset(name), FIGURES[name]) for name in FIGURES], ids=FIGURES
)


@paper_preset
def test_stage_1_of_the_paper(preset: Preset, figures: Figures) -> None:
    training = preset.autoencoder_training
    optimization = training.optimization
    assert (preset.image_size, preset.fit) == (128, "pad")
    model = preset.autoencoder
    assert (model.channels, model.max_channels, model.num_downs, model.num_res_blocks) == (64, 256, 2, 6)
    assert (model.corners, model.padding_mode) == (True, "zeros")
    predictor = model.predictor
    assert isinstance(predictor, RegionConfig)
    assert (predictor.num_regions, predictor.temperature, predictor.padding) == (10, 0.1, figures.region_padding)
    assert (predictor.channels, predictor.flow_channels, predictor.max_channels, predictor.depth) == (32, 64, 1024, 5)
    assert (optimization.learning_rate, optimization.betas, optimization.batch_size) == (2e-4, (0.5, 0.999), 100)
    assert (optimization.epoch_repeats, optimization.last_batch) == (figures.epoch_repeats, "drop")
    assert steps_per_epoch(optimization, figures.clips) == figures.steps1
    assert optimization.num_steps == 100 * figures.steps1 == TOTALS[preset.name][0]
    assert (optimization.schedule, optimization.milestones) == ("milestones", (60 * figures.steps1, 90 * figures.steps1))
    assert (training.pairs_by, training.distinct_frames, training.first_frame_probability) == (figures.pairs_by, False, 0)
    assert training.mirror_sided_labels
    assert (training.swap_probability, training.flip_probability, training.color_jitter) == (0.5, 0.5, (0.1, 0.1, 0.1, 0.1))
    weights = {name: value for name, value in to_json(training).items() if name.endswith("_weight") and value}
    assert weights == {"perceptual_weight": 10, "equivariance_weight": 10}
    assert training.perceptual_scales == 4
    assert_plain(optimization)


@paper_preset
def test_stage_2_of_the_paper(preset: Preset, figures: Figures) -> None:
    training, diffusion, unet = preset.diffusion_training, preset.diffusion, preset.unet
    optimization = training.optimization
    assert preset.num_frames == 40
    assert (diffusion.codec, diffusion.normalize, diffusion.clamp_to_range, diffusion.still_first_frame) == (
        "grid",
        False,
        False,
        False,
    )
    assert (diffusion.prediction_type, training.min_snr_gamma) == ("epsilon", None)
    assert (optimization.learning_rate, optimization.betas, optimization.batch_size) == (2e-4, (0.9, 0.99), figures.batch2)
    assert (optimization.epoch_repeats, optimization.last_batch) == (1, "keep")
    assert steps_per_epoch(optimization, figures.clips) == figures.steps2
    first, second, last = (epoch * figures.steps2 for epoch in figures.epochs2)
    assert (optimization.schedule, optimization.milestones) == ("milestones", (first, second))
    assert optimization.num_steps == last == TOTALS[preset.name][1]
    assert (training.frame_sampler, training.flip_probability, training.cache_motion) == (figures.sampler, 0, False)
    assert training.color_jitter == (64 / 255, 0.25, 0.25, 0.04)
    assert (diffusion.condition, diffusion.text_encoder, unet.condition_dim) == ("text", "bert-base-cased", 768)
    assert (training.condition_dropout, diffusion.learned_null) == (0.1, figures.learned_null)
    assert (diffusion.sampler, diffusion.num_inference_steps, diffusion.dynamic_thresholding) == ("ddpm", 1000, True)
    assert diffusion.guidance_scale == 1
    assert (unet.dim, unet.channel_multipliers, unet.num_heads, unet.head_dim, unet.num_groups) == (64, (1, 2, 4, 8), 8, 32, 8)
    assert (unet.input_kernel, unet.num_resnets, unet.patch_size, unet.separate_heads) == (7, 2, 1, True)
    assert (unet.spatial_attention_levels, unet.temporal_attention_levels) == (None, None)
    assert (unet.relative_position_buckets, unet.relative_position_max_distance) == (32, 32)
    assert unet.upsample == figures.upsample
    assert_plain(optimization)


def assert_plain(optimization: OptimizationConfig) -> None:
    """Nothing that the paper does not have."""
    assert (optimization.warmup_steps, optimization.max_grad_norm) == (0, None)
    assert (optimization.ema_decay, optimization.mixed_precision) == (0, "no")


def test_the_warps_of_the_equivariance_loss_and_the_noise_schedule() -> None:
    assert (equivariance.AFFINE_STD, equivariance.CONTROL_STD, equivariance.CONTROL_POINTS, equivariance.LOG_OFFSET) == (
        0.05,
        0.005,
        5,
        1e-6,
    )
    assert (NUM_TRAIN_TIMESTEPS, diffusion_process.COSINE_OFFSET, diffusion_process.MAX_BETA) == (
        1000,
        0.008,
        0.9999,
    )
    assert diffusion_schedulers.PAPER_QUANTILE == 0.9


@every_preset
def test_learning_rate_milestones_lie_inside_the_training(preset: Preset) -> None:
    for training in (preset.autoencoder_training, preset.diffusion_training):
        assert all(0 < step < training.optimization.num_steps for step in training.optimization.milestones)


def test_energy_weights_need_a_codec_that_knows_the_energy() -> None:
    preset = get_preset("flow64")
    with pytest.raises(UserError, match="energy_exponent"):
        replace(preset, diffusion_training=replace(preset.diffusion_training, energy_exponent=1.0))
