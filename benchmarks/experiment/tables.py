"""Stored results and Markdown tables."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lfdm.folders.files import write_bytes
from lfdm.folders.model_folder import read_json

ROOT = Path(__file__).parents[2]
RESULTS_DIR = ROOT / "benchmarks" / "results"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Render a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def number(value: float | None, digits: int = 2) -> str:
    """Format a figure; a dash for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def with_interval(figure: dict[str, Any] | None, digits: int = 2) -> str:
    """Format `value (low to high)`; a dash for None."""
    if figure is None:
        return "-"
    ends = (figure.get("low"), figure.get("high"))
    interval = "" if None in ends else f" ({number(ends[0], digits)} to {number(ends[1], digits)})"
    return number(figure["value"], digits) + interval


def minutes(seconds: float | None) -> str:
    """Format seconds as minutes; a dash for None."""
    return "-" if seconds is None else f"{seconds / 60:.1f} min"


def write_results(results: dict[str, Any], path: Path) -> None:
    """Write results as JSON, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, (json.dumps(results, indent=2) + "\n").encode())


def read_results(folder: Path, prefix: str) -> list[dict[str, Any]]:
    """Read the stored results whose file names begin with `prefix`, in order of name."""
    return [read_json(path) for path in sorted(folder.glob(f"{prefix}*.json"))]


def summarize(evaluation: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of an evaluation that tables show.

    `distance` is that of the first video extractor, with interval and floor; None if it was left out, as is diversity.
    """
    generation = evaluation["generation"]
    name, found = next(iter(generation["distances"].items()), ("FVD", {}))
    return {
        "distance_name": name,
        "distance": found.get("frechet"),
        "action_accuracy": generation.get("action_accuracy", {}).get("value"),
        "identity": generation.get("identity", {}).get("value"),
        "motion_amount": generation["pixel_motion_amount"]["value"],
        "pixel_diversity": generation.get("pixel_diversity", {}).get("value"),
        "jitter": generation["temporal_smoothness"]["generated_share"],
        "real_jitter": generation["temporal_smoothness"]["real_share"],
    }
