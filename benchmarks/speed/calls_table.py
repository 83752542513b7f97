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
predictions, in turns, in float32: processor time of one thread, time on the clock of two. `flow128` and `mug128` have random
weights, which cost the same. `python -m benchmarks.speed calls`
"""

SHORT_CALL = "`puppets64`, 16 frames"
LONG_CALL = "`puppets64`, 128 frames"
LARGER_CALL = "`flow128`, 16 frames"
PAPER_CALL = "`mug128`, the paper's size, 40 frames"


def render(folder: Path = RESULTS_DIR) -> str:
    """Render the stored measurements of every device."""
    return "\n".join([HEAD, *(f"{_about(results)}:\n\n{_table(results)}" for results in read_results(folder, PREFIX))])


def render_short(folder: Path = RESULTS_DIR) -> str:
    """Render the table of the README, of the first device."""
    first = read_results(folder, PREFIX)[:1]
    return "".join(f"{_table(results)}\n{results['device']}, torch {results['torch']}, float32\n" for results in first)


def _about(results: dict[str, Any]) -> str:
    return f"{results['device']}, torch {results['torch']}, load average {results['load']:.0f}"


def _table(results: dict[str, Any]) -> str:
    rows = []
    for call, seconds in results["seconds"].items():
        median = {steps: statistics.median(runs) for steps, runs in seconds.items()}
        ratio = median[GUIDED] / median["4"]
        rows.append((call, *(f"{value:.2f} s" for value in median.values()), f"{ratio:.1f}x"))
    steps = [f"{name} steps" if name == GUIDED else f"{name} of a flow map" for name in next(iter(results["seconds"].values()))]
    return table(("one video", *steps, "10 guided / 4"), rows)
