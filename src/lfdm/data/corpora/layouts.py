"""Layouts of folders of clips: where the names of folders and files give a clip's label, subject and split.

Clips are paths relative to the tree.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import get_args

from lfdm.config.checks import check
from lfdm.config.video import FolderLayout
from lfdm.data.index import NULL_LABEL, Split
from lfdm.data.tables import tidy
from lfdm.errors import UserError

_SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    **dict.fromkeys(("test", "testing", "val", "valid", "validation", "dev", "eval", "evaluation", "holdout", "heldout"), "test"),
}
_DATA_WORDS = "sets?|data|videos?|clips?|frames?|images?|imgs?|splits?|lists?|files?"
_SPLIT_NAME = re.compile(rf"(?:(?:{_DATA_WORDS})[\W_]+)?([a-z]+?)(?:[\W_]*(?:{_DATA_WORDS})\d*)?(?:[\W_]*\d\d+)?")
_UCF101_NAME = re.compile(r"v_(?P<label>\w+)_g(?P<group>\d+)_c\d+")
_KTH_NAME = re.compile(r"(?P<person>person\d+)_(?P<label>[a-z]+)_d\d+(_uncomp)?", re.IGNORECASE)
_RECOGNISED_SHARE = 0.9
"""Share of the clips whose names must follow a corpus before the layout is taken for it."""
MIN_LISTED_SHARE = 0.5
"""Share of the clips that lists or texts must name before they are used by default."""
_PATTERNS: dict[FolderLayout, str] = {
    "auto": "<label>/<subject>/<clip> or <label>/<clip>",
    "label": "<label>/<clip>",
    "label-subject": "<label>/<subject>/<clip>",
    "split-label": "<split>/<label>/<clip>",
    "split-label-subject": "<split>/<label>/<subject>/<clip>",
    "ucf101": "v_<label>_g<group>_c<clip>",
    "kth": "<person>_<label>_<scenario>",
    "unlabelled": "<clip>",
}
_NEED_NO_FOLDER = ("ucf101", "kth", "unlabelled")
"""Layouts in which no folder says what the label is."""
_NUM_NAMES: dict[FolderLayout, tuple[int, ...]] = {"auto": (2, 3), "label": (2,), "label-subject": (3,), "split-label": (2,)}
"""Names in a clip's path without its split: label, perhaps subject, and file name."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Label, subject and split that a clip has by its place in the tree."""

    label: str
    subject: str
    split: Split | None = None
    """None: to be sampled."""


@dataclass(frozen=True, kw_only=True)
class Arrangement:
    """The recognised layout of a tree."""

    description: str
    """The layout in one line."""
    expected: str
    """Pattern of paths for error messages."""
    places: dict[PurePath, Place] = field(default_factory=dict)
    misplaced: dict[PurePath, str] = field(default_factory=dict)
    """Reasons by clip."""


@dataclass(frozen=True, kw_only=True)
class _SplitFolders:
    """The level of the tree whose folders are splits, after `num_wrappers` folders that hold everything."""

    num_wrappers: int = 0
    level: int | None = None
    names: tuple[str, ...] = ()

    def take(self, clip: PurePath) -> tuple[Split | None, tuple[str, ...]]:
        """Return a clip's split, None where it has none, and the other names of its path."""
        names = clip.parts[self.num_wrappers :]
        if self.level is None or len(names) <= self.level + 1:
            return None, names
        return split_of_name(names[self.level]), (*names[: self.level], *names[self.level + 1 :])


def split_of_name(name: str) -> Split | None:
    """Return the split that the name of a folder or list means: a validation set is held out from training, as a test set is.

    >>> split_of_name("Train"), split_of_name("val_256"), split_of_name("testlist01"), split_of_name("training set")
    ('train', 'test', 'test', 'train')
    >>> split_of_name("trainer"), split_of_name("test drive")
    (None, None)
    """
    match = _SPLIT_NAME.fullmatch(tidy(name).lower())
    return _SPLIT_NAMES.get(match[1]) if match else None


def arrange(
    clips: Sequence[PurePath], layout: FolderLayout, *, labels: Mapping[PurePath, Place] | None = None, labels_from: str = ""
) -> Arrangement:
    """Find label, subject and split of all clips; `labels` (described by `labels_from`) replace those of folder names.

    Raises UserError for a layout that is not allowed, and for one with splits in a tree without such folders.
    """
    check(layout in get_args(FolderLayout), "layout", layout, f"one of {', '.join(get_args(FolderLayout))}")
    kind = _corpus_of(clips) if layout == "auto" and labels is None else layout
    folders = _split_folders(clips, kind, needs_label=labels is None and kind not in _NEED_NO_FOLDER)
    if folders.level is None and kind.startswith("split"):
        raise UserError(f"layout must have folders 'train' and 'test'; got {kind!r} for a tree without them")
    pattern = f"<clip> with {labels_from}" if labels is not None else _PATTERNS[kind]
    expected = _expected(pattern, folders)
    found = Arrangement(description=_describe(expected, folders), expected=expected)
    for clip in clips:
        split, names = folders.take(clip)
        place = _place(clip, names, kind) if labels is None else labels.get(clip)
        if folders.level is not None and split is None:
            found.misplaced[clip] = f"not in one of the folders {', '.join(folders.names)}, which are splits"
        elif place is None and labels is not None:
            found.misplaced[clip] = f"no label in {labels_from}"
        elif place is None and len(names) == 1 and folders.level is not None:
            found.misplaced[clip] = (
                "no label; labels may be a table, texts next to the clips, or the folders themselves (layout label); "
                "layout unlabelled takes clips without labels"
            )
        elif place is None:
            found.misplaced[clip] = f"a clip of another layout; expected {expected}"
        elif not tidy(place.label) or not tidy(place.subject):
            found.misplaced[clip] = "a label or subject named only with spaces"
        else:
            found.places[clip] = replace(place, split=place.split or split)
    return found


