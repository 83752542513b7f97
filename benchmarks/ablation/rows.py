"""The rows of the ablation: a preset with one change, and the row it is compared with. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from lfdm.config.diffusion import SamplerName
from lfdm.config.models import AutoencoderConfig
from lfdm.config.predictors import RegionConfig
from lfdm.config.presets import Preset, get_preset
from lfdm.config.serialization import from_json, to_json
from lfdm.config.training import AutoencoderTrainingConfig, DiffusionTrainingConfig

TrainingT = TypeVar("TrainingT", AutoencoderTrainingConfig, DiffusionTrainingConfig)

BASE = "base"
RAW_WEIGHTS = "raw-weights"
SMALL_BATCH = "small-batch"
AS_SET = "as-set"
GUIDANCE_SCALES = (1.0, 2.0, 4.0)
STEPS = (4, 8, 16, 32)
SAMPLERS: tuple[SamplerName, ...] = ("euler", "dpmpp_2m", "heun")
WARPED_WEIGHTS = (0.0, 1.0, 2.0)
OCCLUSION_WEIGHTS = (0.0, 0.01)
FRAMES = "frames"
ENERGY_EXPONENTS = {0.0: "every coefficient weighs the same", 0.5: "weights: root of the energy", 1.0: "weights: energy"}


@dataclass(frozen=True)
class Row:
    """One trained row."""

    name: str
    title: str
    preset: Preset
    against: str = BASE
    """Name of the row it is compared with."""
    seed: int = 0


@dataclass(frozen=True)
class SamplingRow:
    """Sampling settings for a trained model."""

    name: str
    title: str
    against: str = BASE
    """Name of the row it is compared with."""
    guidance_scale: float | None = None
    num_inference_steps: int | None = None
    sampler: SamplerName | None = None


def stage2_rows(preset: Preset) -> list[Row]:
    """Return the rows of stage 2, which share stage 1, its motion, the network and the number of clips seen."""
    raw = _diffusion(preset, normalize=False, clamp_to_range=False)
    gamma = preset.diffusion_training.min_snr_gamma
    weights = "no min-SNR" if gamma is None else f"min-SNR, gamma {gamma:g}"
    rows = [
        Row(BASE, f"as in the preset ({preset.diffusion.prediction_type}, {weights})", preset),
        Row("raw", "targets not normalised, x0 not clamped", raw),
        Row("grid", "absolute grid instead of displacement, neither normalised", _diffusion(raw, codec="grid"), "raw"),
    ]
    rows += [
        Row(kind.replace("_", "-"), f"predicts {kind}", _diffusion(preset, prediction_type=kind))
        for kind in ("epsilon", "v_prediction", "velocity")
        if kind != preset.diffusion.prediction_type
    ]
    other = replace(preset.diffusion_training, min_snr_gamma=5.0 if gamma is None else None)
    title = "min-SNR weights, gamma 5" if gamma is None else "every timestep weighs the same (no min-SNR)"
    small = _half_batch(preset.diffusion_training)
    halved = f"half as many clips per step ({small.optimization.batch_size}), as many in all"
    return [
        *rows,
        Row("min-snr", title, replace(preset, diffusion_training=other)),
        Row(SMALL_BATCH, halved, replace(preset, diffusion_training=small)),
    ]


def seeded(row: Row, seed: int) -> Row:
    """Return the row with another seed of stage 2."""
    training = row.preset.diffusion_training
    optimization = replace(training.optimization, seed=seed)
    preset = replace(row.preset, diffusion_training=replace(training, optimization=optimization))
    return Row(f"{row.name}-seed{seed}", f"{row.title}, seed {seed}", preset, row.name, seed)


def together(base: Row, better: Sequence[Row]) -> list[Row]:
    """Combine the rows that beat `base`, given best first, into one; the better one wins where two change one setting.

    Returns no row if there are fewer than two.
    """
    if len(better) < 2:
        return []
    settings = to_json(base.preset)
    for row in reversed(better):
        _put_changes(settings, to_json(base.preset), to_json(row.preset))
    title = f"together: {'; '.join(row.title for row in better)}"
    return [Row("together", title, from_json(Preset, settings), better[0].name)]


def _put_changes(settings: dict[str, Any], before: dict[str, Any], after: dict[str, Any]) -> None:
    """Apply the differences between `before` and `after` to `settings`."""
    for name, value in after.items():
        if isinstance(value, dict):
            _put_changes(settings[name], before[name], value)
        elif value != before[name]:
            settings[name] = value


def codec_rows(preset: Preset) -> list[Row]:
    """Return the motion of every frame and of the whole clip as what stage 2 diffuses; they train for equal time."""
    learned, training = get_preset("learned64"), preset.diffusion_training
    rows = [Row(FRAMES, "motion of every frame", preset, FRAMES)]
    for exponent, title in ENERGY_EXPONENTS.items():
        weighted = replace(learned, diffusion_training=replace(training, energy_exponent=exponent))
        rows.append(Row(f"learned-{exponent:g}", f"principal components of the clip; {title}", weighted, FRAMES))
    return rows


def sampling_rows(guidance_scale: float, against: str = BASE) -> list[SamplingRow]:
    """Return rows for other guidance scales, and for step counts of several samplers."""
    guidance = [
        SamplingRow(f"guidance-{scale:g}", f"guidance {scale:g}", against, guidance_scale=scale)
        for scale in GUIDANCE_SCALES
        if scale != guidance_scale
    ]
    steps = [
        SamplingRow(f"{name}-{n}", f"{name}, {n} steps", against, num_inference_steps=n, sampler=name)
        for name in SAMPLERS
        for n in STEPS
    ]
    return guidance + steps


def stage1_rows(preset: Preset, perceptual_weights: Path | None) -> list[Row]:
    """Return the rows of stage 1, which train for equal time."""
    training, model = preset.autoencoder_training, preset.autoencoder
    rows = [Row(BASE, "as in the preset", preset)]
    if perceptual_weights is not None:
        rows.append(
            Row(
                "perceptual",
                "with a perceptual loss",
                _stage1(preset, perceptual_weight=0.1, perceptual_weights_path=str(perceptual_weights)),
            )
        )
    regions = replace(preset, autoencoder=regions_of_equal_size(model), autoencoder_training=replace(training, match_weight=0.0))
    rows.append(Row("regions", "regions (MRAA) instead of dense motion", regions))
    rows.append(
        Row("regions-equivariance", "regions with the equivariance loss", _stage1(regions, equivariance_weight=10.0), "regions")
    )
    stride = 1 if model.num_downs == 2 else 2
    title = f"flow and matching at stride {2**stride} instead of {2**model.num_downs}"
    rows.append(Row("stride", title, _stride(preset, stride)))
    losses: list[tuple[str, tuple[float, ...]]] = [("warped_weight", WARPED_WEIGHTS), ("occlusion_weight", OCCLUSION_WEIGHTS)]
    for name, values in losses:
        for value in values:
            if value != getattr(training, name):
                label = name.replace("_", "-")
                rows.append(Row(f"{label}-{value:g}", f"{name} {value:g}", _stage1(preset, **{name: value})))
    small = _half_batch(training)
    title = f"half as many pairs per step ({small.optimization.batch_size})"
    return [*rows, Row(SMALL_BATCH, title, replace(preset, autoencoder_training=small))]


def regions_of_equal_size(model: AutoencoderConfig) -> AutoencoderConfig:
    """Replace the dense predictor by the paper's region predictor with about as many parameters."""
    predictor = RegionConfig(num_regions=10, channels=24, flow_channels=32, max_channels=192, depth=3)
    return replace(model, predictor=predictor)


def _stride(preset: Preset, num_downs: int) -> Preset:
    model = replace(preset.autoencoder, num_downs=num_downs)
    return replace(preset, autoencoder=model, unet=replace(preset.unet, latent_channels=model.latent_channels))


def _half_batch(training: TrainingT) -> TrainingT:
    """Halve the batch size."""
    optimization = training.optimization
    return replace(training, optimization=replace(optimization, batch_size=optimization.batch_size // 2))


def _diffusion(preset: Preset, **changes: Any) -> Preset:
    return replace(preset, diffusion=replace(preset.diffusion, **changes))


def _stage1(preset: Preset, **changes: Any) -> Preset:
    return replace(preset, autoencoder_training=replace(preset.autoencoder_training, **changes))
