"""Clips from sprite sheets of any kind: a grid of cells whose rows are animations, or a sheet with its data.

LPC sheets, which are layers of one character, have a module of their own, `lfdm.data.sprites`.
"""

from collections.abc import Sequence
from pathlib import Path

from lfdm.config.checks import check, check_integer, check_number
from lfdm.config.video import MAX_FPS, MAX_SIDE, MIN_FPS
from lfdm.data.corpora.recordings import Conversion
from lfdm.data.corpora.splits import hold_out_subjects
from lfdm.data.index import ClipRecord, check_split, new_data_set, split_warnings, write_index
from lfdm.data.progress import Progress, run_all
from lfdm.data.sprite_sheets import SHEET_SUFFIX, Grid, SheetClip, enlarge, read_grid, read_sheet
from lfdm.data.video import write_video
from lfdm.errors import UserError
from lfdm.folders.files import as_file_name, distinct_file_names, expand_home

DEFAULT_FPS = 8.0
"""Frames per second of sheets that state none."""
MAX_SCALE = 32


def write_sprites(
    sheets: Sequence[str | Path],
    out: str | Path,
    *,
    grid: Grid | None = None,
    rows: Sequence[str | None] = (),
    scale: int = 1,
    fps: float | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    progress: Progress | None = None,
) -> Conversion:
    """Write the clip data set `out` from sprite sheets; each sheet is a subject.

    Pictures are cut by `grid`, and row i shows the animation `rows[i]` (None = left out; see `read_grid`). Sheets with data
    (`.json`, see `read_sheet`) need neither. Clips are lossless and keep their alpha. An animation of a single frame is left out,
    since it does not move; `notes` name it.

    Args:
        scale: whole factor by which frames are enlarged; pixels stay square.
        fps: frames per second; None = as the sheet states, or 8.

    Raises:
        FileNotFoundError: no such file.
        UserError: settings that are not allowed, a sheet that they do not fit, no clip at all, or an `out` that holds other
            things.
    """
    paths = [expand_home(sheet) for sheet in sheets]
    _check(paths, grid, rows)
    check_integer("scale", scale, 1, MAX_SCALE)
    check_split(seed=seed, test_fraction=test_fraction)
    if fps is not None:
        check_number("fps", fps, low=MIN_FPS, high=MAX_FPS)
    subjects = dict(zip(paths, distinct_file_names([path.stem for path in paths]), strict=True))
    records: list[ClipRecord] = []
    notes: list[str] = []

    def convert(path: Path) -> None:
        clips, note = _read(path, grid, rows)
        notes.extend(note)
        for index, clip in enumerate(clips):
            frames = enlarge(clip.frames, scale)
            check(
                max(frames.shape[1:3]) <= MAX_SIDE, "scale", scale, f"such that frames of {path} have at most {MAX_SIDE} pixels"
            )
            rate = fps or clip.fps or DEFAULT_FPS
            name = f"clips/{subjects[path]}/{index:02d}-{as_file_name(clip.name)}.avi"
            write_video(folder / name, frames, fps=rate)
            record = ClipRecord.describe(
                frames.shape, path=name, label=clip.name, subject=subjects[path], split="train", fps=rate
            )
            records.append(record)

    with new_data_set(out) as folder:
        run_all(None, convert, paths, work="cutting sheets", progress=progress)
        if not records:
            raise UserError(f"sheets must hold an animation of two frames or more; got none in {len(paths)} sheets")
        records = hold_out_subjects(records, test_fraction, seed)
        write_index(folder, records)
    return Conversion(records=tuple(records), notes=(*notes, *split_warnings(records)))


def _check(paths: Sequence[Path], grid: Grid | None, rows: Sequence[str | None]) -> None:
    check(bool(paths), "sheets", 0, "at least one")
    check(len(set(paths)) == len(paths), "sheets", [str(path) for path in paths], "given once each")
    pictures = [path for path in paths if path.suffix.lower() != SHEET_SUFFIX]
    if pictures and (grid is None or not any(rows)):
        raise UserError(f"grid and rows must be given for {pictures[0]}, a picture without data")
    if not pictures and (grid is not None or rows):
        raise UserError(f"grid and rows have no effect on sheets with data; got them with {paths[0]} and no picture")


def _read(path: Path, grid: Grid | None, rows: Sequence[str | None]) -> tuple[list[SheetClip], list[str]]:
    """Return the animations of a sheet, and lines about what is left out."""
    notes = []
    if path.suffix.lower() == SHEET_SUFFIX:
        clips = read_sheet(path)
    else:
        assert grid is not None
        clips, num_unnamed = read_grid(path, grid, rows)
        notes += [f"{path}: {num_unnamed} rows have no name and are left out"] if num_unnamed else []
    notes += [f"{path}: {clip.name!r} has a single frame and is left out" for clip in clips if len(clip.frames) == 1]
    return [clip for clip in clips if len(clip.frames) > 1], notes
