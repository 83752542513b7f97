"""Clips in shards, read where they are or through a bounded cache on the disk. Imports no torch.

Shapes: a clip is (t, H, W, 3) uint8; in the shards (t, H, W, 3 or 4), with straight alpha, in its own size.
"""

import logging
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import numpy as np

from lfdm.config.video import Fit, Size
from lfdm.data.alpha import add_alpha, compose_premultiplied, fit_premultiplied, without_alpha
from lfdm.data.backgrounds import sample_training_background
from lfdm.data.fitting import fit_frames
from lfdm.data.shard_cache import ShardFiles, check_limit
from lfdm.data.shard_file import DamagedShardError, Shard, ShardReader, SplitSummary
from lfdm.errors import UserError

logger = logging.getLogger(__name__)

WINDOW_SHARDS = 8
"""Shards whose clips are shuffled together, while the next ones are downloaded."""
SHARDS_AT_ONCE = 2 * WINDOW_SHARDS + 1
"""Shards that must fit into the cache: two windows, and one that is being downloaded."""


class ShardSet:
    """The clips of a list of shards by index. Broken shards and clips are logged and replaced by the next clip.

    Memory does not depend on the number of clips: a window of shard files is mapped, and one clip is held.
    """

    def __init__(self, files: ShardFiles, shards: Sequence[Shard]) -> None:
        if files.folder.local is None:
            check_limit(shards, SHARDS_AT_ONCE, files.limit)
        self.files, self.shards = files, list(shards)
        self.shard_sizes = tuple(shard.clips for shard in shards)
        """Number of clips in each shard."""
        self._ends: list[int] = np.cumsum(self.shard_sizes).tolist()
        self._reset()

    def _reset(self) -> None:
        self._readers: OrderedDict[int, ShardReader] = OrderedDict()
        self._broken: dict[int, str] = {}
        self._named: set[str] = set()
        self._last: tuple[int, dict[str, np.ndarray]] | None = None
        self._prefetching: threading.Thread | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_") or name == "_ends"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def usable(self, index: int) -> int:
        """Return `index`, or that of the next clip that is not broken; a function of the index and the shards only.

        Raises:
            UserError: no clip is usable, or the network fails again and again.
        """
        for _ in range(len(self) + len(self.shards)):
            shard, place = self._locate(index)
            reader = self._reader(shard)
            if reader is None:
                index = self._ends[shard] % len(self)
                continue
            try:
                self._load(index, reader, place)
                return index
            except DamagedShardError as error:
                if self.files.discard(self.shards[shard]) and self._name_once(f"{error}; downloading the shard again"):
                    self._readers.pop(shard)
                    continue
                self._name_once(f"clip left out: {error}")
            index = (index + 1) % len(self)
        raise UserError(f"{self.files.folder.url}: no clip is usable")

    def values(self, index: int) -> Mapping[str, Any]:
        """Return what is stored about a usable clip."""
        shard, place = self._locate(index)
        reader = self._reader(shard)
        if reader is None:
            raise UserError(self._broken[shard])
        return reader.clips[place]

    def arrays(self, index: int) -> Mapping[str, np.ndarray]:
        """Return the arrays of a usable clip, read-only; they stay in memory until another clip is read."""
        if self._last is not None and self._last[0] == index:
            return self._last[1]
        shard, place = self._locate(index)
        reader = self._reader(shard)
        if reader is None:
            raise UserError(self._broken[shard])
        return self._load(index, reader, place)

    def prefetch(self, shards: Sequence[int]) -> None:
        """Begin to download shards, one after the other; whoever reads them reports errors."""
        if self.files.folder.local is not None or (self._prefetching is not None and self._prefetching.is_alive()):
            return

        def download() -> None:
            for shard in shards:
                with suppress(OSError, ValueError):
                    self.files.path(self.shards[shard])

        self._prefetching = threading.Thread(target=download, daemon=True)
        self._prefetching.start()

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"clip index must lie in 0..{len(self) - 1}, got {index}")
        shard = bisect_right(self._ends, index)
        return shard, index - (self._ends[shard] - self.shard_sizes[shard])

    def _load(self, index: int, reader: ShardReader, place: int) -> dict[str, np.ndarray]:
        if self._last is None or self._last[0] != index:
            self._last = index, reader.arrays(place)
        return self._last[1]

    def _reader(self, number: int) -> ShardReader | None:
        """Return the reader of a shard, None for a broken one."""
        if number in self._broken:
            return None
        if number in self._readers:
            self._readers.move_to_end(number)
            return self._readers[number]
        shard = self.shards[number]
        try:
            reader = self._open(shard)
            if len(reader) != shard.clips:
                raise DamagedShardError(f"{shard.file} is damaged (it has {len(reader)} clips and not {shard.clips})")
        except (FileNotFoundError, DamagedShardError) as error:
            self._broken[number] = f"shard left out, with its {shard.clips} clips: {error}"
            self._name_once(self._broken[number])
            return None
        self._readers[number] = reader
        if len(self._readers) > WINDOW_SHARDS:
            self._readers.popitem(last=False)
        return reader

    def _open(self, shard: Shard) -> ShardReader:
        """Open a shard; a copy that is damaged, or that another process has just removed, is downloaded anew once."""
        try:
            return ShardReader(self.files.path(shard))
        except (FileNotFoundError, DamagedShardError):
            if not self.files.discard(shard):
                raise
            return ShardReader(self.files.path(shard))

    def _name_once(self, text: str) -> bool:
        """Log a fault; return False if it has been logged before."""
        if text in self._named:
            return False
        self._named.add(text)
        logger.warning("%s: %s", self.files.folder.url, text)
        return True


