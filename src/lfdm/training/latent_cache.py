"""The image latents of every clip's first frame, augmented, encoded once and then read from disk by stage 2.

The encoder works at the image's full size. With its latents on disk, a step of stage 2 costs the same at every image size.

Shapes: latents of one clip (versions, C, h, w) float16, each version as it is and, where clips are mirrored, mirrored.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.data.augmentation import ColorJitter
from lfdm.data.cache import ClipCache
from lfdm.data.progress import Progress
from lfdm.data.training_clips import TrainingClips
from lfdm.training.clip_arrays import ClipArrays, digest_weights

NUM_VERSIONS = 8
"""Colour changes and backgrounds of each first frame. In 32x32 cells of 48 channels they take 0.8 MB a clip."""
LATENT_VERSION = 1
"""Part of a cache's name. Increase it when a change of the code gives the same weights other latents or augmentation."""


class LatentCache(ClipArrays):
    """The latents of the first frames of a `ClipCache` (see `open_latent_cache`)."""

    name = "latents"

    def __init__(self, folder: Path, num_clips: int, *, num_versions: int, mirrored: bool) -> None:
        super().__init__(folder, _offsets(num_clips, num_versions, mirrored=mirrored))
        self.num_versions, self.mirrored = num_versions, mirrored

    def latent(self, index: int, version: int, *, mirrored: bool = False) -> np.ndarray:
        """Return one version of the latent of clip `index`, (C, h, w) float16, or that of the mirrored frame."""
        return self.clip(index)[version * (1 + self.mirrored) + mirrored]


def open_latent_cache(
    autoencoder: LatentFlowAutoencoder,
    clips: ClipCache,
    jitter: ColorJitter,
    *,
    mirrored: bool,
    bf16: bool = False,
    progress: Progress | None = None,
) -> LatentCache:
    """Return latents of the first frame of every clip; the first call encodes them.

    Each frame is encoded in `NUM_VERSIONS` random colour changes and, of clips with alpha, backgrounds; in one version without
    either. They depend on nothing but the place of a clip in the data set, so that trainings of several seeds share one cache.
    The name of the cache is made of everything that determines it, see `ClipArrays.build`.

    Args:
        mirrored: encode every version of the mirrored frame, too.
    """
    num_versions = num_latent_versions(clips, jitter)
    settings = latent_settings(clips, jitter, mirrored=mirrored)
    folder = LatentCache.build(
        autoencoder,
        clips,
        lambda index: encode_first_frame(autoencoder, clips, index, jitter, mirrored=mirrored),
        digest=digest_weights(settings, autoencoder, [autoencoder.first, autoencoder.downs]),
        offsets=_offsets(len(clips), num_versions, mirrored=mirrored),
        activity="encoding first frames",
        bf16=bf16,
        progress=progress,
    )
    return LatentCache(folder, len(clips), num_versions=num_versions, mirrored=mirrored)


def num_latent_versions(clips: TrainingClips, jitter: ColorJitter) -> int:
    """Return how often a first frame is encoded."""
    return NUM_VERSIONS if any(jitter.amounts) or clips.keep_alpha else 1


def latent_settings(clips: TrainingClips, jitter: ColorJitter, *, mirrored: bool) -> list[object]:
    """Return what determines cached latents, next to clips and weights, for the name of a cache."""
    versions = num_latent_versions(clips, jitter)
    return [LATENT_VERSION, list(jitter.amounts), jitter.random_order, jitter.spare_borders, versions, mirrored]


def encode_first_frame(
    autoencoder: LatentFlowAutoencoder, clips: TrainingClips, index: int, jitter: ColorJitter, *, mirrored: bool
) -> Iterator[np.ndarray]:
    """Yield latents (1, C, h, w) float16: all versions of a clip's first frame, each perhaps followed by the mirrored one."""
    for version in range(num_latent_versions(clips, jitter)):
        rng = np.random.default_rng((index, version))
        frame = jitter.apply(clips.frames(index, [0], rng), rng)[0]
        for image in (frame, frame[:, ::-1]) if mirrored else (frame,):
            yield _encode(autoencoder, image)


def _offsets(num_clips: int, num_versions: int, *, mirrored: bool) -> range:
    each = num_versions * (1 + mirrored)
    return range(0, (num_clips + 1) * each, each)


def _encode(autoencoder: LatentFlowAutoencoder, image: np.ndarray) -> np.ndarray:
    """Return the latent (1, C, h, w) float16 of an image (H, W, 3) uint8."""
    planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None].to(autoencoder.device)
    return autoencoder.encode(planes.float() / 255).latent.half().cpu().contiguous().numpy()
