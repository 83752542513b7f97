"""What every part of an evaluation works with: the held-out clips, where results are kept, what was left out and why.

Shapes: a clip is (t, S, S, 3) uint8 · video (b, 3, t, S, S) in [0, 1].
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lfdm.data.cache import ClipCache
from lfdm.data.frame_indices import uniform_indices
from lfdm.data.index import ClipRecord
from lfdm.evaluation.store import Arrays, BatchStore


@dataclass(frozen=True)
class HeldOutClips:
    """The clips that are judged on, counted from 0, each at the number of frames that is generated."""

    root: Path
    cache: ClipCache
    """Every held-out clip of the data set."""
    chosen: list[int]
    """Those that are judged on."""
    num_frames: int

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def records(self) -> list[ClipRecord]:
        return [self.cache.records[i] for i in self.chosen]

    @property
    def image_size(self) -> int:
        return self.cache.size

    def frame_indices(self, clip: int) -> np.ndarray:
        """Which frames of a clip are used: evenly spread, first and last included."""
        return uniform_indices(self.cache.num_frames(self.chosen[clip]), self.num_frames)

    def frames(self, clips: Sequence[int]) -> np.ndarray:
        """(b, t, S, S, 3) uint8."""
        return np.stack([self.cache.clip(self.chosen[i])[self.frame_indices(i)] for i in clips])

    def sources(self, clips: Sequence[int]) -> np.ndarray:
        """First frames, (b, S, S, 3) uint8."""
        return np.stack([self.cache.clip(self.chosen[i])[0] for i in clips])


@dataclass
class EvaluationRun:
    """One evaluation under way."""

    clips: HeldOutClips
    store: BatchStore
    device: torch.device
    bf16: bool = False
    unconditional: bool = False
    left_out: dict[str, str] = field(default_factory=dict)
    """What was not measured, and why."""

    @property
    def records(self) -> list[ClipRecord]:
        return self.clips.records

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def video(self, frames: np.ndarray) -> Tensor:
        """(b, t, S, S, 3) uint8 -> (b, 3, t, S, S) in [0, 1] on the device."""
        return torch.from_numpy(frames).to(self.device).permute(0, 4, 1, 2, 3).float() / 255


def to_numpy(tensors: dict[str, Tensor]) -> Arrays:
    """Tensors as arrays that can be stored."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
