"""The clip data set: one table of clips, a cache of decoded frames, and data sets for training.

Shapes: a clip is (t, S, S, 3) uint8 in numpy; items for torch are uint8 tensors (3, S, S) or (3, t, S, S).
"""

import csv
import hashlib
import io
import json
import math
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from lfdm.config import Fit
from lfdm.data.augmentation import ColorJitter, PairAugmentation, augment_pair, check_probability, names_a_side
from lfdm.data.video import Sampling, read_fitted, sample_indices, temporary_beside, write_bytes

INDEX_NAME = "clips.csv"
_DATA_SET_ENTRIES = {INDEX_NAME, "clips", ".cache"}

Split = Literal["train", "test"]

# ----------------------------------------------------------------------------------------------------------- index


@dataclass(frozen=True, kw_only=True)
class ClipRecord:
    """One row of clips.csv. Raises ValueError for values that no clip can have."""

    path: str
    """Relative to the data folder, with forward slashes."""
    label: str
    subject: str
    split: Split
    frames: int
    fps: float
    width: int
    height: int

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.path).parts
        if not parts or parts[0] == "/" or ".." in parts:
            raise ValueError(f"path must stay inside the data folder, got {self.path!r}")
        if not self.label.strip() or not self.subject.strip():
            raise ValueError(f"label and subject must not be empty, got {self.label!r} and {self.subject!r}")
        if self.split not in ("train", "test"):
            raise ValueError(f"split must be 'train' or 'test', got {self.split!r}")
        for name in ("frames", "width", "height"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise ValueError(f"fps must be positive, got {self.fps}")


_COLUMNS = tuple(field.name for field in fields(ClipRecord))
_PARSERS: dict[str, Callable[[str], Any]] = {"frames": int, "width": int, "height": int, "fps": float}


def write_index(root: str | Path, records: Iterable[ClipRecord]) -> Path:
    """Write `root`/clips.csv in one step and return its path.

    Raises ValueError for no records, a path listed twice, or a subject in both splits.
    """
    records = list(records)
    path = Path(root) / INDEX_NAME
    _check_records(path, records)
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(record) for record in records)
    write_bytes(path, text.getvalue().encode())
    return path


