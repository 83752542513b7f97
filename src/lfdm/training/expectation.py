"""Expected action accuracy on unseen subjects by the amount of training data, from the curve of `benchmarks.data_curve`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lfdm.data.index import ClipRecord, labels
from lfdm.folders.model_folder import read_json
from lfdm.folders.sources import ASSETS_DIR

CURVE_PATH = ASSETS_DIR / "data-curve.json"
"""The curve of puppets, absent where none was measured."""


def expected_accuracy(records: Sequence[ClipRecord], curve: Path = CURVE_PATH) -> float | None:
    """Return the action accuracy that puppets reached with as many training clips per label, or subjects, whichever is lower.

    Between measured numbers it is interpolated over their logarithm; beyond them it is that of the nearest. None without a
    curve of both.
    """
    if not curve.is_file():
        return None
    measured = read_json(curve)
    train = [record for record in records if record.split == "train"]
    clips = len(train) / max(len(labels(train)), 1) * measured["num_labels"]
    found = []
    for unit, count in (("clips", clips), ("subjects", len({record.subject for record in train}))):
        rows = [row for row in measured["rows"] if (row["unit"], row["regime"]) == (unit, "steps")]
        points = sorted((row["count"], row["action_accuracy"]) for row in rows if row["action_accuracy"] is not None)
        if not points or count == 0:
            return None
        counts, accuracies = zip(*points, strict=True)
        found.append(float(np.interp(np.log(count), np.log(counts), accuracies)))
    return min(found)
