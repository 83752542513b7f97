"""The table of cost and memory by size. Imports no torch, so that rendering is quick."""

import statistics
from pathlib import Path
from typing import Any

from benchmarks.experiment.tables import RESULTS_DIR, read_results, table

PREFIX = "scaling-"
"""Beginning of the names of the stored results."""
OPERATIONS = {
    "stage1_step": "stage-1 training step, a pair",
    "motion": "motion of a clip, a frame",
    "decode": "decoding, a frame",
    "stage2_step": "stage-2 training step, a clip",
}
PER_STEP = "stage2_step"
"""Its cost is that of the motion's grid and is given per step, not per pixel."""
HEAD = """## Cost by size

Motion is matched and generated on a grid of about 32x32 cells whatever the image's size (`flow64` to `flow512`,
[decision 30](decisions/0030-one-grid-at-every-size.md)). In brackets: relative to 64x64. One thread, float32, processor time;
memory as above. A stage-2 step sees the grid only: motion and the latents of first frames are cached
([decision 34](decisions/0034-first-frames-are-encoded-once.md)).
`python -m benchmarks.speed scaling`
"""


def render(folder: Path = RESULTS_DIR) -> str:
    """Render the stored measurements of every device."""
    return "\n".join([HEAD, *(_section(results) for results in read_results(folder, PREFIX))])


def _section(results: dict[str, Any]) -> str:
    sizes = sorted({row["size"] for row in results["rows"]})
    found = {(row["operation"], row["size"]): row for row in results["rows"]}
    rows = []
    for operation, title in OPERATIONS.items():
        for kind, cost in (("time", _seconds), ("memory", _bytes)):
            values = [cost(found[operation, size]) for size in sizes]
            whole = operation == PER_STEP
            unit = ("ms" if whole else "us a pixel") if kind == "time" else ("MB" if whole else "bytes a pixel")
            costs = [value if whole else value / size**2 for value, size in zip(values, sizes, strict=True)]
            scale = {"ms": 1e3, "us a pixel": 1e6, "MB": 1e-6, "bytes a pixel": 1.0}[unit]
            cells = [f"{scale * value:.3g} ({value / costs[0]:.2f})" for value in costs]
            rows.append((title, unit, *cells))
    head = ("operation", "unit", *(f"{size}x{size}" for size in sizes))
    return f"### Cost by size: {results['device']}, torch {results['torch']}\n\n{table(head, rows)}"


def _seconds(row: dict[str, Any]) -> float:
    return statistics.median(row["seconds"]) / row["count"]


def _bytes(row: dict[str, Any]) -> float:
    return row["peak_bytes"] / row["count"]
