"""What an evaluation leaves behind: results.json, report.html, contact-sheet.png and samples/*.gif, real beside generated.

Shapes: frames are (t, H, W, 3) uint8.
"""

import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lfdm.data.video import MAX_GIF_FPS, write_video
from lfdm.evaluation.report.page import draw_page
from lfdm.evaluation.report.shown import Example, Shown
from lfdm.folders.files import check_parents, write_bytes
from lfdm.visualize import contact_sheet

MARGIN = 4
MAX_SAMPLE_NAME = 60
"""Letters of a label in a file's name."""


def check_report_folder(out: Path) -> None:
    """UserError where `out` cannot become a folder of results, before anything is measured for it."""
    check_parents(out / "results.json")


def write_report(out: Path, results: dict[str, Any], shown: Shown | None, *, fps: float) -> Path:
    """Write everything into `out`, each file whole; returns the path of results.json, the first of them."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "results.json"
    write_bytes(path, (json.dumps(results, indent=2, allow_nan=False) + "\n").encode())
    sheet = None
    if shown is not None:
        sheet = _png(draw_examples(shown.examples))
        write_bytes(out / "contact-sheet.png", sheet)
        (out / "samples").mkdir(exist_ok=True)
    for i, example in enumerate(shown.examples if shown is not None else []):
        name = f"{i:02d}-{re.sub(r'[^a-zA-Z0-9_-]+', '-', example.label)[:MAX_SAMPLE_NAME]}"
        write_video(out / "samples" / f"{name}.gif", side_by_side(example), fps=min(fps, MAX_GIF_FPS))
    write_bytes(out / "report.html", draw_page(results, shown, sheet, fps=fps).encode())
    return path


def side_by_side(example: Example) -> np.ndarray:
    """Real and generated, (t, H, 2 W + MARGIN, 3)."""
    return np.concatenate((example.real, np.full_like(example.real[:, :, :MARGIN], 255), example.generated), axis=2)


def draw_examples(examples: list[Example]) -> np.ndarray:
    """Two rows per label, real above generated: (H, W, 3) uint8."""
    rows, captions = [], []
    for example in examples:
        wrong = f", taken for {example.named}" if example.is_wrong else ""
        rows += [example.real, example.generated]
        asked = "unconditional" if example.unconditional else example.label
        captions += [f"{example.label}: real", f"{asked}: generated{wrong}"]
    return contact_sheet(rows, captions)


def _png(picture: np.ndarray) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(picture).save(encoded, "PNG")
    return encoded.getvalue()


def finite(value: Any) -> Any:
    """A JSON value in which numbers that are not finite are None, as JSON cannot hold them."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
