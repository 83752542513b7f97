"""Recordings (video files and folders of images) -> the lossless clips of a clip data set, in parallel.

What all converters of other people's files share. A recording that cannot be read is skipped and reported.
"""

import os
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from lfdm.config.checks import check, check_integer
from lfdm.config.video import Fit
from lfdm.data.index import MAX_SIZE, ClipRecord, Split
from lfdm.data.progress import Progress
from lfdm.data.video import Crop, VideoInfo, natural_key, read_fitted, video_info, write_video
from lfdm.errors import UserError

MAX_STORED_FRAMES = 1_000_000
MAX_NAME_BYTES = 250
"""File systems allow 255, and `.avi` is added."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One clip to be made of a recording."""

    path: str
    """Where the clip goes, relative to the data set."""
    label: str
    subject: str
    split: Split = "train"
    name: str = ""
    """Tells it from the recording's other takes in messages."""
    frames: range | None = None
    """Which frames of the recording; None for all."""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A video file or folder of images, and the clips to be made of it: one of all frames, or some of given frames."""

    path: Path
    takes: tuple[Segment, ...]


@dataclass(frozen=True, kw_only=True)
class ClipFormat:
    """What frames become. Raises UserError for impossible values."""

    size: int
    """Frames are size x size; see `fit_frames`."""
    fit: Fit = "pad"
    crop: Crop | None = None
    """Cut out before fitting."""
    max_frames: int | None = None
    """Keep the first so many of a whole recording."""

    def __post_init__(self) -> None:
        check_integer("size", self.size, 2, MAX_SIZE)
        check(self.fit in get_args(Fit), "fit", self.fit, "'pad' or 'crop'")
        if self.max_frames is not None:
            check_integer("max_frames", self.max_frames, 2, MAX_STORED_FRAMES)


@dataclass(frozen=True, kw_only=True)
class SkippedFile:
    """Something in the tree that did not become a clip."""

    path: str
    """Relative to the tree."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class FolderReport:
    """What became of a tree of recordings."""

    root: Path
    """The clip data set."""
    num_train: int
    num_test: int
    clips_per_label: dict[str, int]
    num_subjects: int
    skipped: tuple[SkippedFile, ...]


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """The clips made, in the order of the recordings and their takes."""

    records: tuple[ClipRecord, ...] = ()
    skipped: tuple[SkippedFile, ...] = ()
    num_kept: int = 0
    """How many clips were there already."""


