"""Clip data sets from sprite sheets."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lfdm.data.corpora.sprites import write_sprites
from lfdm.data.index import read_index
from lfdm.data.sprite_sheets import Grid, tile, write_sheet
from lfdm.data.video import read_video
from lfdm.errors import UserError

GRID = Grid(width=16, height=24)


def make_sheet(path: Path, lengths: tuple[int, ...] = (4, 3, 1), seed: int = 0) -> np.ndarray:
    """Save a sheet of rows of these lengths, four cells wide: its cells (rows, 4, 24, 16, 4)."""
    cells = np.random.default_rng(seed).integers(1, 256, (len(lengths), 4, 24, 16, 4), np.uint8)
    for row, length in enumerate(lengths):
        cells[row, length:] = 0
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(tile(cells.reshape(-1, 24, 16, 4), 4)).save(path)
    return cells


def test_sheets_become_clips_with_alpha_by_subject(tmp_path: Path) -> None:
    paths = [tmp_path / folder / f"{name}.png" for folder, name in (("a", "hero"), ("b", "hero"), ("a", "orc"))]
    cells = [make_sheet(path, seed=seed) for seed, path in enumerate(paths)]
    report = write_sprites(paths, tmp_path / "set", grid=GRID, rows=["walk", "hit", "die"], scale=2, fps=10)
    records = read_index(tmp_path / "set")
    assert list(report.records) == records
    assert {record.subject for record in records} == {"hero", "hero-2", "orc"}
    assert [(r.label, r.frames, r.height, r.width, r.fps) for r in records[:2]] == [
        ("walk", 4, 48, 32, 10),
        ("hit", 3, 48, 32, 10),
    ]
    assert len(records) == 6
    assert sum(record.split == "test" for record in records) == 2
    assert sum("'die' has a single frame" in note for note in report.notes) == 3
    frames = read_video(tmp_path / "set" / records[2].path, keep_alpha=True)
    assert np.array_equal(frames[:, ::2, 1::2], cells[1][0])


def test_data_of_a_sheet_give_labels_and_rate(tmp_path: Path) -> None:
    frames = make_sheet(tmp_path / "sheet.png")[0]
    paths = [write_sheet(tmp_path / name / "walk.json", frames, fps=20) for name in ("hero", "orc")]
    data = json.loads(paths[1].read_text())
    data["meta"]["frameTags"] = [{"name": name, "from": k, "to": k + 1} for k, name in enumerate(("run", "jump"))]
    paths[1].write_text(json.dumps(data))
    report = write_sprites(paths, tmp_path / "set", test_fraction=0)
    assert {(r.label, r.frames, r.fps) for r in report.records} == {("walk", 4, 20), ("run", 2, 20), ("jump", 2, 20)}


def test_one_sheet_is_all_training(tmp_path: Path) -> None:
    make_sheet(tmp_path / "hero.png")
    report = write_sprites([tmp_path / "hero.png"], tmp_path / "set", grid=GRID, rows=[None, "hit"])
    assert [(record.label, record.split) for record in report.records] == [("hit", "train")]
    assert any("2 rows have no name" in note for note in report.notes)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "grid and rows must be given"),
        ({"grid": GRID}, "grid and rows must be given"),
        ({"grid": GRID, "rows": ["a", "b", "c", "d"]}, "at most 3"),
        ({"grid": Grid(width=160, height=24), "rows": ["a"]}, "rows must"),
        ({"grid": GRID, "rows": ["a"], "scale": 0}, "scale"),
        ({"grid": GRID, "rows": ["a"], "fps": 0.0}, "fps"),
        ({"grid": GRID, "rows": ["a"], "test_fraction": 2.0}, "test_fraction"),
        ({"grid": GRID, "rows": [None, None, "die"]}, "two frames"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, options: dict[str, Any], match: str) -> None:
    make_sheet(tmp_path / "hero.png")
    with pytest.raises(UserError, match=match):
        write_sprites([tmp_path / "hero.png"], tmp_path / "set", **options)
    assert not (tmp_path / "set").exists()


def test_sheets_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    frames = make_sheet(tmp_path / "sheet.png")[0]
    path = write_sheet(tmp_path / "walk.json", frames, fps=8)
    for sheets, options, match in (
        ([], {}, "sheets"),
        ([path, path], {}, "once"),
        ([path], {"grid": GRID, "rows": ["walk"]}, "no effect"),
    ):
        with pytest.raises(UserError, match=match):
            write_sprites(sheets, tmp_path / "set", **options)
    with pytest.raises(FileNotFoundError, match=r"nothing\.png"):
        write_sprites([tmp_path / "nothing.png"], tmp_path / "set", grid=GRID, rows=["walk"])
