"""Record of what an unfinished conversion has done: a line for every recording, in a file of each process that converts.

A line counts only for a recording that has not changed since, with the same label, subject and split.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lfdm.data.corpora.recordings import Conversion, Recording
from lfdm.data.index import CLIPS_DIR, ClipRecord

_FOLDER = ".finished"


def stamps(path: Path) -> list[tuple[str, int, int]]:
    """Return name, size in bytes and time of change of a video file, or of each file in a folder of images; [] if unreadable."""
    try:
        entries = sorted(path.iterdir()) if path.is_dir() else [path]
        return [(entry.name, stat.st_size, stat.st_mtime_ns) for entry in entries for stat in [entry.stat()]]
    except OSError:
        return []


def key_of(recording: Recording) -> str:
    """Return a digest of a recording's segments and of the state of its files."""
    return hashlib.sha256(repr((recording, stamps(recording.path))).encode()).hexdigest()


def note_finished(folder: Path, recording: Recording, made: Conversion) -> None:
    """Note that `recording` has become the clips `made` of the data set `folder`; one that was skipped is tried again."""
    if made.skipped or not made.records:
        return
    line = json.dumps([key_of(recording), [asdict(record) for record in made.records], made.notes])
    (folder / _FOLDER).mkdir(exist_ok=True)
    with (folder / _FOLDER / f"{os.getpid()}.jsonl").open("a") as file:
        file.write(f"\n{line}")  # begins a line: the one before may be half written


def finished_in(folder: Path, recordings: Sequence[Recording]) -> list[Conversion | None]:
    """Return what earlier calls have made of each recording and noted in `folder`; None for what is yet to be done."""
    known: dict[str, Conversion] = {}
    for path in (folder / _FOLDER).glob("*.jsonl"):
        with path.open() as file:
            for line in file:
                try:
                    key, records, notes = json.loads(line)
                except ValueError:  # an empty line, or half of one
                    continue
                clips = tuple(ClipRecord(**record) for record in records)
                if all((folder / clip.path).is_file() for clip in clips):
                    known[key] = Conversion(records=clips, notes=tuple(notes), num_reused=len(clips))
    return [known.get(key_of(recording)) for recording in recordings] if known else [None] * len(recordings)


def remove_notes(folder: Path, records: Sequence[ClipRecord]) -> None:
    """Remove the notes, and the files that are no clip of `records`: of killed processes, or of recordings that have changed."""
    shutil.rmtree(folder / _FOLDER, ignore_errors=True)
    kept = {record.path for record in records}
    for path in (folder / CLIPS_DIR).rglob("*"):
        if path.is_file() and path.relative_to(folder).as_posix() not in kept:
            path.unlink()
