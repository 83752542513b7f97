"""Convert any folder of labelled clips to a clip data set."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from lfdm.config.video import Fit
from lfdm.data.corpora.conversion import (
    ClipFormat,
    Conversion,
    Recording,
    Segment,
    SkippedFile,
    check_trees,
    convert,
    entries,
    entries_or_skip,
    skip,
)
from lfdm.data.images import IMAGE_SUFFIXES
from lfdm.data.index import ClipRecord, check_split, check_workers, new_data_set, num_test_subjects, write_index
from lfdm.data.progress import Progress
from lfdm.data.video import VIDEO_SUFFIXES
from lfdm.errors import UserError


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
) -> Conversion:
    """Write the clip data set `out` from a tree `<label>/<subject>/<clip>` or `<label>/<clip>`.

    A clip is a video file or a folder of images; without a subject folder it is its own subject. The first `max_frames`
    frames are fitted to `size` (see `fit_frames`) and stored losslessly at the clip's own rate. About `test_fraction` of
    the subjects, sampled by `seed` evenly over all labels, form the test split. Other files, broken clips and single
    images are skipped and reported. `out` appears only when it is complete.

    Raises FileNotFoundError for a missing tree, and UserError for settings that are not allowed, a tree without any usable
    clip, and an `out` that holds other things or overlaps the tree.
    """
    source, out = Path(source), Path(out)
    check_trees(source, out)
    check_split(seed=seed, test_fraction=test_fraction)
    check_workers(num_workers)
    form = ClipFormat(size=size, fit=fit, max_frames=max_frames)
    found, skipped = _scan(source)
    with new_data_set(out) as folder:
        made = convert(source, folder, found, form, num_workers=num_workers, progress=progress)
        skipped += made.skipped
        if not made.records:
            raise UserError(f"{source}: {_nothing_usable(skipped)}")
        records = _split(made.records, test_fraction, seed)
        write_index(folder, records)
    return Conversion(records=tuple(records), skipped=tuple(skipped), notes=made.notes)


def _nothing_usable(skipped: list[SkippedFile]) -> str:
    expected = "expected <label>/<subject>/<clip> or <label>/<clip>"
    if not skipped:
        return f"holds nothing; {expected}"
    return f"no usable clip; of {len(skipped)} skipped the first is {skipped[0].path} ({skipped[0].reason}); {expected}"


# -------------------------------------------------------------------------------------------------------- the tree


def _scan(source: Path) -> tuple[list[Recording], list[SkippedFile]]:
    """List all clips of the tree in natural order, and everything else in it except hidden files."""
    found: list[Recording] = []
    skipped: list[SkippedFile] = []
    for label in entries_or_skip(source, source, skipped):
        if not _is_folder(label) or not label.name.strip():
            skipped.append(skip(source, label, "not a label's folder"))
            continue
        for entry in entries_or_skip(source, label, skipped):
            if _is_clip(entry):
                found.append(_recording(source, entry, label.name, subject=entry.relative_to(source).as_posix()))
            elif _is_folder(entry):
                found += _clips_of_subject(source, label.name, entry, skipped)
            else:
                skipped.append(skip(source, entry, _reason_not_a_clip(entry)))
    return found, skipped


def _clips_of_subject(source: Path, label: str, subject: Path, skipped: list[SkippedFile]) -> Iterator[Recording]:
    for entry in entries_or_skip(source, subject, skipped):
        if _is_clip(entry):
            yield _recording(source, entry, label, subject=subject.name)
        else:
            skipped.append(skip(source, entry, _reason_not_a_clip(entry)))


def _recording(source: Path, path: Path, label: str, subject: str) -> Recording:
    name = f"clips/{path.relative_to(source).as_posix()}.avi"
    return Recording(path=path, segments=(Segment(path=name, label=label, subject=subject),))


def _is_clip(path: Path) -> bool:
    """Whether a path is a video file, or a folder of images without videos or folders in it (which would be a subject)."""
    if not _is_folder(path):
        return path.suffix.lower() in VIDEO_SUFFIXES
    try:
        inside = entries(path)
    except OSError:
        return False
    is_subject = any(_is_folder(entry) or entry.suffix.lower() in VIDEO_SUFFIXES for entry in inside)
    return not is_subject and any(entry.suffix.lower() in IMAGE_SUFFIXES for entry in inside)


def _is_folder(path: Path) -> bool:
    """Whether a path is a folder; False without permission to look, since reading it then gives the reason."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _reason_not_a_clip(path: Path) -> str:
    if _is_folder(path):
        return "a folder without frames; expected <label>/<subject>/<clip> or <label>/<clip>"
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return "a single image; a clip of frames is a folder of them"
    return f"not a clip; known endings are {' '.join(sorted(VIDEO_SUFFIXES))}"


# -------------------------------------------------------------------------------------------------------- the split


def _split(records: Sequence[ClipRecord], test_fraction: float, seed: int) -> list[ClipRecord]:
    """Move about `test_fraction` of the subjects to the test split, evenly from all groups with the same labels."""
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
    test = {subject for _, subject in sorted(ranked)[: num_test_subjects(len(ranked), test_fraction)]}
    return [replace(record, split="test") if record.subject in test else record for record in records]
