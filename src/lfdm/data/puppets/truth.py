"""The exact motion of a rendered clip, and its file next to the clip."""

import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lfdm.errors import UserError
from lfdm.folders.files import write_bytes


@dataclass(frozen=True)
class Truth:
    """The exact motion of a clip. Frame k at pixel p shows what frame 0 shows at p + flow."""

    flow: np.ndarray
    """(t, H, W, 2) float32 in pixels, (x, y); defined everywhere, also for what frame 0 hides or does not contain."""
    visible: np.ndarray
    """(t, H, W) bool: the surface point is inside frame 0 and front-most there."""
    interior: np.ndarray
    """(t, H, W) bool: visible, and the pixel's 3x3 neighbours in frame k and the four pixels read in frame 0 are the
    same part (and the soft border of no other lies over those four): where frame 0 warped by the flow is frame k."""
    figure: np.ndarray
    """(t, H, W) bool: on the figure, not on the background."""
    drift: np.ndarray
    """(t, 2) float32 in pixels: the flow of everything that stands still."""


def truth_path(clip: Path) -> Path:
    """Where the truth of a clip lies: beside it, `wave-0.avi` -> `wave-0.truth.npz`."""
    return clip.with_name(clip.stem + ".truth.npz")


def save_truth(path: Path, truth: Truth) -> Path:
    """Write a truth file (flow as float16), whole or not at all."""
    arrays = {
        "flow": truth.flow.astype(np.float16),
        "visible": truth.visible,
        "interior": truth.interior,
        "figure": truth.figure,
        "drift": truth.drift,
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_bytes(path, buffer.getvalue())
    return path


def load_truth(path: Path) -> Truth:
    """Read a truth file; its flow comes back as float32.

    Raises FileNotFoundError if there is none and UserError if it is not a truth file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no truth file at {path}; render the clips with truth")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            flow, drift = arrays["flow"].astype(np.float32), arrays["drift"].astype(np.float32)
            return Truth(flow, arrays["visible"], arrays["interior"], arrays["figure"], drift)
    except (LookupError, OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is not a truth file ({error})") from error
