"""Load the model to evaluate, and choose the held-out clips."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.config.presets import Preset
from lfdm.config.serialization import from_json
from lfdm.config.video import Fit, Size
from lfdm.data.index import NULL_LABEL, ClipRecord, labels
from lfdm.data.truth import truth_path
from lfdm.errors import UserError
from lfdm.folders.files import existing_path, file_sha256
from lfdm.folders.model_folder import CONFIG_NAME, WEIGHTS_NAME, read_json
from lfdm.folders.run_folder import find_layout, find_model
from lfdm.folders.sources import bundled_models, find_folder
from lfdm.pipeline.pipeline import LatentFlowPipeline

DEFAULT_FRAMES = 16
"""Frames per clip for an auto-encoder folder, which does not store this."""


@dataclass(frozen=True, eq=False)
class EvaluatedModel:
    """A pipeline, or an auto-encoder without one (`pipeline` is None)."""

    autoencoder: LatentFlowAutoencoder
    pipeline: LatentFlowPipeline | None
    image_size: Size
    fit: Fit
    num_frames: int
    fps: float
    weights_sha256: dict[str, str]
    """SHA-256 of every weight file, by component."""

    @property
    def num_parameters(self) -> dict[str, int]:
        """Number of parameters, by network."""
        networks = {"autoencoder": self.autoencoder} | ({"unet": self.pipeline.unet} if self.pipeline is not None else {})
        return {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}


def load_model(model: str | Path, records: Sequence[ClipRecord], *, device: torch.device | str = "cpu") -> EvaluatedModel:
    """Load a model in evaluation mode.

    An auto-encoder folder does not store an image size: it is taken from `records`, which must all have the same.

    Raises:
        UserError: an unknown name, weights that do not fit, or clips of several sizes for an auto-encoder folder.
        FileNotFoundError: no such folder.
    """
    local = existing_path(model)
    if str(model) not in bundled_models() and local is not None and (local / CONFIG_NAME).is_file():
        config = read_json(local / CONFIG_NAME)
        if "_class_name" in config or config.get("stage") == "autoencoder":
            return _load_stage1(local, config, records, device)
    layout = find_layout(find_folder(model))
    pipe = LatentFlowPipeline.from_pretrained(model, device=device)
    pipe.set_progress_bar_config(disable=True)
    fit, num_frames, fps = (pipe.config[name] for name in ("fit", "num_frames", "fps"))
    hashes = _hash_weights({name: layout.component(name) for name in pipe.components})
    return EvaluatedModel(pipe.autoencoder, pipe, pipe.size, fit, num_frames, fps, hashes)


def _load_stage1(
    folder: Path, config: dict[str, Any], records: Sequence[ClipRecord], device: torch.device | str
) -> EvaluatedModel:
    weights = find_model(folder, "autoencoder")
    autoencoder = LatentFlowAutoencoder.from_pretrained(weights, device=device)
    hashes = _hash_weights({"autoencoder": weights})
    if "preset" in config:
        preset = from_json(Preset, config["preset"])
        return EvaluatedModel(autoencoder, None, preset.size, preset.fit, preset.num_frames, preset.fps, hashes)
    sizes = {Size(record.height, record.width) for record in records}
    size = min(sizes)
    if len(sizes) > 1 or any(side % autoencoder.size_multiple for side in size):
        raise UserError(
            f"{folder} is an auto-encoder, which does not store its image size: the clips must have one size, its sides "
            f"divisible by {autoencoder.size_multiple}; got {', '.join(map(str, sorted(sizes)))} (height x width)"
        )
    return EvaluatedModel(autoencoder, None, size, "pad", DEFAULT_FRAMES, records[0].fps, hashes)


def select_clips(records: Sequence[ClipRecord], num_clips: int | None, seed: int, *, where: str) -> list[int]:
    """Return indices into the held-out clips: all of them, or `num_clips` of subjects in random order, takes kept together.

    Raises:
        UserError: there are no held-out clips.
    """
    held_out = [record for record in records if record.split == "test"]
    if not held_out:
        raise UserError(f"{where} has no held-out clips (split 'test'); {len(records)} are 'train'")
    if num_clips is None or num_clips >= len(held_out):
        return list(range(len(held_out)))
    subjects = sorted({record.subject for record in held_out})
    rank = dict(zip(subjects, np.random.default_rng(seed).permutation(len(subjects)).tolist(), strict=True))
    return sorted(sorted(range(len(held_out)), key=lambda i: rank[held_out[i].subject])[:num_clips])


def check_clips(model: EvaluatedModel, records: Sequence[ClipRecord], root: Path, *, unconditional: bool) -> None:
    """Raise UserError if a clip with exact motion has another size than the model, or a label that the model does not know."""
    size = model.image_size
    for record in records:
        if (record.height, record.width) != size and truth_path(root / record.path).is_file():
            raise UserError(
                f"the model works at {size} pixels (height x width); {root / record.path} and its exact motion are "
                f"{record.height}x{record.width}: render the clips at the model's size"
            )
    if model.pipeline is not None and not unconditional:
        known = set(model.pipeline.condition.labels)
        unknown = sorted(set(labels(records)) - known - {NULL_LABEL})
        if unknown:
            raise UserError(
                f"the model does not know the labels {unknown}; it knows {sorted(known) or 'none: evaluate it unconditional'}"
            )


def _hash_weights(parts: dict[str, Path]) -> dict[str, str]:
    return {name: file_sha256(part / WEIGHTS_NAME) for name, part in sorted(parts.items()) if (part / WEIGHTS_NAME).is_file()}
