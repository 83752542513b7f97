"""Convert recordings (video files and folders of images) to the lossless clips of a data set, in parallel.

All converters of existing files use this. A recording that cannot be read is skipped and reported.
"""

import os
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np

from lfdm.config.checks import check, check_integer
from lfdm.config.video import Fit, Size
from lfdm.data.containers import VideoInfo
from lfdm.data.corpora.cutting import Cutting, cut_frames, find_scenes
from lfdm.data.corpora.finished import finished_in, note_finished, remove_notes, stamps
from lfdm.data.corpora.recordings import Conversion, Recording, Segment, SkippedFile
from lfdm.data.fitting import fit_frames
from lfdm.data.index import ClipRecord
from lfdm.data.progress import Progress, run_all, worker_processes
from lfdm.data.video import Crop, iterate_video, natural_key, read_fitted, video_info, write_video
from lfdm.errors import UserError
from lfdm.folders.texts import is_printable, printable

MAX_STORED_FRAMES = 1_000_000
MAX_NAME_BYTES = 250
"""File systems allow 255, and `.avi` is added."""
BYTES_PER_PROCESS = 2**20
"""Bytes of recordings that take about as long to convert as a process takes to start."""


@dataclass(frozen=True, kw_only=True)
class ClipFormat:
    """Size and preparation of the frames that are written. Raises UserError for values that are not allowed."""

    size: Size
    """Size of the frames."""
    fit: Fit = "pad"
    """How frames of other shapes are fitted, see `fit_frames`."""
    shape: Size | None = None
    """Shape of recordings that are cropped to `size`, from which it differs only by rounding: `pad` would add thin bars."""
    crop: Crop | None = None
    """Part of the frames that is used."""
    max_frames: int | None = None
    """Most frames kept from the start of each clip."""
    cutting: Cutting | None = None
    """How recordings are cut into clips; None for one clip each."""

    def __post_init__(self) -> None:
        check(self.fit in get_args(Fit), "fit", self.fit, "one of " + ", ".join(map(repr, get_args(Fit))))
        if self.max_frames is not None:
            check_integer("max_frames", self.max_frames, 2, MAX_STORED_FRAMES)

    def fit_of(self, info: VideoInfo) -> Fit:
        """Return how the frames of a recording are fitted."""
        alike = self.shape is not None and self.shape.has_shape_of(Size(info.height, info.width))
        return "crop" if alike else self.fit


