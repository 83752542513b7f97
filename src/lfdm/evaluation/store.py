"""Arrays computed batch by batch and stored in files, so that a stopped evaluation resumes and several processes share the work.

Batches do not depend on the number of processes, and results are always read back from the files. An interrupted run, a repeated
run and a run of several processes therefore give the same figures. Several machines must share the folder.
"""

import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState

from lfdm.data.progress import Progress
from lfdm.errors import UserError
from lfdm.folders.arrays import open_arrays
from lfdm.folders.files import TEMPORARY_SUFFIX, write_bytes
from lfdm.folders.model_folder import read_json

Arrays = dict[str, np.ndarray]

SETTINGS_NAME = "settings.json"


class StoredArrays:
    """Arrays with one row per item, in one file per batch."""

    def __init__(self, batches: Sequence[Sequence[int]], paths: Sequence[Path]) -> None:
        self._paths = list(paths)
        self._place = {item: (b, row) for b, batch in enumerate(batches) for row, item in enumerate(batch)}

    def __getitem__(self, name: str) -> np.ndarray:
        """Return array `name` of all items, in their original order."""
        parts = []
        for path in self._paths:
            with open_arrays(path) as arrays:
                parts.append(arrays[name])
        return np.concatenate(parts)

    def __contains__(self, name: str) -> bool:
        with open_arrays(self._paths[0]) as arrays:
            return name in arrays

    def rows(self, name: str, items: Sequence[int]) -> np.ndarray:
        """Return the rows of array `name` for `items`, reading only the files that hold them."""
        loaded: dict[int, np.ndarray] = {}
        for b in {self._place[item][0] for item in items}:
            with open_arrays(self._paths[b]) as arrays:
                loaded[b] = arrays[name]
        return np.stack([loaded[b][row] for b, row in (self._place[item] for item in items)])


class BatchStore:
    """A folder of computed batches and the settings they were computed with.

    Args:
        folder: created if it does not exist.
        settings: JSON values that determine the content of every batch.
        batch_size: items per batch.

    Raises:
        UserError: the folder holds batches of other settings; the message names those that differ.
    """

    def __init__(
        self,
        folder: Path,
        settings: dict[str, Any],
        *,
        batch_size: int,
        state: PartialState,
        progress: Progress | None = None,
    ) -> None:
        self.folder = folder
        self.batch_size = batch_size
        self.state = state
        self.progress = progress if state.is_main_process else None
        self._claim(json.loads(json.dumps(settings)))
        if state.is_main_process:
            for left in self.folder.rglob(f".*{TEMPORARY_SUFFIX}"):  # by a killed process
                left.unlink()
        state.wait_for_everyone()

    def _claim(self, settings: dict[str, Any]) -> None:
        path = self.folder / SETTINGS_NAME
        if path.is_file():
            earlier = read_json(path)
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
        self, name: str, items: Sequence[int], work: Callable[[list[int]], Arrays], *, task: str | None = None
    ) -> StoredArrays:
        """Compute `work` for every batch that is not stored yet. All processes must make the same call.

        Args:
            name: folder of this work; its content must follow from the settings, `items` and this name.
            work: returns arrays with one row per item of its batch.
            task: description for progress reports; None reports nothing.
        """
        return self.compute_all(name, items, lambda batches: ((b, work(batch)) for b, batch in batches.items()), task=task)

    def compute_all(
        self,
        name: str,
        items: Sequence[int],
        work: Callable[[dict[int, list[int]]], Iterable[tuple[int, Arrays]]],
        *,
        task: str | None = None,
    ) -> StoredArrays:
        """Do as `compute`, with work that yields the arrays of many numbered batches in any order."""
        batches = [list(items[start : start + self.batch_size]) for start in range(0, len(items), self.batch_size)]
        paths = [self.folder / name / f"{b:05d}.npz" for b in range(len(batches))]
        missing = [b for b, path in enumerate(paths) if not path.is_file()]
        self.state.wait_for_everyone()  # every process has listed the missing batches before one of them adds any
        if missing:
            paths[0].parent.mkdir(parents=True, exist_ok=True)
            with self.state.split_between_processes(missing) as mine:
                for done, (b, arrays) in enumerate(work({int(b): batches[b] for b in mine}), start=1):
                    _write_batch(paths[b], arrays, len(batches[b]))
                    if self.progress is not None and task is not None:
                        self.progress(task, len(batches) - len(mine) + done, len(batches))
        self.state.wait_for_everyone()
        return StoredArrays(batches, paths)


def _write_batch(path: Path, arrays: Arrays, num_items: int) -> None:
    if any(len(values) != num_items for values in arrays.values()):
        shapes = {name: values.shape for name, values in arrays.items()}
        raise ValueError(f"work on {num_items} items must return as many rows; got {shapes}")
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # pyright: ignore[reportArgumentType] - it takes the names for its flag
    write_bytes(path, buffer.getvalue())
