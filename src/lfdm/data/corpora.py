"""Any folder of labelled clips -> a clip data set."""

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np

from lfdm.config import Fit
from lfdm.data.cache import Progress
from lfdm.data.images import IMAGE_SUFFIXES
from lfdm.data.index import ClipRecord, check_data_settings, new_data_set, write_index
from lfdm.data.video import (
    VIDEO_SUFFIXES,
    VideoInfo,
    natural_key,
    read_fitted,
    video_info,
    write_video,
)
from lfdm.settings import check, check_integer

MAX_STORED_FRAMES = 1_000_000
MAX_NAME_BYTES = 250
"""File systems allow 255, and `.avi` is added."""


@dataclass(frozen=True, kw_only=True)
class SkippedFile:
    """Something in the tree that did not become a clip."""

    path: str
    """Relative to the tree."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class FolderReport:
    """What `write_folder` made of a tree."""

    root: Path
    """The clip data set."""
    num_train: int
    num_test: int
    clips_per_label: dict[str, int]
    num_subjects: int
    skipped: tuple[SkippedFile, ...]


@dataclass(frozen=True, kw_only=True)
class _Found:
    path: Path
    label: str
    subject: str


def write_folder(
    source: str | Path,
    out: str | Path,
    *,
    size: int,
    fit: Fit = "pad",
    test_fraction: float = 0.2,
    seed: int = 0,
    max_frames: int | None = None,
    num_workers: int | None = None,
    progress: Progress | None = None,
) -> FolderReport:
    """Write the clip data set `out` from a tree `<label>/<subject>/<clip>` or `<label>/<clip>`, and report on it.

    A clip is a video file or a folder of images; without a subject folder it is its own subject. Frames are fitted to
    `size` (see `fit_frames`) and stored without loss at the clip's own rate; `max_frames` keeps the first so many.
    About `test_fraction` of the subjects, drawn by `seed` evenly from all labels, are the test split. Files that are no
    clips, broken clips and single images are skipped and reported. `out` appears when it is whole.

    Raises FileNotFoundError for a missing tree, and ValueError for impossible settings, a tree without any usable clip,
    and an `out` that holds other things or overlaps the tree.
    """
    source, out = Path(source), Path(out)
    _check_places(source, out)
    check_data_settings(size=size, num_frames=None, seed=seed, test_fraction=test_fraction, num_workers=num_workers, least_size=2)
    check(test_fraction < 1, "test_fraction", test_fraction, "less than 1: somebody must be left to train on")
    check(fit in get_args(Fit), "fit", fit, "'pad' or 'crop'")
    if max_frames is not None:
        check_integer("max_frames", max_frames, 2, MAX_STORED_FRAMES)
    found, skipped = _scan(source)
    records: list[ClipRecord] = []
    with new_data_set(out) as folder, ThreadPoolExecutor(num_workers or os.cpu_count() or 1) as pool:
        convert = partial(_convert, source, folder, size, fit, max_frames)
        try:
            for done, result in enumerate(pool.map(convert, found), start=1):
                if isinstance(result, ClipRecord):
                    records.append(result)
                else:
                    skipped.append(result)
                if progress is not None:
                    progress(done, len(found))
        finally:
            pool.shutdown(cancel_futures=True)
        if not records:
            raise ValueError(f"{source}: {_nothing_usable(skipped)}")
        records = _split(records, test_fraction, seed)
        write_index(folder, records)
    splits = Counter(record.split for record in records)
    return FolderReport(
        root=out,
        num_train=splits["train"],
        num_test=splits["test"],
        clips_per_label=dict(sorted(Counter(record.label for record in records).items())),
        num_subjects=len({record.subject for record in records}),
        skipped=tuple(skipped),
    )


def _check_places(source: Path, out: Path) -> None:
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: no such folder of clips")
    tree, target = source.resolve(), out.resolve()
    if tree == target or tree in target.parents or target in tree.parents:
        raise ValueError(f"{out}: the data set must not lie in the tree of clips {source}, nor around it")


def _nothing_usable(skipped: list[SkippedFile]) -> str:
    expected = "expected <label>/<subject>/<clip> or <label>/<clip>"
    if not skipped:
        return f"holds nothing; {expected}"
    return f"no usable clip; of {len(skipped)} skipped the first is {skipped[0].path} ({skipped[0].reason}); {expected}"


# -------------------------------------------------------------------------------------------------------- the tree


def _scan(source: Path) -> tuple[list[_Found], list[SkippedFile]]:
    """All clips of the tree in natural order, and what else lies in it (hidden files left out)."""
    found: list[_Found] = []
    skipped: list[SkippedFile] = []
    for label in _list(source, source, skipped):
        if not label.is_dir() or not label.name.strip():
            skipped.append(_skip(source, label, "not a label's folder"))
            continue
        for entry in _list(source, label, skipped):
            if _is_clip(entry):
                found.append(_Found(path=entry, label=label.name, subject=entry.relative_to(source).as_posix()))
            elif entry.is_dir():
                found += _clips_of_subject(source, label.name, entry, skipped)
            else:
                skipped.append(_skip(source, entry, _why_no_clip(entry)))
    return found, skipped


def _clips_of_subject(source: Path, label: str, subject: Path, skipped: list[SkippedFile]) -> Iterator[_Found]:
    for entry in _list(source, subject, skipped):
        if _is_clip(entry):
            yield _Found(path=entry, label=label, subject=subject.name)
        else:
            skipped.append(_skip(source, entry, _why_no_clip(entry)))


def _list(source: Path, folder: Path, skipped: list[SkippedFile]) -> list[Path]:
    """What lies in a folder; one that is empty or cannot be read is skipped."""
    try:
        entries = _entries(folder)
    except OSError as error:
        skipped.append(_skip(source, folder, f"a folder that cannot be read ({error.strerror})"))
        return []
    if not entries and folder != source:
        skipped.append(_skip(source, folder, "an empty folder"))
    return entries


def _entries(folder: Path) -> list[Path]:
    return sorted((entry for entry in folder.iterdir() if not entry.name.startswith(".")), key=natural_key)


def _is_clip(path: Path) -> bool:
    """A video file, or a folder with images and neither videos nor folders in it (that would be a subject)."""
    if not path.is_dir():
        return path.suffix.lower() in VIDEO_SUFFIXES
    try:
        entries = _entries(path)
    except OSError:
        return False
    is_subject = any(entry.is_dir() or entry.suffix.lower() in VIDEO_SUFFIXES for entry in entries)
    return not is_subject and any(entry.suffix.lower() in IMAGE_SUFFIXES for entry in entries)


def _why_no_clip(path: Path) -> str:
    if path.is_dir():
        return "a folder without frames; expected <label>/<subject>/<clip> or <label>/<clip>"
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return "a single image; a clip of frames is a folder of them"
    return f"not a clip; known endings are {' '.join(sorted(VIDEO_SUFFIXES))}"


def _skip(source: Path, path: Path, reason: str) -> SkippedFile:
    name = "".join(f"\\x{ord(c):x}" if _is_control(c) else c for c in path.relative_to(source).as_posix())
    return SkippedFile(path=name, reason=reason)


def _is_control(character: str) -> bool:
    """Whether it cannot be printed in one line: a control character, or part of a name that is not UTF-8."""
    return unicodedata.category(character) in ("Cc", "Cs")


# ------------------------------------------------------------------------------------------------------- the clips


def _convert(source: Path, folder: Path, size: int, fit: Fit, max_frames: int | None, clip: _Found) -> ClipRecord | SkippedFile:
    try:
        _check_name(clip.path.relative_to(source))
        info, frames = _read(clip.path, size, fit, max_frames)
    except (ValueError, OSError, MemoryError) as error:
        reason = str(error).removeprefix(f"{clip.path}: ") or type(error).__name__
        return _skip(source, clip.path, reason.splitlines()[0])
    name = f"clips/{clip.path.relative_to(source).as_posix()}.avi"
    write_video(folder / name, frames, fps=info.fps)  # what fails here is not the clip's fault and ends the run
    return ClipRecord(
        path=name,
        label=clip.label,
        subject=clip.subject,
        split="train",
        frames=len(frames),
        fps=info.fps,
        width=size,
        height=size,
    )


def _check_name(path: Path) -> None:
    """ValueError for a name that the table cannot hold, or that is too long with an ending added."""
    if any(map(_is_control, str(path))):
        raise ValueError("a name with control characters, or that is not UTF-8")
    if len(path.name.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"a name of over {MAX_NAME_BYTES} bytes")


def _read(path: Path, size: int, fit: Fit, max_frames: int | None) -> tuple[VideoInfo, np.ndarray]:
    info = video_info(path)
    if not 0.1 <= info.fps <= 1000:
        raise ValueError(f"an impossible rate of {info.fps:g} frames per second")
    frames = read_fitted(path, size, fit, max_frames=max_frames)
    if len(frames) < 2:
        raise ValueError("a single frame; motion needs two")
    return info, frames


def _split(records: list[ClipRecord], test_fraction: float, seed: int) -> list[ClipRecord]:
    """Give about `test_fraction` of the subjects to the test split, evenly from all groups with the same labels."""
    labels_of: dict[str, set[str]] = defaultdict(set)
    for record in records:
        labels_of[record.subject].add(record.label)
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for subject in sorted(labels_of):
        groups[tuple(sorted(labels_of[subject]))].append(subject)
    rng = np.random.default_rng(seed)
    ranked: list[tuple[float, str]] = []
    for _, subjects in sorted(groups.items()):
        shuffled = [subjects[i] for i in rng.permutation(len(subjects))]
        ranked += [((rank + 0.5) / len(shuffled), subject) for rank, subject in enumerate(shuffled)]
    num_test = round(test_fraction * len(ranked))
    if test_fraction > 0 and len(ranked) > 1:
        num_test = min(max(num_test, 1), len(ranked) - 1)
    test = {subject for _, subject in sorted(ranked)[:num_test]}
    return [replace(record, split="test") if record.subject in test else record for record in records]
