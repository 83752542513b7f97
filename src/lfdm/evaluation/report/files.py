"""The files of an evaluation: results.json, report.html, contact-sheet.png and samples/*.gif with real and generated side by
side.

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

from lfdm.data.index import CLIP_INDEX_NAME
from lfdm.data.video import MAX_GIF_FPS, write_video
from lfdm.errors import UserError
from lfdm.evaluation.report.examples import Example, Examples
from lfdm.evaluation.report.page import make_page, side_by_side
from lfdm.folders.files import check_parents, write_bytes
from lfdm.folders.run_folder import CHECKPOINTS_DIR
from lfdm.folders.sources import INDEX_NAME
from lfdm.visualize import contact_sheet

WHITE = 255
MAX_SAMPLE_NAME = 60
"""Characters of a label in a file name."""


def check_report_folder(out: Path) -> None:
    """Raise UserError if `out` cannot become a folder of results, before anything is measured."""
    check_parents(out / "results.json")
    taken = next((name for name in (CLIP_INDEX_NAME, INDEX_NAME, CHECKPOINTS_DIR) if (out / name).exists()), None)
    if taken is not None:
        raise UserError(f"{out} is a data set, a model or a training run: it holds {taken}; choose another --out")


def write_report(out: Path, results: dict[str, Any], examples: Examples | None, *, fps: float) -> Path:
    """Write all files to `out`, each of them whole, and return the path of results.json, which is written first."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "results.json"
    write_bytes(path, (json.dumps(results, indent=2, allow_nan=False) + "\n").encode())
    sheet = None
    if examples is not None:
        sheet = _png(draw_contact_sheet(examples.by_label))
        write_bytes(out / "contact-sheet.png", sheet)
        (out / "samples").mkdir(exist_ok=True)
        for i, example in enumerate(examples.by_label):
            name = f"{i:02d}-{re.sub(r'[^a-zA-Z0-9_-]+', '-', example.label)[:MAX_SAMPLE_NAME]}"
            pair = side_by_side(example.real, example.generated, WHITE)
            write_video(out / "samples" / f"{name}.gif", pair, fps=min(fps, MAX_GIF_FPS))
    write_bytes(out / "report.html", make_page(results, examples, sheet, fps=fps).encode())
    return path


def draw_contact_sheet(examples: list[Example]) -> np.ndarray:
    """Draw two rows per example, real above generated: (H, W, 3) uint8."""
    rows, captions = [], []
    for example in examples:
        mistake = f", classified as {example.predicted}" if example.is_misclassified else ""
        rows += [example.real, example.generated]
        captions += [f"{example.label}: real", f"{example.title}: generated{mistake}"]
    return contact_sheet(rows, captions)


def _png(picture: np.ndarray) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(picture).save(encoded, "PNG")
    return encoded.getvalue()


def finite(value: Any) -> Any:
    """Replace numbers that are not finite by None, as JSON cannot hold them."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
