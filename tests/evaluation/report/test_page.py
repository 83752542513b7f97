import html
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfdm.data.video import read_video
from lfdm.evaluation.report.examples import Example, Examples
from lfdm.evaluation.report.files import draw_contact_sheet, finite, write_report
from lfdm.evaluation.report.page import make_page
from lfdm.evaluation.report.tables import headline
from lfdm.motion.motion import Motion

ESTIMATE = {"value": 3.0, "low": 2.0, "high": 4.0, "floor": 1.0, "value_at_floor": 3.5, "num_generated": 8, "dim": 4}
RESULTS: dict[str, Any] = {
    "model": {"name": "runs/<b>mine</b>"},
    "data": {"name": "dolls", "num_clips": 8, "num_subjects": 2},
    "settings": {"num_frames": 3, "image_size": 32, "seed": 0},
    "stage1": None,
    "generation": {
        "seconds_per_video": 0.5,
        "frame_0": {"psnr": 100.0, "num_clips": 8},
        "pixel_motion_amount": {"value": 0.0, "generated_energy": 0.0, "real_energy": 0.1, "num_clips": 8},
        "temporal_smoothness": {
            "value": None,
            "generated_share": None,
            "real_share": 0.2,
            "num_clips": 8,
            "above_cycles_per_frame": 0.25,
            "generated_spectrum": [0.0, 0.0],
            "real_spectrum": [0.0, 1.0],
        },
        "distances": {
            "FVD[dolls-classifier]": {"frechet": ESTIMATE, "dim": 4, "sha256": "ab", "kernel_name": "KVD[dolls-classifier]"}
        },
        "frame_distances": {},
    },
    "left_out": {"generation.diversity": "no <two> takes"},
    "versions": {"lfdm": "0"},
    "date": "2026-01-01T00:00:00+00:00",
}


def _example(label: str, predicted: str | None = None) -> Example:
    real = np.full((3, 32, 32, 3), 50, np.uint8)
    real[1:, :4, :4] = [[[[200]]], [[[0]]]]  # a still clip would be one frame in a GIF
    motion = Motion.identity(1, 3, (8, 8), corners=False)
    return Example(label=label, real=real, generated=real + 100, predicted=predicted, score=0.5, motion=motion)


def test_sheet_shows_real_above_generated_for_every_label() -> None:
    sheet = draw_contact_sheet([_example("wave"), _example("kick", "bow")])
    assert sheet.dtype == np.uint8
    height = len(sheet) // 4
    rows = [sheet[i * height : (i + 1) * height] for i in range(4)]
    assert [int(np.median(row[20:60, :60])) for row in rows] == [50, 150, 50, 150]


def test_report_holds_json_without_nan_and_a_clip_per_label(tmp_path: Path) -> None:
    results = finite({**RESULTS, "a": {"b": [float("nan"), 1.5]}, "c": float("inf")})
    path = write_report(tmp_path / "out", results, Examples(by_label=[_example("raise arms"), _example("raise-arms")]), fps=8)
    written = json.loads(path.read_text())
    assert (written["a"], written["c"]) == ({"b": [None, 1.5]}, None)
    assert read_video(tmp_path / "out" / "samples" / "00-raise-arms.gif").shape == (3, 32, 68, 3)
    assert (tmp_path / "out" / "samples" / "01-raise-arms.gif").is_file()


def test_labels_may_be_anything(tmp_path: Path) -> None:
    label = "cost $5 and $6 $\\frac$ " + 400 * "ж"
    drawn = {"action_accuracy": {"value": 0.5, "real_held_out": 1.0, "by_label": {label: 0.5}, "num_clips": 8}}
    results = RESULTS | {"generation": RESULTS["generation"] | drawn}
    path = write_report(tmp_path / "out", results, Examples(by_label=[_example(label)]), fps=8)
    page = (path.parent / "report.html").read_text()
    assert page.count("cost $5 and $6 $\\frac$") == page.count("cost") > 1
    assert len(list((path.parent / "samples").iterdir())) == 1


def test_page_needs_no_other_files_and_escapes_its_values() -> None:
    examples = Examples(
        by_label=[_example("<i>wave</i>", "kick")], best=[_example("bow")], worst=[_example("hop", "bow")], score_name="x"
    )
    page = make_page(RESULTS, examples, b"png", fps=8)
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert "http" not in re.sub(r"http-equiv|http://www.w3.org/[\w/.#-]+|http://purl.org/[\w/.#-]+", "", page)
    assert "<script" not in page
    assert "<i>wave" not in page
    assert "<b>mine" not in page
    assert "no &lt;two&gt; takes" in page
    assert "classified as kick" in page
    assert page.count("<video") == 1 + 2 + 1  # real and generated, best and worst, flow and occlusion
    assert "FVD[dolls-classifier]" in page
    assert page.count("<svg") == 1


def test_page_without_matplotlib_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = make_page(RESULTS, Examples(by_label=[]), None, fps=8)
    assert "<svg" not in page
    assert "pip install 'lfdm[eval]'" in html.unescape(page)


def test_the_headline_states_numbers_and_height_and_width() -> None:
    settings = {"num_frames": 16, "image_size": [112, 64], "seed": 0}
    data = {"num_clips": 6, "num_subjects": 1, "name": "mine"}
    text = headline({"data": data, "settings": settings, "date": "2026-11-30"})
    assert "6 held-out clips of 1 subject, " in text
    assert "16 frames of 112x64" in text
