"""Animated GIFs: frames of any duration on disk, frames at a constant rate outside."""

import io
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence

from lfdm.data.images import decoding, guarded, open_image, over_white
from lfdm.errors import UserError

_TICK_MS = 10
"""Unit of a GIF's frame times."""
_DEFAULT_MS = 100.0
"""Duration of a frame that states none, as browsers take it."""


@dataclass(frozen=True, kw_only=True)
class GifTiming:
    """How often each frame is shown to get a constant rate, and the size of the picture."""

    repeats: list[int]
    fps: float
    width: int
    height: int


def read_gif_timing(path: Path) -> GifTiming:
    """Read a GIF's timing: its shortest frame is one step (writers merge equal frames into one that lasts longer)."""
    with open_image(path) as image:
        frames = guarded(path, ImageSequence.Iterator(image))
        durations = [float(frame.info.get("duration", 0)) or _DEFAULT_MS for frame in frames]
        width, height = image.size
    shortest = min(durations)
    repeats = [max(1, round(duration / shortest)) for duration in durations]
    return GifTiming(repeats=repeats, fps=1000 * sum(repeats) / sum(durations), width=width, height=height)


def decode_gif(path: Path) -> Iterator[np.ndarray]:
    """Yield the frames (H, W, 3) uint8 at a constant rate."""
    repeats = read_gif_timing(path).repeats
    with open_image(path) as image:
        for frame, repeat in zip(guarded(path, ImageSequence.Iterator(image)), repeats, strict=True):
            with decoding(path):
                picture = frame.copy()
            array = over_white(picture, path)
            for _ in range(repeat):
                yield array


def encode_gif(frames: Iterable[np.ndarray], *, fps: float) -> bytes:
    """Encode frames (H, W, 3) uint8; equal frames in a row become one that lasts longer."""
    images = [Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE) for frame in frames]
    ends = np.rint(np.arange(len(images) + 1) * 1000 / _TICK_MS / fps)  # rounding errors must not add up over the clip
    durations = [int(ticks) * _TICK_MS for ticks in np.diff(ends)]
    buffer = io.BytesIO()
    try:
        images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=False)
    except struct.error:  # merged frames whose duration does not fit into its 16 bits
        raise UserError("a gif can show no picture longer than 655 s; use .mp4, or more frames per second") from None
    return buffer.getvalue()
