"""Decoding a motion of any length in little memory: some frames at a time, each chunk turned into its final form at once.

Shapes: video (b, 3, t, S, S) in [0, 1].
"""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lfdm.autoencoder.autoencoder import Features, LatentFlowAutoencoder
from lfdm.motion.motion import Motion
from lfdm.pipeline.result import Frames, LatentFlowOutput, OutputType, frames_to_uint8

CHUNK_BYTES = 256 * 2**20
"""What the tensors of one decoded chunk stay below, whatever the video's length (one frame of every sample is the least)."""
CHUNK_MAPS = 8
"""Full-size maps of `channels` channels allowed for a frame; the presets take about 4 to decode, 5 to 7 to estimate."""


def frames_per_chunk(autoencoder: LatentFlowAutoencoder, image_size: int, batch_size: int) -> int:
    """How many frames of each sample are estimated or decoded at once."""
    map_bytes = 4 * autoencoder.config["channels"] * image_size**2
    return max(1, CHUNK_BYTES // (CHUNK_MAPS * map_bytes * batch_size))


def decode_video(
    autoencoder: LatentFlowAutoencoder,
    features: Features,
    motion: Motion,
    output_type: OutputType,
    *,
    after_chunk: Callable[[int], None] | None = None,
) -> LatentFlowOutput:
    """All frames of `motion`, in memory for one chunk and for the result; `after_chunk` is told how many there are so far.

    The result takes 6 S^2 bytes per frame as `np`, 8 S^2 as `pil` and 24 S^2 as `pt`, `frames` and `warped` together.
    """
    batch, length = len(motion.flow), motion.num_frames
    chunk = frames_per_chunk(autoencoder, features.image.shape[-1], batch)
    frames, warped = (
        _Collector(features.image, length, output_type, truncate=autoencoder.corners) for _ in ("prediction", "warped")
    )
    for start in range(0, length, chunk):
        decoded = autoencoder.decode(features, motion.frames(start, start + chunk))
        frames.put(decoded.prediction, start)
        warped.put(decoded.warped, start)
        del decoded  # before the next chunk needs the memory
        if after_chunk is not None:
            after_chunk(min(start + chunk, length))
    return LatentFlowOutput(frames.video, warped.video, motion)


class _Collector:
    """A video of images like `image` (b, 3, H, W) that is put together from chunks."""

    video: Frames

    def __init__(self, image: Tensor, length: int, output_type: OutputType, *, truncate: bool) -> None:
        self.truncate = truncate
        batch, channels, height, width = image.shape
        if output_type == "pt":
            self.video = torch.empty(batch, channels, length, height, width, device=image.device)
        elif output_type == "np":
            self.video = np.empty((batch, length, height, width, channels), np.uint8)
        else:
            self.video = [[] for _ in range(batch)]

    def put(self, chunk: Tensor, start: int) -> None:
        """Frames (b, 3, n, H, W) from `start` on."""
        stop = start + chunk.shape[2]
        if isinstance(self.video, Tensor):
            self.video[:, :, start:stop] = chunk.clamp(0, 1)
            return
        frames = frames_to_uint8(chunk, truncate=self.truncate)
        if isinstance(self.video, np.ndarray):
            self.video[:, start:stop] = frames
            return
        for images, sample in zip(self.video, frames, strict=True):
            images += [Image.fromarray(frame) for frame in sample]
