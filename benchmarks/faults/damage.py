"""Damage valid files: in their bytes, in the values of JSON, tables and safetensors headers. A damage is JSON, to be repeated."""

import json
import zlib
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from benchmarks.faults.samples import join_safetensors, read_safetensors_header

Damage = dict[str, Any]
"""`kind` names one of `_KINDS`; the other entries are its arguments."""

NUMBERS = ("0", "-1", "1", "2", "3", "255", "65535", "65536", "2147483647", "2147483648", "4294967295", "9223372036854775808")
WORDS = (
    "",
    " ",
    "None",
    "null",
    "NaN",
    "inf",
    "-inf",
    "1e308",
    "1e-320",
    "1e999",
    "0x10",
    "1_0",
    "1,5",
    "-",
    "--",
    "\u0661",
    "\u2028",
)
PATHS = ("..", "../data", "/etc/passwd", "file:///etc/passwd", "http://127.0.0.1:9/x.mp4", "~", "~root/x", ".", "/", "a" * 300)
NAMES = (
    "\x1b[31mred\x1b[0m",
    "a\nb",
    "a\rb",
    "a\tb",
    "a\x00b",
    "\u202egnp",
    "\U0001f600",
    "\ud800",
    "%s%n",
    "$(id)",
    "a;b",
    '"',
    "'",
)
TEXTS = (*NUMBERS, *WORDS, *PATHS, *NAMES, "9" * 5000, "x" * 100_000)
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 2**31, 2**63, 10**400, 0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf")),
    *("", "x", "../x", "/etc/passwd", "None", "x" * 10_000, "\x1b[31m", "\ud800", [], {}, [0], [[]], [None], {"a": 1}),
    *([1] * 10_000, ["a", 1], [-1, -1], [2**62, 2**62], {"type": "dense"}, ["lfdm", "Motion"], ["os", "system"]),
)
_HEADER = 400
"""Bytes at the beginning of a file, where most formats state sizes and numbers."""


def apply(path: Path, damage: Damage) -> None:
    """Damage a file in place."""
    arguments = {name: value for name, value in damage.items() if name != "kind"}
    path.write_bytes(_KINDS[damage["kind"]](path.read_bytes(), **arguments))


def damages(suffix: str) -> st.SearchStrategy[list[Damage]]:
    """Return a strategy of one to three damages for a file with this ending."""
    one = _of_bytes()
    if suffix == ".json":
        one = st.one_of(_of_json(), _of_json(), _of_bytes())
    elif suffix in (".csv", ".tsv", ".txt"):
        one = st.one_of(_of_tables(), _of_tables(), _of_bytes())
    elif suffix == ".safetensors":
        one = st.one_of(_of_safetensors(), _of_safetensors(), _of_bytes())
    return st.lists(one, min_size=1, max_size=3)


def _of_bytes() -> st.SearchStrategy[Damage]:
    place = st.one_of(st.integers(0, _HEADER), st.integers(0, _HEADER), st.integers(0, 1 << 20))
    number = st.sampled_from([int(text) for text in NUMBERS if int(text) >= 0])
    return st.one_of(
        st.builds(_named("flip"), at=place, bit=st.integers(0, 7)),
        st.builds(_named("number"), at=place, value=number, width=st.sampled_from([1, 2, 4, 8]), big=st.booleans()),
        st.builds(_named("cut"), at=place),
        st.builds(_named("remove"), at=place, length=st.integers(1, 5000)),
        st.builds(_named("repeat"), at=place, length=st.integers(1, 2000), times=st.integers(1, 50)),
        st.builds(_named("insert"), at=place, text=st.binary(min_size=1, max_size=40).map(bytes.hex)),
        st.builds(_named("replace"), content=st.sampled_from(_WHOLE_FILES)),
    )


def _of_json() -> st.SearchStrategy[Damage]:
    index = st.integers(0, 60)
    value = st.integers(0, len(_VALUES) - 1)
    return st.one_of(
        st.builds(_named("json"), index=index, value=value),
        st.builds(_named("json"), index=index, value=value),
        st.builds(
            _named("json_key"), index=index, name=st.sampled_from(["", "x", "_class_name", "num_frames", "labels", "\x1b[0m"])
        ),
        st.builds(_named("json_depth"), depth=st.sampled_from([100, 5000, 200_000])),
    )


def _of_tables() -> st.SearchStrategy[Damage]:
    cell = st.one_of(st.sampled_from(TEXTS), st.sampled_from(TEXTS), st.text(max_size=20))
    return st.one_of(
        st.builds(_named("cell"), row=st.integers(0, 8), column=st.integers(0, 8), text=cell),
        st.builds(_named("cell"), row=st.integers(0, 8), column=st.integers(0, 8), text=cell),
        st.builds(_named("row"), row=st.integers(0, 8), times=st.sampled_from([0, 2, 3000])),
    )


def _of_safetensors() -> st.SearchStrategy[Damage]:
    return st.builds(
        _named("header"),
        tensor=st.integers(0, 60),
        entry=st.sampled_from(["dtype", "shape", "data_offsets", "name", "metadata", "gone"]),
        value=st.integers(0, len(_VALUES) - 1),
        dtype=st.sampled_from(["F64", "F16", "BF16", "I64", "I8", "BOOL", "F8_E4M3", "C64", "X", ""]),
    )


