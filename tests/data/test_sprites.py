"""Clips from sprite sheets: miniature sheets drawn here, and the real ones where they are at hand."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lfdm.data.index import labels, read_index
from lfdm.data.sprites import ACTIONS, CELL, DIRECTIONS, SHEET_SIZE, cell_indices, render_clip, write_lpc
from lfdm.data.video import read_video
from lfdm.errors import UserError

REAL_SHEETS = Path(__file__).parents[2] / ".." / "shared" / "data" / "lpc"


def numbered_sheet(value: int) -> Image.Image:
    """A sheet whose cell (row, column) is opaque (row, column, value) in its inner square, else transparent."""
    sheet = np.zeros((SHEET_SIZE[1], SHEET_SIZE[0], 4), np.uint8)
    for row in range(21):
        for column in range(13):
            inner = np.s_[row * CELL + 16 : row * CELL + 48, column * CELL + 16 : column * CELL + 48]
            sheet[inner] = (row, column, value, 255)
    return Image.fromarray(sheet)


@pytest.fixture
def sheets(tmp_path: Path) -> Path:
    root = tmp_path / "sheets"
    for sex, value in (("female", 10), ("male", 20)):
        (root / "body" / sex).mkdir(parents=True)
        numbered_sheet(value).save(root / "body" / sex / "light.png")
    (root / "torso" / "tops_no_th-sh").mkdir(parents=True)
    numbered_sheet(200).save(root / "torso" / "tops_no_th-sh" / "robe_female.png")
    numbered_sheet(200).save(root / "torso" / "tops_no_th-sh" / "robe_male.png")
    return root


def shown(frames: np.ndarray) -> list[tuple[int, int]]:
    """(row, column) of the cell in the middle of each frame."""
    return [(int(frame[32, 32, 0]), int(frame[32, 32, 1])) for frame in frames]


def test_every_action_begins_standing_and_plays_its_own_cells() -> None:
    sheet = np.asarray(numbered_sheet(1))
    background = np.full((CELL, CELL, 3), 99, np.uint8)
    for label, action in ACTIONS.items():
        for turn, direction in enumerate(DIRECTIONS):
            frames = render_clip(sheet, background, label, direction, 16)
            assert frames.shape == (16, CELL, CELL, 3)
            assert (frames[:, 0, 0] == 99).all()
            cells = shown(frames)
            assert cells[0] == (8 + turn, 0)
            assert {row for row, _ in cells[1:]} == {20 if label == "hurt" else action.row + turn}
            expected = set(range(1, 9)) if label == "walk" else set(range(action.num_cells))
            assert {column for _, column in cells[1:]} == expected
    assert cell_indices(ACTIONS["shoot"], 14) == list(range(13))


def test_the_set_holds_every_action_of_every_character(sheets: Path, tmp_path: Path) -> None:
    done: list[tuple[str, int, int]] = []
    table = write_lpc(sheets, tmp_path / "set", num_characters=5, num_frames=4, num_workers=1, progress=lambda *n: done.append(n))
    assert table == tmp_path / "set" / "clips.csv"
    assert done[-1] == ("rendering characters", 5, 5)
    records = read_index(tmp_path / "set")
    assert len(records) == 5 * 21
    assert labels(records) == ["hurt", "shoot", "slash", "spellcast", "thrust", "walk"]
    assert len({record.subject for record in records if record.split == "test"}) == 1
    firsts: dict[tuple[str, str], set[bytes]] = {}
    for record in records:
        frames = read_video(tmp_path / "set" / record.path)
        assert frames.shape == (4, 64, 64, 3) == (record.frames, record.height, record.width, 3)
        assert frames[0, 32, 32, 2] in (10, 20)  # never the robe, which lacks thrust and shoot
        direction = record.path.removesuffix(".avi").split("-")[-1]
        firsts.setdefault((record.subject, direction), set()).add(frames[0].tobytes())
    assert all(len(first) == 1 for first in firsts.values())


def test_clips_depend_only_on_the_seed(sheets: Path, tmp_path: Path) -> None:
    def pixels(name: str, seed: int, num_workers: int) -> list[bytes]:
        root = tmp_path / name
        write_lpc(sheets, root, num_characters=2, num_frames=3, seed=seed, num_workers=num_workers)
        return [read_video(root / record.path).tobytes() for record in read_index(root)]

    assert pixels("a", 3, 1) == pixels("b", 3, 2)
    assert pixels("a", 3, 1) != pixels("c", 4, 1)


@pytest.mark.parametrize("size", [32, 128])
def test_other_sizes(sheets: Path, tmp_path: Path, size: int) -> None:
    write_lpc(sheets, tmp_path / "set", num_characters=1, num_frames=2, size=size, test_fraction=0)
    record = read_index(tmp_path / "set")[0]
    frames = read_video(tmp_path / "set" / record.path)
    assert frames.shape == (2, size, size, 3) == (2, record.height, record.width, 3)
    assert frames[0, size // 2, size // 2, 0] == 8


def test_what_is_no_sheet_folder_is_refused(sheets: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_lpc(tmp_path / "nowhere", out)
    with pytest.raises(UserError, match="body/female"):
        write_lpc(sheets / "torso", out)
    Image.new("RGBA", (64, 64)).save(sheets / "body" / "female" / "light.png")
    Image.new("RGBA", (64, 64)).save(sheets / "body" / "male" / "light.png")
    with pytest.raises(UserError, match=r"light\.png: a sheet must be 832x1344; got 64x64"):
        write_lpc(sheets, out, num_characters=2)
    (sheets / "body" / "female" / "light.png").write_text("hello")
    (sheets / "body" / "male" / "light.png").write_text("hello")
    with pytest.raises(UserError, match=r"light\.png: not an image"):
        write_lpc(sheets, out, num_characters=2)
    assert [entry.name for entry in tmp_path.iterdir()] == ["sheets"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_characters", 0), ("size", 8), ("num_frames", 1), ("seed", -1), ("test_fraction", 1.0), ("num_workers", -1)],
)
def test_impossible_settings_are_named(sheets: Path, tmp_path: Path, name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"{name} must .* got {value}"):
        write_lpc(sheets, tmp_path / "set", **{name: value})  # pyright: ignore[reportArgumentType]


def test_real_sheets_say_nothing_about_the_label_in_their_first_frame(tmp_path: Path) -> None:
    if not REAL_SHEETS.is_dir():
        pytest.skip("the LPC sprite sheets are not at hand (../shared/data/lpc)")
    write_lpc(REAL_SHEETS, tmp_path / "set", num_characters=6, test_fraction=0.5)
    records = [record for record in read_index(tmp_path / "set") if record.path.endswith("front.avi")]
    clips = {record: read_video(tmp_path / "set" / record.path).astype(np.float32) for record in records}
    train = [record for record in records if record.split == "train"]
    test = [record for record in records if record.split == "test"]
    assert len(train) == len(test) == 18
    assert len({clips[record][0].tobytes() for record in records}) == 6  # one first frame a character

    def motion(clip: np.ndarray) -> np.ndarray:
        """Where each frame differs from the first, whatever the colours."""
        return (np.abs(clip - clip[0]).max(axis=-1) > 0).astype(np.float32)

    def nearest(record: object) -> str:
        mine = motion(clips[record])  # pyright: ignore[reportArgumentType]
        return min(train, key=lambda other: float(np.abs(mine - motion(clips[other])).sum())).label

    assert np.mean([nearest(record) == record.label for record in test]) >= 0.8  # chance: 1/6
