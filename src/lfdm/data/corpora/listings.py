"""Labels and splits written next to the clips: a table, a text for each clip, and lists of the clips of a split.

Clips are paths relative to the tree.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath

from lfdm.data.corpora.layouts import MIN_LISTED_SHARE, Place, split_of_name
from lfdm.data.index import Split
from lfdm.data.tables import read_table, tidy
from lfdm.errors import UserError

MAX_TEXT_BYTES = 10_000
"""A longer text next to a clip is no label."""
_LIST_NUMBER = re.compile(r"\d+$")


class _Names:
    """Finds clips by a path that may begin with other folders and may lack the ending."""

    def __init__(self, clips: Iterable[PurePath]) -> None:
        self._whole: dict[tuple[str, ...], PurePath] = {}
        self._clips: dict[tuple[str, ...], set[PurePath]] = defaultdict(set)
        for clip in clips:
            self._whole[_tidy_all(clip.parts)] = clip
            for names in {clip.parts, (*clip.parts[:-1], clip.stem)}:
                for start in range(len(names)):
                    self._clips[_tidy_all(names[start:])].add(clip)

    def find(self, text: str) -> PurePath | None:
        """Return the clip with the longest common end of the path, None if there is none or more than one."""
        names = _tidy_all(PurePosixPath(text.replace("\\", "/")).parts)
        if names in self._whole:
            return self._whole[names]
        for start in range(len(names)):
            if clips := self._clips.get(names[start:]):
                return next(iter(clips)) if len(clips) == 1 else None
        return None


def _tidy_all(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(tidy(name) for name in names)


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Labels of clips, and entries or clips that are left over."""

    name: str
    """Description, for messages."""
    places: dict[PurePath, Place] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)
    """Reasons by the entry, of those that fit no clip or have no label."""


def read_label_table(path: Path, clips: Sequence[PurePath]) -> Listing:
    """Read a table with the columns path, label and perhaps subject and split (see `read_table`).

    Paths are relative to the tree; folders before them and a missing ending do no harm. Without a subject a clip is its own.

    Raises FileNotFoundError, and UserError for a missing column, another split than train or test, and a clip listed twice.
    """
    names, found = _Names(clips), Listing(name=path.name)
    for line, row in read_table(path, ("path", "label")):
        entry, label, split = row["path"] or "", row["label"] or "", row.get("split") or ""
        clip = names.find(entry)
        if split and split_of_name(split) is None:
            raise UserError(f"{path}, line {line}: split must be 'train' or 'test', got {split!r}")
        if clip is None or not label:
            found.unknown[entry or f"line {line}"] = f"in {path.name}, but {'no label' if clip else 'there is no such clip'}"
        elif clip in found.places:
            raise UserError(f"{path}, line {line}: the clip {entry!r} is listed twice")
        else:
            found.places[clip] = Place(label=label, subject=row.get("subject") or clip.as_posix(), split=split_of_name(split))
    return found


def read_texts(source: Path, clips: Sequence[PurePath], texts: Iterable[PurePath]) -> Listing:
    """Read a label from the first line of the text `<clip>.txt` next to each clip."""
    found = Listing(name="a .txt beside it")
    by_name = set(texts)
    for clip in clips:
        for text in text_names(clip):
            if text in by_name and (label := _first_line(source / text)):
                found.places[clip] = Place(label=label, subject=clip.as_posix())
                break
    return found


def text_names(clip: PurePath) -> tuple[PurePath, PurePath]:
    """Return the paths of a text next to a clip: `wave.txt` or `wave.mp4.txt`."""
    return clip.with_suffix(".txt"), clip.with_name(f"{clip.name}.txt")


def _first_line(path: Path) -> str:
    try:
        with path.open("rb") as file:
            lines = file.read(MAX_TEXT_BYTES).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        return ""
    return next((tidy(line) for line in lines if line.strip()), "")


def read_split_lists(source: Path, clips: Sequence[PurePath], texts: Iterable[PurePath]) -> tuple[str, dict[PurePath, Split]]:
    """Return the names and the clips of the first lists like trainlist01.txt and testlist01.txt that name most of the clips.

    A line holds a path and perhaps a number. A clip in two lists is held out from training. Returns ("", {}) without lists.
    """
    groups: dict[str, list[PurePath]] = defaultdict(list)
    for text in texts:
        if split_of_name(text.stem) is not None:
            number = _LIST_NUMBER.search(text.stem)
            groups[number[0] if number else ""].append(text)
    names = _Names(clips)
    for _, lists in sorted(groups.items()):
        splits: dict[PurePath, Split] = {}
        for text in sorted(lists, key=lambda text: split_of_name(text.stem) != "train"):  # test last: it wins
            split = split_of_name(text.stem)
            splits |= {clip: split for clip in _listed(source / text, names) if split is not None}
        if splits and len(splits) >= MIN_LISTED_SHARE * len(clips):
            return " and ".join(text.name for text in lists), splits
    return "", {}


def _listed(path: Path, names: _Names) -> list[PurePath]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    entries = (re.sub(r"[\s,]+\d+$", "", line.strip()) for line in lines if line.strip())
    return [clip for entry in entries if (clip := names.find(entry)) is not None]
