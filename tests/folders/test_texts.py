"""Texts: bounded reading, and one printable line."""

import json
from pathlib import Path

import pytest

from lfdm.errors import UserError
from lfdm.folders import texts
from lfdm.folders.model_folder import read_json
from lfdm.folders.texts import is_printable, printable, read_whole


def test_a_file_without_end_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "MAX_TEXT_BYTES", 10)
    (tmp_path / "small.csv").write_bytes(b"0123456789")
    (tmp_path / "large.csv").write_bytes(b"0123456789a")
    assert read_whole(tmp_path / "small.csv") == b"0123456789"
    with pytest.raises(UserError, match=r"large\.csv: over"):
        read_whole(tmp_path / "large.csv")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("wave \u00e9\U0001f600", "wave \u00e9\U0001f600"),
        ("\x1b]0;owned\x07", "\\x1b]0;owned\\x7"),
        ("a\nb", "a\\xab"),
        ("\udcff", "\\xdcff"),
        ("a\u2028b", "a\\x2028b"),
    ],
)
def test_control_characters_are_shown_as_codes(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert is_printable(text) == (text == shown)


@pytest.mark.parametrize("content", [b"9" * 5000, b"\xff\xfe\x00", b"[" * 100_000, b'{"a": "\xff"}'])
def test_any_json_that_cannot_be_parsed_names_its_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json is not valid JSON"):
        read_json(path)
    path.write_text(json.dumps({"a": 1}))
    assert read_json(path) == {"a": 1}
