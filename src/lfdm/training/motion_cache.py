"""Stage 1's motion of every clip against its first frame, estimated once and read from disk at every stage-2 step.

Shapes: motion of one clip (3, t, h, w) float16: flow x, flow y (half images), occlusion.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.config.training import FrameSampler
from lfdm.data.augmentation import ColorJitter, mirror_motion, names_a_side
from lfdm.data.cache import ClipCache
from lfdm.data.frame_indices import sample_indices
from lfdm.data.progress import Progress
from lfdm.folders.files import build_once
from lfdm.motion.motion import Motion

CHUNK_FRAMES = 64
_MOTION_NAME = "motion.f16"
_SHAPE_NAME = "shape.json"


class MotionCache:
    """The motion of the clips of a `ClipCache`, in one memory-mapped file. See `open_motion_cache`."""

    def __init__(self, folder: Path, offsets: list[int], *, corners: bool) -> None:
        self.folder, self.offsets, self.corners = folder, offsets, corners
        self._motion = self._map()

    def _map(self) -> np.ndarray:
        shape = tuple(json.loads((self.folder / _SHAPE_NAME).read_text()))
        return np.memmap(self.folder / _MOTION_NAME, np.float16, "r", shape=shape)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_motion": None}  # a worker process maps the file itself instead of being sent it

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._motion = self._map()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def clip(self, index: int) -> np.ndarray:
        """Motion of all frames of clip `index`: a read-only view (t, 3, h, w) float16."""
        return self._motion[self.offsets[index] : self.offsets[index + 1]]

    def motions(self, *, mirrored: bool = False) -> Iterator[Motion]:
        """Every clip's motion, float32, one clip at a time; `mirrored` = also as seen in a mirror."""
        for index in range(len(self)):
            values = np.array(self.clip(index)).transpose(1, 0, 2, 3)
            for seen in (values, mirror_motion(values)) if mirrored else (values,):
                yield to_motion(torch.from_numpy(seen)[None], corners=self.corners)


def to_motion(values: Tensor, *, corners: bool) -> Motion:
    """Stored values (b, 3, t, h, w) as a float32 `Motion`."""
    return Motion(values[:, :2].float(), values[:, 2:].float(), corners)


def open_motion_cache(
    autoencoder: LatentFlowAutoencoder, clips: ClipCache, *, bf16: bool = False, progress: Progress | None = None
) -> MotionCache:
    """The motion of every frame of every clip against the clip's first frame, estimated on the first call.

    Lies beside the decoded clips under a name made of the auto-encoder's weights, so that another auto-encoder makes another
    cache; built under a temporary name and renamed.
    """
    name = f"{clips.folder.name}-motion-{_weights_digest(autoencoder)}{'-bf16' if bf16 else ''}"
    folder = clips.folder.parent / name

    def write(temporary: Path) -> None:
        with torch.autocast(autoencoder.device.type, torch.bfloat16, enabled=bf16):
            _estimate(autoencoder, clips, temporary, progress)

    build_once(folder, write)
    return MotionCache(folder, clips.offsets, corners=autoencoder.corners)


def _weights_digest(autoencoder: LatentFlowAutoencoder) -> str:
    digest = hashlib.sha256(autoencoder.to_json_string().encode())
    for name, value in autoencoder.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@torch.inference_mode()
def _estimate(autoencoder: LatentFlowAutoencoder, clips: ClipCache, folder: Path, progress: Progress | None) -> None:
    was_training = autoencoder.training
    autoencoder.eval()
    shape: tuple[int, ...] = (0, 0, 0)
    try:
        with (folder / _MOTION_NAME).open("wb") as file:
            for index in range(len(clips)):
                for values in _clip_motion(autoencoder, clips.clip(index)):
                    file.write(values.data)
                    shape = values.shape[1:]
                if progress is not None:
                    progress("estimating motion", index + 1, len(clips))
    finally:
        autoencoder.train(was_training)
    (folder / _SHAPE_NAME).write_text(json.dumps([clips.offsets[-1], *shape]))


def _clip_motion(autoencoder: LatentFlowAutoencoder, clip: np.ndarray) -> Iterator[np.ndarray]:
    """Motion of a clip (t, S, S, 3) uint8 against its first frame, some frames at a time: (n, 3, h, w) float16."""
    video = torch.from_numpy(np.array(clip)).permute(3, 0, 1, 2)[None].to(autoencoder.device).float() / 255
    for motion in autoencoder.estimate_motions(video[:, :, 0], video.split(CHUNK_FRAMES, dim=2)):
        values = torch.cat((motion.flow, motion.occlusion), dim=1)[0].transpose(0, 1)
        yield values.half().cpu().contiguous().numpy()


class MotionDataset(Dataset[dict[str, Tensor]]):
    """Stage 2's samples, requested by (position, index): the first frame, cached motion, clip index.

    Items: `image` (3, S, S) uint8, `motion` (3, num_frames, h, w) float16, `index` int64. Mirroring turns image and motion
    together; colour jitter touches the image alone, since motion does not depend on colours.
    """

    def __init__(
        self,
        clips: ClipCache,
        motion: MotionCache,
        *,
        num_frames: int,
        sampler: FrameSampler,
        flip_probability: float,
        jitter: ColorJitter,
        seed: int,
    ) -> None:
        self.clips, self.motion, self.num_frames = clips, motion, num_frames
        self.sampler: FrameSampler = sampler
        self.flip_probability, self.jitter, self.seed = flip_probability, jitter, seed
        self._may_flip = [not names_a_side(record.label) for record in clips.records]

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        position, index = key
        rng = np.random.default_rng((self.seed, position))
        motion = self.motion.clip(index)
        indices = sample_indices(self.sampler, len(motion), self.num_frames, rng)
        motion = motion[indices].transpose(1, 0, 2, 3)
        image = self.jitter.apply(np.asarray(self.clips.clip(index)[:1]), rng)[0]
        if rng.random() < self.flip_probability and self._may_flip[index]:
            image, motion = image[:, ::-1], mirror_motion(motion)
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            "motion": torch.from_numpy(np.ascontiguousarray(motion)),
            "index": torch.tensor(index),
        }