def convert(
    source: Path,
    folder: Path,
    recordings: Sequence[Recording],
    form: ClipFormat,
    *,
    reuse: bool = False,
    resume: bool = False,
    num_workers: int | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Write the segments of all `recordings` (of the tree `source`) into the data set `folder`, at their own frame rate.

    Clips appear whole or not at all, so those of an interrupted run are complete.

    Args:
        reuse: leave existing clips of the right size and length as they are.
        resume: note in `folder` which recordings are finished, and skip those that an interrupted call has noted and that have
            not changed since.
        num_workers: processes that convert (None: one per core, or fewer where little is to be done; 0 or 1: this one). A
            script that starts several must guard its main module (`if __name__ == "__main__":`).

    Raises:
        OSError: the disk refuses to write, which is no fault of the recording.
    """
    converter = _Converter(source=source, folder=folder, form=form, reuse=reuse, resume=resume)
    known = finished_in(folder, recordings) if resume else [None] * len(recordings)
    left = [recording for recording, part in zip(recordings, known, strict=True) if part is None]
    pool = worker_processes(min(len(left), _num_processes(left) if num_workers is None else num_workers))
    made = iter(run_all(pool, converter.convert, left, work="converting recordings", progress=progress))
    parts = [next(made) if part is None else part for part in known]
    result = Conversion(
        records=tuple(record for part in parts for record in part.records),
        skipped=tuple(skipped for part in parts for skipped in part.skipped),
        num_reused=sum(part.num_reused for part in parts),
        notes=tuple(note for part in parts for note in part.notes),
    )
    if resume:
        remove_notes(folder, result.records)
    return result


def _num_processes(recordings: Sequence[Recording]) -> int:
    """Return the number of cores, or fewer where the files are so small that processes take longer to start."""
    num_bytes = sum(size for recording in recordings for _, size, _ in stamps(recording.path))
    return min(os.cpu_count() or 1, num_bytes // BYTES_PER_PROCESS + 1)


def check_trees(source: Path, out: Path) -> None:
    """Raise FileNotFoundError for a missing `source`, UserError where one of the two lies in the other."""
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: no such folder of clips")
    tree, target = source.resolve(), out.resolve()
    if tree == target or tree in target.parents or target in tree.parents:
        raise UserError(f"{out}: the data set must not lie in the tree of clips {source}, nor around it")


def entries(folder: Path) -> list[Path]:
    """List the entries of a folder in natural order, without hidden ones. Raises OSError for a folder that cannot be read."""
    return sorted((entry for entry in folder.iterdir() if not entry.name.startswith(".")), key=natural_key)


def entries_or_skip(source: Path, folder: Path, skipped: list[SkippedFile]) -> list[Path]:
    """List the entries of a folder of the tree `source`; one that is empty or cannot be read is added to `skipped`."""
    try:
        inside = entries(folder)
    except OSError as error:
        skipped.append(skip(source, folder, f"a folder that cannot be read ({error.strerror})"))
        return []
    if not inside and folder != source:
        skipped.append(skip(source, folder, "an empty folder"))
    return inside


def skip(source: Path, path: Path, reason: str) -> SkippedFile:
    """Report that `path` in the tree `source` is skipped."""
    return SkippedFile(path=printable(path.relative_to(source).as_posix()), reason=printable(reason))


@dataclass(frozen=True, kw_only=True)
class _Converter:
    source: Path
    folder: Path
    form: ClipFormat
    reuse: bool
    resume: bool

    def convert(self, recording: Recording) -> Conversion:
        """Write the segments of one recording; one that cannot be read is skipped."""
        made = self._convert(recording)
        if self.resume:
            note_finished(self.folder, recording, made)
        return made

    def _convert(self, recording: Recording) -> Conversion:
        if self.form.cutting is not None:
            return self._convert_cut(recording.path, recording.segments[0], self.form.cutting)
        path, lengths = recording.path, {}
        try:
            info = self._check(path)
            for segment in recording.segments:
                self._record(segment, 1, info)  # raises for labels and subjects that the table cannot hold
            if self.reuse:
                lengths = {s.path: self._length(s, info) for s in recording.segments if self._is_finished(s, info)}
            missing = [segment for segment in recording.segments if segment.path not in lengths]
            pieces = self._read(path, missing, info) if missing else []
        except (UserError, OSError) as error:
            return Conversion(skipped=(self._skip(path, error),))
        num_reused, skipped = len(lengths), []
        for segment, frames in zip(missing, pieces, strict=True):
            if (fault := _fault(segment, frames, info)) is not None:
                skipped.append(skip(self.source, path, fault))
                continue
            write_video(self.folder / segment.path, frames, fps=info.fps)  # errors here end the run
            lengths[segment.path] = len(frames)
        records = tuple(self._record(s, lengths[s.path], info) for s in recording.segments if s.path in lengths)
        notes = self._notes(path, info) if records else ()
        return Conversion(records=records, skipped=tuple(skipped), num_reused=num_reused, notes=notes)

    def _convert_cut(self, path: Path, whole: Segment, cutting: Cutting) -> Conversion:
        """Cut a recording into clips named <clip>-0001, ...; where it breaks, the clips before are kept."""
        form, stem = self.form, whole.path.removesuffix(".avi")
        records: list[ClipRecord] = []
        try:
            info = self._check(path)
            self._record(whole, 1, info)  # raises for labels and subjects that the table cannot hold
            scenes = find_scenes(iterate_video(path)) if cutting.scene_cuts else [range(info.frames)]
            spans = [span[: form.max_frames] for span in cutting.spans(scenes, info.fps)]
            if not spans:
                raise UserError("a single frame; motion needs two")
        except (UserError, OSError) as error:
            return Conversion(skipped=(self._skip(path, error),))
        fit = form.fit_of(info)
        clips = cut_frames((fit_frames(frame[None], form.size, fit)[0] for frame in iterate_video(path)), spans)
        while True:
            try:
                _, frames = next(clips)
            except StopIteration:
                lost = () if records else (skip(self.source, path, "a single frame; motion needs two"),)
                return Conversion(records=tuple(records), skipped=lost, notes=self._notes(path, info))
            except (UserError, OSError) as error:
                return Conversion(records=tuple(records), skipped=(self._skip(path, error),))
            segment = whole if len(spans) == 1 else replace(whole, path=f"{stem}-{len(records) + 1:04d}.avi")
            write_video(self.folder / segment.path, frames, fps=info.fps)  # errors here end the run
            records.append(self._record(segment, len(frames), info))

    def _check(self, path: Path) -> VideoInfo:
        """Return length and rate of a recording. Raises UserError or OSError for one that cannot be read or stored."""
        _check_name(path.relative_to(self.source))
        return video_info(path)

    def _notes(self, path: Path, info: VideoInfo) -> tuple[str, ...]:
        name = skip(self.source, path, "").path
        changed = info.stated_fps is not None
        return (f"{name}: recorded at {info.fps:g} frames per second; the file states {info.stated_fps:g}",) if changed else ()

    def _record(self, segment: Segment, length: int, info: VideoInfo) -> ClipRecord:
        shape = (length, *self.form.size)
        label, subject, split = segment.label, segment.subject, segment.split
        return ClipRecord.describe(shape, path=segment.path, label=label, subject=subject, split=split, fps=info.fps)

    def _skip(self, path: Path, error: Exception) -> SkippedFile:
        reason = str(error).removeprefix(f"{path}: ").removeprefix(f"{path}{os.sep}") or type(error).__name__
        return skip(self.source, path, reason.splitlines()[0])

    def _is_finished(self, segment: Segment, info: VideoInfo) -> bool:
        try:
            clip = video_info(self.folder / segment.path)
        except (UserError, OSError):
            return False
        return (clip.frames, clip.height, clip.width) == (self._length(segment, info), *self.form.size)

    def _length(self, segment: Segment, info: VideoInfo) -> int:
        if segment.frames is not None:
            return len(segment.frames)
        return min(info.frames, self.form.max_frames or info.frames)

    def _read(self, path: Path, segments: Sequence[Segment], info: VideoInfo) -> list[np.ndarray]:
        """Decode all segments in one pass; the recording may end before a segment does."""
        form = self.form
        spans = [segment.frames for segment in segments if segment.frames is not None]
        only = sorted({index for span in spans for index in span}) if spans else None
        if only and only[0] >= info.frames:
            return [np.empty((0, *form.size, 3), np.uint8)] * len(segments)
        frames = read_fitted(path, form.size, form.fit_of(info), max_frames=form.max_frames, crop=form.crop, only=only)
        if only is None:
            return [frames] * len(segments)
        return [frames[bisect_left(only, span.start) :][: len(span)] for span in spans]


def _check_name(path: Path) -> None:
    """Raise UserError for a name that the table cannot hold, or that is too long with an ending added."""
    if not is_printable(str(path)):
        raise UserError("a name with control characters, or that is not UTF-8")
    if len(path.name.encode()) > MAX_NAME_BYTES:
        raise UserError(f"a name of over {MAX_NAME_BYTES} bytes")


def _fault(segment: Segment, frames: np.ndarray, info: VideoInfo) -> str | None:
    """Say why the decoded frames are not the segment, if they are not."""
    prefix = f"{segment.name}: " if segment.name else ""
    if segment.frames is not None and len(frames) < len(segment.frames):
        return f"{prefix}frames {segment.frames.start + 1} to {segment.frames.stop} of a recording of {info.frames}"
    return f"{prefix}a single frame; motion needs two" if len(frames) < 2 else None
