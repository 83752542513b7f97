"""The motion of every clip relative to its first frame, estimated by stage 1 once and then read from disk by stage 2.

Shapes: motion of one clip (3, t, h, w) float16: flow x, flow y (half images), occlusion.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
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
from lfdm.data.clip_file import Part, damaged_clips, write_clips
from lfdm.data.frame_indices import sample_indices
from lfdm.data.progress import Progress
from lfdm.errors import UserError
from lfdm.folders.arrays import map_array
from lfdm.folders.lock import build_once
from lfdm.folders.model_folder import read_json
from lfdm.motion.motion import Motion

CHUNK_FRAMES = 64
"""Frames whose motion is estimated at a time."""
MOTION_VERSION = 3
"""Part of a cache's name. Increase it when a change of the code makes the same weights estimate another motion."""
_MOTION_NAME = "motion.f16"
_SHAPE_NAME = "shape.json"
_NUM_CHANNELS = 3


def _map_motion(folder: Path, num_frames: int) -> np.ndarray:
    """Map the motion of a cache: (num_frames, 3, h, w). Raises UserError for a file of another size."""
    height, width = read_json(folder / _SHAPE_NAME)["size"]
    return map_array(folder / _MOTION_NAME, np.float16, (num_frames, _NUM_CHANNELS, height, width))


class MotionCache:
    """The motion of the clips of a `ClipCache`, in one memory-mapped file (see `open_motion_cache`)."""

    def __init__(self, folder: Path, offsets: list[int], *, corners: bool) -> None:
        self.folder, self.offsets, self.corners = folder, offsets, corners
        self._motion = self._map()

    def _map(self) -> np.ndarray:
        return _map_motion(self.folder, self.offsets[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_motion": None}  # a loader process maps the file itself

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._motion = self._map()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def clip(self, index: int) -> np.ndarray:
        """Return the motion of all frames of clip `index`: a read-only view (t, 3, h, w) float16."""
        return self._motion[self.offsets[index] : self.offsets[index + 1]]

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

    The cache lies next to the decoded clips. Its name is made of everything that determines the motion: the clips, the motion
    predictor's weights and settings, the precision and `MOTION_VERSION`.
    """
    name = f"{clips.folder.name}-motion-{_digest(autoencoder)}{'-bf16' if bf16 else ''}"
    folder = clips.folder.parent / name

    def write(temporary: Path) -> None:
        with torch.autocast(autoencoder.device.type, torch.bfloat16, enabled=bf16):
            _estimate(autoencoder, clips, temporary, progress)

    build_once(folder, write, partial(_find_damage, clips))
    return MotionCache(folder, clips.offsets, corners=autoencoder.corners)


def _digest(autoencoder: LatentFlowAutoencoder) -> str:
    settings = json.loads(autoencoder.to_json_string())
    settings.pop("_diffusers_version", None)
    digest = hashlib.sha256(json.dumps([MOTION_VERSION, settings], sort_keys=True).encode())
    for name, value in autoencoder.motion_predictor.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@torch.inference_mode()
def _estimate(autoencoder: LatentFlowAutoencoder, clips: ClipCache, folder: Path, progress: Progress | None) -> None:
    was_training = autoencoder.training
    autoencoder.eval()
    size: tuple[int, ...] = ()

    def arrays() -> Iterator[list[np.ndarray]]:
        nonlocal size
        for index, record in enumerate(clips.records):
            motion = list(_clip_motion(autoencoder, clips.clip(index)))
            if not all(np.isfinite(values).all() for values in motion):
                raise UserError(f"{record.path}: the motion that stage 1 estimates is not finite in float16; train stage 1 anew")
            size = motion[0].shape[2:]
            yield motion
            if progress is not None:
                progress("estimating motion", index + 1, len(clips))

    try:
        parts = [asdict(part) for part in write_clips(folder / _MOTION_NAME, arrays())]
    finally:
        autoencoder.train(was_training)
    (folder / _SHAPE_NAME).write_text(json.dumps({"size": size, "clips": parts}))


def _find_damage(clips: ClipCache, folder: Path) -> str | None:
    """Return what has changed in a motion cache since it was written."""
    try:
        _map_motion(folder, clips.offsets[-1])
        parts = [Part(**part) for part in read_json(folder / _SHAPE_NAME)["clips"]]
        damaged = [clips.records[index].path for index in damaged_clips(folder / _MOTION_NAME, parts)]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        return str(error)
    return f"changed on the disk: {', '.join(damaged)}" if damaged else None


def _clip_motion(autoencoder: LatentFlowAutoencoder, clip: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the motion of a clip (t, H, W, 3) uint8, some frames at a time: (n, 3, h, w) float16."""
    video = torch.from_numpy(np.array(clip)).permute(3, 0, 1, 2)[None].to(autoencoder.device).float() / 255
    for motion in autoencoder.estimate_motions(video[:, :, 0], video.split(CHUNK_FRAMES, dim=2)):
        values = torch.cat((motion.flow, motion.occlusion), dim=1)[0].transpose(0, 1)
        yield values.half().cpu().contiguous().numpy()


class MotionDataset(Dataset[dict[str, Tensor]]):
    """Map (position, index) to a sample of stage 2: first frame, cached motion and clip index.

    Items: `image` (3, H, W) uint8, `motion` (3, num_frames, h, w) float16, `index` int64. Image and motion are mirrored
    together; color jitter changes only the image.
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
        image = self.jitter.apply(self.clips.frames(index, [0], rng), rng)[0]
        if rng.random() < self.flip_probability and self._may_flip[index]:
            image, motion = image[:, ::-1], mirror_motion(motion)
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            "motion": torch.from_numpy(np.ascontiguousarray(motion)),
            "index": torch.tensor(index),
        }
