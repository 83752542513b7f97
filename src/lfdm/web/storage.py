"""The web app's temporary folder: the only one whose files a request can name; old files are removed.

Uploads are stored by gradio at `<root>/<hash of the content>/<name>`, results at `<root>/results/<random>/<name>`.
"""

import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from lfdm.errors import UserError

PREFIX = "lfdm-serve-"
RESULTS = "results"
RESULT_SHARE = 0.1
"""Share of the space that is made free for a new result, whose size is not known in advance."""
NO_SPACE = "busy: the server's disk space is used up; try again in a few minutes"
SPARED_SECONDS = 60.0
"""Files used within this time are never removed: a page may be fetching them, or a job reading them."""


def remove_abandoned() -> None:
    """Remove folders that killed servers left: those whose lock nobody holds."""
    for path in Path(tempfile.gettempdir()).resolve().glob(f".{PREFIX}*.lock"):
        lock = FileLock(path)
        with suppress(OSError, Timeout):  # that of another user, or of a running server
            lock.acquire(timeout=0)
            shutil.rmtree(path.with_name(path.name.removeprefix(".").removesuffix(".lock")), ignore_errors=True)
            path.unlink()
            lock.release()


def _lock_path(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


class Storage:
    """Finds, creates and removes files below one folder.

    Args:
        max_megabytes: largest size of all files together.
    """

    def __init__(self, max_megabytes: float) -> None:
        self.max_megabytes = max_megabytes
        remove_abandoned()
        self.root = Path(tempfile.gettempdir()).resolve() / f"{PREFIX}{uuid4().hex[:12]}"
        self._lock = FileLock(_lock_path(self.root))
        self._lock.acquire()
        self.root.mkdir(mode=0o700)
        self._closed = threading.Event()
        self._held: list[Path] = []
        self._changing_held = threading.Lock()  # jobs run in several threads

    def find(self, path: object) -> Path:
        """Return an upload or a result by the absolute path that the server gave out, and mark it as used now.

        Raises:
            UserError: anything else: another folder, a link, `..`, an impossible name, a file that has been removed.
        """
        refused = UserError("the file is not on the server: upload it (again); addresses are not fetched, old files are removed")
        if not isinstance(path, str) or len(path) > 1000:
            raise refused
        try:
            given = Path(path)
            parts = given.relative_to(self.root).parts
            known = (len(parts) == 2 and re.fullmatch("[0-9a-f]{64}", parts[0])) or (len(parts) == 3 and parts[0] == RESULTS)
            if not known or given.resolve(strict=True) != given or not given.is_file():
                raise refused
            given.touch()
        except (ValueError, OSError):  # outside the root, a null byte, too long, missing
            raise refused from None
        return given

    def new_result(self) -> Path:
        """Create a folder for the files of one result; raises UserError as `make_room` does."""
        self.make_room(RESULT_SHARE * self.max_megabytes)
        folder = self.root / RESULTS / uuid4().hex
        folder.mkdir(parents=True)
        return folder

    @contextmanager
    def held(self, folder: Path) -> Iterator[None]:
        """Keep all files of `folder` while the block runs; afterwards they count as used now."""
        with self._changing_held:
            self._held.append(folder)
        try:
            yield
        finally:
            for file in folder.iterdir():
                file.touch()
            with self._changing_held:
                self._held.remove(folder)

    def _held_now(self) -> set[Path]:
        with self._changing_held:
            return set(self._held)

    def make_room(self, megabytes: float) -> None:
        """Remove the least recently used folders until `megabytes` more fit, both within the limit and on the disk.

        Raises:
            UserError: they do not fit, because everything left was used within the last minute.
        """
        folders: dict[Path, list[tuple[Path, os.stat_result]]] = {}
        for file in self._files():
            with suppress(OSError):  # it was removed meanwhile
                stat = file.lstat()
                folders.setdefault(file.parent, []).append((file, stat))
        used = {folder: max(stat.st_mtime for _, stat in files) for folder, files in folders.items()}
        total = sum(stat.st_size for files in folders.values() for _, stat in files)
        on_disk = total + shutil.disk_usage(self.root).free
        allowed = min(self.max_megabytes * 1e6, on_disk) - megabytes * 1e6
        for folder in sorted(set(folders) - self._held_now(), key=used.__getitem__):
            if total <= allowed or used[folder] > time.time() - SPARED_SECONDS:
                break
            for file, stat in folders[folder]:
                with suppress(OSError):
                    file.unlink(missing_ok=True)
                    total -= stat.st_size
        if total > allowed:
            raise UserError(NO_SPACE)

    def remove_old(self, keep_seconds: float) -> None:
        """Remove files that were not used for `keep_seconds`, and folders that are then empty."""
        oldest, held = time.time() - keep_seconds, self._held_now()
        for file in [file for file in self._files() if file.parent not in held]:
            with suppress(OSError):  # another request may have removed it
                if file.lstat().st_mtime < oldest:
                    file.unlink()
        for folder in sorted((entry for entry in self.root.rglob("*") if entry.is_dir()), reverse=True):
            with suppress(OSError):  # not empty, or being filled
                if folder.stat().st_mtime < oldest and folder not in held:
                    folder.rmdir()

    def start_cleaning(self, keep_seconds: float) -> None:
        """Call `remove_old` regularly in a thread until `close`."""

        def clean() -> None:
            while not self._closed.wait(min(30.0, keep_seconds / 4)):
                self.remove_old(keep_seconds)

        threading.Thread(target=clean, name="lfdm-cleaning", daemon=True).start()

    def close(self) -> None:
        """Remove the folder."""
        self._closed.set()
        shutil.rmtree(self.root, ignore_errors=True)
        with suppress(OSError):
            Path(self._lock.lock_file).unlink()
        self._lock.release()

    def _files(self) -> Iterator[Path]:
        for folder, folders, names in os.walk(self.root):  # a folder may disappear meanwhile
            links = (name for name in folders if Path(folder, name).is_symlink())
            yield from (Path(folder, name) for name in (*names, *links))
