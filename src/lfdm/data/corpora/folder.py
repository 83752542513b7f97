"""Convert any folder of labelled clips to a clip data set."""

import os
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path, PurePath

from lfdm.config.checks import check
from lfdm.config.video import Fit, FolderLayout, Size, SizeInput, training_size
from lfdm.data.animations import is_animation
from lfdm.data.corpora.conversion import ClipFormat, check_trees, convert, entries, entries_or_skip, skip
from lfdm.data.corpora.cutting import Cutting
from lfdm.data.corpora.layouts import MIN_LISTED_SHARE, Arrangement, Place, arrange, separate_subjects
from lfdm.data.corpora.listings import Listing, neighbouring_lists, read_label_table, read_split_lists, read_texts, text_names
from lfdm.data.corpora.recordings import Conversion, Recording, Segment, SkippedFile
from lfdm.data.corpora.shapes import find_common_shape
from lfdm.data.corpora.splits import hold_out_subjects
from lfdm.data.images import IMAGE_SUFFIXES
from lfdm.data.index import ClipRecord, check_split, check_workers, new_data_set, split_warnings, write_index
from lfdm.data.progress import Progress, run_all
from lfdm.data.video import VIDEO_SUFFIXES, video_info
from lfdm.errors import UserError
from lfdm.folders.files import expand_home
from lfdm.folders.texts import printable

MAX_DEPTH = 8
"""Deepest folder that is searched for clips."""
DEFAULT_SIDE = 64
"""Short side of frames, in pixels."""
TEXTS = "txt"
"""Value of `labels` for a text next to each clip."""