def read_index(root: str | Path) -> list[ClipRecord]:
    """The clips of a data folder, as its clips.csv lists them.

    Raises FileNotFoundError for a missing folder or table, and ValueError (file, line, what is wrong) for a missing
    column, a value that no clip can have, a path that leaves the folder, a subject in both splits, or an empty table.
    """
    root = Path(root)
    path = root / INDEX_NAME
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such data folder")
    if not path.is_file():
        raise FileNotFoundError(f"{root}: no {INDEX_NAME} in it; make a data set with 'lfdm data'")
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig")))
        missing = [name for name in _COLUMNS if name not in (reader.fieldnames or [])]
        if missing:
            raise ValueError(f"{path}: missing column {', '.join(missing)}; it needs {','.join(_COLUMNS)}")
        records = [_parse_row(path, reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a table of comma-separated values ({error})") from error
    _check_records(path, records)
    return records


@contextmanager
def new_data_set(out: str | Path) -> Iterator[Path]:
    """A temporary folder beside `out` to write a data set into; renamed to `out` when the block ends without an error.

    Clips belong under `clips/`. An earlier data set of that layout is replaced. Raises ValueError if `out` is a file or
    holds anything else.
    """
    out = Path(out).resolve()
    check_data_set_folder(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(out)
    temporary.mkdir()
    try:
        yield temporary
        if out.exists():
            shutil.rmtree(out)
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def check_data_set_folder(out: Path) -> None:
    """Raise ValueError if `out` is a file, or a folder that holds anything else than a data set of this layout does."""
    if out.exists() and not (out.is_dir() and {entry.name for entry in out.iterdir()} <= _DATA_SET_ENTRIES):
        raise ValueError(f"{out}: exists and is not a data set made by these commands; choose another folder")


def labels(records: Iterable[ClipRecord]) -> list[str]:
    """The different labels, sorted."""
    return sorted({record.label for record in records})


def _parse_row(path: Path, line: int, row: dict[str, str | None]) -> ClipRecord:
    values: dict[str, Any] = {}
    for name in _COLUMNS:
        text = row[name]
        if text is None:
            raise ValueError(f"{path}, line {line}: no value for {name}")
        try:
            values[name] = _PARSERS.get(name, str)(text)
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {name} must be a number, got {text!r}") from error
    try:
        return ClipRecord(**values)
    except ValueError as error:
        raise ValueError(f"{path}, line {line}: {error}") from error


def _check_records(path: Path, records: Sequence[ClipRecord]) -> None:
    if not records:
        raise ValueError(f"{path}: no clips in it")
    seen: set[str] = set()
    splits: dict[str, str] = {}
    for record in records:
        if record.path in seen:
            raise ValueError(f"{path}: the clip {record.path!r} is listed twice")
        seen.add(record.path)
        if splits.setdefault(record.subject, record.split) != record.split:
            raise ValueError(f"{path}: subject {record.subject!r} is in both splits; splits are by subject")


# ----------------------------------------------------------------------------------------------------------- cache

_FRAMES_NAME = "frames.u8"
_OFFSETS_NAME = "offsets.json"
_CACHE_VERSION = 1

Progress = Callable[[int, int], None]
"""Called with (clips done, clips in all)."""


class ClipCache:
    """Every frame of a list of clips, fitted to one square size, in one memory-mapped file. See `open_cache`."""

    def __init__(self, folder: Path, records: Sequence[ClipRecord], size: int) -> None:
        self.folder = folder
        self.records = list(records)
        self.size = size
        self.offsets: list[int] = json.loads((folder / _OFFSETS_NAME).read_text())
        self._frames = self._map()

    def _map(self) -> np.ndarray:
        shape = (self.offsets[-1], self.size, self.size, 3)
        return np.memmap(self.folder / _FRAMES_NAME, np.uint8, "r", shape=shape)

    def __len__(self) -> int:
        return len(self.records)

    def num_frames(self, index: int) -> int:
        """Length of clip `index`."""
        return self.offsets[index + 1] - self.offsets[index]

    def clip(self, index: int) -> np.ndarray:
        """Clip `index`: a read-only view (t, S, S, 3) uint8 of the file."""
        if not 0 <= index < len(self.records):
            raise IndexError(f"clip index must lie in 0..{len(self.records) - 1}, got {index}")
        return self._frames[self.offsets[index] : self.offsets[index + 1]]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_frames": None}  # a worker process maps the file itself instead of being sent it

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._frames = self._map()


def open_cache(
    root: str | Path,
    records: Sequence[ClipRecord],
    size: int,
    fit: Fit,
    cache_dir: str | Path | None = None,
    *,
    num_workers: int | None = None,
    progress: Progress | None = None,
) -> ClipCache:
    """The decoded frames of `records`, fitted to `size` by `fit` (see `fit_frames`), built on the first call.

    The cache lies in `cache_dir` (otherwise in the data folder, `.cache`) under a name made of the records, the clips'
    file sizes and times, `size` and `fit`: whatever changes makes a new one. It is built under a temporary name, so a
    stopped run leaves nothing that could be taken for a cache, and two processes may build it at once.

    Raises ValueError naming the clip for one that is missing, broken or not as long as the records say, and OSError
    where the disk refuses.
    """
    root = Path(root)
    if not records:
        raise ValueError(f"{root}: no clips to cache")
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    if fit not in ("pad", "crop"):
        raise ValueError(f"fit must be 'pad' or 'crop', got {fit!r}")
    parent = root / ".cache" if cache_dir is None else Path(cache_dir)
    folder = parent / f"{size}-{fit}-{_content_key(root, records, size, fit)}"
    if not folder.is_dir():
        parent.mkdir(parents=True, exist_ok=True)
        _build_cache(root, records, size, fit, folder, num_workers or os.cpu_count() or 1, progress)
    return ClipCache(folder, records, size)


def _content_key(root: Path, records: Sequence[ClipRecord], size: int, fit: Fit) -> str:
    digest = hashlib.sha256(json.dumps([_CACHE_VERSION, size, fit]).encode())
    for record in records:
        try:
            stat = (root / record.path).stat()
        except OSError as error:
            raise ValueError(f"{root / record.path}: the clip is missing ({error.strerror})") from error
        digest.update(json.dumps([record.path, record.frames, stat.st_size, stat.st_mtime_ns]).encode())
    return digest.hexdigest()[:16]


def _build_cache(
    root: Path,
    records: Sequence[ClipRecord],
    size: int,
    fit: Fit,
    folder: Path,
    num_workers: int,
    progress: Progress | None,
) -> None:
    temporary = temporary_beside(folder)
    temporary.mkdir()
    try:
        with (temporary / _FRAMES_NAME).open("wb") as file:
            for done, frames in enumerate(_decoded(root, records, size, fit, num_workers), start=1):
                file.write(np.ascontiguousarray(frames).data)
                if progress is not None:
                    progress(done, len(records))
        offsets = np.cumsum([0, *(record.frames for record in records)]).tolist()
        (temporary / _OFFSETS_NAME).write_text(json.dumps(offsets))
        rename_unless_there(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def rename_unless_there(temporary: Path, folder: Path) -> None:
    """Give a finished folder its name, unless another process made the same one meanwhile."""
    try:
        temporary.rename(folder)
    except OSError:
        if not folder.is_dir():  # otherwise another process was quicker, with the same content
            raise


def _decoded(root: Path, records: Sequence[ClipRecord], size: int, fit: Fit, num_workers: int) -> Iterator[np.ndarray]:
    """The clips in order, a few decoded ahead by threads (PyAV lets go of the interpreter's lock)."""
    remaining = iter(records)
    with ThreadPoolExecutor(num_workers) as pool:
        waiting: deque[Future[np.ndarray]] = deque()
        try:
            while True:
                while len(waiting) < 2 * num_workers and (record := next(remaining, None)) is not None:
                    waiting.append(pool.submit(_decode_clip, root, record, size, fit))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _decode_clip(root: Path, record: ClipRecord, size: int, fit: Fit) -> np.ndarray:
    path = root / record.path
    try:
        frames = read_fitted(path, size, fit)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: the clip is missing") from error
    if len(frames) != record.frames:
        raise ValueError(f"{path}: holds {len(frames)} frames, {INDEX_NAME} says {record.frames}")
    return frames


# ------------------------------------------------------------------------------------------------------- data sets


class ClipDataset(Dataset[dict[str, Any]]):
    """Clips of a fixed number of frames, requested by (position, index) so that training can be resumed exactly.

    `position` counts the samples drawn since training began, `index` names the clip; every random number is a pure
    function of (seed, position). Items: `video` (3, num_frames, S, S) uint8, `index` int.
    """

    def __init__(
        self,
        cache: ClipCache,
        *,
        num_frames: int,
        sampling: Sampling = "uniform",
        jitter: ColorJitter | None = None,
        flip_probability: float = 0.0,
        seed: int = 0,
    ) -> None:
        check_probability("flip_probability", flip_probability)
        self.cache = cache
        self.num_frames = num_frames
        self.sampling: Sampling = sampling
        self.jitter = jitter
        self.flip_probability = flip_probability
        self.seed = seed
        self._may_flip = [not names_a_side(record.label) for record in cache.records]

    def __len__(self) -> int:
        return len(self.cache)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        position, index = key
        rng = np.random.default_rng((self.seed, position))
        clip = self.cache.clip(index)
        frames = np.asarray(clip[sample_indices(self.sampling, len(clip), self.num_frames, rng)])
        if rng.random() < self.flip_probability and self._may_flip[index]:
            frames = frames[:, :, ::-1]
        if self.jitter is not None:
            frames = self.jitter.apply(frames, rng)
        return {"video": torch.from_numpy(np.ascontiguousarray(frames.transpose(3, 0, 1, 2))), "index": index}


class PairDataset(Dataset[dict[str, torch.Tensor]]):
    """Stage 1's pairs: two frames of one clip, drawn with replacement, in time order, then augmented. Labels play no part.

    Requested by (position, index) as `ClipDataset`. Items: `source` and `driving`, (3, S, S) uint8.
    """

    def __init__(
        self,
        cache: ClipCache,
        augment: PairAugmentation | None = None,
        *,
        seed: int = 0,
        distinct: bool = False,
        first_frame_probability: float = 0.0,
        by_subject: bool = False,
    ) -> None:
        """`distinct` draws two different frames (where a clip has two); `augment` None leaves pairs as they are.

        `first_frame_probability` is how often the source is the clip's frame 0, as it always is in sampling; such
        a pair is not swapped. `by_subject` draws the clip itself from all clips of the requested one's subject.
        """
        check_probability("first_frame_probability", first_frame_probability)
        self.cache = cache
        self.augment = augment
        self.seed = seed
        self.distinct = distinct
        self.first_frame_probability = first_frame_probability
        subjects: dict[str, list[int]] = {}
        for index, record in enumerate(cache.records):
            subjects.setdefault(record.subject, []).append(index)
        self._clips_of_subject = [subjects[record.subject] for record in cache.records] if by_subject else None

    def __len__(self) -> int:
        return len(self.cache)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        position, index = key
        rng = np.random.default_rng((self.seed, position))
        if self._clips_of_subject is not None:
            index = int(rng.choice(self._clips_of_subject[index]))
        clip = self.cache.clip(index)
        first, second, keeps_order = self._draw(len(clip), rng)
        pair = np.stack([clip[first], clip[second]])
        if self.augment is not None:
            pair = augment_pair(pair, self.augment, rng, may_swap=not keeps_order)
        planes = torch.from_numpy(np.ascontiguousarray(pair.transpose(0, 3, 1, 2)))
        return {"source": planes[0], "driving": planes[1]}

    def _draw(self, n: int, rng: np.random.Generator) -> tuple[int, int, bool]:
        """Two frame indices in time order, and whether the first is to stay the source."""
        starts_at_first = rng.random() < self.first_frame_probability
        distinct = self.distinct and n > 1
        first = 0 if starts_at_first else int(rng.integers(n))
        second = int(rng.integers(n - 1 if distinct else n))
        if distinct and second >= first:
            second += 1
        return min(first, second), max(first, second), starts_at_first
