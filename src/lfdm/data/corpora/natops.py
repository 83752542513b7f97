"""NATOPS aircraft handling signals (Song, Demirdjian, Davis, FG 2011), as used in the paper.

A video holds all takes of one gesture by one subject; segmentation.txt lists where each begins and ends.
"""

import re
from collections import Counter
from itertools import product
from pathlib import Path

from lfdm.data.corpora.conversion import MAX_STORED_FRAMES
from lfdm.data.corpora.published import Corpus, Survey
from lfdm.data.corpora.recordings import Segment
from lfdm.data.video import Crop
from lfdm.errors import UserError
from lfdm.folders.texts import read_whole

LABELS = (
    "I Have Command",
    "All Clear",
    "Not Clear",
    "Spread Wings",
    "Fold Wings",
    "Lock Wings",
    "Up Hook",
    "Down Hook",
    "Remove Tiedowns",
    "Remove Chocks",
    "Insert Chocks",
    "Move Ahead",
    "Turn Left",
    "Turn Right",
    "Next Marshaller",
    "Slow Down",
    "Stop",
    "Nosegear Steering",
    "Hot Brakes",
    "Brakes On",
    "Brakes Off",
    "Install Tiedowns",
    "Fire",
    "Cut Engine",
)
"""Names of gestures 1 to 24."""

SEGMENTATION = "segmentation.txt"

_SUBJECTS = range(1, 21)
_TAKES = range(1, 21)
_TRAIN = "3 4 8 9 12 13 15 17 19 20"
_TEST = "2 5 6 7 10 11 14 16 18"

Segments = dict[tuple[int, int], dict[int, range]]
"""Frames of each take, counted from 0, by (subject, gesture), both counted from 1."""


def read_segmentation(path: str | Path) -> tuple[Segments, list[str]]:
    """Return the takes listed in segmentation.txt, and messages about its unusable lines.

    A subject's block begins with `// Subject` and an optional number (the first is 1). It holds 24 gesture blocks, numbered
    by their position, that begin with three numbers `a,b,c`; then come lines `take:start,end` (counted from 1, end
    included). Other comments and empty lines are ignored.

    Raises FileNotFoundError, and UserError naming the line where the current subject or gesture becomes ambiguous.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; it lists where each take begins")
    reader = _SegmentationReader()
    number, text = 0, ""
    try:
        for number, text in enumerate(read_whole(path).decode("utf-8-sig", errors="replace").splitlines(), start=1):
            reader.read("".join(text.split()), number)
        reader.check_whole()
    except UserError as error:
        raise UserError(f"{path}, line {number}: {error}; got {text[:60]!r}") from None
    return reader.segments, reader.unusable


class _SegmentationReader:
    def __init__(self) -> None:
        self.segments: Segments = {}
        self.unusable: list[str] = []
        self.subject = 0
        self.gesture = len(LABELS)

    def read(self, line: str, number: int) -> None:
        """Read one line without its spaces. Raises UserError where the position in the file becomes ambiguous."""
        heading = re.match(r"//subject[^0-9]*([0-9]{0,9})", line, re.IGNORECASE)
        if heading:
            self._begin_subject(int(heading[1] or self.subject + 1))
        elif not line or line.startswith("//"):
            return
        elif re.fullmatch(r"[^,:]+,[^,:]+,[^,:]+", line):
            self._begin_gesture()
        elif ":" not in line or (self.subject, self.gesture) not in self.segments:
            raise UserError("expected '// Subject', below it headings a,b,c and below these lines take:start,end")
        elif not self._add_take(line):
            self.unusable.append(f"line {number}: expected take:start,end of a new take, got {line[:60]!r}")

    def check_whole(self) -> None:
        """Raise UserError unless the last subject has all gestures."""
        if not self.subject or self.gesture != len(LABELS):
            num = self.gesture if self.subject else 0
            raise UserError(f"subject {self.subject} has {num} headings of gestures, expected {len(LABELS)}")

    def _begin_subject(self, subject: int) -> None:
        if self.subject:
            self.check_whole()
        if subject not in _SUBJECTS or (subject, 1) in self.segments:
            raise UserError(f"expected a subject of 1 to {len(_SUBJECTS)} that has no block yet")
        self.subject, self.gesture = subject, 0

    def _begin_gesture(self) -> None:
        if not self.subject or self.gesture == len(LABELS):
            raise UserError(f"expected {len(LABELS)} headings of gestures below each '// Subject', no more")
        self.gesture += 1
        self.segments[self.subject, self.gesture] = {}

    def _add_take(self, line: str) -> bool:
        takes = self.segments[self.subject, self.gesture]
        match = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9}),([0-9]{1,9})", line)
        take, start, end = map(int, match.groups()) if match else (0, 0, 0)
        if not 1 <= start <= end < start + MAX_STORED_FRAMES or take in takes:
            return False
        takes[take] = range(start - 1, end)
        return True


def _survey(found: Survey) -> None:
    table = found.source / SEGMENTATION
    segments, unusable = read_segmentation(table)
    for line in unusable:
        found.skip(table, line)
    left_out: Counter[int] = Counter()
    for gesture in range(1, len(LABELS) + 1):
        folder = found.source / f"gesture{gesture:02}"
        for path in found.entries(folder) if folder.is_dir() else ():
            match = re.fullmatch(rf"g{gesture:02}s(\d\d)([md]?)\.avi", path.name)
            subject = int(match[1]) if match else 0
            if match is None or subject not in _SUBJECTS:
                found.skip(path, f"not one of g{gesture:02}s{{01-20}}.avi")
            elif match[2]:
                continue  # masks and depth maps, which belong to the corpus
            elif found.corpus.split_of(str(subject)) is None:
                left_out[subject] += 1
            elif not segments.get((subject, gesture)):
                found.skip(path, f"{SEGMENTATION} lists no take of subject {subject}, gesture {gesture}")
            else:
                _add(found, path, subject, gesture, segments[subject, gesture])
    for subject, count in left_out.items():
        recordings = found.source / f"gesture*/g*s{subject:02}.avi"
        found.skip(recordings, f"{count} recordings of a subject in neither of the published lists")


def _add(found: Survey, path: Path, subject: int, gesture: int, takes: dict[int, range]) -> None:
    split = found.corpus.split_of(str(subject))
    assert split is not None, "subjects in neither list were left out"
    segments = {
        _key(subject, gesture, take): Segment(
            path=f"clips/gesture{gesture:02}/{path.stem}-{take:02}.avi",
            label=LABELS[gesture - 1],
            subject=str(subject),
            split=split,
            name=f"take {take}",
            frames=frames,
        )
        for take, frames in takes.items()
    }
    found.add(path, segments)


def _key(subject: object, gesture: object, take: object) -> tuple[str, str, str]:
    return f"subject {subject}", f"gesture {gesture}", f"take {take}"


NATOPS = Corpus(
    name="NATOPS",
    layout="gesture{01-24}/g{01-24}s{01-20}.avi and segmentation.txt",
    train_subjects=tuple(_TRAIN.split()),
    test_subjects=tuple(_TEST.split()),
    num_train=4800,
    train_keys=tuple(_key(*ids) for ids in product(_TRAIN.split(), range(1, len(LABELS) + 1), _TAKES)),
    crop=Crop(top=10, bottom=239, left=30, right=290, width=320, height=240),
    survey=_survey,
)
"""Cropped to 229 rows x 260 columns: at 128x128 the image is 112 rows x 128 columns, black above and below."""
