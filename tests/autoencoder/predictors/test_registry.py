"""A new motion predictor needs a settings class, a predictor class and a line in the registry."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.autoencoder.predictors.predictor import MotionEstimate, MotionPredictor
from lfdm.autoencoder.predictors.registry import PREDICTORS
from lfdm.config.predictors import PredictorConfig
from lfdm.config.presets import Preset
from lfdm.config.serialization import from_json, to_json
from lfdm.errors import UserError
from lfdm.motion.motion import Motion
from lfdm.training.stage1 import train_autoencoder


@dataclass(frozen=True, kw_only=True)
class TranslationConfig(PredictorConfig):
    """One translation for all images."""

    type: Literal["translation"] = "translation"
    start: float = 0.25


class TranslationPredictor(MotionPredictor):
    def __init__(self, config: TranslationConfig, **space: Any) -> None:
        super().__init__(config, **space)
        self.translation = nn.Parameter(torch.full((2,), config.start))

    def predict(self, source: Tensor, driving: Tensor, before: tuple[Tensor, Tensor] | None = None) -> MotionEstimate:  # noqa: ARG002
        b, _, t, height, width = driving.shape
        size = height // self.stride, width // self.stride
        flow = self.translation.view(1, 2, 1, 1, 1).expand(b, 2, t, *size)
        return MotionEstimate(Motion(flow, torch.ones(b, 1, t, *size), corners=self.corners))


@pytest.fixture
def preset(tiny_preset: Preset, monkeypatch: pytest.MonkeyPatch) -> Preset:
    monkeypatch.setitem(PREDICTORS, "translation", TranslationPredictor)
    training = tiny_preset.autoencoder_training
    training = replace(training, match_weight=0.0, optimization=replace(training.optimization, num_steps=2))
    autoencoder = replace(tiny_preset.autoencoder, predictor=TranslationConfig(start=0.5))
    return replace(tiny_preset, autoencoder=autoencoder, autoencoder_training=training)


def test_a_third_predictor_trains_is_saved_and_loaded_and_estimates_motion(
    preset: Preset, puppets_dir: Path, tmp_path: Path
) -> None:
    assert from_json(Preset, to_json(preset)) == preset
    checkpoint = train_autoencoder(preset, puppets_dir, tmp_path / "run")
    loaded = LatentFlowAutoencoder.from_pretrained(checkpoint / "autoencoder")
    assert loaded.config["predictor"] == {"type": "translation", "start": 0.5}
    motion = loaded.estimate_motion(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 4, 32, 32))
    assert motion.flow.shape == (1, 2, 4, 16, 16)
    translation = motion.flow[0, :, 0, 0, 0]
    assert torch.equal(motion.flow, translation.view(1, 2, 1, 1, 1).expand(1, 2, 4, 16, 16))
    assert (translation - 0.5).abs().min() > 0  # it has been trained


def test_it_has_neither_regions_nor_the_losses_of_others(preset: Preset) -> None:
    model = LatentFlowAutoencoder(**to_json(preset.autoencoder))
    assert not model.has_regions
    with pytest.raises(UserError, match=r"region_heat .* got 'translation'"):
        model.region_heat(torch.rand(1, 3, 1, 32, 32))
    with pytest.raises(UserError, match=r"match_weight must be 0 with the predictor 'translation'; got 1\.0"):
        replace(preset, autoencoder_training=replace(preset.autoencoder_training, match_weight=1.0))
