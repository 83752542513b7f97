"""Files and folders that appear whole or not at all: they are written under a temporary name, then renamed."""

import hashlib
import os
import re
import shutil
import socket
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from lfdm.errors import UserError
from lfdm.folders.disk import naming_disk_errors

TEMPORARY_SUFFIX = ".tmp"
OLD_SUFFIX = ".old"
"""Ending of a folder that is moved away for a new one and then removed; see `recover`."""
UNFINISHED_SUFFIX = ".unfinished"
"""Ending of a folder that a later call completes; see `resuming_folder`."""
_MAX_NAME = 80
"""Bytes of a name that are part of its temporary name: file systems allow 255 in all."""
_TEMPORARY_NAME = re.compile(r"\.(?P<name>.+)\.(?P<host>[0-9a-f]{6})-(?P<process>\d+)\.[0-9a-f]{8}\.(tmp|old)", re.DOTALL)


def as_file_name(text: str) -> str:
    """Return a file name for a label or any other text, of letters (composed), digits, underscores and dashes.

    >>> as_file_name("raise arms!"), as_file_name("?")
    ('raise-arms', 'video')
    """
    return re.sub(r"[^\w]+", "-", unicodedata.normalize("NFC", text)).strip("-")[:50] or "video"


def distinct_file_names(texts: Iterable[str]) -> list[str]:
    """Return `as_file_name` of each text, numbered where it would equal an earlier one, capitals included.

    >>> distinct_file_names(["a;b", "a.b", "A b"])
    ['a-b', 'a-b-2', 'A-b-3']
    """
    names: list[str] = []
    for text in texts:
        start, taken = as_file_name(text), {name.casefold() for name in names}
        candidates = [start, *(f"{start}-{number}" for number in range(2, len(names) + 2))]
        names.append(next(name for name in candidates if name.casefold() not in taken))
    return names


def temporary_path(path: Path) -> Path:
    """Return an unused hidden path in the folder of `path`, to be renamed to it when complete. It names this process."""
    return path.with_name(f".{_temporary_start(path)}.{_host()}-{os.getpid()}.{uuid4().hex[:8]}{TEMPORARY_SUFFIX}")


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders that killed processes of this machine left in `folder`.

    A folder that was moved away for a new one is put back if the new one is not there. Files of running processes stay. Does
    nothing where a process cannot be looked up by its number (Windows).
    """
    if os.name != "posix" or not folder.is_dir():
        return
    found = [(entry, match) for entry in folder.glob(".*") if (match := _TEMPORARY_NAME.fullmatch(entry.name))]
    for entry, match in sorted(found, key=lambda one: one[0].suffix):  # .old first
        if match["host"] != _host() or _is_running(int(match["process"])):
            continue
        target = entry.with_name(match["name"])
        with suppress(OSError):  # another process may be doing the same
            if entry.suffix == OLD_SUFFIX and not target.exists() and len(target.name.encode()) < _MAX_NAME:
                entry.rename(target)
            elif entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # that of another user
        return True
    return True


def recover(path: Path) -> None:
    """Undo what killed processes left half done for `path`: put back a folder that was being replaced, remove temporary files.

    No other process may be writing `path`.
    """
    prefix = f".{_temporary_start(path)}."
    hidden = [entry for entry in path.parent.glob(".*") if entry.name.startswith(prefix)]
    for old in (entry for entry in hidden if entry.suffix == OLD_SUFFIX):
        if path.exists():
            shutil.rmtree(old)
        else:
            old.rename(path)
    for left in (entry for entry in hidden if entry.suffix == TEMPORARY_SUFFIX):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def _temporary_start(path: Path) -> str:
    return path.name.encode()[:_MAX_NAME].decode(errors="ignore")


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` in one step; an OSError leaves no trace. Raises DiskError where the disk is full or read-only."""
    temporary = temporary_path(path)
    try:
        with naming_disk_errors(path):
            temporary.write_bytes(data)
            temporary.replace(path)
    except BaseException:
        with suppress(OSError):  # there is none, or the disk is read-only
            temporary.unlink()
        raise


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def expand_home(path: str | Path) -> Path:
    """Return `path` with a leading ~ or ~user replaced by that home folder; a name like ~draft of no user stays as it is."""
    path = Path(path)
    try:
        return path.expanduser()
    except (RuntimeError, ValueError):  # ValueError: a null byte
        return path


