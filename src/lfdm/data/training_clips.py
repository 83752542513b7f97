"""Where the clips of a training come from: a clip data set on the disk, or shards in a folder or at a URL. Imports no torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Protocol

import numpy as np

from lfdm.config.checks import check_number
from lfdm.config.video import Fit, Size
from lfdm.data.cache import open_cache, user_cache_dir
from lfdm.data.index import ClipRecord, Split, labels, read_index
from lfdm.data.progress import Progress
from lfdm.data.shard_cache import ShardFiles
from lfdm.data.shard_file import SHARD_LIST_NAME, ShardList
from lfdm.data.sharded_clips import ShardedClips
from lfdm.errors import UserError
from lfdm.folders.remote import StoredFolder

DEFAULT_CACHE_GB = 50.0
MAX_CACHE_GB = 1e6


class TrainingClips(Protocol):
    """Clips by index, fitted to one size, as trainings read them."""

    @property
    def labels(self) -> list[str]:
        """Distinct labels, sorted."""
        ...

    @property
    def shard_sizes(self) -> tuple[int, ...] | None:
        """Number of clips in each shard, in the order of their indices; None for clips that are not in shards."""
        ...

    @property
    def keep_alpha(self) -> bool:
        """True if `frames` composes over random backgrounds."""
        ...

    def __len__(self) -> int: ...

    def usable(self, index: int) -> int:
        """Return the clip to read in place of `index`: the same one unless it is broken."""
        ...

    def label(self, index: int) -> str:
        """Return the label of a usable clip."""
        ...

    def label_row(self, index: int) -> int:
        """Return the place of a usable clip's label in `labels`."""
        ...

    def clips_of_subjects(self) -> list[list[int]]:
        """Return, for every clip, all clips of its subject. Raises UserError for clips that are in shards."""
        ...

    def prefetch(self, shards: Sequence[int]) -> None:
        """Prepare to read shards, by number."""
        ...

    def num_frames(self, index: int) -> int:
        """Return the length of a usable clip."""
        ...

    def has_alpha(self) -> bool:
        """Return whether alpha is used and any pixel is not opaque."""
        ...

    def clip(self, index: int) -> np.ndarray:
        """Return a usable clip (t, H, W, 3) uint8, over white."""
        ...

    def frames(self, index: int, chosen: Sequence[int] | np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the `chosen` frames of a usable clip, (n, H, W, 3) uint8, perhaps over a background from `rng`."""
        ...


class ClipSource(Protocol):
    """A data set, before its clips are read."""

    @property
    def name(self) -> str:
        """Folder or URL."""
        ...

    def split_labels(self, split: Split) -> list[str]:
        """Return the distinct labels of a split, sorted."""
        ...

    def sizes(self) -> Iterator[Size]:
        """Yield the size of every training clip."""
        ...

    def open(self, size: Size, fit: Fit, *, keep_alpha: bool = False, progress: Progress | None = None) -> TrainingClips:
        """Return the training clips without broken ones, fitted to `size` by `fit`; see `open_cache` for `keep_alpha`."""
        ...


def find_clips(data: str | Path, cache_gb: float | None = None, *, cache_dir: Path | None = None) -> ClipSource:
    """Return the source of the training clips in `data`: a folder or URL of shards, or a clip data set.

    Args:
        cache_gb: gigabytes of shards at a URL that are kept on the disk; None = 50.
        cache_dir: folder of the decoded frames of a clip data set, see `open_cache`.

    Raises:
        FileNotFoundError: no such folder or URL.
        UserError: no training clips, shards that are incomplete, or `cache_gb` for clips that are on the disk.
    """
    folder = StoredFolder(str(data))
    if cache_gb is not None:
        check_number("cache_gb", cache_gb, low=0, high=MAX_CACHE_GB)
        if folder.local is not None:
            raise UserError(f"cache_gb has no effect on clips that are on the disk; got {cache_gb} for {data}")
    if folder.local is not None and not (folder.local / SHARD_LIST_NAME).is_file():
        source: ClipSource = _FolderSource(folder.local, read_index(folder.local), cache_dir)
    else:
        source = _ShardSource(folder, _read_list(folder), DEFAULT_CACHE_GB if cache_gb is None else cache_gb)
    if not source.split_labels("train"):
        raise UserError(f"{data} has no training clips (split 'train')")
    return source


def _read_list(folder: StoredFolder) -> ShardList:
    found = ShardList.read(folder)
    if found is None:
        raise FileNotFoundError(f"{folder.url}: no {SHARD_LIST_NAME} there; write shards with 'lfdm data shard'")
    if not found.complete:
        raise UserError(f"{folder.url}: shards that are incomplete; repeat 'lfdm data shard', which continues")
    return found


@dataclass(frozen=True)
class _FolderSource:
    root: Path
    records: list[ClipRecord]
    cache_dir: Path | None

    @property
    def name(self) -> str:
        return str(self.root)

    def split_labels(self, split: Split) -> list[str]:
        return labels(record for record in self.records if record.split == split)

    def sizes(self) -> Iterator[Size]:
        return (Size(record.height, record.width) for record in self.records if record.split == "train")

    def open(self, size: Size, fit: Fit, *, keep_alpha: bool = False, progress: Progress | None = None) -> TrainingClips:
        train = [record for record in self.records if record.split == "train"]
        return open_cache(self.root, train, size, fit, self.cache_dir, skip_broken=True, keep_alpha=keep_alpha, progress=progress)


@dataclass(frozen=True)
class _ShardSource:
    folder: StoredFolder
    shards: ShardList
    cache_gb: float

    @property
    def name(self) -> str:
        return self.folder.url

    def split_labels(self, split: Split) -> list[str]:
        return sorted(self.shards.splits[split].labels)

    def sizes(self) -> Iterator[Size]:
        counted = self.shards.splits["train"].shapes
        return chain.from_iterable(repeat(Size(height, width), count) for height, width, count in counted)

    def open(self, size: Size, fit: Fit, *, keep_alpha: bool = False, progress: Progress | None = None) -> TrainingClips:
        del progress  # nothing is decoded
        files = ShardFiles(self.folder, shard_cache_dir(), int(self.cache_gb * 1e9))
        return ShardedClips(files, self.shards.splits["train"], size, fit, keep_alpha=keep_alpha)


def shard_cache_dir() -> Path:
    """Return the folder for copies of shards."""
    return user_cache_dir() / "shards"
