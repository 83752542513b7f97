"""The motion of every clip relative to its first frame, estimated by stage 1 once and then read from disk.

Shapes: motion of one clip (t, 3, h, w) float16: flow x, flow y (half images), occlusion.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.data.augmentation import mirror_motion
from lfdm.data.cache import ClipCache
from lfdm.data.progress import Progress
from lfdm.motion.motion import Motion
from lfdm.training.clip_arrays import ClipArrays, digest_weights

CHUNK_FRAMES = 64
"""Frames whose motion is estimated at a time."""
MOTION_VERSION = 4
"""Part of a cache's name. Increase it when a change of the code makes the same weights estimate another motion."""


class MotionCache(ClipArrays):
    """The motion of the clips of a `ClipCache`: a row for every frame (see `open_motion_cache`)."""

    name = "motion"

    def __init__(self, folder: Path, offsets: list[int], *, corners: bool) -> None:
        super().__init__(folder, offsets)
        self.corners = corners

    def motions(self, *, mirrored: bool = False) -> Iterator[Motion]:
        """Yield the motion of one clip after the other in float32, with `mirrored` each also mirrored."""
        for index in range(len(self)):
            values = np.array(self.clip(index)).transpose(1, 0, 2, 3)
            for version in (values, mirror_motion(values)) if mirrored else (values,):
                yield to_motion(torch.from_numpy(version)[None], corners=self.corners)


def to_motion(values: Tensor, *, corners: bool) -> Motion:
    """Convert stored values (b, 3, t, h, w) to a float32 `Motion`."""
    return Motion(values[:, :2].float(), values[:, 2:].float(), corners)


def open_motion_cache(
    autoencoder: LatentFlowAutoencoder, clips: ClipCache, *, bf16: bool = False, progress: Progress | None = None
) -> MotionCache:
    """Return the motion of every clip relative to its first frame; the first call estimates it.

    The name of the cache is made of everything that determines the motion: the clips, the motion predictor's weights and
    settings, the precision and `MOTION_VERSION`. See `ClipArrays.build`.
    """
    folder = MotionCache.build(
        autoencoder,
        clips,
        lambda index: _clip_motion(autoencoder, clips.clip(index)),
        digest=digest_weights(MOTION_VERSION, autoencoder, [autoencoder.motion_predictor]),
        offsets=clips.offsets,
        activity="estimating motion",
        bf16=bf16,
        progress=progress,
    )
    return MotionCache(folder, clips.offsets, corners=autoencoder.corners)


def _clip_motion(autoencoder: LatentFlowAutoencoder, clip: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the motion of a clip (t, H, W, 3) uint8, some frames at a time: (n, 3, h, w) float16."""
    video = torch.from_numpy(np.array(clip)).permute(3, 0, 1, 2)[None].to(autoencoder.device).float() / 255
    for motion in autoencoder.estimate_motions(video[:, :, 0], video.split(CHUNK_FRAMES, dim=2)):
        values = torch.cat((motion.flow, motion.occlusion), dim=1)[0].transpose(0, 1)
        yield values.half().cpu().contiguous().numpy()
