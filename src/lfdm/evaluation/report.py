"""What an evaluation leaves behind: results.json, contact-sheet.png and samples/*.gif, real beside generated.

Shapes: frames are (t, H, W, 3) uint8.
"""

import io
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from lfdm.data.video import uniform_indices, write_bytes, write_video

SHEET_FRAMES = 8
MARGIN, LINE = 4, 14


@dataclass(frozen=True)
class Example:
    """One label's real clip and the clip generated from its first frame."""

    label: str
    real: np.ndarray
    generated: np.ndarray
    named: str | None
    """What the classifier calls the generated clip."""


def write_report(out: Path, results: dict[str, Any], examples: list[Example], *, fps: float) -> Path:
    """Write everything into `out`, results.json last, each file whole; returns the path of results.json.

    Numbers that are not finite become null, which JSON can hold.
    """
    out.mkdir(parents=True, exist_ok=True)
    if examples:
        encoded = io.BytesIO()
        Image.fromarray(contact_sheet(examples)).save(encoded, "PNG")
        write_bytes(out / "contact-sheet.png", encoded.getvalue())
    for example in examples:
        name = re.sub(r"[^\w-]+", "-", example.label)
        pair = np.concatenate((example.real, np.full_like(example.real[:, :, :MARGIN], 255), example.generated), axis=2)
        (out / "samples").mkdir(exist_ok=True)
        write_video(out / "samples" / f"{name}.gif", pair, fps=fps)
    path = out / "results.json"
    write_bytes(path, (json.dumps(_finite(results), indent=2) + "\n").encode())
    return path


def contact_sheet(examples: list[Example]) -> np.ndarray:
    """Two rows per label, real above generated, some frames of each: (H, W, 3) uint8."""
    blocks = []
    for example in examples:
        note = f", taken for {example.named}" if example.named not in (None, example.label) else ""
        blocks += [_row(f"{example.label}: real", example.real), _row(f"{example.label}: generated{note}", example.generated)]
    width = max(block.shape[1] for block in blocks)
    return np.concatenate(
        [np.pad(block, ((0, MARGIN), (0, width - block.shape[1]), (0, 0)), constant_values=255) for block in blocks]
    )


def _row(title: str, frames: np.ndarray) -> np.ndarray:
    chosen = frames[uniform_indices(len(frames), min(SHEET_FRAMES, len(frames)))]
    scale = math.ceil(64 / frames.shape[1])
    tiles = [
        np.pad(frame.repeat(scale, 0).repeat(scale, 1), ((0, 0), (0, MARGIN), (0, 0)), constant_values=255) for frame in chosen
    ]
    strip = np.concatenate(tiles, axis=1)
    line = Image.new("RGB", (strip.shape[1], LINE), "white")
    ImageDraw.Draw(line).text((1, 1), title, fill="black")
    return np.concatenate((np.asarray(line), strip))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
