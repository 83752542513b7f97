"""Plan the steps of every training of a comparison before any of them begins."""

import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.experiment.budget import Trial, clock, measure_steps, steps_within
from benchmarks.experiment.evaluation import training_clips
from benchmarks.headline.baselines.clip_diffusion import baseline_optimization, build_denoiser, latent_task, pixel_task
from benchmarks.headline.baselines.config import check_parameters
from benchmarks.headline.baselines.denoiser import load_unet3d
from benchmarks.headline.baselines.frame_autoencoder import (
    LATENT_CHANNELS,
    build_frame_autoencoder,
    frame_autoencoder_task,
    open_latents,
)
from benchmarks.headline.methods import ComparisonSettings, is_first_stage
from lfdm.data.cache import ClipCache, open_cache
from lfdm.data.index import labels
from lfdm.pipeline.pipeline import LatentFlowPipeline
from lfdm.training.encoded_clips import open_encoded_clips
from lfdm.training.optimization import uses_bf16
from lfdm.training.stage1 import AutoencoderTask
from lfdm.training.stage2 import DiffusionTask

TRIAL_CLIPS = 64


def plan_comparison(settings: ComparisonSettings, scratch: Path) -> dict[str, Any]:
    """Measure training steps and return parameters, seconds per step and number of steps.

    The time that a second stage needs before its first step (motion or latents of all clips) counts.

    Args:
        scratch: existing folder for temporary files.

    Raises:
        UserError: parameter counts differ too much, or the budget is too short for one step.
    """
    clips = training_clips(settings.preset, settings.data)
    parameters = count_parameters(settings, labels(clips.records))
    check_parameters(parameters)
    trainings = [name for name in settings.trainings() if name.startswith("ours") or missing_package() is None]
    if settings.equal == "clips":
        return {"parameters": parameters, "num_steps": {name: _steps_for_clips(settings, name) for name in trainings}}
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        trials, preparing = _trials(settings, trainings, clips, Path(folder))
        seconds = measure_steps(trials)
    return {
        "parameters": parameters,
        "step_seconds": seconds,
        "preparation_seconds": preparing,
        "num_steps": {name: _steps_for_time(settings, name, seconds[name], preparing.get(name, 0.0)) for name in trainings},
    }


def missing_package() -> str | None:
    """Return why the package of the VDM and LDM baselines is not usable; None if it is."""
    try:
        load_unet3d()
    except ImportError as error:
        return str(error)
    return None


def count_parameters(settings: ComparisonSettings, names: list[str]) -> dict[str, int]:
    """Return the parameters of all networks of every method that trains networks of its own."""
    preset, baselines = settings.preset, settings.baselines
    pipeline = LatentFlowPipeline.from_preset(preset, names)
    counts = {"ours": _count(pipeline.autoencoder) + _count(pipeline.unet)}
    if missing_package() is not None:
        return counts
    frames = _count(build_frame_autoencoder(baselines.frames, seed=0))
    sizes = {
        "vdm": (baselines.vdm, 3, 0),
        "vdm-folded": (baselines.vdm_folded, 3, 0),
        "ldm": (baselines.ldm, LATENT_CHANNELS, frames),
    }
    for method, (config, channels, others) in sizes.items():
        if method in settings.methods:
            counts[method] = _count(build_denoiser(config, preset, names, channels)) + others
    return counts


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _steps_for_clips(settings: ComparisonSettings, training: str) -> int:
    if is_first_stage(training):
        return settings.preset.autoencoder_training.optimization.num_steps
    return max(1, settings.clips_seen // settings.batch_size(training))


def _steps_for_time(settings: ComparisonSettings, training: str, step_seconds: float, preparation: float) -> int:
    share = 1.0
    if is_first_stage(training):
        share = settings.first_stage_share
    elif training.endswith("-unet"):
        share = 1 - settings.first_stage_share
    return steps_within(60 * settings.budget_minutes * share - preparation, step_seconds, what=training)


def _trials(
    settings: ComparisonSettings, trainings: list[str], clips: ClipCache, scratch: Path
) -> tuple[list[Trial], dict[str, float]]:
    """Return the trainings to be timed, and the seconds that a stage takes before its first step."""
    preset, baselines = settings.preset, settings.baselines
    few, one = (open_cache(settings.data, clips.records[:count], preset.size, preset.fit, scratch) for count in (TRIAL_CLIPS, 1))
    per_clip = len(clips) / len(few)
    pipeline = LatentFlowPipeline.from_preset(preset, labels(clips.records))
    training = preset.diffusion_training
    bf16 = uses_bf16(training.optimization.mixed_precision, pipeline.autoencoder.device)
    open_encoded_clips(pipeline.autoencoder, one, training, bf16=bf16)  # warm up
    started = clock()
    encoded = open_encoded_clips(pipeline.autoencoder, few, training, bf16=bf16)
    preparing = {"ours-unet": (clock() - started) * per_clip}
    stage2 = DiffusionTask(pipeline, preset.diffusion_training, few, encoded)
    stage1 = AutoencoderTask(LatentFlowPipeline.from_preset(preset, ()).autoencoder, preset.autoencoder_training, clips)
    trials = [
        Trial("ours-autoencoder", stage1, preset.autoencoder_training.optimization),
        Trial("ours-unet", stage2, preset.diffusion_training.optimization),
    ]
    for name in ("vdm", "vdm-folded"):
        config = settings.denoiser(name)
        if name in trainings and config is not None:
            trials.append(Trial(name, pixel_task(config, preset, few), baseline_optimization(config, preset)))
    if "ldm-unet" in trainings:
        autoencoder = build_frame_autoencoder(baselines.frames, seed=0).eval().requires_grad_(False)
        open_latents(autoencoder, one, scratch / "latents-of-one.npy")
        started = clock()
        open_latents(autoencoder, few, scratch / "latents.npy")
        preparing["ldm-unet"] = (clock() - started) * per_clip
        frames = frame_autoencoder_task(baselines.frames, preset, clips)
        trials.append(Trial("ldm-autoencoder", frames, preset.autoencoder_training.optimization))
        latents = latent_task(baselines.ldm, preset, few, autoencoder, scratch / "latents.npy")
        trials.append(Trial("ldm-unet", latents, baseline_optimization(baselines.ldm, preset)))
    return trials, preparing
