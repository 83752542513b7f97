"""Decode a motion of any length in little memory: a few frames at a time, each chunk converted to its final form at once.

Shapes: video (b, 3, t, H, W) in [0, 1], or (b, 4, t, H, W) with straight alpha.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lfdm.autoencoder.autoencoder import Decoded, Features, LatentFlowAutoencoder
from lfdm.config.video import Size
from lfdm.motion.motion import Motion
from lfdm.motion.warp import warp
from lfdm.pipeline.result import LatentFlowOutput, OutputType, VideoBuffer

CHUNK_BYTES = 256 * 2**20
"""Upper bound of the memory for one chunk's tensors, whatever the video's length; a chunk has at least a frame of each sample."""
CHUNK_MAPS = 8
"""Full-size maps of `channels` channels allowed for a frame; the presets take about 4 to decode, 5 to 7 to estimate."""
_MIN_ALPHA = 1e-4
"""Smallest alpha by which colours are divided: below it a pixel is invisible in 8 bits, and in 12."""


def frames_per_chunk(autoencoder: LatentFlowAutoencoder, image_size: Size, batch_size: int) -> int:
    """Return how many frames of each sample are estimated or decoded at once."""
    map_bytes = 4 * autoencoder.config["channels"] * image_size.height * image_size.width
    return max(1, CHUNK_BYTES // (CHUNK_MAPS * map_bytes * batch_size))


def decode_video(
    autoencoder: LatentFlowAutoencoder,
    features: Features,
    motion: Motion,
    output_type: OutputType,
    *,
    premultiplied: Tensor | None = None,
    after_chunk: Callable[[int], None] | None = None,
) -> LatentFlowOutput:
    """Decode all frames of `motion`, in memory for one chunk and the result.

    The result takes 6 H W bytes per frame as `uint8`, 8 H W as `pil` and 24 H W as `np` or `pt`, `frames` and `warped` together.

    Args:
        premultiplied: images with alpha (b, 4, H, W), whose frames have alpha, too; `features` are then those of the images
            with filled background, see `lfdm.pipeline.inputs.FittedImages`.
        after_chunk: called with the number of frames decoded so far.
    """
    batch, length = len(motion.flow), motion.num_frames
    chunk = frames_per_chunk(autoencoder, Size(*features.image.shape[-2:]), batch)
    image = features.image if premultiplied is None else premultiplied
    frames, warped = (VideoBuffer(image, length, output_type, truncate=autoencoder.corners) for _ in ("prediction", "warped"))
    for start in range(0, length, chunk):
        part = motion.frames(start, start + chunk)
        decoded = autoencoder.decode(features, part)
        if premultiplied is not None:
            applied = autoencoder.upsample_motion(features.image, part)
            decoded = _with_alpha(decoded, applied, premultiplied, autoencoder.padding_mode)
        frames.put(decoded.prediction, start)
        warped.put(decoded.warped, start)
        del decoded  # before the next chunk needs the memory
        if after_chunk is not None:
            after_chunk(min(start + chunk, length))
    return LatentFlowOutput(frames.video, warped.video, motion)


def _with_alpha(decoded: Decoded, motion: Motion, premultiplied: Tensor, padding_mode: str) -> Decoded:
    """Return decoded frames (b, 4, n, H, W) of images with alpha: `decoded` gives the colours of what is inpainted.

    Alpha is that of the image, warped by `motion` at full size. Visible pixels are warped premultiplied, so that no colour of
    invisible ones is mixed in.
    """
    warped = warp(premultiplied, motion.grid(), padding_mode=padding_mode)
    alpha, occlusion = warped[:, 3:], motion.occlusion.to(warped)
    inpainted = decoded.inpainted.to(warped) * alpha
    blended = torch.lerp(inpainted, warped[:, :3], occlusion)
    prediction, visible, inpainted = (
        torch.cat((colours / alpha.clamp(min=_MIN_ALPHA), alpha), dim=1).clamp(0, 1)
        for colours in (blended, warped[:, :3], inpainted)
    )
    return Decoded(prediction, visible, inpainted)
