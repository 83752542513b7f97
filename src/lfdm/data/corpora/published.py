"""Convert the downloads of the paper's corpora (Ni et al., CVPR 2023) to clip data sets with its crops and splits.

mug.py, mhad.py and natops.py each describe one corpus: its labels, its subjects and the layout of its files.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from lfdm.config.video import Size, SizeInput, training_size
from lfdm.data.corpora.conversion import ClipFormat, check_trees, convert, entries_or_skip, skip
from lfdm.data.corpora.recordings import Conversion, Recording, Segment, SkippedFile
from lfdm.data.index import CACHE_DIR, CLIPS_DIR, Split, check_data_set_folder, check_workers, write_index
from lfdm.data.progress import Progress
from lfdm.data.video import Crop
from lfdm.errors import UserError
from lfdm.folders.files import expand_home, write_bytes
from lfdm.folders.lock import locked

Key = tuple[str, ...]
"""Identity of a clip, from general to specific: ("subject 3", "action 7", "take 1")."""

_MARKER = ".corpus"
"""File in `clips/` that names their corpus and size."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A published corpus: the layout of its files and the splits of the paper."""

    name: str
    layout: str
    """Layout of its download, in one line."""
    train_subjects: tuple[str, ...]
    test_subjects: tuple[str, ...]
    num_train: int
    """Number of training clips in the paper."""
    train_keys: tuple[Key, ...]
    """Keys of all training clips, or, where takes are not numbered, of groups with at least one."""
    crop: Crop | None
    survey: "Callable[[Survey], None]"
    """Function that finds the recordings."""

    def split_of(self, subject: str) -> Split | None:
        """Return the split of a subject, None for one in neither list."""
        if subject in self.train_subjects:
            return "train"
        return "test" if subject in self.test_subjects else None


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The files found in a copy of a corpus, collected by `Corpus.survey`."""

    corpus: Corpus
    source: Path
    recordings: list[Recording] = field(default_factory=list)
    keys: dict[str, Key] = field(default_factory=dict)
    """Keys by the clip's path in the data set."""
    skipped: list[SkippedFile] = field(default_factory=list)

    def add(self, recording: Path, segments: dict[Key, Segment]) -> None:
        """Add a recording and its segments."""
        self.recordings.append(Recording(path=recording, segments=tuple(segments.values())))
        self.keys.update((segment.path, key) for key, segment in segments.items())

    def entries(self, folder: Path) -> list[Path]:
        """List a folder of the tree in natural order; one that is empty or cannot be read is skipped."""
        return entries_or_skip(self.source, folder, self.skipped)

    def skip(self, path: Path, reason: str) -> None:
        """Report a path in the tree that is not one of the paper's clips."""
        self.skipped.append(skip(self.source, path, reason))


def write_published(
    corpus: Corpus,
    source: str | Path,
    out: str | Path,
    *,
    size: SizeInput = 128,
    num_workers: int | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Write the clip data set `out` from your copy `source` of a corpus; return its clips and what was skipped.

    A clip holds all frames of a take, cropped as published and fitted to `size` with black borders (`fit_frames`), stored
    losslessly at the recording's own rate. Labels, subjects and splits are the paper's; subjects in neither list and
    broken recordings are skipped and reported. (The paper jitters colours before resizing; on clips stored at their
    final size, training jitters after it.)

    The same call continues an interrupted run and adds clips that are new in `source`: complete clips in `out` are reused,
    and clips.csv is written last.

    Raises:
        FileNotFoundError: no such tree.
        UserError: settings that are not allowed, a tree without any usable clip of the corpus, or an `out` that holds other
            things, another corpus or another size, overlaps the tree or is in use.
    """
    source, out = expand_home(source), expand_home(out)
    check_trees(source, out)
    form = ClipFormat(size=training_size(size), fit="pad", crop=corpus.crop)
    check_workers(num_workers)
    found = Survey(corpus=corpus, source=source)
    corpus.survey(found)
    if not found.recordings:
        raise UserError(f"{source}: no clip of {corpus.name} in it; expected {corpus.layout}")
    with locked(out, inside=False):
        _claim(out, corpus, form.size)
        made = convert(source, out, found.recordings, form, reuse=True, num_workers=num_workers, progress=progress)
        skipped = (*found.skipped, *made.skipped)
        if not made.records:
            _give_up(out)
            raise UserError(
                f"{source}: no usable clip; of {len(skipped)} skipped the last is {skipped[-1].path} ({skipped[-1].reason})"
            )
        write_index(out, made.records)
    missing: list[str] = []
    if made.num_clips("train") < corpus.num_train:
        present = [found.keys[record.path] for record in made.records if record.split == "train"]
        missing = absent(corpus.train_keys, present)
        missing = missing or ["takes of subjects and labels that have others: the corpus does not number them"]
    return replace(made, skipped=skipped, missing=tuple(missing))


def _claim(out: Path, corpus: Corpus, size: Size) -> None:
    """Mark the folder with corpus and size, or check its mark; remove the temporary files of a killed run."""
    check_data_set_folder(out)
    marker = out / CLIPS_DIR / _MARKER
    expected = f"{corpus.name} at {size}"
    if marker.is_file():
        held = marker.read_text()
        if held != expected:
            raise UserError(f"{out}: holds clips of {held}, not of {expected}; choose another folder")
    elif out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: holds another data set than {expected}; choose another folder")
    else:
        marker.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(marker, expected.encode())
    for temporary in marker.parent.rglob(".*.tmp"):
        temporary.unlink()


def _give_up(out: Path) -> None:
    """Remove a folder without any clip."""
    clips = out / CLIPS_DIR
    if [entry.name for entry in clips.iterdir()] == [_MARKER] and not (out / CACHE_DIR).exists():
        (clips / _MARKER).unlink()
        clips.rmdir()
        out.rmdir()


def absent(expected: Iterable[Key], present: Collection[Key]) -> list[str]:
    """List what is missing, as generally as possible.

    >>> expected = [(s, f"action {a}") for s in ("subject 1", "subject 2") for a in (1, 2)]
    >>> absent(expected, [("subject 1", "action 2", "take 1")])
    ['subject 1, action 1', 'subject 2']
    """
    known = {key[:depth] for key in present for depth in range(1, len(key) + 1)}
    gaps: dict[Key, None] = {}
    for key in expected:
        gap = next((key[:depth] for depth in range(1, len(key) + 1) if key[:depth] not in known), None)
        if gap is not None:
            gaps[gap] = None
    return [", ".join(gap) for gap in gaps]
