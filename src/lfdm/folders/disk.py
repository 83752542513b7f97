"""Errors of disks that are full, read-only or limited, in words that say which file, which disk and what to do."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_REASONS = {
    errno.ENOSPC: "no space is left on {disk} ({free:,.0f} of {total:,.0f} MB free); free some, or choose a place elsewhere",
    errno.EDQUOT: "your quota on {disk} is used up; free some space, or choose a place elsewhere",
    errno.EROFS: "{disk} is read-only; choose a place elsewhere",
    errno.EFBIG: "it would be larger than {disk} or `ulimit -f` allows; raise the limit, or choose a place elsewhere",
}
_MEGABYTE = 1e6


class DiskError(OSError):
    """A file or folder that could not be written for want of space or permission of the whole disk."""

    def __str__(self) -> str:
        return str(self.strerror)


def disk_error(error: OSError, path: str | Path) -> DiskError | None:
    """Return the error to raise where writing `path` failed with `error`; None if that is no fault of the disk."""
    reason = _REASONS.get(error.errno or 0)
    if reason is None:
        return None
    mount = _mount_point(Path(path))
    usage = shutil.disk_usage(mount)
    text = reason.format(disk=f"the disk at {mount}", free=usage.free / _MEGABYTE, total=usage.total / _MEGABYTE)
    return DiskError(error.errno, f"{path} could not be written: {text}")


@contextmanager
def naming_disk_errors(path: Path) -> Iterator[None]:
    """Raise a DiskError about `path` for an error of the disk in the block, which may concern a temporary file."""
    try:
        yield
    except OSError as error:
        described = disk_error(error, path)
        if described is None:
            raise
        raise described from error


def _mount_point(path: Path) -> Path:
    """Return the folder at which the disk of `path` begins; the path need not exist."""
    path = path.absolute()
    while not (path.exists() and os.path.ismount(path)) and path != path.parent:
        path = path.parent
    return path
