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
from PIL import Image

from lfdm.data.video import MAX_GIF_FPS, write_video
from lfdm.files import check_parents, write_bytes
from lfdm.visualize import contact_sheet

MARGIN = 4


@dataclass(frozen=True)
class Example:
    """One label's real clip and the clip generated from its first frame, of that label or (unconditional) of none."""

    label: str
    real: np.ndarray
    generated: np.ndarray
    named: str | None
    """What the classifier calls the generated clip."""
    unconditional: bool = False


def check_report_folder(out: Path) -> None:
    """ValueError where `out` cannot become a folder of results, before anything is measured for it."""
    check_parents(out / "results.json")


def write_report(out: Path, results: dict[str, Any], examples: list[Example], *, fps: float) -> Path:
    """Write everything into `out`, results.json last, each file whole; returns the path of results.json."""
    out.mkdir(parents=True, exist_ok=True)
    if examples:
        encoded = io.BytesIO()
        Image.fromarray(draw_examples(examples)).save(encoded, "PNG")
        write_bytes(out / "contact-sheet.png", encoded.getvalue())
    for example in examples:
        name = re.sub(r"[^\w-]+", "-", example.label)
        pair = np.concatenate((example.real, np.full_like(example.real[:, :, :MARGIN], 255), example.generated), axis=2)
        (out / "samples").mkdir(exist_ok=True)
        write_video(out / "samples" / f"{name}.gif", pair, fps=min(fps, MAX_GIF_FPS))
    path = out / "results.json"
    write_bytes(path, (json.dumps(results, indent=2, allow_nan=False) + "\n").encode())
    return path


def draw_examples(examples: list[Example]) -> np.ndarray:
    """Two rows per label, real above generated: (H, W, 3) uint8."""
    rows, captions = [], []
    for example in examples:
        wrong = f", taken for {example.named}" if example.named not in (None, example.label) else ""
        rows += [example.real, example.generated]
        asked = "unconditional" if example.unconditional else example.label
        captions += [f"{example.label}: real", f"{asked}: generated{wrong}"]
    return contact_sheet(rows, captions)


def finite(value: Any) -> Any:
    """A JSON value in which numbers that are not finite are None, as JSON cannot hold them."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
