"""Requests for videos, and the tables that hold them: CSV, JSON Lines or Parquet. Imports no torch."""

import hashlib
import json
import math
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

from lfdm.config.checks import MAX_SEED, check, check_integer, check_types
from lfdm.config.video import PictureFit
from lfdm.data.tables import read_table, tidy
from lfdm.errors import MissingExtraError, UserError
from lfdm.folders.files import as_file_name
from lfdm.folders.texts import read_whole

ENDINGS = (".csv", ".jsonl", ".parquet")
_WORDS = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}


@dataclass(frozen=True, kw_only=True)
class VideoRequest:
    """One video to make; a table has these fields as columns.

    Raises:
        UserError: a value of the wrong type. Other wrong values are found when the video is made.
    """

    image: str
    """Path (relative to the table's folder) or URL of a picture, or a frame of a video, `clip.mp4@1.5s`."""
    condition: str | None = None
    """Label or mix of labels, as for `lfdm generate`; None = unconditional."""
    seed: int = 0
    """Seed of the noise."""
    name: str | None = None
    """Name of the video's file, without ending; by default made of image, condition, seed and a checksum of the request."""
    num_frames: int | None = None
    """Length in frames; None = the model's."""
    num_inference_steps: int | None = None
    """Sampling steps; None = the model's."""
    guidance_scale: float | None = None
    """Classifier-free guidance; None = the model's."""
    negative_condition: str | None = None
    """Condition that guidance moves away from."""
    motion_strength: float = 1.0
    """Factor of the motion, 0 to 2."""
    motion_mask: str | None = None
    """Path or URL of a picture of the image's size: white moves."""
    fit: PictureFit | None = None
    """How the picture is fitted; None = as in training."""
    loop: bool = False
    """Let the last frame lead into the first."""
    full_size: bool = False
    """Frames in the picture's own size, of its own pixels."""
    pixel_art: bool = False
    """Frames of the picture's own pixels and colours, with hard edges."""

    def __post_init__(self) -> None:
        check_types(self)
        check(bool(self.image), "image", self.image, "a path or URL")
        check_integer("seed", self.seed, 0, MAX_SEED)

    @property
    def key(self) -> str:
        """A checksum of the request."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def file_stem(self) -> str:
        """The name of its file without the ending: the same in every run, and of no other request unless it is named so."""
        if self.name is not None:
            return as_file_name(self.name)
        picture = PurePosixPath(self.image.replace("\\", "/")).stem
        return f"{as_file_name(picture)}-{as_file_name(self.condition or 'unconditional')}-{self.seed}-{self.key[:8]}"

    def settings(self) -> "VideoRequest":
        """Return this request without what may differ within a batch."""
        return replace(self, image="-", condition=None, seed=0, name=None)


@dataclass(frozen=True)
class Row:
    """A row of a table."""

    number: int
    """Line of a text file, from 1, or row of a Parquet file, from 1."""
    request: VideoRequest | None
    """None for a row that is no request."""
    values: dict[str, Any]
    """Content of the row."""
    error: str | None = None
    """Why it is no request."""


def read_requests(path: Path) -> list[Row]:
    """Read a table of requests. A row with a wrong value is returned with an error; identical requests are returned once.

    Raises:
        FileNotFoundError: no such file.
        UserError: not a table, no rows, or an unknown column.
        MissingExtraError: a Parquet file without pyarrow.
    """
    ending = path.suffix.lower()
    check(ending in ENDINGS, "requests", str(path), f"a table that ends in {', '.join(ENDINGS)}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such table of requests")
    reader = {".csv": _read_csv, ".jsonl": _read_json_lines, ".parquet": _read_parquet}[ending]
    rows: list[Row] = []
    keys: set[str] = set()
    for number, values in reader(path):
        row = _parse(path, number, values)
        if row.request is not None:
            if row.request.key in keys:
                continue
            keys.add(row.request.key)
        rows.append(row)
    if not rows:
        raise UserError(f"{path} holds no requests")
    return _with_distinct_names(rows)


def group_requests(requests: Sequence[VideoRequest], batch_size: int) -> list[list[VideoRequest]]:
    """Return batches of requests of equal settings, in the order of the table; a function of table and size only.

    Full-size videos are batches of one, for the sake of memory.
    """
    groups: dict[VideoRequest, list[VideoRequest]] = {}
    for request in requests:
        groups.setdefault(request.settings(), []).append(request)
    batches = []
    for settings, members in groups.items():
        size = 1 if settings.full_size else batch_size
        batches += [members[start : start + size] for start in range(0, len(members), size)]
    return batches


def _read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, row in read_table(path, ["image"]):
        _check_columns(path, row)
        yield number, {name: _from_text(name, text) for name, text in row.items() if text}


def _from_text(name: str, text: str) -> Any:
    """Return a cell of a CSV file as the type of its column, or the text itself if it is none of that type."""
    hint = typing.get_type_hints(VideoRequest)[name]
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    try:
        if bool in kinds:
            return _WORDS[text.lower()]
        return int(text) if int in kinds else float(text) if float in kinds else text
    except (KeyError, ValueError):
        return text


def _read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        lines = read_whole(path).decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not JSON Lines in UTF-8 ({error})") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: line {number} is not JSON ({error})") from error
        if not isinstance(values, dict):
            raise UserError(f"{path}: line {number} must be a JSON object; got {type(values).__name__}")
        _check_columns(path, values)
        yield number, {name: value for name, value in values.items() if value is not None}


def _read_parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    parquet = import_parquet()
    try:
        file = parquet.ParquetFile(path)
        _check_columns(path, dict.fromkeys(file.schema_arrow.names))
        rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
        for number, row in enumerate(rows, 1):
            yield number, {name: value for name, value in row.items() if not _is_missing(value)}
    except (OSError, ValueError) as error:  # pyarrow's errors are of these classes
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not a Parquet file ({error})") from error


def _is_missing(value: object) -> bool:
    """Return whether a value is null or NaN, which tables of pandas hold instead."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def import_parquet() -> Any:
    """Return `pyarrow.parquet`; MissingExtraError if it is not installed."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError("Parquet files need pyarrow: pip install 'lfdm[scale]'") from error
    return parquet


def _check_columns(path: Path, row: dict[str, Any]) -> None:
    allowed = [field.name for field in fields(VideoRequest)]
    unknown = [name for name in row if name not in allowed]
    if unknown:
        raise UserError(f"{path}: unknown column {unknown[0]!r}; allowed: {', '.join(allowed)}")


def _parse(path: Path, number: int, values: dict[str, Any]) -> Row:
    typed = dict(values)
    for name in ("condition", "negative_condition"):
        if isinstance(typed.get(name), str):
            typed[name] = tidy(typed[name])
    for name, value in typed.items():
        if name in ("guidance_scale", "motion_strength") and isinstance(value, int) and not isinstance(value, bool):
            typed[name] = float(value)
        if name in ("seed", "num_frames", "num_inference_steps") and isinstance(value, float) and value.is_integer():
            typed[name] = int(value)  # a column of integers with gaps holds floats in pandas
    try:
        if "image" not in typed:
            raise UserError("no image")
        return Row(number, VideoRequest(**typed), values)
    except UserError as error:
        return Row(number, None, values, f"{path.name}, row {number}: {error}")


def _with_distinct_names(rows: list[Row]) -> list[Row]:
    """Turn requests whose file name an earlier one already has into errors."""
    taken: dict[str, int] = {}
    checked = []
    for row in rows:
        if row.request is not None:
            stem = row.request.file_stem.casefold()
            first = taken.setdefault(stem, row.number)
            if first != row.number:
                row = Row(row.number, None, row.values, f"name {row.request.name!r} is taken by row {first}")
        checked.append(row)
    return checked
