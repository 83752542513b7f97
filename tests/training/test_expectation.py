"""What the measured curve says to expect of a data set."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lfdm.data.index import ClipRecord
from lfdm.training.expectation import expected_accuracy

CURVE = {
    "num_labels": 8,
    "rows": [
        {"unit": unit, "count": count, "regime": regime, "action_accuracy": accuracy}
        for unit, count, regime, accuracy in (
            ("clips", 100, "steps", 0.4),
            ("clips", 400, "steps", 0.8),
            ("clips", 100, "epochs", 0.1),
            ("subjects", 5, "steps", 0.5),
            ("subjects", 20, "steps", 0.9),
        )
    ],
}


def make_records(num_subjects: int, num_labels: int, num_takes: int) -> list[ClipRecord]:
    form = ClipRecord(path="x", label="x", subject="x", split="train", frames=2, fps=8, width=8, height=8)
    train = [
        replace(form, subject=f"s{subject}", label=f"l{label}")
        for subject in range(num_subjects)
        for label in range(num_labels)
        for _ in range(num_takes)
    ]
    return [*train, *(replace(record, subject="other", split="test") for record in train)]


@pytest.mark.parametrize(
    ("num_subjects", "num_labels", "num_takes", "accuracy"),
    [
        (40, 8, 1, 0.4 + 0.4 * 0.839),  # 320 clips, between 100 and 400 on a logarithmic scale
        (10, 4, 5, 0.7),  # 200 clips of 4 labels are as 400 of 8; 10 subjects are half-way from 5 to 20
        (100, 8, 10, 0.8),  # beyond what was measured
        (2, 8, 100, 0.5),
    ],
)
def test_the_lower_of_both_curves(tmp_path: Path, num_subjects: int, num_labels: int, num_takes: int, accuracy: float) -> None:
    (tmp_path / "curve.json").write_text(json.dumps(CURVE))
    found = expected_accuracy(make_records(num_subjects, num_labels, num_takes), tmp_path / "curve.json")
    assert found == pytest.approx(accuracy, abs=1e-3)


def test_nothing_is_expected_without_a_curve(tmp_path: Path) -> None:
    assert expected_accuracy(make_records(2, 2, 2), tmp_path / "absent.json") is None
