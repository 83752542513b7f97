"""The table of whole calls by number of steps. Imports no torch, so that rendering is quick."""

import statistics
from pathlib import Path
from typing import Any

from benchmarks.experiment.tables import RESULTS_DIR, read_results, table

PREFIX = "calls-"
"""Beginning of the names of the stored results."""
GUIDED = "10 guided"
HEAD = """## Calls by number of steps

A whole call for one video: ordinary networks with 10 guided steps (20 predictions) against distilled ones with 4, 2 and 1
predictions, in turns, processor time of one thread in float32. `flow128` and `mug128` have random weights, which cost the same.
`python -m benchmarks.speed calls`
"""

PUBLISHED_SECONDS = 48 * 60
"""The published system's time for a video of the paper's size, 1,000 steps on two cores."""
WHY_SHORT = (
    "4 predictions and 16 decoded frames are 23 GFLOP, 0.18 s at the 130 GFLOP/s of one core's convolutions; the rest are norms, "
    "attention and copies"
)
WHY_LONG = (
    "network and decoding grow with the frames, and windows of 64 frames overlap; the learned codec samples once, its images are "
    "decoded one by one"
)
WHY_LARGER = "half of it is decoding; both halves use two cores"
WHY_PAPER = (
    "4 predictions and decoding are 1,350 GFLOP; 1.9 s need 700 GFLOP/s, more than two of these cores have in float32 "
    "(with AMX in bfloat16: 4.55 s below)"
)


def render(folder: Path = RESULTS_DIR) -> str:
    """Render the stored measurements of every device."""
    measured = read_results(folder, PREFIX)
    tables = [f"{_about(results)}:\n\n{_table(results)}" for results in measured]
    return "\n".join(
        [HEAD, *tables, *(_aims(results["seconds"], codecs) for results in measured[:1] for codecs in _codecs(folder))]
    )


def render_short(folder: Path = RESULTS_DIR) -> str:
    """Render the table of the README, of the first device."""
    first = read_results(folder, PREFIX)[:1]
    return "".join(f"{_table(results)}\n{results['device']}, torch {results['torch']}, float32\n" for results in first)


def _about(results: dict[str, Any]) -> str:
    return f"{results['device']}, torch {results['torch']}, load average {results['load']:.0f}"


def _codecs(folder: Path) -> list[dict[str, dict[str, float]]]:
    """Return the rows of the measurements of codecs, see `benchmarks.codecs`."""
    return [results["rows"] for results in read_results(folder, "codecs-")][:1]


def _aims(seconds: dict[str, dict[str, list[float]]], codecs: dict[str, dict[str, float]]) -> str:
    """Render what was aimed at next to what the first table measured, and why it falls short."""
    four = {call: statistics.median(runs["4"]) for call, runs in seconds.items()}
    short, long, larger, paper = four.values()
    one = statistics.median(next(iter(seconds.values()))["1"])
    learned = next(row for name, row in codecs.items() if name.startswith("learned") and "call_16" in row)
    call, motion = (learned[f"{what}_128"] / learned[f"{what}_16"] for what in ("call", "motion"))
    rows = (
        ("`puppets64`, 16 frames", f"{short:.2f} s; 1 prediction {one:.2f} s", "0.1 s", WHY_SHORT),
        (
            "128 frames against 16",
            f"{long / short:.1f}x; `learned64` {call:.1f}x, without images {motion:.1f}x",
            "4x; 1.25x",
            WHY_LONG,
        ),
        ("`flow128`, 16 frames", f"{larger:.2f} s on one core", "0.5 s on two", WHY_LARGER),
        ("the paper's size against its 48 minutes", f"{PUBLISHED_SECONDS / paper:.0f}x on one core", "1,500x on two", WHY_PAPER),
    )
    return f"Against the aims, 4 predictions:\n\n{table(('one video', 'measured', 'aim', 'what is missing'), rows)}"


def _table(results: dict[str, Any]) -> str:
    rows = []
    for call, seconds in results["seconds"].items():
        median = {steps: statistics.median(runs) for steps, runs in seconds.items()}
        ratio = median[GUIDED] / median["4"]
        rows.append((call, *(f"{value:.2f} s" for value in median.values()), f"{ratio:.1f}x"))
    steps = [f"{name} steps" if name == GUIDED else f"{name} of a flow map" for name in next(iter(results["seconds"].values()))]
    return table(("one video", *steps, "10 guided / 4"), rows)
