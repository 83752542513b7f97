"""A tiny model and pictures."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lfdm.config.presets import Preset
from lfdm.pipeline.pipeline import LatentFlowPipeline


@pytest.fixture(scope="session")
def model(tiny_preset: Preset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model that knows jump and wave."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    LatentFlowPipeline.from_preset(tiny_preset, ("jump", "wave")).save_pretrained(folder)
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with a.png, b.png and c.png, of which the last is not square."""
    rng = np.random.default_rng(0)
    for name, size in (("a", (32, 32)), ("b", (40, 40)), ("c", (32, 48))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    return tmp_path
