"""The table of a clip data set, `clips.csv`, with one row per clip. Imports no torch."""

import csv
import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, Self

from lfdm.config.checks import MAX_SEED, check, check_integer, check_number
from lfdm.config.video import SIDE_MULTIPLE, Size, SizeInput
from lfdm.data.tables import read_table, tidy
from lfdm.errors import UserError
from lfdm.folders.files import (
    check_holds_only,
    check_parents,
    expand_home,
    recover,
    replacing_folder,
    resuming_folder,
    write_bytes,
)
from lfdm.folders.lock import locked
from lfdm.folders.texts import is_printable

if TYPE_CHECKING:
    import numpy as np

CLIP_INDEX_NAME = "clips.csv"
CLIPS_DIR = "clips"
CACHE_DIR = ".cache"
MAX_FRAMES = 1000
MAX_CLIP_PIXELS = 50_000_000
"""Most frames x height x width of a rendered clip: 16 frames of 1024x1024 are allowed."""
MAX_SUBJECTS = 100_000
MAX_WORKERS = 1000
MAX_NAME = 1000
"""Most characters of a path, label or subject; texts as labels are sentences."""

NULL_LABEL = "None"
"""A clip with this label trains the null condition, as published; the model does not count it as a label."""

Split = Literal["train", "test"]


@dataclass(frozen=True, kw_only=True)
class ClipRecord:
    """One row of clips.csv, with label and subject in the form of `tidy`. Raises UserError for values that no clip can have."""

    path: str
    """Path relative to the data folder, with forward slashes."""
    label: str
    subject: str
    split: Split
    frames: int
    fps: float
    width: int
    height: int

    def __post_init__(self) -> None:
        for name in ("label", "subject"):  # two spellings of one name would be two labels, or one subject in both splits
            object.__setattr__(self, name, tidy(getattr(self, name)))
        parts = PurePosixPath(self.path).parts
        if not parts or parts[0][0] in "/~" or ".." in parts or "\0" in self.path:
            raise UserError(f"path must stay inside the data folder, got {self.path!r}")
        if not self.label or not self.subject:
            raise UserError(f"label and subject must not be empty, got {self.label!r} and {self.subject!r}")
        for name in ("path", "label", "subject"):
            text = getattr(self, name)
            if not is_printable(text) or len(text) > MAX_NAME:
                raise UserError(f"{name} must be one line of at most {MAX_NAME} characters, got {text[:MAX_NAME]!r}")
        if self.split not in ("train", "test"):
            raise UserError(f"split must be 'train' or 'test', got {self.split!r}")
        for name in ("frames", "width", "height"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise UserError(f"fps must be positive, got {self.fps}")

    @classmethod
    def describe(cls, shape: tuple[int, ...], *, path: str, label: str, subject: str, split: Split, fps: float) -> Self:
        """Return the record of a clip of `shape` (t, H, W, ...)."""
        frames, height, width = shape[:3]
        return cls(path=path, label=label, subject=subject, split=split, frames=frames, fps=fps, width=width, height=height)


_COLUMNS = tuple(field.name for field in fields(ClipRecord))


def _parse_float(text: str) -> float:
    """Parse a number with a decimal point or, from a spreadsheet in many European languages, a decimal comma."""
    return float(text.replace(",", "."))


_PARSERS: dict[str, Callable[[str], Any]] = {"frames": int, "width": int, "height": int, "fps": _parse_float, "split": str.lower}


def write_index(root: str | Path, records: Iterable[ClipRecord]) -> Path:
    """Write `root`/clips.csv in one step and return its path.

    Raises UserError for no records, a path listed twice, or a subject in both splits.
    """
    records = list(records)
    path = expand_home(root) / CLIP_INDEX_NAME
    _check_records(path, records)
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(record) for record in records)
    write_bytes(path, text.getvalue().encode())
    return path


def read_index(root: str | Path) -> list[ClipRecord]:
    """Read the clips of a data folder; clips.csv may have been saved by a spreadsheet (see `read_table`).

    Raises FileNotFoundError for a missing folder or table, and UserError naming file and line for a missing column, a value
    that no clip can have, a path that leaves the folder, a subject in both splits, or an empty table.
    """
    root = expand_home(root)
    path = root / CLIP_INDEX_NAME
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such data folder")
    if not path.is_file():
        raise FileNotFoundError(f"{root}: no {CLIP_INDEX_NAME} in it; make a data set with 'lfdm data'")
    records = [_parse_row(path, line, row) for line, row in read_table(path, _COLUMNS)]
    _check_records(path, records)
    return records


def read_clip(root: Path, record: ClipRecord, read: "Callable[[Path], np.ndarray]") -> "np.ndarray | UserError":
    """Return the frames that `read` finds in the file of a clip, or the reason why the clip cannot be used."""
    path = root / record.path
    try:
        frames = read(path)
    except FileNotFoundError:
        return UserError(f"{path}: the clip is missing")
    except (UserError, OSError) as error:
        return error if isinstance(error, UserError) else UserError(f"{path}: {error}")
    if len(frames) != record.frames:
        return UserError(f"{path}: holds {len(frames)} frames, {CLIP_INDEX_NAME} says {record.frames}")
    return frames


def link_clips(root: Path, folder: Path, records: Sequence[ClipRecord]) -> None:
    """Make a data set of some clips of the data set `root` at `folder`, by links to them."""
    for record in records:
        link = folder / record.path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to((root / record.path).resolve())
    write_index(folder, records)


