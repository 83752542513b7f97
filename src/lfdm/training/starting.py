"""The trained models that stage 2 starts from: stage 1, and a U-Net with its conditions to train further."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.condition.encoder import ConditionEncoder
from lfdm.config.diffusion import PredictionType
from lfdm.config.models import AutoencoderConfig, UNetConfig
from lfdm.config.presets import Preset
from lfdm.config.serialization import to_json
from lfdm.denoiser.undistilled import without_distilled_inputs
from lfdm.denoiser.unet3d import MotionUNet3D
from lfdm.diffusion.schedulers import predicted_by
from lfdm.errors import UserError
from lfdm.folders.run_folder import find_layout, find_model
from lfdm.folders.sources import find_folder
from lfdm.pipeline.folder import load_scheduler

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class StartingWeights:
    """A trained U-Net, and the conditions that it was trained with, if its folder has them."""

    unet: MotionUNet3D
    condition: ConditionEncoder | None

    @classmethod
    def load(cls, folder: Path, preset: Preset) -> Self:
        """Load from a U-Net, pipeline or run folder, a distilled U-Net as an ordinary one; it need not have the input for tracks.

        Raises:
            UserError: settings or a prediction type that are not the preset's.
        """
        unet = ordinary_network(MotionUNet3D.from_pretrained(find_model(folder, "unet")))
        wanted = preset.unet if unet.track_inputs else replace(preset.unet, track_inputs=False)
        _check_settings(f"{folder} holds a U-Net", unet.config, wanted, preset.name)
        needed, found = preset.diffusion.prediction_type, _prediction_type(folder)
        if found not in (needed, None):
            raise UserError(f"diffusion.prediction_type must be {found}, as of the U-Net in {folder}; got {needed}")
        return cls(unet, _load_condition(folder))


def ordinary_network(unet: MotionUNet3D) -> MotionUNet3D:
    """Return a U-Net to train or to learn from: itself or, if it is distilled, its conditional prediction; the log says so."""
    if not unet.flow_map and unet.max_guidance is None:
        return unet
    logger.warning(
        "the model is distilled; training takes its conditional prediction: a network for ordinary samplers and guidance"
    )
    return without_distilled_inputs(unet)


def load_autoencoder(path: str | Path, preset: Preset) -> LatentFlowAutoencoder:
    """Load a trained stage 1 and freeze it; UserError if its settings are not the preset's."""
    stage1 = LatentFlowAutoencoder.from_pretrained(find_model(find_folder(path), "autoencoder")).requires_grad_(False)
    _check_settings(f"{path} holds a stage 1", stage1.config, preset.autoencoder, preset.name)
    return stage1


def _load_condition(folder: Path) -> ConditionEncoder | None:
    try:
        return ConditionEncoder.from_pretrained(find_layout(folder).component("condition"))
    except FileNotFoundError:  # a U-Net's own folder
        return None


def _prediction_type(folder: Path) -> PredictionType | None:
    try:
        return predicted_by(load_scheduler(find_layout(folder).component("scheduler")))
    except FileNotFoundError:  # a U-Net's own folder
        return None


def _check_settings(holder: str, stored: Mapping[str, Any], needed: AutoencoderConfig | UNetConfig, preset_name: str) -> None:
    settings = to_json(needed)
    differing = [
        f"{name} is {stored[name]!r} there, {value!r} here" for name, value in settings.items() if not _same(stored[name], value)
    ]
    if differing:
        raise UserError(f"{holder} with other settings than preset {preset_name}: {'; '.join(differing)}")


def _same(one: object, other: object) -> bool:
    return json.dumps(one) == json.dumps(other)  # tuples equal lists
