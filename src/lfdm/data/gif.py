"""Animated GIFs: frames of any duration on disk, frames at a constant rate outside. Frames are composed as browsers do it."""

import io
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from lfdm.data.gif_blocks import GifLayout, read_gif_layout
from lfdm.data.gif_frames import compose_gif
from lfdm.data.images import check_pixels, guarded, to_array
from lfdm.data.timing import Timing, check_size, constant_rate
from lfdm.errors import UserError

_TICK_MS = 10
"""Unit of a GIF's frame times."""
_SHORTEST_TICKS, _DEFAULT_TICKS = 2, 10
"""Browsers take a shorter duration, or none, for the default."""
_INVISIBLE = 255
"""Palette index of invisible pixels in what is written."""
_MIN_ALPHA = 128
"""Least alpha of a visible pixel in what is written."""
_RATE_COMMENT = "lfdm fps="
"""Begins the comment of our own GIFs, since their frame times do not tell the rate where no frame lasts one step only."""


def read_gif_timing(path: Path) -> Timing:
    """Read a GIF's timing and size from its blocks, without decoding a frame."""
    with path.open("rb") as file:
        return _timing(_layout(file, path), path)


def decode_gif(path: Path, *, keep_alpha: bool = False) -> Iterator[np.ndarray]:
    """Yield the frames (H, W, 3) uint8 over white, or (H, W, 4) with `keep_alpha`, at a constant rate."""
    with path.open("rb") as file:
        layout = _layout(file, path)
        frames = guarded(path, compose_gif(file, layout))
        for canvas, repeat in zip(frames, _timing(layout, path).repeats, strict=True):
            array = canvas if keep_alpha else to_array(Image.fromarray(canvas), path)
            for _ in range(repeat):
                yield array


def encode_gif(frames: Iterable[np.ndarray], *, fps: float) -> bytes:
    """Encode frames (H, W, 3) or (H, W, 4) uint8; equal frames in a row become one that lasts longer.

    A pixel of a GIF is visible or not: those of at least half alpha become opaque.
    """
    images = [_quantize(frame) for frame in frames]
    ends = np.rint(np.arange(len(images) + 1) * 1000 / _TICK_MS / fps)  # rounding errors must not add up over the clip
    durations = [int(ticks) * _TICK_MS for ticks in np.diff(ends)]
    buffer = io.BytesIO()
    options: dict[str, Any] = {"duration": durations, "loop": 0, "optimize": False, "comment": f"{_RATE_COMMENT}{float(fps)!r}"}
    if "transparency" in images[0].info:
        options |= {"transparency": _INVISIBLE, "disposal": 2}  # else a frame shows what lies below its invisible pixels
    try:
        images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], **options)
    except struct.error:  # merged frames whose duration does not fit into its 16 bits
        raise UserError("a gif can show no picture longer than 655 s; use .mp4, or more frames per second") from None
    return buffer.getvalue()


def _quantize(frame: np.ndarray) -> Image.Image:
    """Return a frame in the palette that suits it best; the colour `_INVISIBLE` is kept free in one with alpha."""
    if frame.shape[-1] == 3:
        return Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE)
    visible = frame[..., 3] >= _MIN_ALPHA
    filler = frame[visible][0, :3] if visible.any() else 0  # takes no colour of its own
    opaque = np.where(visible[..., None], frame[..., :3], filler).astype(np.uint8)
    image = Image.fromarray(opaque).quantize(_INVISIBLE, dither=Image.Dither.NONE)
    palette = (image.getpalette() or [])[: 3 * _INVISIBLE]
    result = Image.fromarray(np.where(visible, np.asarray(image), _INVISIBLE).astype(np.uint8))
    result.putpalette(palette + [0] * (3 * (_INVISIBLE + 1) - len(palette)))
    result.info["transparency"] = _INVISIBLE
    return result


def _layout(file: BinaryIO, path: Path) -> GifLayout:
    layout = read_gif_layout(file, path)
    if layout is None or not layout.frames:
        raise UserError(f"{path}: broken or not a readable clip or image (not a GIF with frames)")
    check_pixels(path, *layout.largest())
    check_size(path, frames=len(layout.frames), width=layout.width, height=layout.height)
    return layout


def _timing(layout: GifLayout, path: Path) -> Timing:
    ticks = [frame.ticks if frame.ticks >= _SHORTEST_TICKS else _DEFAULT_TICKS for frame in layout.frames]
    rate = re.fullmatch(_RATE_COMMENT + r"(\d+\.?\d*)", layout.comment.decode("latin-1"))
    return constant_rate(
        ticks,
        ticks_per_second=1000 / _TICK_MS,
        width=layout.width,
        height=layout.height,
        stated_fps=float(rate[1]) if rate else None,
        name=path,
    )