def _named(kind: str) -> Any:
    return lambda **arguments: {"kind": kind, **arguments}


# ------------------------------------------------------------------------------------------------------------ bytes


def _flip(data: bytes, at: int, bit: int) -> bytes:
    changed = bytearray(data or b"\0")
    changed[at % len(changed)] ^= 1 << bit
    return _valid_png(bytes(changed))


def _number(data: bytes, at: int, value: int, width: int, big: bool) -> bytes:
    at %= max(len(data), 1)
    number = (value % (1 << 8 * width)).to_bytes(width, "big" if big else "little")
    return _valid_png(data[:at] + number + data[at + width :])


def _cut(data: bytes, at: int) -> bytes:
    return data[: at % max(len(data), 1)]


def _remove(data: bytes, at: int, length: int) -> bytes:
    at %= max(len(data), 1)
    return data[:at] + data[at + length :]


def _repeat(data: bytes, at: int, length: int, times: int) -> bytes:
    at %= max(len(data), 1)
    return data[:at] + data[at : at + length] * times + data[at:]


def _insert(data: bytes, at: int, text: str) -> bytes:
    at %= max(len(data), 1)
    return data[:at] + bytes.fromhex(text) + data[at:]


_WHOLE_FILES = (
    "",
    "00",
    "ffffffff",
    "89504e470d0a1a0a",
    "47494638396101000100",
    "52494646ffffffff57454250",
    "504b0304",
    "80049500",
)
"""Contents, in hexadecimal digits, that are nothing but a beginning."""


def _replace(data: bytes, content: str) -> bytes:  # noqa: ARG001 - every kind takes the data
    return bytes.fromhex(content)


def _valid_png(data: bytes) -> bytes:
    """Correct the checksums of a PNG, so that a damage reaches the code behind them."""
    if not data.startswith(b"\x89PNG"):
        return data
    parts, at = [data[:8]], 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        parts.append(data[at:end] + zlib.crc32(data[at + 4 : end]).to_bytes(4, "big"))
        at = end + 4
    return b"".join(parts) + data[at:]


# ----------------------------------------------------------------------------------------------------------- values


def _leaves(value: Any) -> list[tuple[Any, Any]]:
    """List the places (container, key) of all values in a JSON value."""
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    return [place for key, inner in items for place in [(value, key), *_leaves(inner)]]


def _dump(value: Any) -> bytes:
    return json.dumps(value).replace("Infinity", "1e999").encode()


def _json(data: bytes, index: int, value: int) -> bytes:
    content = _parse(data)
    places = _leaves(content)
    if not places:
        return _dump(_VALUES[value])
    container, key = places[index % len(places)]
    container[key] = _VALUES[value]
    return _dump(content)


def _json_key(data: bytes, index: int, name: str) -> bytes:
    content = _parse(data)
    places = [(container, key) for container, key in _leaves(content) if isinstance(container, dict)]
    if places:
        container, key = places[index % len(places)]
        container[name] = container.pop(key)
    return _dump(content)


def _json_depth(data: bytes, depth: int) -> bytes:
    return b'{"a":' + b"[" * depth + b"]" * depth + b"," + data.lstrip()[1:]


def _parse(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):  # damaged before
        return {}


def _cell(data: bytes, row: int, column: int, text: str) -> bytes:
    separator = "\t" if b"\t" in data else ","
    rows = [line.split(separator) for line in data.decode("latin-1").split("\n")]
    cells = rows[row % len(rows)]
    cells[column % len(cells)] = text
    return "\n".join(separator.join(cells) for cells in rows).encode(errors="surrogatepass")


def _row(data: bytes, row: int, times: int) -> bytes:
    rows = data.split(b"\n")
    row %= len(rows)
    return b"\n".join(rows[:row] + rows[row : row + 1] * times + rows[row + 1 :])


def _header(data: bytes, tensor: int, entry: str, value: int, dtype: str) -> bytes:
    try:
        header, tensors = read_safetensors_header(data)
    except (ValueError, RecursionError):  # damaged before
        return data
    names = sorted(set(header) - {"__metadata__"})
    if not names:
        return data
    name = names[tensor % len(names)]
    stored: Any = header[name]
    if entry == "metadata":
        header["__metadata__"] = _VALUES[value]
    elif entry in ("gone", "name"):
        header.pop(name)
        header |= {} if entry == "gone" else {str(_VALUES[value]): stored}
    elif isinstance(stored, dict):
        stored[entry] = dtype if entry == "dtype" else _VALUES[value]
    return join_safetensors(header, tensors)


_KINDS: dict[str, Any] = {
    **{"flip": _flip, "number": _number, "cut": _cut, "remove": _remove, "repeat": _repeat, "insert": _insert},
    **{"replace": _replace, "json": _json, "json_key": _json_key, "json_depth": _json_depth},
    **{"cell": _cell, "row": _row, "header": _header},
}
