"""The exact motion of a rendered clip, and its file next to the clip."""

import io
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lfdm.errors import UserError
from lfdm.folders.arrays import open_arrays
from lfdm.folders.files import write_bytes

TruthChoice = Literal["none", "test", "all"]
"""Clips that get a truth file next to them."""


@dataclass(frozen=True, eq=False)
class Truth:
    """The exact motion of a clip. Frame k at pixel p shows what frame 0 shows at p + flow."""

    flow: np.ndarray
    """(t, H, W, 2) float32 in pixels, (x, y); defined everywhere, also for points that frame 0 hides or does not contain."""
    visible: np.ndarray
    """(t, H, W) bool: whether the surface point is inside frame 0 and front-most there."""
    interior: np.ndarray
    """(t, H, W) bool: where frame 0 warped by the flow equals frame k. The point is visible, and the pixel's 3x3 neighbours in
    frame k and the four pixels read in frame 0 show the same part, without the soft border of another over those four."""
    figure: np.ndarray
    """(t, H, W) bool: whether the pixel is on the figure."""
    drift: np.ndarray
    """(t, 2) float32 in pixels: the flow of the background, its median where the background does not move as one."""


def truth_path(clip: Path) -> Path:
    """Return the path of a clip's truth file: `wave-0.avi` -> `wave-0.truth.npz`."""
    return clip.with_name(clip.stem + ".truth.npz")


def save_truth(path: Path, truth: Truth) -> Path:
    """Write a truth file (flow as float16) in one step."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = vars(truth) | {"flow": truth.flow.astype(np.float16)}
    np.savez_compressed(buffer, **arrays)
    write_bytes(path, buffer.getvalue())
    return path


def load_truth(path: Path) -> Truth:
    """Read a truth file; its flow is converted to float32.

    Raises FileNotFoundError if there is none and UserError if it is not a truth file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no truth file at {path}; render the clips with truth")
    with open_arrays(path) as file:
        arrays = {field.name: file[field.name] for field in fields(Truth)}
    shape = arrays["flow"].shape[:3]
    expected = {"flow": (*shape, 2), "drift": (*shape[:1], 2)}
    for name, array in arrays.items():
        kind = np.floating if name in expected else np.bool_
        if array.shape != expected.get(name, shape) or not np.issubdtype(array.dtype, kind):
            raise UserError(f"{path} is not a truth file: {name} has the shape {array.shape} and type {array.dtype}")
    return Truth(**arrays | {name: arrays[name].astype(np.float32) for name in ("flow", "drift")})