def write_folder(
    source: str | Path,
    out: str | Path,
    *,
    size: SizeInput | None = None,
    short_side: int | None = None,
    fit: Fit = "pad",
    layout: FolderLayout = "auto",
    labels: str | Path | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    max_frames: int | None = None,
    cutting: Cutting | None = None,
    num_workers: int | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Write the clip data set `out` from a tree of labelled clips.

    A clip is a video file or a folder of images, and is stored losslessly at its own rate. A clip without a subject is its own
    subject. Splits of the tree are kept: folders `train` and `test`, or lists of clips. Other files are skipped and reported.
    `out` appears only when it is complete; an interrupted call leaves what is finished next to it, and the same call continues.

    Args:
        layout: where a clip's label, subject and split are in its path (see `lfdm.data.corpora.layouts`); "auto" recognises it.
        labels: a table (`read_label_table`), or "txt" for texts next to the clips, also read where no folder has labels.
        size: of frames; clips of other shapes are fitted by `fit` (see `fit_frames`).
        short_side: of the shape that most clips have; without it and `size` it is 64, and all clips must have one shape.
        max_frames: most frames kept from the start of each clip.
        test_fraction: share of the subjects, sampled by `seed` evenly over all labels, that form the test split of a tree
            without splits. Every label has clips in both splits where its subjects allow it; `notes` name the others.
        num_workers: see `convert`.

    Raises:
        FileNotFoundError: no such tree or table.
        UserError: settings that are not allowed, no usable clip, or an `out` that holds other things or overlaps the tree.
    """
    source, out = expand_home(source), expand_home(out)
    check_trees(source, out)
    check_split(seed=seed, test_fraction=test_fraction)
    check_workers(num_workers)
    check(size is None or short_side is None, "short_side", short_side, f"None with a size ({size})")
    side = DEFAULT_SIDE if short_side is None else short_side
    form = ClipFormat(size=training_size(side if size is None else size), fit=fit, max_frames=max_frames, cutting=cutting)
    tree = _scan(source, has_labels=layout != "unlabelled")
    found = _arrange(tree, layout, labels)
    recordings = [_recording(source, clip, place) for clip, place in found.places.items()]
    shape = None
    if size is None and (sizes := _sizes(recordings, num_workers, progress)):
        shape = find_common_shape(sizes, side, may_differ=short_side is not None)
        form = replace(form, size=shape.size, shape=shape.shape)
    with new_data_set(out, resume=repr((source.resolve(), form))) as folder:
        made = convert(source, folder, recordings, form, resume=True, num_workers=num_workers, progress=progress)
        skipped = (*tree.skipped, *_skip_others(tree), *made.skipped)
        if not made.records:
            shutil.rmtree(folder)
            raise UserError(f"{source}: {_nothing_usable(skipped, found.expected)}")
        records, split_notes = _split(made.records, found.places.values(), test_fraction, seed)
        write_index(folder, records)
    notes = (*made.notes, f"layout: {found.description}", *([shape.describe(fit)] if shape else []), *split_notes)
    return replace(made, records=tuple(records), skipped=skipped, notes=notes)


def _sizes(recordings: Sequence[Recording], num_workers: int | None, progress: Progress | None) -> list[Size]:
    """Return the size of every recording that can be read."""
    pool = ThreadPoolExecutor(num_workers or os.cpu_count() or 1)
    return list(chain.from_iterable(run_all(pool, _size, recordings, work="reading sizes", progress=progress)))


def _size(recording: Recording) -> list[Size]:
    try:
        info = video_info(recording.path)
    except (UserError, OSError):  # reported when it is converted
        return []
    return [Size(info.height, info.width)]


def _split(
    records: Sequence[ClipRecord], places: Iterable[Place], test_fraction: float, seed: int
) -> tuple[list[ClipRecord], list[str]]:
    """Hold out test subjects, unless the tree has a test split of its own; return the records, and notes on their split."""
    if any(place.split == "test" for place in places):
        return list(records), split_warnings(records)
    divided = hold_out_subjects(records, test_fraction, seed)
    notes = split_warnings(divided)
    if test_fraction > 0 and all(record.split == "train" for record in divided):
        notes = ["no test clips: no subject can be held out without taking a label from training", *notes]
    return divided, notes


def _nothing_usable(skipped: Sequence[SkippedFile], expected: str) -> str:
    if not skipped:
        return f"holds nothing; expected {expected}"
    first = f"no usable clip; of {len(skipped)} skipped the first is {skipped[0].path} ({skipped[0].reason})"
    return first if expected in skipped[0].reason else f"{first}; expected {expected}"


# -------------------------------------------------------------------------------------------------------- the tree


@dataclass(frozen=True, kw_only=True)
class _Tree:
    """The clips of a tree in natural order, and everything else in it except hidden files."""

    source: Path
    has_labels: bool
    """Return whether the folders at the top are labels and not clips."""
    clips: list[PurePath] = field(default_factory=list)
    """Relative to the tree."""
    others: dict[PurePath, str] = field(default_factory=dict)
    """Reasons why other files are no clips; files that are read for another purpose are removed."""
    skipped: list[SkippedFile] = field(default_factory=list)
    linked: set[Path] = field(default_factory=set)
    """Folders elsewhere that links in the tree lead to."""

    def texts(self) -> list[PurePath]:
        return [path for path in self.others if path.suffix.lower() == ".txt"]


def _scan(source: Path, *, has_labels: bool) -> _Tree:
    tree = _Tree(source=source, has_labels=has_labels)
    _scan_folder(tree, source)
    return tree


def _scan_folder(tree: _Tree, folder: Path) -> None:
    at_top = folder == tree.source
    for entry in entries_or_skip(tree.source, folder, tree.skipped):
        path = entry.relative_to(tree.source)
        if _is_clip(entry) and not (at_top and tree.has_labels and _is_folder(entry)):
            tree.clips.append(path)
        elif not _is_folder(entry):
            tree.others[path] = "not a label's folder" if at_top else _reason_not_a_clip(entry)
        elif len(path.parts) > MAX_DEPTH or not _is_new(tree, entry):
            tree.skipped.append(skip(tree.source, entry, "a folder too deep in the tree, or a link to one that is read anyway"))
        else:
            _scan_folder(tree, entry)


def _is_new(tree: _Tree, folder: Path) -> bool:
    """Return False for a link into the tree, or to a folder that another link leads to: paths through it could be endless."""
    if not folder.is_symlink():
        return True
    target, source = folder.resolve(), tree.source.resolve()
    if source in (target, *target.parents) or target in (*source.parents, *tree.linked):
        return False
    tree.linked.add(target)
    return True


def _arrange(tree: _Tree, layout: FolderLayout, labels: str | Path | None) -> Arrangement:
    """Find label, subject and split of all clips, and move what has none to the skipped files."""
    texts = tree.texts()
    found = None if labels is not None else arrange(tree.clips, layout)
    unlabelled = found is not None and layout == "auto" and len(found.places) < MIN_LISTED_SHARE * len(tree.clips)
    listing = _read_labels(tree, labels, texts, try_texts=unlabelled)
    if found is None or listing is not None:
        assert listing is not None
        found = arrange(tree.clips, layout, labels=listing.places, labels_from=listing.name)
    places, description = found.places, found.description
    if not layout.startswith("split") and all(place.split is None for place in places.values()):
        in_tree = {tree.source / text: text for text in texts}
        lists, splits = read_split_lists(places, [*in_tree, *neighbouring_lists(tree.source)])
        if splits:
            name = " and ".join(text.name for text in lists) if len(lists) < 3 else f"{lists[0].name} and {len(lists) - 1} others"
            description = f"{description}; splits by {name}"
            found.misplaced.update((clip, f"not listed in {name}") for clip in places if clip not in splits)
            places = {clip: replace(place, split=splits[clip]) for clip, place in places.items() if clip in splits}
            for text in lists:
                tree.others.pop(in_tree.get(text, text), None)
    tree.skipped.extend(skip(tree.source, tree.source / clip, reason) for clip, reason in found.misplaced.items())
    return replace(found, places=separate_subjects(places), description=description)


def _read_labels(tree: _Tree, labels: str | Path | None, texts: Sequence[PurePath], *, try_texts: bool) -> Listing | None:
    """Read the labels next to the clips; None if `labels` is None, unless `try_texts` and most clips have a text."""
    if labels is not None and str(labels) != TEXTS:
        table = expand_home(labels)
        listing = read_label_table(table, tree.clips)
        tree.skipped.extend(
            SkippedFile(path=printable(entry), reason=printable(reason)) for entry, reason in listing.unknown.items()
        )
        for path in list(tree.others):
            if (tree.source / path).resolve() == table.resolve():
                del tree.others[path]
        return listing
    if labels is None and not (try_texts and texts):
        return None
    listing = read_texts(tree.source, tree.clips, texts)
    if labels is None and len(listing.places) < MIN_LISTED_SHARE * max(len(tree.clips), 1):
        return None
    for clip in listing.places:
        for name in text_names(clip):
            tree.others.pop(name, None)
    return listing


def _skip_others(tree: _Tree) -> list[SkippedFile]:
    return [skip(tree.source, tree.source / path, reason) for path, reason in tree.others.items()]


def _recording(source: Path, clip: PurePath, place: Place) -> Recording:
    segment = Segment(path=f"clips/{clip.as_posix()}.avi", label=place.label, subject=place.subject, split=place.split or "train")
    return Recording(path=source / clip, segments=(segment,))


def _is_clip(path: Path) -> bool:
    """Return whether a path is a video file, or a folder of images without videos or folders in it (which would be a subject)."""
    if not _is_folder(path):
        return path.suffix.lower() in VIDEO_SUFFIXES or is_animation(path)
    try:
        inside = entries(path)
    except OSError:
        return False
    is_subject = any(_is_folder(entry) or entry.suffix.lower() in VIDEO_SUFFIXES for entry in inside)
    is_subject = is_subject or any(map(is_animation, inside[:1]))
    return not is_subject and any(entry.suffix.lower() in IMAGE_SUFFIXES for entry in inside)


def _is_folder(path: Path) -> bool:
    """Return whether a path is a folder; False without permission to look, since reading it then gives the reason."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _reason_not_a_clip(path: Path) -> str:
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return "a single image; a clip of frames is a folder of them"
    return f"not a clip; known endings are {' '.join(sorted(VIDEO_SUFFIXES))}"
