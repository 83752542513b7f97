"""Recordings, the clips that are cut from them, and what a conversion has made."""

from dataclasses import dataclass
from pathlib import Path

from lfdm.data.index import ClipRecord, Split


@dataclass(frozen=True, kw_only=True)
class Segment:
    """The part of a recording that becomes one clip."""

    path: str
    """Path of the clip, relative to the data set."""
    label: str
    subject: str
    split: Split = "train"
    name: str = ""
    """Name in messages, where a recording has several segments."""
    frames: range | None = None
    """Frames of the recording; None for all."""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A video file or folder of images and its segments: either one of all frames, or some of given frames."""

    path: Path
    segments: tuple[Segment, ...]


@dataclass(frozen=True, kw_only=True)
class SkippedFile:
    """A file or folder of the source tree that did not become a clip."""

    path: str
    """Path relative to the tree, as one printable line."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """The clips made from a tree of recordings, in the order of the recordings and their segments."""

    records: tuple[ClipRecord, ...] = ()
    skipped: tuple[SkippedFile, ...] = ()
    num_reused: int = 0
    """Clips that an earlier run had finished."""
    missing: tuple[str, ...] = ()
    """Training clips of the paper that are missing: a whole subject or action in one line."""
    notes: tuple[str, ...] = ()
    """Lines about the layout, the split, and clips that were changed on the way, such as their frame rate."""

    def num_clips(self, split: Split) -> int:
        """Return the number of clips in a split."""
        return sum(record.split == split for record in self.records)
