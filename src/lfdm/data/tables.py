"""Tables with a header line as people save them: CSV with commas, semicolons or tabs, from any spreadsheet. Imports no torch."""

import codecs
import csv
import io
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from lfdm.errors import UserError
from lfdm.folders.texts import read_whole

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def tidy(text: str) -> str:
    """Return `text` in Unicode form NFC, without white space around it: the form in which labels and subjects are compared.

    >>> tidy(" cafe\\u0301 ") == "caf\\u00e9"
    True
    """
    return unicodedata.normalize("NFC", text).strip()


def read_table(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str | None]]]:
    """Yield the rows of a table as (line number, value by column), a value of a short row being None.

    The header line decides the delimiter: the one that separates most of `columns`. Column names may be capitalised, names and
    values may have spaces around them, and the file may be UTF-8 or (with a byte order mark) UTF-16.

    Raises FileNotFoundError, and UserError for a missing column, which says which columns the file has.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such table")
    text = _decode(path)
    header = text.split("\n", 1)[0]
    delimiter = max(_DELIMITERS, key=lambda mark: len(set(columns) & set(_names(header.split(mark)))))
    try:
        # A quoted value may follow a space ('a, "b, c"'), which the csv module reads only with skipinitialspace.
        reader = csv.DictReader(io.StringIO(text), delimiter=delimiter, skipinitialspace=delimiter != "\t", restkey="")
        reader.fieldnames = names = _names(reader.fieldnames or [])
        _check_columns(path, columns, names, delimiter)
        for row in reader:
            values = {name: None if row[name] is None else row[name].strip() for name in names if name}
            yield reader.line_num, values
    except csv.Error as error:
        raise UserError(f"{path}: not a table of comma-separated values ({error})") from error


def _decode(path: Path) -> str:
    data = read_whole(path)
    try:
        text = data.decode("utf-16" if data.startswith(_UTF16_MARKS) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a table of comma-separated values in UTF-8 ({error}); save it as 'CSV UTF-8'") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _names(header: Sequence[str]) -> list[str]:
    return [name.strip().strip('"').strip().lower() for name in header]


def _check_columns(path: Path, columns: Sequence[str], names: Sequence[str], delimiter: str) -> None:
    missing = [name for name in columns if name not in names]
    if missing:
        has = f"it has {', '.join(map(repr, names))}, separated by {_DELIMITERS[delimiter]}" if any(names) else "it is empty"
        raise UserError(f"{path}: missing column {', '.join(missing)}; {has}, and needs {','.join(columns)}")
    twice = sorted({name for name in columns if names.count(name) > 1})
    if twice:
        raise UserError(f"{path}: column {twice[0]} is there twice")