class ShardedClips:
    """The clips of one split in shards, fitted to one size, with the methods that trainings use of `ClipCache`."""

    def __init__(self, files: ShardFiles, split: SplitSummary, size: Size, fit: Fit, *, keep_alpha: bool = False) -> None:
        self.set = ShardSet(files, split.shards)
        self.size, self.keep_alpha = size, keep_alpha
        self.fit: Fit = fit
        self.labels = sorted(split.labels)
        """Distinct labels, sorted."""
        self._label_rows = {label: row for row, label in enumerate(self.labels)}
        self._has_alpha = split.has_alpha

    def __len__(self) -> int:
        return len(self.set)

    @property
    def shard_sizes(self) -> tuple[int, ...]:
        """Number of clips in each shard."""
        return self.set.shard_sizes

    @property
    def settings(self) -> list[object]:
        """Settings and shards that the frames depend on."""
        return [self.size.setting, self.fit, self.keep_alpha, [asdict(shard) for shard in self.set.shards]]

    def usable(self, index: int) -> int:
        """Return `index`, or that of the next clip that is not broken."""
        return self.set.usable(index)

    def prefetch(self, shards: Sequence[int]) -> None:
        """Begin to download shards that will be read."""
        self.set.prefetch(shards)

    def label(self, index: int) -> str:
        """Return the label of a clip."""
        return str(self.set.values(index)["label"])

    def label_row(self, index: int) -> int:
        """Return the place of a clip's label in `labels`."""
        return self._label_rows[self.label(index)]

    def clips_of_subjects(self) -> list[list[int]]:
        """Raise UserError: the clips of a subject are in any shards."""
        raise UserError("pairs_by must be 'clip' for clips in shards; got 'subject'")

    def num_frames(self, index: int) -> int:
        """Return the length of a clip."""
        return int(self.set.values(index)["frames"])

    def has_alpha(self) -> bool:
        """Return whether alpha is used and any pixel is not opaque."""
        return self.keep_alpha and self._has_alpha

    def clip(self, index: int) -> np.ndarray:
        """Return a clip (t, H, W, 3) uint8, over white."""
        fitted = self._fitted(self.set.arrays(index)["frames"])
        return compose_premultiplied(fitted) if self.keep_alpha else fitted

    def frames(self, index: int, chosen: Sequence[int] | np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the `chosen` frames of a clip, (n, H, W, 3) uint8; with alpha, all over one background from `rng`."""
        fitted = self._fitted(self.set.arrays(index)["frames"][np.asarray(chosen)])
        if not self.keep_alpha:
            return fitted
        return compose_premultiplied(fitted, sample_training_background(rng, *self.size))

    def _fitted(self, stored: np.ndarray) -> np.ndarray:
        if self.keep_alpha:
            return fit_premultiplied(add_alpha(stored), self.size, self.fit)
        return fit_frames(without_alpha(stored), self.size, self.fit)
