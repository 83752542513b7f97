"""Labelled clips from Universal LPC sprite sheets (github.com/jrconway3/Universal-LPC-spritesheet).

A sheet is 832x1344: 13 columns x 21 rows of 64x64 cells, with rows by action and, within it, direction. All sheets are
aligned, so a character is a stack of them. The artwork is CC-BY-SA 3.0 / GPL 3.0: works made from it must credit its authors.
"""

import os
import re
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from lfdm.config.checks import check_integer
from lfdm.config.video import MIN_SIDE, Size, SizeInput
from lfdm.data.alpha import compose
from lfdm.data.backgrounds import sample_background
from lfdm.data.fitting import fit_frames
from lfdm.data.images import decoding, open_image
from lfdm.data.index import (
    MAX_SUBJECTS,
    ClipRecord,
    check_rendering,
    check_split,
    check_workers,
    new_data_set,
    num_test_subjects,
    write_index,
)
from lfdm.data.progress import Progress, run_all
from lfdm.data.sprite_sheets import Grid, enlarge
from lfdm.data.video import write_video
from lfdm.errors import UserError
from lfdm.folders.files import expand_home

CELL = 64
_GRID = Grid(width=CELL, height=CELL)
SHEET_SIZE = (832, 1344)
DIRECTIONS = ("back", "left", "front", "right")
"""In the order of the rows of an action."""
FPS = 8.0


@dataclass(frozen=True, kw_only=True)
class LpcAction:
    """Cells of an action in a sheet."""

    row: int
    """First of its rows, one for each of `DIRECTIONS`."""
    num_cells: int
    first_cell: int = 0
    loops: bool = False
    """Repeat the cells at one cell per frame, instead of stretching them once over the clip."""
    only_front: bool = False
    """The action has a single row, for the front."""


ACTIONS = {
    "spellcast": LpcAction(row=0, num_cells=7),
    "thrust": LpcAction(row=4, num_cells=8),
    "walk": LpcAction(row=8, num_cells=8, first_cell=1, loops=True),
    "slash": LpcAction(row=12, num_cells=6),
    "shoot": LpcAction(row=16, num_cells=13),
    "hurt": LpcAction(row=20, num_cells=6, only_front=True),
}
"""Actions by label. The cell before walk's first shows the character standing; every clip begins with it."""

_PIECES = r"arms|shoulders|spikes|overskirt|vest"
"""Pieces of the torso that are worn over another garment."""
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
"""(folder, pattern of its files, probability of being worn), from the bottom layer up."""
_EXCLUDED = re.compile(r"no_th-sh|/back/")
"""Sheets without thrust and shoot; capes and wings, which belong behind the body."""