def separate_subjects(places: Mapping[PurePath, Place]) -> dict[PurePath, Place]:
    """Rename subjects that the tree has in both splits to train/<subject> and test/<subject>: subjects have one split."""
    splits: dict[str, set[Split | None]] = defaultdict(set)
    for place in places.values():
        splits[tidy(place.subject)].add(place.split)
    return {
        clip: place if len(splits[tidy(place.subject)]) == 1 else replace(place, subject=f"{place.split}/{place.subject}")
        for clip, place in places.items()
    }


def _corpus_of(clips: Sequence[PurePath]) -> FolderLayout:
    """Return the corpus that the names of most clips follow, otherwise "auto"."""
    patterns: dict[FolderLayout, re.Pattern[str]] = {"ucf101": _UCF101_NAME, "kth": _KTH_NAME}
    for corpus, pattern in patterns.items():
        if clips and sum(bool(pattern.fullmatch(clip.stem)) for clip in clips) >= _RECOGNISED_SHARE * len(clips):
            return corpus
    return "auto"


def _split_folders(clips: Sequence[PurePath], layout: FolderLayout, *, needs_label: bool) -> _SplitFolders:
    """Find the folders `train`, `test`, ...: at the top, in a folder that holds everything, or in each label's folder."""
    if layout in ("label", "label-subject"):
        return _SplitFolders()
    names = [clip.parts for clip in clips]
    shortest = min(map(len, names), default=0)
    common = next((level for level in range(shortest) if len({parts[level] for parts in names}) > 1), shortest)
    for level in range(min(common + 1, shortest)):
        inner = [parts[level:] for parts in names]
        if _are_splits(inner, 0) and (level == 0 or not needs_label or shortest >= level + 3):
            return _SplitFolders(num_wrappers=level, level=0, names=_split_names(inner, 0))
    if _are_splits(names, 1):
        return _SplitFolders(level=1, names=_split_names(names, 1))
    return _SplitFolders()


def _are_splits(names: Sequence[tuple[str, ...]], level: int) -> bool:
    """Return whether the folders at a level are splits: at the top a single one may be, or a pair next to other folders."""
    splits = {split_of_name(parts[level]) for parts in names if len(parts) > level + 1}
    both = {"train", "test"} <= splits
    if level == 0:
        return both or (bool(splits) and None not in splits)
    return both and None not in splits


def _split_names(names: Sequence[tuple[str, ...]], level: int) -> tuple[str, ...]:
    found = {parts[level] for parts in names if len(parts) > level + 1 and split_of_name(parts[level])}
    return tuple(f"{name}/" for name in sorted(found))


def _place(clip: PurePath, names: tuple[str, ...], layout: FolderLayout) -> Place | None:
    """Return label and subject by a clip's own name or by its folders, None where the layout has none."""
    if layout == "unlabelled":
        return Place(label=NULL_LABEL, subject=clip.as_posix())
    if layout == "ucf101" and (match := _UCF101_NAME.fullmatch(clip.stem)):
        label = match["label"]
        if len(names) > 1 and names[-2].lower() == label.lower():  # v_HandStandPushups_... in HandstandPushups/
            label = names[-2]
        return Place(label=label, subject=f"{label} g{match['group']}")
    if layout == "kth" and (match := _KTH_NAME.fullmatch(clip.stem)):
        return Place(label=match["label"].lower(), subject=match["person"].lower())
    if len(names) not in _NUM_NAMES.get(layout, (3,)) or layout in ("ucf101", "kth"):
        return None
    return Place(label=names[0], subject=clip.as_posix() if len(names) == 2 else names[1])


def _expected(pattern: str, folders: _SplitFolders) -> str:
    """Return the pattern of paths; the folders of a tree may add splits to that of the layout "auto"."""
    if pattern != _PATTERNS["auto"] or folders.level is None:
        return pattern
    if folders.level == 1:
        return "<label>/<split>/<clip> or <label>/<split>/<subject>/<clip>"
    return _PATTERNS["split-label"] + " or " + _PATTERNS["split-label-subject"]


def _describe(expected: str, folders: _SplitFolders) -> str:
    if folders.level is None:
        return expected
    train, test = ([name for name in folders.names if split_of_name(name[:-1]) == split] for split in ("train", "test"))
    return f"{expected}; training: {', '.join(train) or 'none'}; test: {', '.join(test) or 'sampled'}"
