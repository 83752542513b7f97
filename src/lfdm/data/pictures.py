"""Pictures as users name them: image files, and frames of clips such as `clip.mp4@1.5s` and `clip.mp4@30`."""

import re
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from lfdm.data.images import read_image
from lfdm.errors import UserError
from lfdm.folders.files import existing_path

_FRAME = re.compile(r"(?P<clip>.*[^/\\])@(?P<number>\d{1,9}|\d{1,9}\.\d{0,9}|\.\d{1,9})(?P<unit>s?)", re.DOTALL)


def read_picture(source: str | Path | Image.Image | np.ndarray, *, keep_alpha: bool = False) -> np.ndarray:
    """Return an image as `read_image` does, or a frame of a clip: (H, W, 3) uint8, or perhaps (H, W, 4) with `keep_alpha`.

    `CLIP@1.5s` is the frame that a player shows at that time, `CLIP@30` the frame of that number, the first one being 0. A clip
    is all that `read_video` reads. A file whose own name ends so is taken as that file.

    Raises FileNotFoundError, and UserError for what `read_image` or `read_video` refuses and for a frame beyond the end.
    """
    parts = _frame_of(source) if isinstance(source, str | Path) else None
    if parts is None:
        return read_image(source, keep_alpha=keep_alpha)
    from lfdm.data.video import read_frame, read_frame_at  # imports PyAV, which takes as long as all else here

    clip, number, unit = parts
    if not unit and not number.isdigit():
        raise UserError(f"{source}: a frame must be a whole number, or a time in seconds as in {clip.name}@{number}s")
    if unit:
        frame = read_frame_at(clip, Fraction(number), keep_alpha=keep_alpha)
    else:
        frame = read_frame(clip, int(number), keep_alpha=keep_alpha)
    return frame if frame.shape[-1] == 4 and frame[..., 3].min() < 255 else frame[..., :3]


def picture_file(source: str | Path) -> Path:
    """Return the file that a picture is read from: of a frame, the clip."""
    parts = _frame_of(source)
    return Path(source) if parts is None else parts[0]


def _frame_of(source: str | Path) -> tuple[Path, str, str] | None:
    """Split the name of a frame into clip, number and unit ("s" or ""); None for any other name."""
    match = _FRAME.fullmatch(str(source))
    if match is None or existing_path(source) is not None:
        return None
    return Path(match["clip"]), match["number"], match["unit"]
