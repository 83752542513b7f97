"""Labels and splits written next to the clips: a table, a text for each clip, and lists of the clips of a split.

Clips are paths relative to the tree.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath

from lfdm.data.corpora.layouts import MIN_LISTED_SHARE, Place, split_of_name
from lfdm.data.index import Split
from lfdm.data.tables import read_table, tidy
from lfdm.errors import UserError
from lfdm.folders.texts import read_whole

MAX_LINE = 10_000
"""Longer lines of a list name no clip; to match them would take long."""
MAX_TEXT_BYTES = 10_000
"""A longer text next to a clip is no label."""
_LIST_NUMBER = re.compile(r"\d+$")
_HMDB51_LIST = re.compile(r".+_test_split(?P<number>\d+)")
"""A list of HMDB51: the clips of one label, each with 1 for training, 2 for test or 0 for neither."""
_KTH_LIST = "00sequences"
_KTH_LINE = re.compile(r"^\W*(?P<split>training|validation|test)\W+person\s*(?P<people>\d+(?:\s*,\s*\d+)*)", re.I | re.M)
_LIST_FOLDERS = ("", "ucfTrainTestlist", "testTrainMulti_7030_splits")
"""Where the official lists of UCF-101, HMDB51 and KTH are unpacked, next to the clips."""
_OFFICIAL_LIST = re.compile(rf"(?:train|test)list\d+|{_HMDB51_LIST.pattern}|{_KTH_LIST}")


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
    found = Listing(name="a .txt next to it")
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


def neighbouring_lists(source: Path) -> list[Path]:
    """List the official split lists of UCF-101, HMDB51 and KTH that lie next to a tree of clips instead of in it."""
    folders = (source.absolute().parent / name for name in _LIST_FOLDERS)
    return [path for folder in folders for path in sorted(folder.glob("*.txt")) if _OFFICIAL_LIST.fullmatch(path.stem)]


def read_split_lists(places: Mapping[PurePath, Place], texts: Iterable[Path]) -> tuple[list[Path], dict[PurePath, Split]]:
    """Return the first lists that name most of the clips, and the split of each clip that they name; ([], {}) without lists.

    Lists are trainlist01.txt and testlist01.txt (UCF-101) and such pairs, in which a line holds a path and perhaps a number;
    those of HMDB51, one for each label; and 00sequences.txt (KTH), which names people. Of UCF-101 and HMDB51 the first of the
    three splits is used. A clip in two lists is held out from training.
    """
    groups: dict[tuple[int, str], list[Path]] = defaultdict(list)
    for text in texts:
        if match := _HMDB51_LIST.fullmatch(text.stem):
            groups[1, match["number"]].append(text)
        elif text.stem == _KTH_LIST:
            groups[2, ""].append(text)
        elif split_of_name(text.stem) is not None:
            number = _LIST_NUMBER.search(text.stem)
            groups[0, number[0] if number else ""].append(text)
    names = _Names(places)
    for (kind, _), lists in sorted(groups.items()):
        read = (_read_pair, _read_hmdb51, _read_kth)[kind]
        splits = read(lists, names, places)
        if splits and len(splits) >= MIN_LISTED_SHARE * len(places):
            return lists, splits
    return [], {}


def _read_pair(lists: Sequence[Path], names: _Names, _: Mapping[PurePath, Place]) -> dict[PurePath, Split]:
    splits: dict[PurePath, Split] = {}
    for text in sorted(lists, key=lambda text: split_of_name(text.stem) != "train"):  # test last: it wins
        split = split_of_name(text.stem)
        splits |= {clip: split for clip, _ in _listed(text, names) if split is not None}
    return splits


def _read_hmdb51(lists: Sequence[Path], names: _Names, _: Mapping[PurePath, Place]) -> dict[PurePath, Split]:
    by_number: dict[str, Split] = {"1": "train", "2": "test"}
    return {clip: by_number[number] for text in lists for clip, number in _listed(text, names) if number in by_number}


def _read_kth(lists: Sequence[Path], _: _Names, places: Mapping[PurePath, Place]) -> dict[PurePath, Split]:
    people: dict[str, Split] = {}
    for match in _KTH_LINE.finditer("\n".join(line for text in lists for line in _lines(text))):
        split = split_of_name(match["split"].lower())
        people |= {f"person{int(number):02d}": split for number in match["people"].split(",") if split is not None}
    return {clip: people[place.subject] for clip, place in places.items() if place.subject in people}


def _listed(path: Path, names: _Names) -> list[tuple[PurePath, str]]:
    """Return the clips that a list names, and the number after each, "" where there is none."""
    entries = (re.fullmatch(r"(.*?)(?:[\s,]+(\d+))?", line) for line in _lines(path))
    found = [(names.find(entry[1]), entry[2] or "") for entry in entries if entry is not None]
    return [(clip, number) for clip, number in found if clip is not None]


def _lines(path: Path) -> list[str]:
    try:
        lines = read_whole(path).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError, UserError):
        return []
    return [line.strip() for line in lines if line.strip() and len(line) <= MAX_LINE]
