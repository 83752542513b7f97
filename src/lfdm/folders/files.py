"""Files and folders that appear whole or not at all: everything is written under a temporary name and renamed."""

import re
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from lfdm.errors import UserError


def as_file_name(text: str) -> str:
    """Letters, digits and dashes of a label or any other text, for a file's name.

    >>> as_file_name("raise arms!"), as_file_name("?")
    ('raise-arms', 'video')
    """
    return re.sub(r"[^\w]+", "-", text).strip("-")[:50] or "video"


def temporary_beside(path: Path) -> Path:
    """A free hidden name in the folder of `path`, to be renamed to it when whole."""
    start = path.name.encode()[:80].decode(errors="ignore")  # names end at 255 bytes
    return path.with_name(f".{start}.{uuid4().hex[:8]}.tmp")


def write_bytes(path: Path, data: bytes) -> None:
    """Put `data` at `path` in one step: a temporary file beside it, then a rename. Raises OSError, leaving no trace."""
    temporary = temporary_beside(path)
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def existing_path(text: str | Path) -> Path | None:
    """What `text` names if it is a path (~ is the home folder) at which there is something; None for any other text."""
    try:
        path = Path(text).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long for a name, an unknown user's home, a zero byte
        return None


def check_parents(path: Path) -> None:
    """UserError where a file stands in the way of making `path`."""
    blocking = next((parent for parent in path.parents if parent.exists() and not parent.is_dir()), None)
    if blocking is not None:
        raise UserError(f"{path} cannot be made: {blocking} is a file; choose another name")


def check_holds_only(folder: Path, allowed: Collection[str], what: str) -> None:
    """UserError where replacing `folder` by `what` would lose something else than entries of the `allowed` names, or a file."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, not {what}; choose another name")
    others = sorted({entry.name for entry in folder.iterdir()} - set(allowed)) if folder.is_dir() else []
    if others:
        raise UserError(f"{folder} exists and is not {what} alone: it holds {', '.join(others)}; choose another name")


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to write into, renamed to `folder` when the block ends without an error, else removed.

    An earlier `folder` stays until then; of a link, the folder that it leads to is replaced. Raises FileExistsError where a file
    has that name.
    """
    folder = folder.resolve()
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; choose another name for the folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(folder)
    temporary.mkdir()
    try:
        yield temporary
        if folder.exists():
            old = temporary_beside(folder)
            folder.rename(old)
            try:
                temporary.rename(folder)
            except BaseException:
                old.rename(folder)
                raise
            shutil.rmtree(old)
        else:
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Call `write(temporary_folder)` and rename it to `folder`, see `replacing_folder`."""
    with replacing_folder(folder) as temporary:
        write(temporary)


def build_once(folder: Path, write: Callable[[Path], None]) -> None:
    """`replace_folder` for a cache: where `folder` is there nothing happens, and another process may be quicker."""
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(folder)
    temporary.mkdir()
    try:
        write(temporary)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was quicker, with the same content
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):  # nothing is left of a failed first cache
            folder.parent.rmdir()
