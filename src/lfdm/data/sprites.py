"""Labelled clips from Universal LPC sprite sheets (github.com/jrconway3/Universal-LPC-spritesheet).

A sheet is 832x1344, 13 columns x 21 rows of 64x64 cells: rows by action, four directions each; all sheets fit over
each other, so a character is a stack of them. The artwork is CC-BY-SA 3.0 / GPL 3.0: what is made of it must credit its
authors.
"""

import os
import re
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from lfdm.config.checks import check, check_integer
from lfdm.data.images import fit_frames
from lfdm.data.index import MAX_SUBJECTS, ClipRecord, Split, check_data_settings, new_data_set, num_test_subjects, write_index
from lfdm.data.progress import Progress
from lfdm.data.video import write_video
from lfdm.errors import UserError

CELL = 64
SHEET_SIZE = (832, 1344)
DIRECTIONS = ("back", "left", "front", "right")
FPS = 8.0


@dataclass(frozen=True, kw_only=True)
class LpcAction:
    """Where an action lies in a sheet."""

    row: int
    """The first of its rows, one for each direction in the order of `DIRECTIONS`."""
    num_cells: int
    first_cell: int = 0
    loops: bool = False
    """Played again and again at one cell a frame, otherwise stretched once over the clip."""
    only_front: bool = False


ACTIONS = {
    "spellcast": LpcAction(row=0, num_cells=7),
    "thrust": LpcAction(row=4, num_cells=8),
    "walk": LpcAction(row=8, num_cells=8, first_cell=1, loops=True),
    "slash": LpcAction(row=12, num_cells=6),
    "shoot": LpcAction(row=16, num_cells=13),
    "hurt": LpcAction(row=20, num_cells=6, only_front=True),
}
"""By label. The cell before walk's first is the standing one, with which every clip begins."""

_PIECES = r"arms|shoulders|spikes|overskirt|vest"
# (folder, which of its files, how often worn), from the bottom up: a garment first, then pieces worn over one.
_LAYERS = (
    ("body/{sex}/eyes", ".", 0.7),
    ("feet", ".", 0.9),
    ("legs", ".", 1.0),
    ("torso", rf"^(?!.*({_PIECES}))", 1.0),
    ("torso", _PIECES, 0.3),
    ("facial", "/male/", 0.4),
    ("hair/{sex}", ".", 0.9),
    ("head", ".", 0.25),
)
_LEFT_OUT = re.compile(r"no_th-sh|/back/")  # no thrust and shoot; capes and wings, which belong behind the body


