"""State that all parts of an evaluation share: the held-out clips, the store of results, and the figures that were left out.

Shapes: frames (b, t, H, W, 3) uint8 · video (b, 3, t, H, W) float32 in [0, 1].
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lfdm.config.video import Size
from lfdm.data.cache import ClipCache
from lfdm.data.frame_indices import uniform_indices
from lfdm.data.index import ClipRecord
from lfdm.evaluation.store import Arrays, BatchStore, StoredArrays


@dataclass(frozen=True)
class HeldOutClips:
    """The clips of the evaluation, indexed from 0, each resampled to `num_frames` frames."""

    root: Path
    cache: ClipCache
    """All held-out clips of the data set."""
    chosen: list[int]
    """Indices into `cache` of the clips that are used."""
    num_frames: int

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def records(self) -> list[ClipRecord]:
        return [self.cache.records[i] for i in self.chosen]

    @property
    def image_size(self) -> Size:
        return self.cache.size

    def frame_indices(self, clip: int) -> np.ndarray:
        """Return `num_frames` evenly spaced frame indices of a clip, first and last included."""
        return uniform_indices(self.cache.num_frames(self.chosen[clip]), self.num_frames)

    def frames(self, clips: Sequence[int]) -> np.ndarray:
        """Return frames (b, t, H, W, 3) uint8."""
        return np.stack([self.cache.clip(self.chosen[i])[self.frame_indices(i)] for i in clips])

    def sources(self, clips: Sequence[int]) -> np.ndarray:
        """Return first frames (b, H, W, 3) uint8."""
        return np.stack([self.cache.clip(self.chosen[i])[0] for i in clips])


@dataclass
class EvaluationRun:
    """An evaluation in progress."""

    clips: HeldOutClips
    store: BatchStore
    device: torch.device
    bf16: bool = False
    unconditional: bool = False
    left_out: dict[str, str] = field(default_factory=dict)
    """Reason for each figure that is not measured."""

    @property
    def records(self) -> list[ClipRecord]:
        return self.clips.records

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of the evaluated networks: bfloat16 if the settings say so."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def video(self, frames: np.ndarray) -> Tensor:
        """Convert frames (b, t, H, W, 3) uint8 to a video (b, 3, t, H, W) in [0, 1] on the device."""
        return torch.from_numpy(frames).to(self.device).permute(0, 4, 1, 2, 3).float() / 255

    def apply_network(
        self, name: str, generated: StoredArrays, network: Callable[[np.ndarray, list[int]], Tensor], *, task: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Apply a network to all generated and all real clips, and return both outputs, (n, ...) each.

        Args:
            name: folder of the outputs in the store.
            network: maps frames (b, t, H, W, 3) uint8 and the indices of their clips to outputs (b, ...).
            task: description for progress reports.
        """

        @torch.inference_mode()
        def compute(chosen: list[int]) -> Arrays:
            frames = {"real": self.clips.frames(chosen), "generated": generated.rows("frames", chosen)}
            return {side: network(values, chosen).float().cpu().numpy() for side, values in frames.items()}

        outputs = self.store.compute(name, range(len(self.clips)), compute, task=task)
        return outputs["generated"], outputs["real"]
