"""The motion of every clip relative to its first frame, estimated by stage 1 once and then read from disk.

Shapes: motion of one clip (t, 3, h, w) float16: flow x, flow y (half images), occlusion.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.data.augmentation import mirror_motion
from lfdm.data.cache import ClipCache
from lfdm.data.progress import Progress
from lfdm.data.truth import load_truth, truth_path
from lfdm.motion.codec import MotionCodec
from lfdm.motion.motion import Motion
from lfdm.training.clip_arrays import ClipArrays, digest_weights
from lfdm.training.exact_motion import with_exact_figure

CHUNK_FRAMES = 64
"""Frames whose motion is estimated at a time."""
MOTION_VERSION = 4
"""Part of a cache's name. Increase it when a change of the code makes the same weights estimate another motion."""


class MotionStore(Protocol):
    """Motion of clips by index."""

    corners: bool

    def __len__(self) -> int: ...

    def clip(self, index: int) -> np.ndarray:
        """Return the motion of a clip (t, 3, h, w) float16."""
        ...


class MotionCache(ClipArrays):
    """The motion of the clips of a `ClipCache`: a row for every frame (see `open_motion_cache`)."""

    name = "motion"

    def __init__(self, folder: Path, offsets: list[int], *, corners: bool) -> None:
        super().__init__(folder, offsets)
        self.corners = corners


@dataclass(frozen=True, eq=False)
class CachedMotions:
    """Every `Motion` of a cache, as a batch of one; can be iterated any number of times."""

    cache: MotionStore
    mirrored: bool = False
    """Follow each motion by the mirrored one."""

    def __iter__(self) -> Iterator[Motion]:
        for index in range(len(self.cache)):
            values = np.array(self.cache.clip(index)).transpose(1, 0, 2, 3)
            for version in (values, mirror_motion(values)) if self.mirrored else (values,):
                yield to_motion(torch.from_numpy(version)[None], self.cache)


def to_motion(values: Tensor, kind: MotionStore | MotionCodec) -> Motion:
    """Convert stored values (b, 3, t, h, w) to float32 `Motion`."""
    return Motion(values[:, :2].float(), values[:, 2:].float(), kind.corners)


def open_motion_cache(
    autoencoder: LatentFlowAutoencoder,
    clips: ClipCache,
    *,
    exact: bool = False,
    bf16: bool = False,
    progress: Progress | None = None,
) -> MotionCache:
    """Return the motion of every clip relative to its first frame; the first call estimates it.

    With `exact`, the figure's motion is that of the clips' truth files, see `lfdm.training.exact_motion`.

    The name of the cache is made of everything that determines the motion: the clips, the motion predictor's weights and
    settings, the precision and `MOTION_VERSION`. See `ClipArrays.build`.

    Raises:
        FileNotFoundError: a clip without the truth file that `exact` needs.
    """

    def rows(index: int) -> Iterator[np.ndarray]:
        parts = encode_motion(autoencoder, clips.clip(index))
        if not exact:
            yield from parts
            return
        motion = np.concatenate(list(parts)).astype(np.float32)
        yield with_exact_figure(motion, load_truth(truth_path(clips.root / clips.records[index].path))).astype(np.float16)

    version = ["exact", MOTION_VERSION] if exact else MOTION_VERSION
    folder = MotionCache.build(
        autoencoder,
        clips,
        rows,
        digest=digest_weights(version, autoencoder, [autoencoder.motion_predictor]),
        offsets=clips.offsets,
        activity="estimating motion",
        bf16=bf16,
        progress=progress,
    )
    return MotionCache(folder, clips.offsets, corners=autoencoder.corners)


def encode_motion(autoencoder: LatentFlowAutoencoder, clip: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the motion of a clip (t, H, W, 3) uint8 in parts (n, 3, h, w) float16."""
    video = _to_video(autoencoder, clip)
    for motion in autoencoder.estimate_motions(video[:, :, 0], video.split(CHUNK_FRAMES, dim=2)):
        rows = torch.cat((motion.flow, motion.occlusion), dim=1)[0].transpose(0, 1)
        yield rows.half().cpu().contiguous().numpy()


def _to_video(autoencoder: LatentFlowAutoencoder, clip: np.ndarray) -> Tensor:
    """Return a clip (t, H, W, 3) uint8 as a video (1, 3, t, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(clip)).permute(3, 0, 1, 2)[None].to(autoencoder.device).float() / 255