@contextmanager
def new_data_set(out: str | Path, *, resume: str | None = None) -> Iterator[Path]:
    """Yield a temporary folder to write a data set into, which replaces `out` when the block ends without an error.

    With `resume`, a digest of all that decides the clips, an error leaves the folder, and the next call gets it again.
    Clips belong in its folder `clips`. Raises UserError if `out` exists and is anything but a complete data set,
    or if another process is making it.
    """
    out = expand_home(out).resolve()
    check_data_set_folder(out)
    if (out / CLIPS_DIR).exists() and not (out / CLIP_INDEX_NAME).exists():
        raise UserError(f"{out}: holds {CLIPS_DIR!r} without {CLIP_INDEX_NAME}, not a complete data set; choose another folder")
    with locked(out, inside=False):
        recover(out)
        with replacing_folder(out) if resume is None else resuming_folder(out, resume) as temporary:
            yield temporary


def check_data_set_folder(out: Path) -> None:
    """Raise UserError if `out` is a file or below one, or a folder that holds anything but parts of a data set."""
    check_parents(out)
    check_holds_only(out, (CLIP_INDEX_NAME, CLIPS_DIR, CACHE_DIR), "a data set made by these commands")


def refuse_data_set(root: Path) -> None:
    """Raise FileExistsError if `root` already holds a data set, for commands that do not replace one."""
    if (root / CLIP_INDEX_NAME).exists():
        raise FileExistsError(f"{root} already holds a clip data set; remove it or choose another folder")


def check_rendering(*, size: SizeInput, num_frames: int, min_side: int) -> Size:
    """Return the size of rendered clips; raise UserError for a size or length that they cannot have."""
    frame = Size.parse(size, low=min_side, multiple=SIDE_MULTIPLE)
    check_integer("num_frames", num_frames, 2, MAX_FRAMES)
    pixels, name = num_frames * frame.height * frame.width, "num_frames x height x width"
    check(pixels <= MAX_CLIP_PIXELS, name, pixels, f"at most {MAX_CLIP_PIXELS}")
    return frame


def check_split(*, seed: int, test_fraction: float, may_lack_training: bool = False) -> None:
    """Raise UserError for a split that is not allowed."""
    check_integer("seed", seed, 0, MAX_SEED)
    check_number("test_fraction", test_fraction, low=0, high=1)
    check(test_fraction < 1 or may_lack_training, "test_fraction", test_fraction, "less than 1: training needs subjects, too")


def check_workers(num_workers: int | None) -> None:
    """Raise UserError for a number of workers that is neither None nor allowed."""
    if num_workers is not None:
        check_integer("num_workers", num_workers, 0, MAX_WORKERS)


def num_test_subjects(num_subjects: int, test_fraction: float) -> int:
    """Return the size of the test split: with two or more subjects neither split is empty, except for a fraction of 0 or 1."""
    if test_fraction in (0, 1):
        return round(num_subjects * test_fraction)
    return min(max(round(num_subjects * test_fraction), 1), num_subjects - 1)


def labels(records: Iterable[ClipRecord]) -> list[str]:
    """Return the distinct labels, sorted."""
    return sorted({record.label for record in records})


def count_labels(records: Iterable[ClipRecord]) -> dict[str, int]:
    """Return the number of clips of each label, sorted by label."""
    return dict(sorted(Counter(record.label for record in records).items()))


def split_warnings(records: Sequence[ClipRecord]) -> list[str]:
    """Return a line for the labels that lack training clips, and one for those that lack test clips if there are any of these."""
    return label_warnings(*(labels(r for r in records if r.split == split) for split in ("train", "test")))


def label_warnings(train: Sequence[str], test: Sequence[str]) -> list[str]:
    """Return the lines of `split_warnings` for the labels of both splits."""
    warnings: list[str] = []
    if unknown := sorted(set(test) - set(train)):
        warnings.append(f"labels without training clips, which a model cannot learn: {', '.join(unknown)}")
    if test and (untested := sorted(set(train) - set(test))):
        warnings.append(f"labels without test clips, which 'lfdm evaluate' leaves out: {', '.join(untested)}")
    return warnings


def _parse_row(path: Path, line: int, row: dict[str, str | None]) -> ClipRecord:
    values: dict[str, Any] = {}
    for name in _COLUMNS:
        parse, text = _PARSERS.get(name, str), row[name]
        if text is None:
            raise UserError(f"{path}, line {line}: no value for {name}")
        try:
            values[name] = parse(text)
        except ValueError:
            kind = "a number" if parse is _parse_float else "a whole number"
            raise UserError(f"{path}, line {line}: {name} must be {kind}, got {text!r}") from None
    try:
        return ClipRecord(**values)
    except UserError as error:
        raise UserError(f"{path}, line {line}: {error}") from None


def _check_records(path: Path, records: Sequence[ClipRecord]) -> None:
    if not records:
        raise UserError(f"{path}: no clips in it")
    seen: set[str] = set()
    splits: dict[str, str] = {}
    for record in records:
        place = str(PurePosixPath(record.path))  # ./a.avi is a.avi
        if place in seen:
            raise UserError(f"{path}: the clip {record.path!r} is listed twice")
        seen.add(place)
        if splits.setdefault(record.subject, record.split) != record.split:
            raise UserError(f"{path}: subject {record.subject!r} is in both splits; splits are by subject")
