"""Tables of Markdown from stored results, and the documents in docs/ that hold nothing else."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lfdm.folders.files import write_bytes
from lfdm.folders.model_folder import read_json

ROOT = Path(__file__).parents[2]
RESULTS_DIR = ROOT / "benchmarks" / "results"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def number(value: float | None, digits: int = 2) -> str:
    """A figure; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def with_interval(figure: dict[str, Any] | None, digits: int = 2) -> str:
    """`value (low to high)`."""
    if figure is None:
        return "-"
    ends = (figure.get("low"), figure.get("high"))
    interval = "" if None in ends else f" ({number(ends[0], digits)} to {number(ends[1], digits)})"
    return number(figure["value"], digits) + interval


def minutes(seconds: float | None) -> str:
    """Seconds as minutes."""
    return "-" if seconds is None else f"{seconds / 60:.1f} min"


def write_results(results: dict[str, Any], path: Path) -> None:
    """Results as JSON, in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, (json.dumps(results, indent=2) + "\n").encode())


def read_results(folder: Path, prefix: str) -> list[dict[str, Any]]:
    """The stored results whose file names begin with `prefix`, by name."""
    return [read_json(path) for path in sorted(folder.glob(f"{prefix}*.json"))]


def summarize(evaluation: dict[str, Any]) -> dict[str, Any]:
    """What tables say of one evaluation of generation.

    `distance` is that of the first extractor of videos, with interval and floor; None where it was left out.
    """
    generation = evaluation["generation"]
    name, found = next(iter(generation["distances"].items()), ("FVD", {}))
    return {
        "distance_name": name,
        "distance": found.get("frechet"),
        "action_accuracy": generation.get("action_accuracy", {}).get("value"),
        "identity": generation.get("identity", {}).get("value"),
        "motion_amount": generation["pixel_motion_amount"]["value"],
    }
