"""Locks on folders, so that two commands never write into one. A process that ends, however it ends, leaves no lock behind."""

import errno
import logging
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from lfdm.errors import UserError
from lfdm.folders.disk import naming_disk_errors
from lfdm.folders.files import check_parents, recover, replace_folder

logger = logging.getLogger(__name__)

LOCK_NAME = ".lock"


@contextmanager
def locked(folder: Path, *, inside: bool = True, wait: bool = False, hold: bool = True) -> Iterator[None]:
    """Hold the lock of `folder` during the block. A folder that did not exist and holds nothing in the end is removed.

    Args:
        inside: put the lock file into the folder, which is created; otherwise next to it, as `.NAME.lock`.
        wait: wait for another process instead of raising.
        hold: False does nothing, for processes that share the work of one that holds the lock.

    Raises:
        UserError: another process holds the lock; the message names it.
        OSError: the lock file cannot be created.
    """
    if not hold:
        yield
        return
    path = folder / LOCK_NAME if inside else folder.with_name(f".{folder.name}{LOCK_NAME}")
    check_parents(folder)
    is_new = not path.parent.exists()
    lock = FileLock(path)
    with naming_disk_errors(folder):
        path.parent.mkdir(parents=True, exist_ok=True)
        _acquire(lock, folder, wait=wait)
    try:
        with suppress(OSError):  # the lock holds without it
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        with suppress(OSError):  # Windows keeps open files
            path.unlink()
        if is_new:
            with suppress(OSError):  # not empty
                path.parent.rmdir()
        lock.release()


def build_once(folder: Path, write: Callable[[Path], None], find_damage: Callable[[Path], str | None] | None = None) -> None:
    """Do `replace_folder` unless `folder` exists. Of several processes one builds it, and the others wait.

    A folder in which `find_damage` finds something is built anew; what it says is logged.
    """
    if folder.is_dir() and (find_damage is None or find_damage(folder) is None):
        return
    with locked(folder, inside=False, wait=True):
        recover(folder)
        if folder.is_dir() and find_damage is not None and (damage := find_damage(folder)) is not None:
            logger.warning("%s is damaged and made anew: %s", folder, damage)
            shutil.rmtree(folder)
        if not folder.is_dir():
            replace_folder(folder, write)


def _acquire(lock: FileLock, folder: Path, *, wait: bool) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        owner = _owner(Path(lock.lock_file))
        if not wait:
            raise UserError(f"{folder} is in use by {owner}; wait until that ends, or choose another folder") from None
        logger.warning("waiting for %s, which is making %s", owner, folder)
        lock.acquire()
    except OSError as error:
        if error.errno != errno.ENOLCK:  # some network disks
            raise
        logger.warning("%s is on a disk without locks; run only one command in it at a time", folder)


def _owner(path: Path) -> str:
    """Return the process that a lock file names."""
    try:
        return path.read_text() or "another process"
    except (OSError, UnicodeDecodeError):
        return "another process"
