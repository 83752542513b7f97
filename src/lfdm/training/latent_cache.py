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
    varies = any(jitter.amounts) or clips.keep_alpha
    num_versions = NUM_VERSIONS if varies else 1
    settings = [LATENT_VERSION, list(jitter.amounts), jitter.random_order, jitter.spare_borders, num_versions, mirrored]

    def latents(index: int) -> Iterator[np.ndarray]:
        for version in range(num_versions):
            rng = np.random.default_rng((index, version))
            frame = jitter.apply(clips.frames(index, [0], rng), rng)[0]
            for image in (frame, frame[:, ::-1]) if mirrored else (frame,):
                yield _encode(autoencoder, image)

    folder = LatentCache.build(
        autoencoder,
        clips,
        latents,
        digest=digest_weights(settings, autoencoder, [autoencoder.first, autoencoder.downs]),
        offsets=_offsets(len(clips), num_versions, mirrored=mirrored),
        activity="encoding first frames",
        bf16=bf16,
        progress=progress,
    )
    return LatentCache(folder, len(clips), num_versions=num_versions, mirrored=mirrored)


def _offsets(num_clips: int, num_versions: int, *, mirrored: bool) -> range:
    each = num_versions * (1 + mirrored)
    return range(0, (num_clips + 1) * each, each)


def _encode(autoencoder: LatentFlowAutoencoder, image: np.ndarray) -> np.ndarray:
    """Return the latent (1, C, h, w) float16 of an image (H, W, 3) uint8."""
    planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None].to(autoencoder.device)
    return autoencoder.encode(planes.float() / 255).latent.half().cpu().contiguous().numpy()
