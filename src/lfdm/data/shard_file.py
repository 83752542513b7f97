"""Shards: files of many clips that are read in any order, in Arrow's IPC format, and the list of all shards of a folder.

A record batch of a file is one clip: a text with everything about it in JSON, and its arrays as bytes. Imports no torch.
"""

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from lfdm.errors import MissingExtraError, UserError
from lfdm.folders.remote import StoredFolder

SHARD_LIST_NAME = "shards.json"
SHARD_VERSION = 1
_TEXT = "clip"


class DamagedShardError(UserError):
    """A shard, or a clip in it, whose bytes are not those that were written."""


def import_arrow() -> Any:
    """Return the module `pyarrow`; MissingExtraError if it is not installed."""
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError as error:
        raise MissingExtraError("shards need pyarrow: pip install 'lfdm[scale]'") from error
    return pyarrow


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of a shard list."""

    file: str
    """Name in the folder."""
    clips: int
    """Number of clips."""
    size: int
    """Bytes of the file."""


@dataclass(frozen=True, kw_only=True)
class SplitSummary:
    """Facts about the clips of a split that are known without reading them."""

    shards: list[Shard] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    """Number of clips by label."""
    shapes: list[tuple[int, int, int]] = field(default_factory=list)
    """Height, width and number of clips of this size."""
    has_alpha: bool = False
    """True if any pixel is not opaque."""

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Return the summary that `asdict` described."""
        shards = [Shard(**shard) for shard in values["shards"]]
        shapes = [(int(height), int(width), int(count)) for height, width, count in values["shapes"]]
        return cls(shards=shards, labels=dict(values["labels"]), shapes=shapes, has_alpha=bool(values["has_alpha"]))


@dataclass(frozen=True, kw_only=True)
class ShardList:
    """The content of shards.json."""

    source: str
    """Digest of what the shards are made of."""
    complete: bool
    """False while they are being written."""
    splits: dict[str, SplitSummary]
    left_out: dict[str, str]
    """Reasons why clips are left out, by path."""

    def write(self, folder: StoredFolder) -> None:
        """Write shards.json in one step."""
        folder.write(SHARD_LIST_NAME, json.dumps({"version": SHARD_VERSION, **asdict(self)}, indent=1).encode())

    @classmethod
    def read(cls, folder: StoredFolder) -> Self | None:
        """Read shards.json; None if there is none. Raises UserError for a damaged one or one of another version."""
        content = folder.read(SHARD_LIST_NAME)
        if content is None:
            return None
        try:
            values = json.loads(content)
            if values.pop("version") != SHARD_VERSION:
                raise UserError(f"{folder.url}: shards of another version of lfdm; write them again with 'lfdm data shard'")
            return cls(**{**values, "splits": {name: SplitSummary.parse(split) for name, split in values["splits"].items()}})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{folder.url}: {SHARD_LIST_NAME} is damaged ({error})") from error


def write_shard(path: Path, clips: Iterable[tuple[Mapping[str, Any], Mapping[str, np.ndarray]]]) -> int:
    """Write clips, each described by values of JSON and its arrays, which are compressed without loss; return their number.

    Every clip must have arrays of the same names.
    """
    arrow = import_arrow()
    writer, count = None, 0
    with path.open("wb") as file:
        for values, arrays in clips:
            forms = {
                name: {"dtype": array.dtype.str, "shape": array.shape, "checksum": zlib.crc32(array.tobytes())}
                for name, array in arrays.items()
            }
            columns = {
                _TEXT: arrow.array([json.dumps({**values, "arrays": forms})], arrow.string()),
                **{name: arrow.array([array.tobytes()], arrow.large_binary()) for name, array in arrays.items()},
            }
            batch = arrow.record_batch(columns)
            if writer is None:
                writer = arrow.ipc.new_file(file, batch.schema, options=arrow.ipc.IpcWriteOptions(compression="zstd"))
            writer.write_batch(batch)
            count += 1
        if writer is not None:
            writer.close()
    return count


class ShardReader:
    """The clips of one shard file, which is mapped into memory.

    Raises:
        FileNotFoundError: no such file.
        DamagedShardError: not a shard, or a damaged one.
    """

    def __init__(self, path: Path) -> None:
        arrow = import_arrow()
        self.path, self._errors = path, (arrow.ArrowException, OSError, ValueError, KeyError, TypeError)
        self._map = arrow.memory_map(str(path))
        with self._naming_damage():
            texts = arrow.ipc.open_file(
                self._map, options=arrow.ipc.IpcReadOptions(use_threads=False, included_fields=[0])
            ).read_all()
            self.clips: list[dict[str, Any]] = [json.loads(text) for text in texts[_TEXT].to_pylist()]
            # A loader process is a fork of this one, in which Arrow's threads do not run.
            self._file = arrow.ipc.open_file(self._map, options=arrow.ipc.IpcReadOptions(use_threads=False))

    def __len__(self) -> int:
        return len(self.clips)

    def arrays(self, index: int) -> dict[str, np.ndarray]:
        """Return the arrays of a clip, which are read-only. Raises DamagedShardError naming the clip."""
        clip = self.clips[index]
        with self._naming_damage(clip):
            batch, found = self._file.get_batch(index), {}
            for name, form in clip["arrays"].items():
                data = batch.column(name)[0].as_buffer()
                if zlib.crc32(data) != form["checksum"]:
                    raise ValueError("its checksum differs")
                found[name] = np.frombuffer(data, np.dtype(form["dtype"])).reshape(form["shape"])
        return found

    @contextmanager
    def _naming_damage(self, clip: Mapping[str, Any] | None = None) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            name = self.path.name if clip is None else f"{clip.get('path')} in {self.path.name}"
            raise DamagedShardError(f"{name} is damaged ({' '.join(str(error).split()) or type(error).__name__})") from error
