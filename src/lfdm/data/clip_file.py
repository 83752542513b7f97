"""Arrays of many clips in one file that is memory-mapped, with a checksum of each clip. Imports no torch."""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

READ_BYTES = 1 << 24


@dataclass(frozen=True, kw_only=True)
class Part:
    """The bytes of one clip: their number and CRC-32."""

    size: int
    checksum: int


def write_clips(path: Path, clips: Iterable[Iterable[np.ndarray]]) -> Iterator[Part]:
    """Write the arrays of one clip after the other, and yield what `damaged_clips` needs after each clip."""
    with path.open("wb") as file:
        for arrays in clips:
            size = checksum = 0
            for array in arrays:
                data = np.ascontiguousarray(array).tobytes()
                file.write(data)
                size, checksum = size + len(data), zlib.crc32(data, checksum)
            yield Part(size=size, checksum=checksum)


def damaged_clips(path: Path, parts: Sequence[Part]) -> list[int]:
    """Return the indices of the clips whose bytes are not those that were written; reads the whole file."""
    damaged = []
    with path.open("rb") as file:
        for index, part in enumerate(parts):
            checksum, left = 0, part.size
            while left and (data := file.read(min(left, READ_BYTES))):
                checksum, left = zlib.crc32(data, checksum), left - len(data)
            if left or checksum != part.checksum:
                damaged.append(index)
    return damaged
