"""Tables as spreadsheets and people write them."""

from pathlib import Path
from typing import Any

import pytest

from lfdm.data.index import ClipRecord, read_index, split_warnings
from lfdm.errors import UserError

ROW = ClipRecord(path="a b.avi", label="wave, twice", subject="ann", split="train", frames=3, fps=8.5, width=16, height=12)
HEADER = "path,label,subject,split,frames,fps,width,height"
VALUES = 'a b.avi,"wave, twice",ann,train,3,8.5,16,12'


@pytest.mark.parametrize(
    "table",
    [
        f"{HEADER}\n{VALUES}\n".encode(),
        f"\ufeff{HEADER}\r\n{VALUES}\r\n\r\n".encode(),
        f"{HEADER.title().replace(',', ', ')}\n".encode() + b'a b.avi, "wave, twice", ann , Train, 3, 8.5, 16, 12\n',
        f"{HEADER.replace(',', ';')}\na b.avi;wave, twice;ann;train;3;8,5;16;12\n".encode(),
        f"{HEADER.upper().replace(',', chr(9))}\na b.avi\twave, twice\tann\ttrain\t3\t8.5\t16\t12\n".encode(),
        f"{HEADER.replace(',', chr(9))}\na b.avi\twave, twice\tann\ttrain\t3\t8.5\t16\t12\n".encode("utf-16"),
        f"{HEADER}\r{VALUES}\r".encode(),
        ",".join(f'"{name}"' for name in HEADER.split(",")).encode() + f"\n{VALUES}\n".encode(),
    ],
    ids=["plain", "mark", "spaces and capitals", "semicolons", "tabs", "utf-16", "old line ends", "quotes"],
)
def test_delimiter_case_spaces_and_marks_do_not_matter(tmp_path: Path, table: bytes) -> None:
    (tmp_path / "clips.csv").write_bytes(table)
    assert read_index(tmp_path) == [ROW]


@pytest.mark.parametrize(
    ("table", "match"),
    [
        (
            b"path;label;subject\n",
            "missing column split, .*; it has 'path', 'label', 'subject', separated by semicolons, and needs",
        ),
        (b"", "missing column path, .*; it is empty"),
        (HEADER.encode() + b",Label\n", "column label is there twice"),
        (b"path,label\na.avi,caf\xe9\n", "UTF-8"),
    ],
)
def test_other_tables_are_refused_with_what_they_have(tmp_path: Path, table: bytes, match: str) -> None:
    (tmp_path / "clips.csv").write_bytes(table)
    with pytest.raises(UserError, match=match):
        read_index(tmp_path)


def test_records_hold_composed_trimmed_names() -> None:
    record = ClipRecord(path="a.avi", label=" cafe\u0301", subject="e\u0301 ", split="test", frames=2, fps=8, width=8, height=8)
    assert (record.label, record.subject) == ("caf\u00e9", "\u00e9")


def test_labels_of_one_split_are_named() -> None:
    def record(label: str, split: str) -> ClipRecord:
        return ClipRecord(path=label, label=label, subject=split, split=split, frames=2, fps=8, width=8, height=8)  # pyright: ignore[reportArgumentType]

    assert split_warnings([record("a", "train")]) == []
    without_training, without_test = split_warnings([record("a", "train"), record("b", "test"), record("c", "test")])
    assert "without training clips" in without_training
    assert without_training.endswith(": b, c")
    assert "without test clips" in without_test
    assert without_test.endswith(": a")


@pytest.mark.parametrize("name", ["path", "label", "subject"])
@pytest.mark.parametrize("value", ["a\x1b]0;owned\x07", "a\nb", "x" * 1001])
def test_records_hold_names_of_one_line(name: str, value: str) -> None:
    values: dict[str, Any] = {"path": "a.avi", "label": "a", "subject": "b", name: value}
    with pytest.raises(UserError, match=f"{name} must be one line of at most 1000 characters"):
        ClipRecord(**values, split="test", frames=2, fps=8, width=8, height=8)
