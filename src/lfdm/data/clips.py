"""Training data sets over the cached frames of a clip data set.

Shapes: a clip is (t, H, W, 3) uint8 in numpy; items for torch are uint8 tensors (3, H, W) or (3, t, H, W).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from lfdm.config.models import FLOW_CHANNELS
from lfdm.config.training import FrameSampler
from lfdm.data.augmentation import ColorJitter, PairAugmentation, augment_pair, mirror_motion, names_a_side
from lfdm.data.frame_indices import sample_indices
from lfdm.data.training_clips import TrainingClips


class CachedDataset(Dataset[dict[str, Any]]):
    """A data set with as many samples as there are clips."""

    def __init__(self, cache: TrainingClips) -> None:
        self.cache = cache

    def __len__(self) -> int:
        return len(self.cache)

    @property
    def shard_sizes(self) -> tuple[int, ...] | None:
        """Number of clips in each shard, None without shards."""
        return self.cache.shard_sizes

    def prefetch(self, shards: Sequence[int]) -> None:
        """Prepare to read shards, by number."""
        self.cache.prefetch(shards)


class ClipDataset(CachedDataset):
    """Clips of a fixed number of frames, requested by (position, index) so that training can be resumed exactly.

    `position` counts the samples since training began, `index` is that of the clip; every random number is a pure function
    of (seed, position). Items: `video` (3, num_frames, H, W) uint8, `label` int, its place in the labels of the clips.
    """

    def __init__(
        self,
        cache: TrainingClips,
        *,
        num_frames: int,
        sampling: FrameSampler = "uniform",
        jitter: ColorJitter | None = None,
        flip_probability: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(cache)
        self.num_frames = num_frames
        self.sampling: FrameSampler = sampling
        self.jitter = jitter
        self.flip_probability = flip_probability
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        position, index = key[0], self.cache.usable(key[1])
        rng = np.random.default_rng((self.seed, position))
        chosen = sample_indices(self.sampling, self.cache.num_frames(index), self.num_frames, rng)
        frames = self.cache.frames(index, chosen, rng)
        if rng.random() < self.flip_probability and not names_a_side(self.cache.label(index)):
            frames = frames[:, :, ::-1]
        if self.jitter is not None:
            frames = self.jitter.apply(frames, rng)
        return {
            "video": torch.from_numpy(np.ascontiguousarray(frames.transpose(3, 0, 1, 2))),
            "label": self.cache.label_row(index),
        }


class PairDataset(CachedDataset):
    """Training pairs of stage 1: two frames of one clip, sampled with replacement, in time order, then augmented.

    Requested by (position, index) as in `ClipDataset`. Items: `source` and `driving`, (3, H, W) uint8; with `motion` also
    `flow` (2, h, w) float32 and `has_flow`, which is true for pairs whose source is the clip's frame 0.
    """

    def __init__(
        self,
        cache: TrainingClips,
        augment: PairAugmentation | None = None,
        *,
        seed: int = 0,
        distinct: bool = False,
        first_frame_probability: float = 0.0,
        by_subject: bool = False,
        motion: Callable[[int], np.ndarray] | None = None,
    ) -> None:
        """Set up the sampling of pairs.

        Args:
            augment: None leaves pairs as they are.
            distinct: sample two different frames, where a clip has two.
            first_frame_probability: how often the source is the clip's frame 0, as in generation; such a pair is not swapped.
            by_subject: sample the clip from all clips of the requested one's subject.
            motion: returns the motion of a clip (by index) against its frame 0, flow first: (t, c, h, w).
        """
        super().__init__(cache)
        self.augment = augment
        self.seed = seed
        self.distinct = distinct
        self.first_frame_probability = first_frame_probability
        self.motion = motion
        self._clips_of_subject = cache.clips_of_subjects() if by_subject else None

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        position, index = key
        rng = np.random.default_rng((self.seed, position))
        if self._clips_of_subject is not None:
            index = int(rng.choice(self._clips_of_subject[index]))
        index = self.cache.usable(index)
        first, second, from_first = self._sample_frames(self.cache.num_frames(index), rng)
        pair, mirrored = self.cache.frames(index, [first, second], rng), False
        if self.augment is not None:
            may_mirror = self.augment.mirror_sided_labels or not names_a_side(self.cache.label(index))
            pair, mirrored = augment_pair(pair, self.augment, rng, may_swap=not from_first, may_mirror=may_mirror)
        planes = torch.from_numpy(np.ascontiguousarray(pair.transpose(0, 3, 1, 2)))
        item = {"source": planes[0], "driving": planes[1]}
        if self.motion is not None:
            flow = self.motion(index)[second, :FLOW_CHANNELS].astype(np.float32)
            flow = torch.from_numpy(mirror_motion(flow) if mirrored else flow)
            item |= {"flow": flow, "has_flow": torch.tensor(from_first)}
        return item

    def _sample_frames(self, n: int, rng: np.random.Generator) -> tuple[int, int, bool]:
        """Return two frame indices in time order, and whether the source must stay frame 0."""
        from_first = rng.random() < self.first_frame_probability
        distinct = self.distinct and n > 1
        first = 0 if from_first else int(rng.integers(n))
        second = int(rng.integers(n - 1 if distinct else n))
        if distinct and second >= first:
            second += 1
        return min(first, second), max(first, second), from_first
