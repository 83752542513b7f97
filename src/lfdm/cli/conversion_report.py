"""Reports of commands that make a data set of recordings."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lfdm.data.index import count_labels

if TYPE_CHECKING:
    from lfdm.data.corpora.recordings import Conversion
    from lfdm.data.index import ClipRecord


def report_conversion(report: "Conversion", out: Path) -> dict[str, Any]:
    """Print what was made of recordings and what was left out, and return it."""
    print_skipped(report)
    print_clips(report, out)
    if report.skipped:
        print(f"{len(report.skipped)} files or folders skipped")
    print_notes(report)
    return conversion_values(report, out)


def data_set_values(out: Path, records: "Sequence[ClipRecord]") -> dict[str, Any]:
    """Return the result of a command that made a data set."""
    splits = Counter(record.split for record in records)
    return {
        "data": out,
        "clips": count_labels(records),
        "train": splits["train"],
        "test": splits["test"],
        "subjects": len({record.subject for record in records}),
    }


def conversion_values(report: "Conversion", out: Path) -> dict[str, Any]:
    """Return the result of a conversion."""
    return {
        **data_set_values(out, report.records),
        "reused": report.num_reused,
        "skipped": {str(skipped.path): skipped.reason for skipped in report.skipped},
        "missing": report.missing,
        "notes": report.notes,
    }


def print_skipped(report: "Conversion", most: int | None = None) -> None:
    """Print files left out, at most `most`."""
    print_some([f"skipped {skipped.path}: {skipped.reason}" for skipped in report.skipped], most)


def print_notes(report: "Conversion", most: int | None = None) -> None:
    """Print notes of the conversion, at most `most`."""
    print_some([f"note {note}" for note in report.notes], most)


def print_clips(report: "Conversion", out: Path) -> None:
    """Print the number of clips of every label and split."""
    for label, count in count_labels(report.records).items():
        print(f"{label}: {count} clips")
    num_train, num_test = report.num_clips("train"), report.num_clips("test")
    num_subjects = len({record.subject for record in report.records})
    print(f"{num_train} training and {num_test} test clips of {num_subjects} subjects in {out}")


def print_some(lines: Sequence[str], most: int | None) -> None:
    """Print at most `most` lines, and how many are left out."""
    for line in lines[:most]:
        print(line)
    if most is not None and len(lines) > most:
        print(f"... and {len(lines) - most} more lines of '{lines[-1].split()[0]}'")
