import json
from pathlib import Path

import numpy as np

from lfdm.data.video import read_video
from lfdm.evaluation.report import Example, draw_examples, finite, write_report


def _example(label: str, named: str | None = None) -> Example:
    real = np.full((3, 32, 32, 3), 50, np.uint8)
    real[1:, :4, :4] = [[[[200]]], [[[0]]]]  # a still clip would be one frame in a GIF
    return Example(label, real, real + 100, named)


def test_sheet_shows_real_above_generated_for_every_label() -> None:
    sheet = draw_examples([_example("wave"), _example("kick", "bow")])
    assert sheet.dtype == np.uint8
    height = len(sheet) // 4
    rows = [sheet[i * height : (i + 1) * height] for i in range(4)]
    assert [int(np.median(row[20:60, :60])) for row in rows] == [50, 150, 50, 150]


def test_report_holds_json_without_nan_and_a_clip_per_label(tmp_path: Path) -> None:
    path = write_report(
        tmp_path / "out", finite({"a": {"b": [float("nan"), 1.5]}, "c": float("inf")}), [_example("raise arms")], fps=8
    )
    assert json.loads(path.read_text()) == {"a": {"b": [None, 1.5]}, "c": None}
    assert read_video(tmp_path / "out" / "samples" / "raise-arms.gif").shape == (3, 32, 68, 3)
