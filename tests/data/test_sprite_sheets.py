"""Sprite sheets: written, checked against what engines read, and read back; grids and the data of Aseprite and TexturePacker."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lfdm.config.video import SheetFormat
from lfdm.data.alpha import add_alpha
from lfdm.data.sprite_sheets import Grid, read_grid, read_sheet, sheet_columns, tile, write_sheet
from lfdm.errors import UserError

FORMS: tuple[SheetFormat, ...] = ("aseprite", "hash", "array")


def sprites(t: int = 7, height: int = 20, width: int = 12, channels: int = 4) -> np.ndarray:
    return np.random.default_rng(t).integers(1, 256, (t, height, width, channels), np.uint8)


def phaser_textures(data: dict[str, Any], image: Image.Image) -> dict[str, Image.Image]:
    """Cut textures as Phaser's JSON atlas parsers do: `frames` is a list with file names, or an object."""
    frames = data["frames"]
    named = [(entry["filename"], entry) for entry in frames] if isinstance(frames, list) else list(frames.items())
    textures = {}
    for name, entry in named:
        assert entry["rotated"] is False
        assert entry["trimmed"] is False
        x, y, width, height = (entry["frame"][key] for key in "xywh")
        assert entry["sourceSize"] == {"w": width, "h": height}
        assert entry["spriteSourceSize"] == {"x": 0, "y": 0, "w": width, "h": height}
        textures[name] = image.crop((x, y, x + width, y + height))
    return textures


@pytest.mark.parametrize("form", FORMS)
def test_engines_find_all_frames(tmp_path: Path, form: SheetFormat) -> None:
    frames = sprites()
    path = write_sheet(tmp_path / "new" / "walk.json", frames, fps=12, form=form)
    data = json.loads(path.read_text())
    assert data["meta"]["image"] == "walk.png"
    image = Image.open(path.parent / data["meta"]["image"])
    assert data["meta"]["size"] == {"w": image.width, "h": image.height}
    assert (data["meta"]["format"], data["meta"]["scale"], image.mode) == ("RGBA8888", "1", "RGBA")
    textures = phaser_textures(data, image)
    assert isinstance(data["frames"], list) == (form == "array")
    assert all(np.array_equal(np.asarray(texture), frame) for texture, frame in zip(textures.values(), frames, strict=True))
    assert list(textures) == [str(k) if form == "aseprite" else f"walk-{k:05d}.png" for k in range(7)]
    assert image.width / image.height < 2.5
    assert sorted(file.name for file in path.parent.iterdir()) == ["walk.json", "walk.png"]


def test_aseprite_data_have_a_tag_and_durations_that_add_up(tmp_path: Path) -> None:
    data = json.loads(write_sheet(tmp_path / "walk.json", sprites(), fps=12).read_text())
    (tag,) = data["meta"]["frameTags"]
    assert (tag["name"], tag["from"], tag["to"], tag["direction"]) == ("walk", 0, 6, "forward")
    played = [data["frames"][str(k)]["duration"] for k in range(tag["from"], tag["to"] + 1)]  # as Phaser's createFromAseprite
    assert set(played) == {83, 84}
    assert sum(played) == round(7000 / 12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("channels", [3, 4])
def test_sheets_are_read_back(tmp_path: Path, form: SheetFormat, channels: int) -> None:
    frames = sprites(channels=channels)
    (clip,) = read_sheet(write_sheet(tmp_path / "walk.json", frames, fps=12, form=form))
    assert clip.name == "walk"
    assert np.array_equal(clip.frames, add_alpha(frames))
    assert clip.fps == (pytest.approx(12, rel=0.01) if form == "aseprite" else None)


def test_tags_directions_durations_and_trimming_of_aseprite(tmp_path: Path) -> None:
    frames = sprites(4)
    Image.fromarray(tile(frames, 4)).save(tmp_path / "hero.png")
    entries = [
        {
            "filename": f"hero {k}.aseprite",
            "frame": {"x": 12 * k, "y": 0, "w": 12, "h": 20},
            "spriteSourceSize": {"x": 2, "y": 3, "w": 12, "h": 20},
            "sourceSize": {"w": 16, "h": 24},
            "duration": 200 if k == 1 else 100,
        }
        for k in range(4)
    ]
    tags = [
        {"name": "walk", "from": 0, "to": 1, "direction": "forward"},
        {"name": "back", "from": 0, "to": 1, "direction": "reverse"},
        {"name": "sway", "from": 1, "to": 3, "direction": "pingpong"},
    ]
    path = tmp_path / "hero.json"
    path.write_text(json.dumps({"frames": entries, "meta": {"image": ["C:", "art", "hero.png"][-1], "frameTags": tags}}))
    clips = {clip.name: clip for clip in read_sheet(path)}
    assert {name: len(clip.frames) for name, clip in clips.items()} == {"walk": 3, "back": 3, "sway": 5}
    assert all(clip.fps == pytest.approx(10) for clip in clips.values())
    inner = clips["walk"].frames[:, 3:23, 2:14]
    assert np.array_equal(inner, frames[[0, 1, 1]])
    assert not clips["walk"].frames[:, :3].any()
    assert np.array_equal(clips["sway"].frames[:, 3:23, 2:14], frames[[1, 1, 2, 3, 2]])
    assert np.array_equal(clips["back"].frames[:, 3:23, 2:14], frames[[1, 1, 0]])


def test_frames_of_texturepacker_belong_together_by_name(tmp_path: Path) -> None:
    frames = sprites(5)
    Image.fromarray(tile(frames, 5)).save(tmp_path / "hero.png")
    names = ["run/10.png", "run/9.png", "idle_1", "idle_2", "hit"]
    entries = {name: {"frame": {"x": 12 * k, "y": 0, "w": 12, "h": 20}} for k, name in enumerate(names)}
    (tmp_path / "hero.json").write_text(json.dumps({"frames": entries, "meta": {"image": "hero.png"}}))
    clips = {clip.name: clip.frames for clip in read_sheet(tmp_path / "hero.json")}
    assert list(clips) == ["run", "idle", "hit"]
    assert np.array_equal(clips["run"], frames[[1, 0]])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"frame": {"x": 1, "y": 0, "w": 12, "h": 20}}, "lies outside"),
        ({"frame": {"x": 0, "y": 0, "w": 0, "h": 20}}, "lies outside"),
        ({"rotated": True}, "rotation"),
        ({"frame": 3}, "not the data of a sprite sheet"),
        ({"duration": "soon"}, "not the data of a sprite sheet"),
    ],
)
def test_data_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any], match: str) -> None:
    path = write_sheet(tmp_path / "walk.json", sprites(1), fps=8, form="aseprite")
    data = json.loads(path.read_text())
    data["frames"]["0"] |= change
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match=match):
        read_sheet(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"frames": {}, "meta": 3}', '{"frames": [1], "meta": {"image": "walk.png"}}'])
