"""`BatchStore`: arrays computed batch by batch by every process, kept in whole files, so that a stopped run goes on where it was.

Batches are the same however many processes share them, and results are always read back from the files: an interrupted run, a
second run and a run of several processes give the same figures. Several machines must share the folder.
"""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState

from lfdm.data.progress import Progress
from lfdm.errors import UserError
from lfdm.folders.files import write_bytes

Arrays = dict[str, np.ndarray]

SETTINGS_NAME = "settings.json"


class StoredArrays:
    """Arrays of one kind of work over all items, in one file per batch; every array's rows are items."""

    def __init__(self, batches: Sequence[Sequence[int]], paths: Sequence[Path]) -> None:
        self._paths = list(paths)
        self._place = {item: (b, row) for b, batch in enumerate(batches) for row, item in enumerate(batch)}

    def __getitem__(self, name: str) -> np.ndarray:
        """Array `name` of all items, in the order that they were given in."""
        parts = []
        for path in self._paths:
            with np.load(path) as arrays:
                parts.append(arrays[name])
        return np.concatenate(parts)

    def __contains__(self, name: str) -> bool:
        with np.load(self._paths[0]) as arrays:
            return name in arrays

    def rows(self, name: str, items: Sequence[int]) -> np.ndarray:
        """Array `name` of some items; only the files that hold them are read."""
        loaded: dict[int, np.ndarray] = {}
        for b in {self._place[item][0] for item in items}:
            with np.load(self._paths[b]) as arrays:
                loaded[b] = arrays[name]
        return np.stack([loaded[b][row] for b, row in (self._place[item] for item in items)])


class BatchStore:
    """A folder of computed batches and the settings that they were computed with.

    Args:
        folder: made if it is not there.
        settings: JSON values that decide the content of every batch.
        batch_size: items per batch.

    Raises:
        UserError: the folder holds batches of other settings (those that differ are named).
    """

    def __init__(
        self, folder: Path, settings: dict[str, Any], *, batch_size: int, state: PartialState, progress: Progress | None = None
    ) -> None:
        self.folder = folder
        self.batch_size = batch_size
        self.state = state
        self.progress = progress if state.is_main_process else None
        self._claim(json.loads(json.dumps(settings)))
        state.wait_for_everyone()

    def _claim(self, settings: dict[str, Any]) -> None:
        path = self.folder / SETTINGS_NAME
        if path.is_file():
            earlier = json.loads(path.read_text())
            differing = sorted(key for key in {*earlier, *settings} if earlier.get(key) != settings.get(key))
            if differing:
                changes = "; ".join(f"{key} was {earlier.get(key)!r}, now {settings.get(key)!r}" for key in differing)
                raise UserError(
                    f"{self.folder.parent} holds an evaluation with other settings ({changes}): choose another --out, "
                    f"or delete {self.folder} to start again"
                )
        elif self.state.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_bytes(path, (json.dumps(settings, indent=2) + "\n").encode())

    def compute(
        self, name: str, items: Sequence[int], work: Callable[[list[int]], Arrays], *, what: str | None = None
    ) -> StoredArrays:
        """`work` of all items, a batch at a time, that of every batch done once; to be called by all processes alike.

        Args:
            name: names the kind of work in the folder: what is in it must follow from the settings, `items` and this name.
            work: gives arrays with one row for every item of its batch.
            what: how the work is called in progress reports; None = not reported.
        """
        batches = [list(items[start : start + self.batch_size]) for start in range(0, len(items), self.batch_size)]
        paths = [self.folder / name / f"{b:05d}.npz" for b in range(len(batches))]
        missing = [b for b, path in enumerate(paths) if not path.is_file()]
        self.state.wait_for_everyone()  # all have listed what is missing before anyone adds to it
        if missing:
            self._compute(missing, batches, paths, work, what)
        self.state.wait_for_everyone()
        return StoredArrays(batches, paths)

    def _compute(
        self,
        missing: list[int],
        batches: list[list[int]],
        paths: list[Path],
        work: Callable[[list[int]], Arrays],
        what: str | None,
    ) -> None:
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        with self.state.split_between_processes(missing) as mine:
            for done, b in enumerate(mine, start=1):
                arrays = work(batches[b])
                if any(len(values) != len(batches[b]) for values in arrays.values()):
                    shapes = {name: values.shape for name, values in arrays.items()}
                    raise UserError(f"work on {len(batches[b])} items must give as many rows; got {shapes}")
                buffer = io.BytesIO()
                np.savez_compressed(buffer, **arrays)  # pyright: ignore[reportArgumentType] - takes its keywords for a flag
                write_bytes(paths[b], buffer.getvalue())
                if self.progress is not None and what is not None:
                    self.progress(what, len(batches) - len(mine) + done, len(batches))
