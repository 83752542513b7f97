"""A tiny model and image for command lines."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lfdm.config.presets import Preset
from lfdm.pipeline.pipeline import LatentFlowPipeline

LABELS = ("raise arms", "wave")


@pytest.fixture(scope="module")
def model(tiny_preset: Preset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    LatentFlowPipeline.from_preset(tiny_preset, LABELS).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "person.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    return path
