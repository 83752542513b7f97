"""NumPy archives (.npz) of this package, read without running code and without filling the memory. Imports no torch."""

import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lfdm.errors import UserError

MAX_ARRAY_BYTES = 2**30
"""Most bytes of all arrays of an archive. They are compressed, so that a small file could hold any number of zeros."""
_ERRORS = (LookupError, OSError, ValueError, EOFError, MemoryError, NotImplementedError, zipfile.BadZipFile, zlib.error)
"""Errors that damaged archives and arrays raise."""


@contextmanager
def open_arrays(path: Path) -> Iterator[Mapping[str, np.ndarray]]:
    """Give the arrays of an archive, which are read when they are used.

    Raises UserError naming the path for what is no such archive, lacks an array or is too large, also inside the block.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise UserError(f"{path}: a single array; needs an .npz archive")
            size = sum(entry.file_size for entry in archive.zip.infolist()) if archive.zip else 0
            if size > MAX_ARRAY_BYTES:
                raise UserError(f"{path}: arrays of {size >> 20} MB; at most {MAX_ARRAY_BYTES >> 20} MB are read")
            yield archive
    except UserError:
        raise
    except _ERRORS as error:
        raise UserError(f"{path}: not a readable archive of arrays ({error or type(error).__name__})") from error


def map_array(path: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> np.ndarray:
    """Map a file of numbers into memory, read only: an array of `shape`. Raises UserError for a file of another size."""
    size = path.stat().st_size if path.is_file() else 0
    if size != math.prod(shape) * np.dtype(dtype).itemsize:
        raise UserError(f"{path}: damaged, since it has {size} bytes and not {shape} values; delete its folder to make it anew")
    return np.memmap(path, dtype, "r", shape=shape)