def write_lpc(
    sheets: str | Path,
    out: str | Path,
    *,
    num_characters: int = 300,
    size: SizeInput = CELL,
    num_frames: int = 16,
    seed: int = 0,
    test_fraction: float = 0.2,
    num_workers: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Render random characters doing every action in every direction; return the path of `out`/clips.csv.

    Each character is a subject with 21 lossless clips. All clips of a character and direction begin with the same standing
    cell on the same background, so that only the label decides the motion. The same arguments give the same clips. `out`
    appears only when it is complete.

    Args:
        sheets: folder of the sheets, as in their repository.
        size: of frames; sides are multiples of 16.
        test_fraction: share of the characters, the last ones, that are the test split.
        num_workers: threads (None: one per core).

    Raises:
        FileNotFoundError: no folder `sheets`.
        UserError: settings that are not allowed, a folder without sheets, a sheet of another layout, or an `out` that holds
            other things.
    """
    sheets = Path(sheets)
    check_integer("num_characters", num_characters, 1, MAX_SUBJECTS)
    size = check_rendering(size=size, num_frames=num_frames, min_side=MIN_SIDE)
    check_split(seed=seed, test_fraction=test_fraction)
    check_workers(num_workers)
    layers = _find_layers(sheets)
    num_train = num_characters - num_test_subjects(num_characters, test_fraction)
    pool = ThreadPoolExecutor(num_workers or os.cpu_count() or 1)
    with new_data_set(out) as folder:
        write = partial(_write_character, layers, folder, size, num_frames, seed, num_train)
        clips = run_all(pool, write, range(num_characters), work="rendering characters", progress=progress)
        return expand_home(out) / write_index(folder, chain.from_iterable(clips)).name


# --------------------------------------------------------------------------------------------------------- characters

_Layers = dict[str, list[tuple[float, list[list[Path]]]]]
"""For each sex the layers from the bottom up: the probability of being worn, and the files by style, in several colours."""


def _find_layers(sheets: Path) -> _Layers:
    if not sheets.is_dir():
        raise FileNotFoundError(f"{sheets}: no such folder of sprite sheets")
    layers: _Layers = {}
    for sex in ("female", "male"):
        bodies = sorted((sheets / "body" / sex).glob("*.png"))
        if not bodies:
            raise UserError(f"{sheets}: no body/{sex}/*.png; is it a folder of Universal LPC sprite sheets?")
        layers[sex] = [(1.0, [bodies])]
        for folder, pattern, probability in _LAYERS:
            styles = _styles(sheets, sheets / folder.format(sex=sex), sex, pattern)
            if styles:
                layers[sex].append((probability, styles))
    return layers


def _styles(sheets: Path, folder: Path, sex: str, pattern: str) -> list[list[Path]]:
    """List the sheets for `sex` below `folder` whose path matches `pattern`, grouped by sub-folder."""
    styles: dict[Path, list[Path]] = defaultdict(list)
    for path in sorted(folder.rglob("*.png")):
        name = path.relative_to(sheets).as_posix()
        matches = re.search(rf"(?<![a-z]){sex}(?![a-z])", name) and re.search(pattern, name)
        if matches and not _EXCLUDED.search(name):
            styles[path.parent].append(path)
    return list(styles.values())


def _sample_character(layers: _Layers, rng: np.random.Generator) -> np.ndarray:
    """Compose the sheet of a random character: (1344, 832, 4) uint8 RGBA."""
    sheet = Image.new("RGBA", SHEET_SIZE)
    for probability, styles in layers[("female", "male")[rng.integers(2)]]:
        style = styles[rng.integers(len(styles))]
        path = style[rng.integers(len(style))]
        if rng.random() < probability:
            sheet.alpha_composite(_open_sheet(path))
    return np.asarray(sheet)


def _open_sheet(path: Path) -> Image.Image:
    with open_image(path) as image:
        if image.size != SHEET_SIZE:
            raise UserError(f"{path}: a sheet must be 832x1344; got {image.width}x{image.height}")
        with decoding(path):
            return image.convert("RGBA")


# -------------------------------------------------------------------------------------------------------------- clips


def cell_indices(action: LpcAction, num_frames: int) -> list[int]:
    """Return the num_frames - 1 columns of an action that a clip shows after its standing frame.

    >>> cell_indices(ACTIONS["slash"], 16), cell_indices(ACTIONS["walk"], 10)
    ([0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4, 4, 5, 5], [1, 2, 3, 4, 5, 6, 7, 8, 1])
    """
    n = num_frames - 1
    steps = [k % action.num_cells if action.loops else k * action.num_cells // n for k in range(n)]
    return [action.first_cell + step for step in steps]


def render_clip(sheet: np.ndarray, background: np.ndarray, label: str, direction: str, num_frames: int) -> np.ndarray:
    """Render a clip of a character's sheet (1344, 832, 4) on a background (64, 64, 3): (num_frames, 64, 64, 3) uint8."""
    action, offset = ACTIONS[label], DIRECTIONS.index(direction)
    row = action.row + (0 if action.only_front else offset)
    standing = _GRID.cell(sheet, ACTIONS["walk"].row + offset, 0)
    cells = np.stack([standing, *(_GRID.cell(sheet, row, column) for column in cell_indices(action, num_frames))])
    return compose(cells, background)


def _write_character(
    layers: _Layers, folder: Path, size: Size, num_frames: int, seed: int, num_train: int, index: int
) -> list[ClipRecord]:
    rng = np.random.default_rng((seed, index))
    sheet, background = _sample_character(layers, rng), sample_background(rng, CELL, CELL)
    subject, split = f"character-{index:05d}", "train" if index < num_train else "test"
    records = []
    for label, action in ACTIONS.items():
        for direction in ("front",) if action.only_front else DIRECTIONS:
            frames = _scale(render_clip(sheet, background, label, direction, num_frames), size)
            path = f"clips/{index:05d}/{label}-{direction}.avi"
            write_video(folder / path, frames, fps=FPS)
            records.append(ClipRecord.describe(frames.shape, path=path, label=label, subject=subject, split=split, fps=FPS))
    return records


def _scale(frames: np.ndarray, size: Size) -> np.ndarray:
    """Resize clips, with their border repeated in frames that are not square; whole multiples keep pixels square and sharp."""
    side = min(size)
    if side % CELL == 0:
        frames = enlarge(frames, side // CELL)
    return fit_frames(frames, size, "pad", border="edge")
