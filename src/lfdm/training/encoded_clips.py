"""The part of a clip that a step of stage 2 reads: motion and the latent of the first frame, both on the grid of the motion.

Shapes: motion (3, t, h, w) float16 · latent (C, h, w) float16.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.config.training import DiffusionTrainingConfig
from lfdm.data.augmentation import ColorJitter, mirror_motion, names_a_side
from lfdm.data.cache import ClipCache
from lfdm.data.clips import CachedDataset
from lfdm.data.frame_indices import sample_indices
from lfdm.data.progress import Progress
from lfdm.data.training_clips import TrainingClips
from lfdm.training.latent_cache import open_latent_cache
from lfdm.training.motion_cache import MotionStore, open_motion_cache
from lfdm.training.track_sampling import sample_track_maps


class LatentStore(Protocol):
    """Latents of first frames."""

    num_versions: int

    def latent(self, index: int, version: int, *, mirrored: bool = False) -> np.ndarray:
        """Return one version of the latent of a clip, (C, h, w) float16, or that of the mirrored frame."""
        ...


@dataclass(frozen=True, eq=False)
class EncodedClips:
    """Motion and first frames of all clips as stage 1 sees them."""

    clips: TrainingClips
    """Labels of the clips, and their shards if the arrays are in shards."""
    motion: MotionStore
    """Motion of every frame relative to the first."""
    latents: LatentStore
    """Latents of the first frame under the augmentation of the training."""


def stage2_jitter(training: DiffusionTrainingConfig) -> ColorJitter:
    """Return the colour change of stage 2."""
    return ColorJitter(amounts=training.color_jitter, random_order=False, spare_borders=True)


def open_encoded_clips(
    autoencoder: LatentFlowAutoencoder,
    clips: ClipCache,
    training: DiffusionTrainingConfig,
    *,
    bf16: bool = False,
    progress: Progress | None = None,
) -> EncodedClips:
    """Return motion and latents of all clips for `training`; the first call computes them."""
    motion = open_motion_cache(autoencoder, clips, exact=training.exact_motion, bf16=bf16, progress=progress)
    mirrored = training.flip_probability > 0
    latents = open_latent_cache(autoencoder, clips, stage2_jitter(training), mirrored=mirrored, bf16=bf16, progress=progress)
    return EncodedClips(clips, motion, latents)


class EncodedDataset(CachedDataset):
    """Map (position, index) to a sample of stage 2: the latent of the first frame, motion and label.

    Items: `latent` (C, h, w) float16, `motion` (3, num_frames, h, w) float16, `label` int64, its place in the labels.
    Every random number is a pure function of (seed, position). Motion is mirrored where the encoded frame is. With tracks also
    `tracks` (TRACK_CHANNELS, num_frames, h, w) float16, see `lfdm.training.track_sampling`.
    """

    def __init__(
        self,
        encoded: EncodedClips,
        training: DiffusionTrainingConfig,
        *,
        num_frames: int,
        with_tracks: bool = False,
    ) -> None:
        super().__init__(encoded.clips)
        self.encoded, self.training, self.num_frames, self.with_tracks = encoded, training, num_frames, with_tracks

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        position, index = key[0], self.cache.usable(key[1])
        training, latents = self.training, self.encoded.latents
        rng = np.random.default_rng((training.optimization.seed, position))
        motion = self.encoded.motion.clip(index)
        indices = sample_indices(training.frame_sampler, len(motion), self.num_frames, rng)
        motion = motion[indices].transpose(1, 0, 2, 3)
        version = int(rng.integers(latents.num_versions))
        mirrored = bool(rng.random() < training.flip_probability) and not names_a_side(self.cache.label(index))
        sample = {
            "latent": torch.from_numpy(np.array(latents.latent(index, version, mirrored=mirrored))),
            "motion": torch.from_numpy(mirror_motion(motion) if mirrored else np.ascontiguousarray(motion)),
            "label": torch.tensor(self.cache.label_row(index)),
        }
        if self.with_tracks:
            progress = position / (training.optimization.num_steps * training.optimization.batch_size)
            sample["tracks"] = sample_track_maps(sample["motion"].float(), progress, rng).half()
        return sample