def existing_path(text: str | Path) -> Path | None:
    """Return `text` as a path (~ is the home folder) if it exists, otherwise None."""
    try:
        path = expand_home(text)
        return path if path.exists() else None
    except (OSError, ValueError):  # too long for a name, a null byte
        return None


def real_path(path: Path) -> Path:
    """Return the absolute path without links and `..`, also below folders that are yet to be made: `new/../a` is `a`."""
    return Path(os.path.realpath(path))


def check_parents(path: Path) -> None:
    """Raise UserError if `path` cannot be created because one of its parents is a file."""
    blocking = next((parent for parent in path.parents if parent.exists() and not parent.is_dir()), None)
    if blocking is not None:
        raise UserError(f"{path} cannot be created: {blocking} is a file; choose another name")


def replaced_input(target: Path, inputs: Iterable[str | Path]) -> Path | None:
    """Return the input that would be lost if `target` was written, or None.

    It is lost if it is `target`, also under another name or by a link, or lies in the folder `target`, or if it is a folder
    that holds `target` already.
    """
    real = real_path(target)
    if not real.exists():
        return None
    for path in filter(None, map(existing_path, inputs)):
        entries = [entry.resolve() for entry in path.iterdir()] if path.is_dir() else []
        read = [path.resolve(), *entries]
        if real.samefile(path) or real in read or read[0] in real.parents or any(real in one.parents for one in read):
            return path
    return None


def check_holds_only(folder: Path, allowed: Collection[str], what: str) -> None:
    """Raise UserError if `folder` is a file or has entries not in `allowed`, which would be lost if `what` replaced it."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, not {what}; choose another name")
    others = sorted({entry.name for entry in folder.iterdir()} - set(allowed)) if folder.is_dir() else []
    if others:
        raise UserError(f"{folder} exists and is not only {what}: it also holds {', '.join(others)}; choose another name")


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder to write into, renamed to `folder` if the block ends without an error, otherwise removed.

    An existing `folder` is replaced at the end; of a symbolic link, its target is. Raises FileExistsError if `folder` is a file,
    and DiskError where the disk is full or read-only.
    """
    folder = folder.resolve()
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; choose another name for the folder")
    temporary = temporary_path(folder)
    try:
        with naming_disk_errors(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
            yield temporary
        _put_in_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def resuming_folder(folder: Path, key: str) -> Iterator[Path]:
    """Give a hidden folder to write into, renamed to `folder` if the block ends without an error; otherwise it stays.

    The next call with the same `key` gets what is there, one with another key an empty folder. No other process may be writing
    `folder`. Raises as `replacing_folder` does.
    """
    folder = folder.resolve()
    unfinished = folder.with_name(f".{_temporary_start(folder)}{UNFINISHED_SUFFIX}")
    note = unfinished / ".key"
    with naming_disk_errors(folder):
        if not (note.is_file() and note.read_text() == key):
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            note.write_text(key)
        yield unfinished
        note.unlink()
    _put_in_place(unfinished, folder)


def _put_in_place(temporary: Path, folder: Path) -> None:
    """Rename `temporary` to `folder`, and remove what was there before."""
    if not folder.exists():
        temporary.rename(folder)
        return
    old = temporary_path(folder).with_suffix(OLD_SUFFIX)
    folder.rename(old)
    try:
        temporary.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    shutil.rmtree(old)


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Call `write` with a temporary folder and rename it to `folder`; see `replacing_folder`."""
    with replacing_folder(folder) as temporary:
        write(temporary)
