"""Clips whose motion is simple and does not depend on how puppets are drawn."""

from pathlib import Path

import numpy as np
import pytest

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
