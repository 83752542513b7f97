"""Any folder of labelled clips -> a clip data set."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from lfdm.config import Fit
from lfdm.data.clips import ClipRecord, Progress, new_data_set, write_index
from lfdm.data.video import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    VideoInfo,
    natural_key,
    read_fitted,
    video_info,
    write_video,
)


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
    _check_settings(source, out, size, fit, test_fraction, max_frames)
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


def _check_settings(source: Path, out: Path, size: int, fit: str, test_fraction: float, max_frames: int | None) -> None:
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: no such folder of clips")
    tree, target = source.resolve(), out.resolve()
    if tree == target or tree in target.parents or target in tree.parents:
        raise ValueError(f"{out}: the data set must not lie in the tree of clips {source}, nor around it")
    if size < 2:
        raise ValueError(f"size must be at least 2, got {size}")
    if fit not in ("pad", "crop"):
        raise ValueError(f"fit must be 'pad' or 'crop', got {fit!r}")
    if not 0 <= test_fraction < 1:
        raise ValueError(f"test_fraction must lie in 0..1 (1 excluded), got {test_fraction}")
    if max_frames is not None and max_frames < 2:
        raise ValueError(f"max_frames must be at least 2, got {max_frames}")


def _nothing_usable(skipped: list[SkippedFile]) -> str:
    if not skipped:
        return "holds nothing; expected <label>/<subject>/<clip> or <label>/<clip>"
    return f"no usable clip; of {len(skipped)} skipped the first is {skipped[0].path} ({skipped[0].reason})"


# -------------------------------------------------------------------------------------------------------- the tree


def _scan(source: Path) -> tuple[list[_Found], list[SkippedFile]]:
    """All clips of the tree in natural order, and what else lies in it (hidden files left out)."""
    found: list[_Found] = []
    skipped: list[SkippedFile] = []
    for label in _entries(source):
        if not label.is_dir() or not label.name.strip():
            skipped.append(_skip(source, label, "not a label's folder"))
            continue
        for entry in _entries(label):
            if _is_clip(entry):
                found.append(_Found(path=entry, label=label.name, subject=entry.relative_to(source).as_posix()))
            elif entry.is_dir():
                found += _clips_of_subject(source, label.name, entry, skipped)
            else:
                skipped.append(_skip(source, entry, _why_no_clip(entry)))
    return found, skipped


def _clips_of_subject(source: Path, label: str, subject: Path, skipped: list[SkippedFile]) -> Iterator[_Found]:
    entries = _entries(subject)
    if not entries:
        skipped.append(_skip(source, subject, "an empty folder"))
    for entry in entries:
        if _is_clip(entry):
            yield _Found(path=entry, label=label, subject=subject.name)
        else:
            skipped.append(_skip(source, entry, _why_no_clip(entry)))


def _entries(folder: Path) -> list[Path]:
    return sorted((entry for entry in folder.iterdir() if not entry.name.startswith(".")), key=natural_key)


def _is_clip(path: Path) -> bool:
    """A video file, or a folder with images and neither videos nor folders in it (that would be a subject)."""
    if not path.is_dir():
        return path.suffix.lower() in VIDEO_SUFFIXES
    entries = _entries(path)
    is_subject = any(entry.is_dir() or entry.suffix.lower() in VIDEO_SUFFIXES for entry in entries)
    return not is_subject and any(entry.suffix.lower() in IMAGE_SUFFIXES for entry in entries)


def _why_no_clip(path: Path) -> str:
    if path.is_dir():
        return "a folder without frames; expected <label>/<subject>/<clip> or <label>/<clip>"
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return "a single image; a clip of frames is a folder of them"
    return f"not a clip; known endings are {' '.join(sorted(VIDEO_SUFFIXES))}"


def _skip(source: Path, path: Path, reason: str) -> SkippedFile:
    return SkippedFile(path=path.relative_to(source).as_posix(), reason=reason)


# ------------------------------------------------------------------------------------------------------- the clips


def _convert(source: Path, folder: Path, size: int, fit: Fit, max_frames: int | None, clip: _Found) -> ClipRecord | SkippedFile:
    try:
        info, frames = _read(clip.path, size, fit, max_frames)
    except (ValueError, OSError) as error:
        return _skip(source, clip.path, str(error).removeprefix(f"{clip.path}: ").splitlines()[0])
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


def _read(path: Path, size: int, fit: Fit, max_frames: int | None) -> tuple[VideoInfo, np.ndarray]:
    str(path).encode()  # a name that is not UTF-8 could not be listed
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
