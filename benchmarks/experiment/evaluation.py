"""Presets, training clips and evaluation, shared by all trainings of a comparison."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from lfdm.config.presets import Preset
from lfdm.config.training import with_num_steps
from lfdm.data.cache import ClipCache, open_cache
from lfdm.data.index import read_index
from lfdm.evaluation.generators import VideoGenerator
from lfdm.evaluation.protocol import evaluate_generator
from lfdm.evaluation.settings import EvaluationConfig


def evaluate_at_preset(
    generator: VideoGenerator,
    preset: Preset,
    data: Path,
    out: Path,
    config: EvaluationConfig,
    description: dict[str, Any],
    *,
    device: str,
) -> dict[str, Any]:
    """Evaluate a generator of videos of the preset's size and length."""
    return evaluate_generator(
        generator,
        data,
        out,
        config,
        image_size=preset.image_size,
        fit=preset.fit,
        num_frames=preset.num_frames,
        fps=preset.fps,
        description=description,
        device=device,
    )


def training_clips(preset: Preset, data: Path) -> ClipCache:
    """Open the cache of the training clips of `data`."""
    records = [record for record in read_index(data) if record.split == "train"]
    return open_cache(data, records, preset.size, preset.fit)


def shortened(preset: Preset, training: Literal["autoencoder_training", "diffusion_training"], num_steps: int) -> Preset:
    """Set the number of steps of one training, with warm-up of at most a tenth of it."""
    config = getattr(preset, training)
    optimization = replace(with_num_steps(config.optimization, num_steps), sample_steps=num_steps)
    return replace(preset, **{training: replace(config, optimization=optimization)})
