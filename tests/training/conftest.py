"""Clips whose motion is simple and does not depend on how puppets are drawn, and a stage 1 to encode clips with."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.config.presets import Preset
from lfdm.config.serialization import to_json
from lfdm.data.cache import ClipCache, open_cache
from lfdm.data.index import ClipRecord, write_index
from lfdm.data.video import write_video


@pytest.fixture(scope="session")
def moving_squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of four clips, each of a bright square that crosses a striped grey frame in its own direction. Read only."""
    root, records = tmp_path_factory.mktemp("squares"), []
    for i, (dx, dy) in enumerate(((2, 0), (0, 2), (-2, 1), (1, -2))):
        frames = np.full((6, 32, 32, 3), 90, np.uint8)
        frames[:, ::4, :, i % 3] += 40
        for k in range(6):
            x, y = 12 + dx * k, 12 + dy * k
            frames[k, y : y + 8, x : x + 8] = (200, 60 * i, 255 - 50 * i)
        path = f"{i}.avi"
        write_video(root / path, frames, fps=8)
        record = ClipRecord(path=path, label="move", subject=str(i), split="train", frames=6, fps=8.0, width=32, height=32)
        records.append(record)
    write_index(root, records)
    return root


@pytest.fixture(scope="module")
def autoencoder(tiny_preset: Preset) -> LatentFlowAutoencoder:
    """Every weight moved, so that flow is not zero; batch-norm statistics of its own; in training mode."""
    torch.manual_seed(0)
    model = LatentFlowAutoencoder(**to_json(tiny_preset.autoencoder))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
        model.train()(torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32))
    return model


@pytest.fixture
def clips(puppets_dir: Path, puppet_records: list[ClipRecord], tmp_path: Path) -> ClipCache:
    return open_cache(puppets_dir, puppet_records[:3], 32, "pad", tmp_path)