def convert(
    source: Path,
    folder: Path,
    recordings: Sequence[Recording],
    form: ClipFormat,
    *,
    keep_finished: bool = False,
    num_workers: int | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Write the takes of all `recordings` (of the tree `source`) into the data set `folder`, at their own frame rate.

    `keep_finished` leaves a clip that is there already as it is, provided it has the size and number of frames that it
    would get. Clips appear whole or not at all, so what a stopped run leaves is finished.

    Raises OSError where the disk refuses: that is no fault of the recording.
    """
    converter = _Converter(source=source, folder=folder, form=form, keep_finished=keep_finished)
    parts: list[Conversion] = []
    done, total = 0, sum(len(recording.takes) for recording in recordings)
    with ThreadPoolExecutor(num_workers or os.cpu_count() or 1) as pool:
        try:
            for recording, part in zip(recordings, pool.map(converter.convert, recordings), strict=True):
                parts.append(part)
                done += len(recording.takes)
                if progress is not None:
                    progress("converting recordings", done, total)
        finally:
            pool.shutdown(cancel_futures=True)
    return Conversion(
        records=tuple(record for part in parts for record in part.records),
        skipped=tuple(skipped for part in parts for skipped in part.skipped),
        num_kept=sum(part.num_kept for part in parts),
    )


def summarize(root: Path, records: Sequence[ClipRecord], skipped: Iterable[SkippedFile]) -> FolderReport:
    """The report on the data set `root` of these clips."""
    splits = Counter(record.split for record in records)
    return FolderReport(
        root=root,
        num_train=splits["train"],
        num_test=splits["test"],
        clips_per_label=dict(sorted(Counter(record.label for record in records).items())),
        num_subjects=len({record.subject for record in records}),
        skipped=tuple(skipped),
    )


def check_trees(source: Path, out: Path) -> None:
    """Raise FileNotFoundError for a missing `source`, UserError where one of the two lies in the other."""
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: no such folder of clips")
    tree, target = source.resolve(), out.resolve()
    if tree == target or tree in target.parents or target in tree.parents:
        raise UserError(f"{out}: the data set must not lie in the tree of clips {source}, nor around it")


def entries(folder: Path) -> list[Path]:
    """What lies in a folder, in natural order, hidden files left out. Raises OSError where it cannot be read."""
    return sorted((entry for entry in folder.iterdir() if not entry.name.startswith(".")), key=natural_key)


def entries_or_skip(source: Path, folder: Path, skipped: list[SkippedFile]) -> list[Path]:
    """`entries`; a folder of the tree `source` that is empty or cannot be read is added to `skipped`."""
    try:
        inside = entries(folder)
    except OSError as error:
        skipped.append(skip(source, folder, f"a folder that cannot be read ({error.strerror})"))
        return []
    if not inside and folder != source:
        skipped.append(skip(source, folder, "an empty folder"))
    return inside


def skip(source: Path, path: Path, reason: str) -> SkippedFile:
    """The report that `path` in the tree `source` is skipped, on one line whatever its name."""
    name = "".join(f"\\x{ord(c):x}" if _is_control(c) else c for c in path.relative_to(source).as_posix())
    return SkippedFile(path=name, reason=reason)


def _is_control(character: str) -> bool:
    """Whether it cannot be printed in one line: a control character, or part of a name that is not UTF-8."""
    return unicodedata.category(character) in ("Cc", "Cs")


def _check_name(path: Path) -> None:
    """UserError for a name that the table cannot hold, or that is too long with an ending added."""
    if any(map(_is_control, str(path))):
        raise UserError("a name with control characters, or that is not UTF-8")
    if len(path.name.encode()) > MAX_NAME_BYTES:
        raise UserError(f"a name of over {MAX_NAME_BYTES} bytes")


@dataclass(frozen=True, kw_only=True)
class _Converter:
    source: Path
    folder: Path
    form: ClipFormat
    keep_finished: bool

    def convert(self, recording: Recording) -> Conversion:
        skipped: list[SkippedFile] = []
        try:
            _check_name(recording.path.relative_to(self.source))
            info = _usable_info(recording.path)
            lengths = {take.path: self._expected_length(take, info) for take in recording.takes if self._is_finished(take, info)}
            takes = [take for take in recording.takes if take.path not in lengths]
            pieces = self._read(recording.path, takes, info) if takes else []
        except (ValueError, OSError, MemoryError) as error:
            reason = str(error).removeprefix(f"{recording.path}: ") or type(error).__name__
            return Conversion(skipped=(skip(self.source, recording.path, reason.splitlines()[0]),))
        num_kept = len(lengths)
        for take, frames in zip(takes, pieces, strict=True):
            if (fault := _fault(take, frames, info)) is not None:
                skipped.append(skip(self.source, recording.path, fault))
                continue
            write_video(self.folder / take.path, frames, fps=info.fps)  # what fails here ends the run
            lengths[take.path] = len(frames)
        records = [self._record(take, lengths[take.path], info) for take in recording.takes if take.path in lengths]
        return Conversion(records=tuple(records), skipped=tuple(skipped), num_kept=num_kept)

    def _is_finished(self, take: Segment, info: VideoInfo) -> bool:
        if not self.keep_finished:
            return False
        try:
            clip = video_info(self.folder / take.path)
        except (ValueError, OSError):
            return False
        size = self.form.size
        return (clip.frames, clip.width, clip.height) == (self._expected_length(take, info), size, size)

    def _expected_length(self, take: Segment, info: VideoInfo) -> int:
        if take.frames is not None:
            return len(take.frames)
        return min(info.frames, self.form.max_frames or info.frames)

    def _read(self, path: Path, takes: Sequence[Segment], info: VideoInfo) -> list[np.ndarray]:
        """The frames of each take, decoded in one pass; fewer where the recording ends before the take does."""
        form = self.form
        spans = [take.frames for take in takes if take.frames is not None]
        only = sorted({index for span in spans for index in span}) if spans else None
        if only and only[0] >= info.frames:
            return [np.empty((0, form.size, form.size, 3), np.uint8)] * len(takes)
        frames = read_fitted(path, form.size, form.fit, max_frames=form.max_frames, crop=form.crop, only=only)
        if only is None:
            return [frames] * len(takes)
        return [frames[bisect_left(only, span.start) :][: len(span)] for span in spans]

    def _record(self, take: Segment, length: int, info: VideoInfo) -> ClipRecord:
        return ClipRecord(
            path=take.path,
            label=take.label,
            subject=take.subject,
            split=take.split,
            frames=length,
            fps=info.fps,
            width=self.form.size,
            height=self.form.size,
        )


def _usable_info(path: Path) -> VideoInfo:
    info = video_info(path)
    if not 0.1 <= info.fps <= 1000:
        raise UserError(f"an impossible rate of {info.fps:g} frames per second")
    return info


def _fault(take: Segment, frames: np.ndarray, info: VideoInfo) -> str | None:
    """Why the frames that were read are not the take."""
    prefix = f"{take.name}: " if take.name else ""
    if take.frames is not None and len(frames) < len(take.frames):
        return f"{prefix}frames {take.frames.start + 1} to {take.frames.stop} of a recording of {info.frames}"
    return f"{prefix}a single frame; motion needs two" if len(frames) < 2 else None
