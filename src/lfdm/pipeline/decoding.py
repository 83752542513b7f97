"""Decode a motion of any length in little memory: a few frames at a time, each chunk converted to its final form at once.

Shapes: video (b, 3, t, S, S) in [0, 1].
"""

from collections.abc import Callable

from lfdm.autoencoder.autoencoder import Features, LatentFlowAutoencoder
from lfdm.motion.motion import Motion
from lfdm.pipeline.result import LatentFlowOutput, OutputType, VideoBuffer

CHUNK_BYTES = 256 * 2**20
"""Upper bound of the memory for one chunk's tensors, whatever the video's length; a chunk has at least a frame of each sample."""
CHUNK_MAPS = 8
"""Full-size maps of `channels` channels allowed for a frame; the presets take about 4 to decode, 5 to 7 to estimate."""


def frames_per_chunk(autoencoder: LatentFlowAutoencoder, image_size: int, batch_size: int) -> int:
    """Return how many frames of each sample are estimated or decoded at once."""
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
    """Decode all frames of `motion`, in memory for one chunk and the result.

    The result takes 6 S^2 bytes per frame as `uint8`, 8 S^2 as `pil` and 24 S^2 as `np` or `pt`, `frames` and `warped` together.

    Args:
        after_chunk: called with the number of frames decoded so far.
    """
    batch, length = len(motion.flow), motion.num_frames
    chunk = frames_per_chunk(autoencoder, features.image.shape[-1], batch)
    frames, warped = (
        VideoBuffer(features.image, length, output_type, truncate=autoencoder.corners) for _ in ("prediction", "warped")
    )
    for start in range(0, length, chunk):
        decoded = autoencoder.decode(features, motion.frames(start, start + chunk))
        frames.put(decoded.prediction, start)
        warped.put(decoded.warped, start)
        del decoded  # before the next chunk needs the memory
        if after_chunk is not None:
            after_chunk(min(start + chunk, length))
    return LatentFlowOutput(frames.video, warped.video, motion)
