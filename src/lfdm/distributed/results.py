"""The folder of a batch, on a disk or in a bucket: videos that are whole or absent, and a manifest that says what was done."""

import json
import logging
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from lfdm.distributed.requests import Row, VideoRequest, import_parquet
from lfdm.errors import MissingExtraError, UserError
from lfdm.folders.files import write_bytes

logger = logging.getLogger(__name__)

T = TypeVar("T")

MANIFEST = "manifest.jsonl"
SETTINGS = "batch.json"
SAVE_SECONDS = 10.0
"""Time between two writes of the manifest; work of that time is done again after a kill."""
TRIES = 4
"""Times that an operation on a remote folder is tried."""
FIRST_PAUSE = 0.5
"""Seconds before the second try; doubled before each further one."""
WEB_SECONDS = 60.0
"""Time that a web server has to answer."""


@dataclass(frozen=True)
class Result:
    """Outcome of a request."""

    key: str
    """`VideoRequest.key`."""
    file: str | None = None
    """Name of the video in the folder; None if there is none."""
    seconds: float | None = None
    """Share of the time that its batch took."""
    error: str | None = None
    """Why there is no video."""


@dataclass(frozen=True)
class ResultFolder:
    """A folder of results by its path or URL (`s3://`, `gs://`, `memory://`, all that fsspec opens)."""

    url: str

    @property
    def local(self) -> Path | None:
        """The folder on this machine's disks; None for a URL."""
        return None if is_url(self.url) else Path(self.url)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Give a path to write the file `name` at; a remote one is uploaded at the end of the block."""
        if self.local is not None:
            yield self.local / name
            return
        with tempfile.TemporaryDirectory(prefix="lfdm-batch-") as folder:
            path = Path(folder) / name
            yield path
            self._put(name, path.read_bytes())

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, None if there is none."""
        if self.local is not None:
            path = self.local / name
            return path.read_bytes() if path.is_file() else None
        with _open_remote(self.url) as (system, root):
            try:
                return retried(lambda: system.cat_file(f"{root}/{name}"))
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> None:
        """Write a file in one step."""
        if self.local is not None:
            self.local.mkdir(parents=True, exist_ok=True)
            write_bytes(self.local / name, data)
        else:
            self._put(name, data)

    def _put(self, name: str, data: bytes) -> None:
        with _open_remote(self.url) as (system, root):
            retried(lambda: system.pipe_file(f"{root}/{name}", data))


def is_url(text: str) -> bool:
    """Return whether `text` is a URL, not a path."""
    return "://" in text


def read_url(url: str) -> bytes:
    """Return the content of a URL; UserError if it cannot be read."""
    if url.startswith(("http://", "https://")):  # without aiohttp, which fsspec would need
        try:
            return retried(lambda: _read_web(url))
        except OSError as error:
            raise UserError(f"{url}: {error}") from error
    with _open_remote(url) as (system, path):
        return retried(lambda: system.cat_file(path))


def _read_web(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=WEB_SECONDS) as response:
            return response.read()
    except urllib.error.HTTPError as error:
        if error.code < HTTPStatus.INTERNAL_SERVER_ERROR and error.code != HTTPStatus.TOO_MANY_REQUESTS:
            raise FileNotFoundError(f"{error.code} {error.reason}") from error  # trying again does not help
        raise
    except HTTPException as error:
        raise OSError(f"the connection broke ({type(error).__name__})") from error


@contextmanager
def _open_remote(url: str) -> Iterator[tuple[Any, str]]:
    """Give the file system of a URL and the path in it; its errors become a UserError that names the URL."""
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
        yield system, path.rstrip("/")
    except ImportError as error:
        raise MissingExtraError(f"{url}: {error}; pip install 'lfdm[scale]'") from error
    except FileNotFoundError:
        raise
    except UserError:
        raise
    except Exception as error:  # each file system has errors of its own
        raise UserError(f"{url}: {type(error).__name__}: {error}") from error


def retried(action: Callable[[], T]) -> T:
    """Call `action`, which uses a network, up to `TRIES` times, with growing pauses."""
    for attempt in range(TRIES):
        try:
            return action()
        except (FileNotFoundError, PermissionError, ImportError):
            raise
        except Exception as error:
            if attempt == TRIES - 1:
                raise
            pause = FIRST_PAUSE * 2**attempt
            logger.warning("%s: %s; trying again in %g s", type(error).__name__, error, pause)
            time.sleep(pause)
    raise AssertionError


@dataclass
class Manifest:
    """Requests and what became of them, one JSON object a line: `row`, `request`, `file`, `seconds`, `error`."""

    folder: ResultFolder
    rows: Sequence[Row]
    results: dict[str, Result] = field(default_factory=dict)
    """By key of the request."""
    _saved: float = field(default_factory=time.monotonic)

    def read(self) -> None:
        """Take over what an earlier run has made of these requests."""
        wanted = {row.request.key for row in self.rows if row.request is not None}
        for line in (self.folder.read(MANIFEST) or b"").decode().splitlines():
            record = json.loads(line)
            if record["file"] is not None and (key := VideoRequest(**record["request"]).key) in wanted:
                self.results[key] = Result(key, record["file"], record["seconds"])

    def missing(self, batch: Sequence[VideoRequest]) -> list[str]:
        """Return the keys of requests of a batch that have no video yet."""
        return [one.key for one in batch if (result := self.results.get(one.key)) is None or result.file is None]

    def add(self, results: Iterable[Result]) -> None:
        """Add results, and save the manifest from time to time."""
        self.results |= {result.key: result for result in results}
        if time.monotonic() >= self._saved + SAVE_SECONDS:
            self.save()

    def records(self) -> list[dict[str, Any]]:
        """Return the manifest in the order of the table; requests without a result are not in it."""
        records = []
        for row in self.rows:
            if row.request is None:
                records.append({"row": row.number, "request": row.values, "file": None, "seconds": None, "error": row.error})
            elif (result := self.results.get(row.request.key)) is not None:
                outcome = {"file": result.file, "seconds": result.seconds, "error": result.error}
                records.append({"row": row.number, "request": asdict(row.request), **outcome})
        return records

    def save(self) -> None:
        """Write the manifest."""
        lines = [json.dumps(record, ensure_ascii=False, default=str) for record in self.records()]
        self.folder.write(MANIFEST, "".join(f"{line}\n" for line in lines).encode())
        self._saved = time.monotonic()

    def save_parquet(self) -> None:
        """Write the manifest as a Parquet file, too, with the request's fields as columns."""
        import pyarrow

        records = [
            {**one["request"], **{name: one[name] for name in ("row", "file", "seconds", "error")}} for one in self.records()
        ]
        with self.folder.writing(str(PurePosixPath(MANIFEST).with_suffix(".parquet"))) as path:
            import_parquet().write_table(pyarrow.Table.from_pylist(records), path)


def check_settings(folder: ResultFolder, settings: Mapping[str, Any]) -> None:
    """Write the settings of a new batch; raise UserError if the folder holds a batch with other ones."""
    before = folder.read(SETTINGS)
    if before is None:
        folder.write(SETTINGS, json.dumps(dict(settings), indent=2).encode())
        return
    stored = json.loads(before)
    for name, value in settings.items():
        if stored.get(name) != value:
            raise UserError(f"{folder.url} holds a batch with {name} {stored.get(name)!r}; got {value!r}; choose another --out")
