"""Convert published checkpoint files to a pipeline folder, together or one at a time; add label embeddings at any time.

OUT/autoencoder/              from the auto-encoder file: stage 1, can be given to `--autoencoder` and `--init`
OUT/{unet, condition}/        from the diffusion file: stage 2 and its null condition
OUT/model_index.json, ...     once both stages exist: a complete pipeline folder
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.condition.encoder import ConditionEncoder
from lfdm.condition.text import encoder_source
from lfdm.config.predictors import RegionConfig
from lfdm.config.presets import PRESETS, Preset, get_preset
from lfdm.config.serialization import to_json
from lfdm.data.corpora import mhad, mug, natops
from lfdm.denoiser.unet3d import MotionUNet3D
from lfdm.errors import UserError
from lfdm.folders.files import check_holds_only, check_parents, existing_path, replace_folder
from lfdm.folders.model_folder import CONFIG_NAME, load_exactly
from lfdm.folders.texts import read_whole
from lfdm.pipeline.folder import folder_entries
from lfdm.pipeline.pipeline import LatentFlowPipeline
from lfdm.published.weights import AUTOENCODER_NETWORKS, DIFFUSION_NETWORKS, convert_autoencoder, convert_unet, read_networks

PUBLISHED_LABELS: dict[str, tuple[str, ...]] = {"mug128": mug.LABELS, "mhad128": mhad.LABELS, "natops128": natops.LABELS}
"""The exact labels that the published models were trained with."""

ModelT = TypeVar("ModelT", LatentFlowAutoencoder, MotionUNet3D)


@dataclass(frozen=True)
class ImportedFolder:
    """A folder of imported checkpoints."""

    path: Path
    has_diffusion: bool
    """It holds stage 2."""
    labels: tuple[str, ...]
    """Labels with stored embeddings."""


def import_released(
    preset: str | Preset, out: Path, *, autoencoder: Path | None = None, diffusion: Path | None = None
) -> ImportedFolder:
    """Write published checkpoints to the folder `out`; a stage that is not given stays as it is there.

    Needs no internet and no transformers. Labels are added by `add_labels`; until then conditions are None, embedding
    tensors, or free text. A new diffusion file also replaces stored label embeddings.

    Args:
        preset: the configuration that the files were trained with: mug128, mhad128 or natops128.
        autoencoder: `RegionMM.pth`, or a stage-1 checkpoint of MRAA (arXiv 2104.11280) as a start for training.
        diffusion: `flowdiff.pth`.

    Raises:
        FileNotFoundError: no such file.
        UserError: neither file given; a file that is damaged or would execute code; missing, unexpected or misshapen tensors
            (all are listed); or `out` holds something else.
    """
    preset = _published(preset)
    if autoencoder is None and diffusion is None:
        raise UserError("give an auto-encoder file, a diffusion file, or both; got neither")
    check_parents(out)
    check_holds_only(out, folder_entries(LatentFlowPipeline), "an imported folder")
    stage1 = (
        _read_autoencoder(autoencoder, preset) if autoencoder else _load_part(LatentFlowAutoencoder, out, "autoencoder", preset)
    )
    unet, condition = _read_diffusion(diffusion, preset) if diffusion else (_load_part(MotionUNet3D, out, "unet", preset), None)
    if unet is not None and condition is None:
        condition = ConditionEncoder.from_pretrained(out / "condition")

    def write(folder: Path) -> None:
        if stage1 is not None and unet is not None and condition is not None:
            LatentFlowPipeline.from_components(preset, stage1, unet, condition).save_pretrained(folder)
            return
        for name, model in (("autoencoder", stage1), ("unet", unet), ("condition", condition)):
            if model is not None:
                model.save_pretrained(folder / name)

    replace_folder(out, write)
    return ImportedFolder(out, unet is not None, condition.labels if condition else ())


def add_labels(folder: Path, labels: tuple[str, ...], text_encoder: str | Path | None = None) -> ConditionEncoder:
    """Embed labels by a text model and add them to those of an imported folder.

    Args:
        text_encoder: folder or Hub name; by default the one that the model was trained with. It embeds all labels anew.

    Raises:
        FileNotFoundError: the folder holds no stage 2.
        UserError: the model does not take text, or a text model that is not available or has another width.
        MissingExtraError: transformers is not installed.
    """
    path = folder / "condition"
    if not (path / CONFIG_NAME).is_file():
        raise FileNotFoundError(f"{folder} holds no imported diffusion model: {path / CONFIG_NAME} is missing")
    old = ConditionEncoder.from_pretrained(path)
    if old.text_encoder is None:
        raise UserError(f"{folder} was trained on its own label embeddings instead of text; labels cannot be added")
    encoder = encoder_source(text_encoder or old.text_encoder)
    all_labels = tuple(dict.fromkeys((*old.labels, *labels)))
    options = {"learned_null": old.config["learned_null"], "pooling": old.pooling}
    new = ConditionEncoder.from_text(all_labels, encoder, **options)
    if new.dim != old.dim:
        raise UserError(f"text_encoder must give {old.dim} values for the model in {folder}; {encoder} gives {new.dim}")
    trained = dict(old.named_parameters())
    with torch.no_grad():
        for name, parameter in new.named_parameters():
            parameter.copy_(trained[name])
    new.save_pretrained(path)
    return new


def parse_labels(text: str) -> tuple[str, ...]:
    """Parse labels from the command line: a published preset's name, a text file with one per line, or a comma-separated list.

    Raises:
        UserError: no labels, or a file that is not UTF-8 text.
    """
    if text in PUBLISHED_LABELS:
        return PUBLISHED_LABELS[text]
    path = existing_path(text)
    found = _read_lines(path) if path is not None and path.is_file() else text.split(",")
    labels = tuple(dict.fromkeys(label.strip() for label in found if label.strip()))
    if not labels:
        raise UserError(f"labels must be one of {', '.join(PUBLISHED_LABELS)}, a text file or a comma list; got {text!r}")
    return labels


def _read_lines(path: Path) -> list[str]:
    try:
        return read_whole(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from None


def _published(preset: str | Preset) -> Preset:
    preset = get_preset(preset) if isinstance(preset, str) else preset
    if not isinstance(preset.autoencoder.predictor, RegionConfig) or preset.diffusion.condition != "text":
        allowed = [name for name in PRESETS if name in PUBLISHED_LABELS]
        raise UserError(f"preset must be one of {', '.join(allowed)} for published checkpoints; got {preset.name!r}")
    return preset


def _read_autoencoder(path: Path, preset: Preset) -> LatentFlowAutoencoder:
    networks = read_networks(path, AUTOENCODER_NETWORKS)
    weights = _convert(path, convert_autoencoder, **networks)
    model = LatentFlowAutoencoder(**to_json(preset.autoencoder))
    load_exactly(model, weights, f"{path} (read as {preset.name})")
    return model


def _read_diffusion(path: Path, preset: Preset) -> tuple[MotionUNet3D, ConditionEncoder]:
    converted = _convert(path, convert_unet, read_networks(path, DIFFUSION_NETWORKS)["diffusion"])
    unet = MotionUNet3D(**to_json(preset.unet))
    load_exactly(unet, converted.weights, f"{path} (read as {preset.name})")
    null = {} if converted.null_embedding is None else {"null": converted.null_embedding.squeeze(0)}
    condition = ConditionEncoder(
        dim=preset.unet.condition_dim,
        learned_null=preset.diffusion.learned_null,
        text_encoder=preset.diffusion.text_encoder,
    )
    stored: dict[str, Any] = {name: value for name, value in condition.state_dict().items() if name != "null"}
    load_exactly(condition, stored | null, f"{path} (read as {preset.name}), null_cond_emb,")
    return unet, condition


def _convert(path: Path, convert: Any, *networks: Any, **named: Any) -> Any:
    try:
        return convert(*networks, **named)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _load_part(cls: type[ModelT], out: Path, name: str, preset: Preset) -> ModelT | None:
    """Load a stage that `out` already holds, if any; UserError if its configuration differs from the preset's."""
    folder = out / name
    if not (folder / CONFIG_NAME).is_file():
        return None
    model = cls.from_pretrained(folder)
    expected = json.loads(json.dumps(to_json(getattr(preset, name))))
    if {key: json.loads(json.dumps(model.config[key])) for key in expected} != expected:
        raise UserError(f"{folder} was imported with another preset than {preset.name}; choose another --out")
    return model
