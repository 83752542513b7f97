"""Copies of remote shards on the disk, as many as a limit allows. Imports no torch."""

import hashlib
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lfdm.data.shard_file import DamagedShardError, Shard
from lfdm.errors import UserError
from lfdm.folders.files import TEMPORARY_SUFFIX, remove_leftovers, temporary_path
from lfdm.folders.lock import locked
from lfdm.folders.remote import StoredFolder

logger = logging.getLogger(__name__)


class ShardFiles:
    """Paths of shards: in their own folder or, if that is remote, of copies; the least recently used copies make room for others.

    Processes of a machine share the copies; each is downloaded by one of them.

    Args:
        cache: folder for copies.
        limit: bytes that all copies in `cache` may take.
    """

    def __init__(self, folder: StoredFolder, cache: Path, limit: int) -> None:
        self.folder, self.cache, self.limit = folder, cache, limit
        self.copies = cache / hashlib.sha256(folder.url.encode()).hexdigest()[:16]
        if folder.local is None:
            remove_leftovers(self.copies)

    def path(self, shard: Shard) -> Path:
        """Return the path of a shard, which is downloaded if it is not on the disk.

        Raises:
            FileNotFoundError: there is none.
            DamagedShardError: it has another size than it should.
            UserError: the network fails again and again.
        """
        if self.folder.local is not None:
            path = self.folder.local / shard.file
            _check_size(path, shard)
            return path
        path = self.copies / shard.file
        if not _is_whole(path, shard):
            self.copies.mkdir(parents=True, exist_ok=True)
            with locked(path, inside=False, wait=True):
                if not _is_whole(path, shard):
                    self._download(shard, path)
        with suppress(OSError):  # removed by another process, whose own copies it made room for
            os.utime(path)
        return path

    def discard(self, shard: Shard) -> bool:
        """Remove the copy of a shard, so that it is downloaded anew; return False for one that is no copy."""
        if self.folder.local is not None:
            return False
        (self.copies / shard.file).unlink(missing_ok=True)
        return True

    def _download(self, shard: Shard, path: Path) -> None:
        temporary = temporary_path(path)
        try:
            self._make_room(shard.size)
            self.folder.download(shard.file, temporary)
            _check_size(temporary, shard)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        """Remove copies, the least recently used first, until `size` more bytes fit."""
        found: list[tuple[float, int, Path]] = []
        for path in self.cache.glob("*/*"):
            with suppress(OSError):  # just removed by another process
                stat = path.stat()
                found.append((stat.st_mtime, stat.st_size, path))
        total = sum(used for _, used, _ in found)
        for _, used, path in sorted(found):
            if total + size <= self.limit:
                return
            if path.suffix != TEMPORARY_SUFFIX and not path.name.startswith("."):
                path.unlink(missing_ok=True)
                total -= used


def check_limit(shards: Sequence[Shard], at_once: int, limit: int) -> None:
    """Raise UserError if the limit of a cache is below the largest `at_once` shards, which are used together."""
    needed = sum(sorted((shard.size for shard in shards), reverse=True)[:at_once])
    if needed > limit:
        raise UserError(
            f"cache_gb must be at least {needed / 1e9:.3g}, for the shards that are read together; got {limit / 1e9:g}"
        )


def _is_whole(path: Path, shard: Shard) -> bool:
    try:
        return path.stat().st_size == shard.size
    except OSError:
        return False


def _check_size(path: Path, shard: Shard) -> None:
    size = path.stat().st_size
    if size != shard.size:
        raise DamagedShardError(f"{shard.file} is damaged (it has {size} bytes and not {shard.size})")
