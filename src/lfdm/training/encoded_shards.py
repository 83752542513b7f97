"""Motion and latents of clips in shards, for stage 2: one shard for each shard of clips, with the same clips in the same order.

Shapes: motion (t, 3, h, w) float16 · latents (versions, C, h, w) float16.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.config.training import DiffusionTrainingConfig
from lfdm.data.augmentation import ColorJitter
from lfdm.data.progress import Progress
from lfdm.data.shard_cache import ShardFiles
from lfdm.data.shard_file import Shard, SplitSummary, write_shard
from lfdm.data.sharded_clips import ShardedClips, ShardSet
from lfdm.folders.files import temporary_path
from lfdm.folders.remote import StoredFolder
from lfdm.training.clip_arrays import check_finite, digest_weights
from lfdm.training.encoded_clips import EncodedClips, stage2_jitter
from lfdm.training.latent_cache import encode_first_frame, latent_settings, num_latent_versions
from lfdm.training.motion_cache import MOTION_VERSION, encode_motion
from lfdm.training.processes import process_state

logger = logging.getLogger(__name__)


class ShardedMotion:
    """Motion of clips in shards, see `MotionStore`."""

    def __init__(self, shards: ShardSet, *, corners: bool) -> None:
        self.shards, self.corners = shards, corners

    def __len__(self) -> int:
        return len(self.shards)

    def clip(self, index: int) -> np.ndarray:
        """Return the motion of a clip (t, 3, h, w) float16."""
        return self.shards.arrays(self.shards.usable(index))["motion"]


class ShardedLatents:
    """Latents of first frames in shards, see `LatentStore`."""

    def __init__(self, shards: ShardSet, *, num_versions: int, mirrored: bool) -> None:
        self.shards, self.num_versions, self.mirrored = shards, num_versions, mirrored

    def latent(self, index: int, version: int, *, mirrored: bool = False) -> np.ndarray:
        """Return one version of the latent of a clip, (C, h, w) float16, or that of the mirrored frame."""
        return self.shards.arrays(index)["latents"][version * (1 + self.mirrored) + mirrored]


def open_encoded_shards(
    autoencoder: LatentFlowAutoencoder,
    clips: ShardedClips,
    training: DiffusionTrainingConfig,
    *,
    bf16: bool = False,
    progress: Progress | None = None,
) -> EncodedClips:
    """Return motion and latents of clips in shards; the first call computes them, shard by shard, shared out among all processes.

    They lie next to the shards, in a folder named after all that determines them, or for shards on a web server in the cache of
    this machine, which then needs the room for all. A shard appears whole, and those that are there are not computed again. A
    clip that is broken has the arrays of the next one.

    Raises:
        UserError: values that are not finite in float16, or a network that fails again and again.
    """
    jitter, mirrored = stage2_jitter(training), training.flip_probability > 0
    parts = [autoencoder.motion_predictor, autoencoder.first, autoencoder.downs]
    settings = [
        MOTION_VERSION,
        latent_settings(clips, jitter, mirrored=mirrored),
        clips.settings,
        bf16,
    ]
    place = _place(clips, f"encoded-{digest_weights(settings, autoencoder, parts)}")
    state = process_state()
    shards: list[Shard] = []
    for number, shard in enumerate(clips.set.shards):
        if number % state.num_processes == state.process_index and _stored(place, shard) is None:
            with torch.inference_mode(), torch.autocast(autoencoder.device.type, torch.bfloat16, enabled=bf16):
                was_training = autoencoder.training
                autoencoder.eval()
                _encode_shard(autoencoder, clips, number, place, jitter, mirrored=mirrored)
                autoencoder.train(was_training)
        if progress is not None:
            progress("encoding shards", number + 1, len(clips.set.shards))
    state.wait_for_everyone()
    for shard in clips.set.shards:
        stored = _stored(place, shard)
        assert stored is not None
        shards.append(stored)
    split = SplitSummary(shards=shards, labels=dict.fromkeys(clips.labels, 0))
    files = ShardFiles(place, clips.set.files.cache, clips.set.files.limit)
    encoded = ShardedClips(files, split, clips.size, clips.fit)
    motion = ShardedMotion(encoded.set, corners=autoencoder.corners)
    latents = ShardedLatents(encoded.set, num_versions=num_latent_versions(clips, jitter), mirrored=mirrored)
    return EncodedClips(encoded, motion, latents)


def _place(clips: ShardedClips, name: str) -> StoredFolder:
    """Return where the arrays are stored."""
    files = clips.set.files
    if not files.folder.is_writable:
        place = StoredFolder(str(files.copies.with_name(f"{files.copies.name}-{name}")))
        logger.warning("%s cannot be written to; motion and latents are stored in %s", files.folder.url, place.url)
    else:
        place = StoredFolder(f"{files.folder.url.rstrip('/')}/{name}")
    if place.local is not None:
        place.local.mkdir(parents=True, exist_ok=True)
    return place


def _stored(place: StoredFolder, shard: Shard) -> Shard | None:
    """Return the shard of the arrays that belong to a shard of clips, None if they are still to be computed."""
    content = place.read(f"{Path(shard.file).stem}.json")
    return None if content is None else Shard(**json.loads(content))


def _encode_shard(
    autoencoder: LatentFlowAutoencoder,
    clips: ShardedClips,
    number: int,
    place: StoredFolder,
    jitter: ColorJitter,
    *,
    mirrored: bool,
) -> None:
    """Compute and store the arrays of one shard, and last its description, which says that they are there."""
    shard = clips.set.shards[number]
    first = sum(clips.shard_sizes[:number])

    def encoded() -> Iterator[tuple[dict[str, Any], dict[str, np.ndarray]]]:
        for index in range(first, first + shard.clips):
            found = clips.usable(index)
            values = {"path": clips.set.values(found)["path"], "label": clips.label(found)}
            arrays = {
                "motion": np.concatenate(list(encode_motion(autoencoder, clips.clip(found)))),
                "latents": np.concatenate(list(encode_first_frame(autoencoder, clips, found, jitter, mirrored=mirrored))),
            }
            for name, array in arrays.items():
                check_finite(array, name, values["path"])
            yield values, arrays

    with place.writing(shard.file) as path:
        temporary = temporary_path(path)
        try:
            write_shard(temporary, encoded())
            stored = replace(shard, size=temporary.stat().st_size)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    place.write(f"{Path(shard.file).stem}.json", json.dumps(asdict(stored)).encode())
