"""Files in folders that are on a disk or in a bucket: read and written whole, tried again where a network fails.

URLs are opened by fsspec (`s3://`, `gs://`, `hf://`, `memory://`, ...), those of web servers without further packages.
"""

import logging
import os
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar

from lfdm.errors import MissingExtraError, UserError
from lfdm.folders.disk import DiskError, naming_disk_errors
from lfdm.folders.files import expand_home, write_bytes

logger = logging.getLogger(__name__)

T = TypeVar("T")

TRIES = 4
"""Times in a row that an operation on a remote folder may fail."""
FIRST_PAUSE = 0.5
"""Seconds before the second try; doubled before each further one."""
WEB_SECONDS = 60.0
"""Time that a web server has to answer."""
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class StoredFolder:
    """A folder by its path or URL (`s3://`, `gs://`, `memory://`, all that fsspec opens)."""

    url: str

    @property
    def local(self) -> Path | None:
        """The folder on this machine's disks; None for a URL."""
        return None if is_url(self.url) else expand_home(self.url)

    @property
    def is_writable(self) -> bool:
        """True unless the folder is on a web server or may not be written to by this user."""
        return not _is_web(self.url) if self.local is None else os.access(self.local, os.W_OK | os.X_OK)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Give a path to write the file `name` at; a remote one is uploaded at the end of the block."""
        if self.local is not None:
            yield self.local / name
            return
        with tempfile.TemporaryDirectory(prefix="lfdm-upload-") as folder:
            path = Path(folder) / PurePosixPath(name).name
            yield path
            self._check_writable()
            with _open_remote(self.url) as (system, root):
                retried(lambda: system.put_file(str(path), f"{root}/{name}"))

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, None if there is none."""
        if self.local is not None:
            path = self.local / name
            return path.read_bytes() if path.is_file() else None
        try:
            return read_url(f"{self.url.rstrip('/')}/{name}")
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """Write a file in one step."""
        if self.local is not None:
            self.local.mkdir(parents=True, exist_ok=True)
            write_bytes(self.local / name, data)
            return
        self._check_writable()
        with _open_remote(self.url) as (system, root):
            retried(lambda: system.pipe_file(f"{root}/{name}", data))

    def download(self, name: str, path: Path) -> None:
        """Copy a file of a remote folder to `path`; a connection that breaks is continued where it broke.

        Raises:
            FileNotFoundError: no such file.
            UserError: another fault of the folder, or `TRIES` failures in a row.
        """
        url = f"{self.url.rstrip('/')}/{name}"
        with naming_disk_errors(path), path.open("wb", buffering=0) as file:
            _continued(url, lambda: _copy_from(url, file), file.tell)

    def _check_writable(self) -> None:
        if _is_web(self.url):
            raise UserError(
                f"{self.url}: a web server cannot be written to; use a folder, or a bucket such as s3://bucket/folder"
            )


def is_url(text: str) -> bool:
    """Return whether `text` is a URL, not a path."""
    return "://" in text


def _is_web(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def read_url(url: str) -> bytes:
    """Return the content of a URL. Raises FileNotFoundError if there is none, UserError for other faults."""
    with _open_remote(url) as (system, path):
        return retried((lambda: _read_web(url)) if system is None else (lambda: system.cat_file(path)))


def _read_web(url: str) -> bytes:
    with _web_response(url) as response:
        return response.read()


@contextmanager
def _web_response(url: str, offset: int = 0) -> Iterator[Any]:
    """Yield the response of a web server from byte `offset` on; FileNotFoundError for an address that cannot be read at all."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={offset}-"} if offset else {})
    try:
        with urllib.request.urlopen(request, timeout=WEB_SECONDS) as response:
            yield response
    except urllib.error.HTTPError as error:
        if error.code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            raise PermissionError(f"{error.code} {error.reason}") from error
        if error.code < HTTPStatus.INTERNAL_SERVER_ERROR and error.code != HTTPStatus.TOO_MANY_REQUESTS:
            raise FileNotFoundError(f"{error.code} {error.reason}") from error  # trying again does not help
        raise
    except HTTPException as error:
        raise OSError(f"the connection broke ({type(error).__name__})") from error


def _copy_from(url: str, file: BinaryIO) -> None:
    """Append the part of the content of `url` that `file` still lacks."""
    with _open_remote(url) as (system, path):
        if system is not None:
            with system.open(path, "rb") as remote:
                remote.seek(file.tell())
                _append(remote, file)
            return
        with _web_response(url, file.tell()) as response:
            if response.status != HTTPStatus.PARTIAL_CONTENT:  # a server that knows no ranges begins anew
                file.seek(0)
                file.truncate()
            length = response.length
            before = file.tell()
            _append(response, file)
            if length is not None and file.tell() - before < length:
                raise OSError(f"the connection broke after {file.tell() - before} of {length} bytes")


def _append(source: Any, file: BinaryIO) -> None:
    while data := source.read(_READ_BYTES):
        with naming_disk_errors(Path(file.name)):
            file.write(data)


@contextmanager
def _open_remote(url: str) -> Iterator[tuple[Any, str]]:
    """Give the file system of a URL (None for a web server) and the path in it; errors become a UserError that names the URL."""
    try:
        if _is_web(url):  # without aiohttp, which fsspec would need
            yield None, url
            return
        import fsspec

        system, path = fsspec.core.url_to_fs(url)
        yield system, path.rstrip("/")
    except ImportError as error:
        extra = "; pip install 'lfdm[scale]'" if url.startswith("s3://") else ""  # fsspec names the package of other services
        raise MissingExtraError(f"{url}: {error}{extra}") from error
    except (UserError, DiskError):
        raise
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{url}: {error}") from error
    except Exception as error:  # each file system has errors of its own
        raise UserError(f"{url}: {type(error).__name__}: {error}") from error


def retried(action: Callable[[], T]) -> T:
    """Call `action`, which uses a network, up to `TRIES` times, with growing pauses."""
    return _continued("", action, lambda: 0)


def _continued(name: str, action: Callable[[], T], progress: Callable[[], int]) -> T:
    """Call `action` until it succeeds, or fails `TRIES` times in a row without `progress`, with growing pauses."""
    failures, reached = 0, progress()
    while True:
        try:
            return action()
        except (FileNotFoundError, PermissionError, ImportError, DiskError):
            raise
        except Exception as error:
            if progress() > reached:
                failures, reached = 0, progress()
            failures += 1
            if failures == TRIES or _is_refusal(error):
                raise
            pause = FIRST_PAUSE * 2 ** (failures - 1)
            logger.warning("%s%s: %s; trying again in %g s", f"{name}: " if name else "", type(error).__name__, error, pause)
            time.sleep(pause)


def _is_refusal(error: Exception) -> bool:
    """Return whether a server wants other credentials; botocore and google.auth have errors of their own for that."""
    causes = (error, error.__cause__)
    return any(isinstance(one, PermissionError) or type(one).__name__.endswith("CredentialsError") for one in causes)