def test_other_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "walk.json").write_text(text)
    with pytest.raises(UserError, match=r"walk\.json: not the data"):
        read_sheet(tmp_path / "walk.json")


def test_a_missing_picture_or_sheet_is_named(tmp_path: Path) -> None:
    write_sheet(tmp_path / "walk.json", sprites(), fps=8)
    (tmp_path / "walk.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"walk\.png"):
        read_sheet(tmp_path / "walk.json")
    with pytest.raises(FileNotFoundError, match=r"run\.json"):
        read_sheet(tmp_path / "run.json")


def test_too_many_frames_for_a_texture_are_refused(tmp_path: Path) -> None:
    assert sheet_columns(16, 64, 64) == 4
    assert sheet_columns(16, 128, 32) == 8
    assert sheet_columns(2, 16_000, 10) == 2
    with pytest.raises(UserError, match="num_frames"):
        sheet_columns(5000, 512, 512)
    for path in ("walk.png", "walk"):
        with pytest.raises(UserError, match=r"\.json"):
            write_sheet(tmp_path / path, sprites(), fps=8)


# ----------------------------------------------------------------------------------------------------------------- grids


@pytest.mark.parametrize(("margin", "spacing"), [(0, 0), (3, 0), (2, 5)])
@pytest.mark.parametrize("has_alpha", [True, False])
def test_rows_of_a_grid_end_at_empty_cells(tmp_path: Path, margin: int, spacing: int, has_alpha: bool) -> None:
    frames = sprites(12).reshape(3, 4, 20, 12, 4)
    frames[1, 2:] = 0
    frames[2, 1:] = 0
    grid = Grid(width=12, height=20, margin=margin, spacing=spacing)
    sheet = np.zeros((3 * (20 + spacing) - spacing + 2 * margin, 4 * (12 + spacing) - spacing + 2 * margin, 4), np.uint8)
    for row in range(3):
        for column in range(4):
            grid.cell(sheet, row, column)[:] = frames[row, column]
    Image.fromarray(sheet if has_alpha else sheet[..., :3]).save(tmp_path / "hero.png")
    assert grid.count(sheet) == (3, 4)
    clips, num_unnamed = read_grid(tmp_path / "hero.png", grid, ["walk", None, "hit"])
    assert [(clip.name, len(clip.frames)) for clip in clips] == [("walk", 4), ("hit", 1)]
    assert num_unnamed == 1
    channels = 4 if has_alpha else 3
    assert np.array_equal(clips[0].frames[..., :channels], frames[0, ..., :channels])
    with pytest.raises(UserError, match="at most 3"):
        read_grid(tmp_path / "hero.png", grid, ["walk"] * 4)


def test_a_named_row_without_frames_is_refused(tmp_path: Path) -> None:
    Image.new("RGBA", (24, 20)).save(tmp_path / "hero.png")
    with pytest.raises(UserError, match=r"row 1, 'walk'"):
        read_grid(tmp_path / "hero.png", Grid(width=12, height=20), ["walk"])


@pytest.mark.parametrize("change", [{"width": 0}, {"height": -1}, {"margin": -1}, {"spacing": 10**6}])
def test_impossible_grids_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(UserError, match=next(iter(change))):
        Grid(**{"width": 8, "height": 8, **change})