def write_lpc(
    sheets: str | Path,
    out: str | Path,
    *,
    num_characters: int = 300,
    size: int = 64,
    num_frames: int = 16,
    seed: int = 0,
    test_fraction: float = 0.2,
    num_workers: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Render random characters doing every action in every direction; returns the table of the clip data set `out`.

    21 clips of each character (the subject), lossless. All clips of one character and direction begin with the same
    standing cell on the same background: the label alone decides the motion. The last `test_fraction` of the characters
    are the test split. The same arguments give the same clips. `out` appears when it is whole.

    Raises FileNotFoundError for a missing `sheets`, and UserError for impossible settings, a folder without sheets, a
    sheet of another layout (naming it), and an `out` that holds other things.
    """
    sheets = Path(sheets)
    check_integer("num_characters", num_characters, 1, MAX_SUBJECTS)
    check_data_settings(
        size=size, num_frames=num_frames, seed=seed, test_fraction=test_fraction, num_workers=num_workers, least_size=16
    )
    check(test_fraction < 1, "test_fraction", test_fraction, "less than 1: somebody must be left to train on")
    wardrobe = _find_layers(sheets)
    num_test = num_test_subjects(num_characters, test_fraction)
    records: list[ClipRecord] = []
    with new_data_set(out) as folder, ThreadPoolExecutor(num_workers or os.cpu_count() or 1) as pool:
        render = partial(_write_character, wardrobe, folder, size, num_frames, seed, num_characters - num_test)
        try:
            for done, clips in enumerate(pool.map(render, range(num_characters)), start=1):
                records += clips
                if progress is not None:
                    progress("rendering characters", done, num_characters)
        finally:
            pool.shutdown(cancel_futures=True)
        return Path(out) / write_index(folder, records).name


# --------------------------------------------------------------------------------------------------------- characters

_Wardrobe = dict[str, list[tuple[float, list[list[Path]]]]]
"""For each sex the layers from the bottom up: how often one is worn, and its files by style (colours of one thing)."""


def _find_layers(sheets: Path) -> _Wardrobe:
    if not sheets.is_dir():
        raise FileNotFoundError(f"{sheets}: no such folder of sprite sheets")
    wardrobe: _Wardrobe = {}
    for sex in ("female", "male"):
        bodies = sorted((sheets / "body" / sex).glob("*.png"))
        if not bodies:
            raise UserError(f"{sheets}: no body/{sex}/*.png; is it a folder of Universal LPC sprite sheets?")
        wardrobe[sex] = [(1.0, [bodies])]
        for folder, pattern, probability in _LAYERS:
            styles = _styles(sheets, sheets / folder.format(sex=sex), sex, pattern)
            if styles:
                wardrobe[sex].append((probability, styles))
    return wardrobe


def _styles(sheets: Path, folder: Path, sex: str, pattern: str) -> list[list[Path]]:
    """The sheets for `sex` below `folder` whose path holds `pattern`, those of one sub-folder together."""
    styles: dict[Path, list[Path]] = defaultdict(list)
    for path in sorted(folder.rglob("*.png")):
        name = path.relative_to(sheets).as_posix()
        fits = re.search(rf"(?<![a-z]){sex}(?![a-z])", name) and re.search(pattern, name)
        if fits and not _LEFT_OUT.search(name):
            styles[path.parent].append(path)
    return list(styles.values())


def _dress(wardrobe: _Wardrobe, rng: np.random.Generator) -> np.ndarray:
    """A random character's sheet: (1344, 832, 4) uint8 RGBA."""
    layers = wardrobe[("female", "male")[rng.integers(2)]]
    sheet = Image.new("RGBA", SHEET_SIZE)
    for probability, styles in layers:
        style = styles[rng.integers(len(styles))]
        path = style[rng.integers(len(style))]
        if rng.random() < probability:
            sheet.alpha_composite(_open_sheet(path))
    return np.asarray(sheet)


def _open_sheet(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            if image.size != SHEET_SIZE:
                raise UserError(f"{path}: a sheet is 832x1344, this is {image.width}x{image.height}")
            return image.convert("RGBA")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not a readable image") from error


def _background(rng: np.random.Generator) -> np.ndarray:
    """A plain colour, soft blotches or tiles, muted so that the figure stands out: (CELL, CELL, 3) uint8."""
    first, second = rng.uniform(60, 200, (2, 3))
    kind = rng.integers(3)
    if kind == 0:
        blend = np.zeros((CELL, CELL))
    elif kind == 1:
        coarse = Image.fromarray(rng.random((7, 7)).astype(np.float32))
        blend = np.asarray(coarse.resize((CELL, CELL), Image.Resampling.BICUBIC)).clip(0, 1)
    else:
        tile = int(rng.choice([8, 16]))
        row, column = np.indices((CELL, CELL)) // tile
        blend = 0.4 * ((row + column) % 2)
    colour = first + blend[..., None] * (second - first)
    return np.rint(colour).astype(np.uint8)


# -------------------------------------------------------------------------------------------------------------- clips


def cell_indices(action: LpcAction, num_frames: int) -> list[int]:
    """The columns that an action's clip shows after its standing frame: num_frames - 1 of them.

    >>> cell_indices(ACTIONS["slash"], 16), cell_indices(ACTIONS["walk"], 10)
    ([0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4, 4, 5, 5], [1, 2, 3, 4, 5, 6, 7, 8, 1])
    """
    n = num_frames - 1
    steps = [k % action.num_cells if action.loops else k * action.num_cells // n for k in range(n)]
    return [action.first_cell + step for step in steps]


def render_clip(sheet: np.ndarray, background: np.ndarray, label: str, direction: str, num_frames: int) -> np.ndarray:
    """One clip of a character's sheet (1344, 832, 4) before a background (64, 64, 3): (num_frames, 64, 64, 3) uint8."""
    action, turn = ACTIONS[label], DIRECTIONS.index(direction)
    row = action.row + (0 if action.only_front else turn)
    standing = _cell(sheet, ACTIONS["walk"].row + turn, 0)
    cells = np.stack([standing, *(_cell(sheet, row, column) for column in cell_indices(action, num_frames))])
    alpha = cells[..., 3:].astype(np.float32) / 255
    return np.rint(cells[..., :3] * alpha + background * (1 - alpha)).astype(np.uint8)


def _cell(sheet: np.ndarray, row: int, column: int) -> np.ndarray:
    return sheet[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]


def _write_character(
    wardrobe: _Wardrobe, folder: Path, size: int, num_frames: int, seed: int, num_train: int, index: int
) -> list[ClipRecord]:
    rng = np.random.default_rng((seed, index))
    sheet, background = _dress(wardrobe, rng), _background(rng)
    split: Split = "train" if index < num_train else "test"
    records = []
    for label, action in ACTIONS.items():
        for direction in ("front",) if action.only_front else DIRECTIONS:
            frames = _scale(render_clip(sheet, background, label, direction, num_frames), size)
            path = f"clips/{index:05d}/{label}-{direction}.avi"
            write_video(folder / path, frames, fps=FPS)
            records.append(
                ClipRecord(
                    path=path,
                    label=label,
                    subject=f"character-{index:05d}",
                    split=split,
                    frames=num_frames,
                    fps=FPS,
                    width=size,
                    height=size,
                )
            )
    return records


def _scale(frames: np.ndarray, size: int) -> np.ndarray:
    """Whole multiples keep their pixels square and sharp."""
    if size % CELL:
        return fit_frames(frames, size, "pad")
    return frames.repeat(size // CELL, axis=1).repeat(size // CELL, axis=2)
