"""The motion of every clip relative to its first frame, estimated by stage 1 once and then read from disk.

Shapes: motion of one clip (t, 3, h, w) float16: flow x, flow y (half images), occlusion; or of its trajectories: displacement x,
displacement y, visibility.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

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
from lfdm.motion.trajectories import Trajectories
from lfdm.training.clip_arrays import ClipArrays, digest_weights
from lfdm.training.exact_motion import with_exact_figure

CHUNK_FRAMES = 64
"""Frames whose motion is estimated at a time."""
MOTION_VERSION, TRAJECTORY_VERSION = 4, 2
"""Parts of a cache's name. Increase one when a change of the code makes the same weights estimate another motion."""


class MotionStore(Protocol):
    """Motion, or trajectories, of clips by index."""

    corners: bool
    needs_trajectories: bool

    def __len__(self) -> int: ...

    def clip(self, index: int) -> np.ndarray:
        """Return the motion of a clip (t, 3, h, w) float16."""
        ...


class MotionCache(ClipArrays):
    """The motion of the clips of a `ClipCache`: a row for every frame (see `open_motion_cache`)."""

    name = "motion"

    def __init__(self, folder: Path, offsets: list[int], *, corners: bool, trajectories: bool = False) -> None:
        super().__init__(folder, offsets)
        self.corners, self.needs_trajectories = corners, trajectories


@dataclass(frozen=True, eq=False)
class CachedMotions:
    """Every `Motion`, or `Trajectories`, of a cache, as a batch of one; can be iterated any number of times."""

    cache: MotionStore
    mirrored: bool = False
    """Follow each motion by the mirrored one."""

    def __iter__(self) -> Iterator[Any]:
        for index in range(len(self.cache)):
            values = np.array(self.cache.clip(index)).transpose(1, 0, 2, 3)
            for version in (values, mirror_motion(values)) if self.mirrored else (values,):
                yield to_motion(torch.from_numpy(version)[None], self.cache)


def to_motion(values: Tensor, kind: MotionStore | MotionCodec) -> Any:
    """Convert stored values (b, 3, t, h, w) to float32 `Motion`, or `Trajectories` where the cache or codec has those."""
    first, second = values[:, :2].float(), values[:, 2:].float()
    return Trajectories(first, second) if kind.needs_trajectories else Motion(first, second, kind.corners)


def open_motion_cache(
    autoencoder: LatentFlowAutoencoder,
    clips: ClipCache,
    *,
    trajectories: bool = False,
    exact: bool = False,
    bf16: bool = False,
    progress: Progress | None = None,
) -> MotionCache:
    """Return the motion, or `trajectories`, of every clip relative to its first frame; the first call estimates it.

    With `exact`, the figure's motion is that of the clips' truth files, see `lfdm.training.exact_motion`.

    The name of the cache is made of everything that determines the motion: the clips, the motion predictor's weights and
    settings, the precision and `MOTION_VERSION`. See `ClipArrays.build`.

    Raises:
        FileNotFoundError: a clip without the truth file that `exact` needs.
    """

    def rows(index: int) -> Iterator[np.ndarray]:
        parts = encode_motion(autoencoder, clips.clip(index), trajectories=trajectories)
        if not exact:
            yield from parts
            return
        motion = np.concatenate(list(parts)).astype(np.float32)
        yield with_exact_figure(motion, load_truth(truth_path(clips.root / clips.records[index].path))).astype(np.float16)

    version = motion_version(trajectories=trajectories)
    folder = MotionCache.build(
        autoencoder,
        clips,
        rows,
        digest=digest_weights(["exact", version] if exact else version, autoencoder, [autoencoder.motion_predictor]),
        offsets=clips.offsets,
        activity="estimating trajectories" if trajectories else "estimating motion",
        bf16=bf16,
        progress=progress,
    )
    return MotionCache(folder, clips.offsets, corners=autoencoder.corners, trajectories=trajectories)


def motion_version(*, trajectories: bool) -> object:
    """Return what in the code determines cached motion, for the name of a cache."""
    return ["trajectories", TRAJECTORY_VERSION] if trajectories else MOTION_VERSION


def encode_motion(autoencoder: LatentFlowAutoencoder, clip: np.ndarray, *, trajectories: bool) -> Iterator[np.ndarray]:
    """Yield the motion or trajectories of a clip (t, H, W, 3) uint8 in parts (n, 3, h, w) float16."""
    return (_trajectories if trajectories else _motion)(autoencoder, _to_video(autoencoder, clip))


def _to_video(autoencoder: LatentFlowAutoencoder, clip: np.ndarray) -> Tensor:
    """Return a clip (t, H, W, 3) uint8 as a video (1, 3, t, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(clip)).permute(3, 0, 1, 2)[None].to(autoencoder.device).float() / 255


def _motion(autoencoder: LatentFlowAutoencoder, video: Tensor) -> Iterator[np.ndarray]:
    """Yield the motion of a video (1, 3, t, H, W), some frames at a time: (n, 3, h, w) float16."""
    for motion in autoencoder.estimate_motions(video[:, :, 0], video.split(CHUNK_FRAMES, dim=2)):
        yield _to_rows(motion.flow, motion.occlusion)


def _trajectories(autoencoder: LatentFlowAutoencoder, video: Tensor) -> Iterator[np.ndarray]:
    """Yield the trajectories of a video (1, 3, t, H, W): (t, 3, h, w) float16."""
    found = autoencoder.estimate_trajectories(video)
    yield _to_rows(found.displacement, found.visibility)


def _to_rows(first: Tensor, second: Tensor) -> np.ndarray:
    return torch.cat((first, second), dim=1)[0].transpose(0, 1).half().cpu().contiguous().numpy()
