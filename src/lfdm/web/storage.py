"""The web app's own temporary folder: the only one that a request can name files in, emptied by age and removed at the end.

Uploads lie at `<root>/<hash of the content>/<name>` (gradio puts them there), results at `<root>/results/<random>/<name>`.
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

from lfdm.errors import UserError

RESULTS = "results"
RESULT_SHARE = 0.1
"""Share of the space that a new result finds free: how large it will be is not known before."""
SPARED_SECONDS = 60.0
"""What was used so recently makes no room for anything: a page may be fetching it, or a job reading it."""


class Storage:
    """Finds, makes and removes files below one folder.

    Args:
        max_megabytes: of all files together.
    """

    def __init__(self, max_megabytes: float) -> None:
        self.max_megabytes = max_megabytes
        self.root = Path(tempfile.mkdtemp(prefix="lfdm-serve-")).resolve()
        self._closed = threading.Event()
        self._held: set[Path] = set()

    def find(self, path: object) -> Path:
        """An uploaded or resulting file, by the absolute path that the server gave out; it counts as used now.

        Raises:
            UserError: anything else: another folder, a link, `..`, a name that no file can have, a file removed by age.
        """
        refused = UserError("that file is not on the server (any more); upload it again")
        if not isinstance(path, str) or len(path) > 1000:
            raise refused
        try:
            given = Path(path)
            parts = given.relative_to(self.root).parts
            known = (len(parts) == 2 and re.fullmatch("[0-9a-f]{64}", parts[0])) or (len(parts) == 3 and parts[0] == RESULTS)
            if not known or given.resolve(strict=True) != given or not given.is_file():
                raise refused
            given.touch()
        except (ValueError, OSError):  # not below the root; a null byte; too long; not there
            raise refused from None
        return given

    def new_result(self) -> Path:
        """An empty folder for the files of one result; raises as `make_room` does."""
        self.make_room(RESULT_SHARE * self.max_megabytes)
        folder = self.root / RESULTS / uuid4().hex
        folder.mkdir(parents=True)
        return folder

    @contextmanager
    def held(self, folder: Path) -> Iterator[None]:
        """Nothing in `folder` is removed, however long this takes; afterwards its files count as used now."""
        self._held.add(folder)
        try:
            yield
        finally:
            for file in folder.iterdir():
                file.touch()
            self._held.discard(folder)

    def make_room(self, megabytes: float) -> None:
        """Remove folders of files, the longest unused first, until so much more fits.

        Raises:
            UserError: it does not fit, for what is left was used in the last minute.
        """
        folders: dict[Path, list[tuple[Path, os.stat_result]]] = {}
        for file in self._files():
            with suppress(OSError):
                folders.setdefault(file.parent, []).append((file, file.lstat()))
        used = {folder: max(stat.st_mtime for _, stat in files) for folder, files in folders.items()}
        total = sum(stat.st_size for files in folders.values() for _, stat in files)
        allowed = (self.max_megabytes - megabytes) * 1e6
        for folder in sorted((folder for folder in folders if folder not in self._held), key=used.__getitem__):
            if total <= allowed or used[folder] > time.time() - SPARED_SECONDS:
                break
            for file, stat in folders[folder]:
                with suppress(OSError):
                    file.unlink(missing_ok=True)
                    total -= stat.st_size
        if total > allowed:
            raise UserError("busy: the server's disk space is used up; try again in some minutes")

    def remove_old(self, keep_seconds: float) -> None:
        """Remove files not used for that long, and the folders that this leaves empty."""
        oldest = time.time() - keep_seconds
        for file in [file for file in self._files() if file.parent not in self._held]:
            with suppress(OSError):  # another request may have replaced or removed it
                if file.lstat().st_mtime < oldest:
                    file.unlink()
        for folder in sorted((entry for entry in self.root.rglob("*") if entry.is_dir()), reverse=True):
            with suppress(OSError):  # not empty, or it is being filled
                if folder.stat().st_mtime < oldest and folder not in self._held:
                    folder.rmdir()

    def start_cleaning(self, keep_seconds: float) -> None:
        """Call `remove_old` from a thread of its own until `close`."""

        def clean() -> None:
            while not self._closed.wait(min(30.0, keep_seconds / 4)):
                self.remove_old(keep_seconds)

        threading.Thread(target=clean, name="lfdm-cleaning", daemon=True).start()

    def close(self) -> None:
        """Remove everything."""
        self._closed.set()
        shutil.rmtree(self.root, ignore_errors=True)

    def _files(self) -> Iterator[Path]:
        for folder, folders, names in os.walk(self.root):  # a folder may go meanwhile
            links = (name for name in folders if Path(folder, name).is_symlink())
            yield from (Path(folder, name) for name in (*names, *links))
