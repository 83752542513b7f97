"""What is evaluated: a model of any kind, and the held-out clips it is judged on."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.condition.encoder import NULL_LABEL
from lfdm.config.presets import Preset
from lfdm.config.serialization import from_json
from lfdm.config.video import Fit
from lfdm.data.index import ClipRecord, labels
from lfdm.data.puppets.truth import truth_path
from lfdm.errors import UserError
from lfdm.folders.files import existing_path
from lfdm.folders.model_folder import CONFIG_NAME, WEIGHTS_NAME, read_json
from lfdm.folders.run_folder import find_layout, find_model
from lfdm.folders.sources import bundled_models, find_folder
from lfdm.pipeline.pipeline import LatentFlowPipeline

DEFAULT_FRAMES = 16
"""Frames per clip for a bare auto-encoder folder, which does not say."""


@dataclass(frozen=True)
class EvaluatedModel:
    """What is judged: a whole pipeline, or stage 1 alone (`pipeline` is None)."""

    autoencoder: LatentFlowAutoencoder
    pipeline: LatentFlowPipeline | None
    image_size: int
    fit: Fit
    num_frames: int
    fps: float
    weights_sha256: dict[str, str]
    """SHA-256 of every weight file, by component."""


def load_model(model: str | Path, records: Sequence[ClipRecord], *, device: torch.device | str = "cpu") -> EvaluatedModel:
    """The model to judge, in evaluation mode.

    An auto-encoder folder says nothing about clips: `records` decide its image size, which they must agree on.

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
    settings = pipe.config
    return EvaluatedModel(
        pipe.autoencoder,
        pipe,
        settings["image_size"],
        settings["fit"],
        settings["num_frames"],
        settings["fps"],
        _hash_weights({name: layout.component(name) for name in pipe.components}),
    )


def _load_stage1(
    folder: Path, config: dict[str, Any], records: Sequence[ClipRecord], device: torch.device | str
) -> EvaluatedModel:
    weights = find_model(folder, "autoencoder")
    autoencoder = LatentFlowAutoencoder.from_pretrained(weights, device=device)
    hashes = _hash_weights({"autoencoder": weights})
    if "preset" in config:
        preset = from_json(Preset, config["preset"])
        return EvaluatedModel(autoencoder, None, preset.image_size, preset.fit, preset.num_frames, preset.fps, hashes)
    sizes = {(record.width, record.height) for record in records}
    width, height = min(sizes)
    if len(sizes) > 1 or width != height or width % autoencoder.size_multiple:
        raise UserError(
            f"{folder} is an auto-encoder alone, which does not say its image size: the clips must then be square, of one size "
            f"that divides by {autoencoder.size_multiple}; got {sorted(sizes)}"
        )
    return EvaluatedModel(autoencoder, None, width, "pad", DEFAULT_FRAMES, records[0].fps, hashes)


def select_clips(records: Sequence[ClipRecord], num_clips: int | None, seed: int, *, where: str) -> list[int]:
    """Which of the held-out clips to judge on: all, or `num_clips` of subjects drawn in random order, which keeps takes together.

    Indices count the held-out clips alone.

    Raises:
        UserError: there are none.
    """
    held_out = [record for record in records if record.split == "test"]
    if not held_out:
        raise UserError(f"{where} has no held-out clips (split 'test'); {len(records)} are 'train'")
    if num_clips is None or num_clips >= len(held_out):
        return list(range(len(held_out)))
    subjects = sorted({record.subject for record in held_out})
    rank = dict(zip(subjects, np.random.default_rng(seed).permutation(len(subjects)).tolist(), strict=True))
    return sorted(sorted(range(len(held_out)), key=lambda i: rank[held_out[i].subject])[:num_clips])


def check_fits(model: EvaluatedModel, records: Sequence[ClipRecord], root: Path, *, unconditional: bool = False) -> None:
    """Raise UserError where exact truth is of another size than the model's, or labels are asked for that it does not know."""
    size = model.image_size
    for record in records:
        if (record.width, record.height) != (size, size) and truth_path(root / record.path).is_file():
            raise UserError(
                f"the model works at {size}x{size} pixels; {root / record.path} and its exact truth are "
                f"{record.width}x{record.height}: render the clips at the model's size"
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


def file_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
