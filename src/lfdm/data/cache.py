"""All frames of a data set, decoded once into a memory-mapped file. Imports no torch.

Shapes: a clip is (t, H, W, 3) uint8; stored with alpha it is (t, H, W, 4), premultiplied.
"""

import hashlib
import json
import logging
import os
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lfdm.config.video import Fit, Size, SizeInput
from lfdm.data.alpha import compose_premultiplied
from lfdm.data.backgrounds import sample_training_background
from lfdm.data.clip_file import Part, damaged_clips, write_clips
from lfdm.data.index import CACHE_DIR, ClipRecord, labels, read_clip
from lfdm.data.progress import Progress
from lfdm.data.video import read_fitted
from lfdm.errors import UserError
from lfdm.folders.arrays import map_array
from lfdm.folders.files import expand_home
from lfdm.folders.lock import build_once
from lfdm.folders.model_folder import read_json

logger = logging.getLogger(__name__)

_FRAMES_NAME = "frames.u8"
_CLIPS_NAME = "clips.json"
_CACHE_VERSION = 2


class ClipCache:
    """All frames of a list of clips, fitted to one size, in one memory-mapped file. See `open_cache`.

    Attributes:
        root: folder of the data set.
        records: the clips, without broken ones.
        broken: reasons why clips are left out, by path.
        labels: distinct labels, sorted.
        offsets: number of frames before each clip, and of all frames.
    """

    def __init__(self, folder: Path, root: Path, records: Sequence[ClipRecord], size: Size, *, keep_alpha: bool = False) -> None:
        self.folder, self.root = folder, root
        self.keep_alpha = keep_alpha
        self.broken: dict[str, str] = read_json(folder / _CLIPS_NAME)["broken"]
        self.records = [record for record in records if record.path not in self.broken]
        self.size = size
        self.labels = labels(self.records)
        self.offsets: list[int] = np.cumsum([0, *(record.frames for record in self.records)]).tolist()
        self._frames = self._map()

    def _map(self) -> np.ndarray:
        shape = (self.offsets[-1], *self.size, 4 if self.keep_alpha else 3)
        return map_array(self.folder / _FRAMES_NAME, np.uint8, shape)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def shard_sizes(self) -> None:
        """No shards; see `lfdm.data.training_clips.TrainingClips`."""

    def usable(self, index: int) -> int:
        """Return `index`: broken clips are left out."""
        return index

    def label(self, index: int) -> str:
        """Return the label of clip `index`."""
        return self.records[index].label

    def label_row(self, index: int) -> int:
        """Return the place of the label of clip `index` in `labels`."""
        return bisect_left(self.labels, self.records[index].label)

    def clips_of_subjects(self) -> list[list[int]]:
        """Return, for every clip, all clips of its subject."""
        subjects: dict[str, list[int]] = {}
        for index, record in enumerate(self.records):
            subjects.setdefault(record.subject, []).append(index)
        return [subjects[record.subject] for record in self.records]

    def prefetch(self, shards: Sequence[int]) -> None:
        """Do nothing: there are no shards."""

    def num_frames(self, index: int) -> int:
        """Return the length of clip `index`."""
        return self.offsets[index + 1] - self.offsets[index]

    def clip(self, index: int) -> np.ndarray:
        """Return clip `index` (t, H, W, 3) uint8: a read-only view of the file or, where it stores alpha, composed over white."""
        stored = self._stored(index)
        return compose_premultiplied(stored) if self.keep_alpha else stored

    def frames(self, index: int, chosen: Sequence[int] | np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the `chosen` frames of clip `index`, (n, H, W, 3) uint8; with alpha, all over one background from `rng`."""
        frames = np.asarray(self._stored(index)[np.asarray(chosen)])
        if not self.keep_alpha:
            return frames
        return compose_premultiplied(frames, sample_training_background(rng, *frames.shape[1:3]))

    def has_alpha(self) -> bool:
        """Return whether alpha is stored and any pixel is not opaque; of opaque clips this reads all frames."""
        return self.keep_alpha and any((self._stored(index)[..., 3] < 255).any() for index in range(len(self)))

    def _stored(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self.records):
            raise IndexError(f"clip index must lie in 0..{len(self.records) - 1}, got {index}")
        return self._frames[self.offsets[index] : self.offsets[index + 1]]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_frames": None}  # a worker process maps the file itself

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._frames = self._map()


def open_cache(
    root: str | Path,
    records: Sequence[ClipRecord],
    size: SizeInput,
    fit: Fit,
    cache_dir: str | Path | None = None,
    *,
    skip_broken: bool = False,
    keep_alpha: bool = False,
    num_workers: int | None = None,
    progress: Progress | None = None,
) -> ClipCache:
    """Open the decoded frames of `records`, fitted to `size` by `fit` (see `fit_frames`); the first call decodes them.

    The cache is a folder, whose name is a digest of the records, the clips' file sizes and times, `size` and `fit`. It appears
    only when it is complete, and one process builds it while others wait. A cache that has changed on the disk is made anew.

    Args:
        cache_dir: parent of that folder; by default `$LFDM_HOME/cache`, or without that variable `.cache` in the data folder
            or, if that is not writable, `$XDG_CACHE_HOME/lfdm` or `~/.cache/lfdm`.
        skip_broken: leave out clips that are missing, broken or of another length than their record, with a warning for each.
        keep_alpha: store alpha instead of composing over white; `ClipCache.frames` then composes over random backgrounds.
        num_workers: threads that decode (None: one per core).

    Raises:
        UserError: no clip is usable or, without `skip_broken`, one is not.
        OSError: the disk refuses to write.
    """
    root, size = expand_home(root), Size.parse(size)
    if not records:
        raise UserError(f"{root}: no clips to cache")
    parent = _default_cache_dir(root) if cache_dir is None else Path(cache_dir)
    folder = parent / f"{size}-{fit}-{_content_key(root, records, size, fit)}{'-alpha' if keep_alpha else ''}"

    def write(temporary: Path) -> None:
        clips = _decoded(root, records, size, fit, num_workers or os.cpu_count() or 1, keep_alpha=keep_alpha)
        _write_cache(temporary, records, clips, progress, skip_broken=skip_broken)

    build_once(folder, write, _find_damage)
    cache = ClipCache(folder, root, records, size, keep_alpha=keep_alpha)
    if cache.broken and not skip_broken:
        raise UserError(next(iter(cache.broken.values())))
    for reason in cache.broken.values():
        logger.warning("clip left out: %s", reason)
    return cache


def _default_cache_dir(root: Path) -> Path:
    """Return `$LFDM_HOME/cache`, or the data folder's cache; the user's own if that is not writable.

    Motion and classifiers also go there.
    """
    shared = root / CACHE_DIR
    if not os.environ.get("LFDM_HOME") and os.access(shared if shared.is_dir() else root, os.W_OK | os.X_OK):
        return shared
    return user_cache_dir()


def user_cache_dir() -> Path:
    """Return `$LFDM_HOME/cache`, or the user's cache folder."""
    if home := os.environ.get("LFDM_HOME"):
        return expand_home(home) / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lfdm"


def _content_key(root: Path, records: Sequence[ClipRecord], size: Size, fit: Fit) -> str:
    digest = hashlib.sha256(json.dumps([_CACHE_VERSION, size.setting, fit]).encode())
    for record in records:
        clip = root / record.path
        try:
            stats = [path.stat() for path in (clip, *(sorted(clip.iterdir()) if clip.is_dir() else ()))]
        except OSError:  # missing, which decoding it reports
            stats = []
        digest.update(json.dumps([record.path, record.frames, [[stat.st_size, stat.st_mtime_ns] for stat in stats]]).encode())
    return digest.hexdigest()[:16]


def _write_cache(
    folder: Path,
    records: Sequence[ClipRecord],
    clips: Iterable[np.ndarray | UserError],
    progress: Progress | None,
    *,
    skip_broken: bool,
) -> None:
    """Write the frames of all clips that are usable, then the list of clips with checksums and reasons."""
    broken: dict[str, str] = {}
    usable: list[str] = []

    def arrays() -> Iterator[list[np.ndarray]]:
        for done, (record, clip) in enumerate(zip(records, clips, strict=True), start=1):
            if isinstance(clip, UserError):
                if not skip_broken:
                    raise clip
                broken[record.path] = str(clip)
            else:
                usable.append(record.path)
                yield [clip]
            if progress is not None:
                progress("decoding clips", done, len(records))

    parts = [asdict(part) for part in write_clips(folder / _FRAMES_NAME, arrays())]
    if not usable:
        raise UserError(f"no clip is usable; the first of {len(broken)}: {next(iter(broken.values()))}")
    (folder / _CLIPS_NAME).write_text(json.dumps({"clips": dict(zip(usable, parts, strict=True)), "broken": broken}))


def _find_damage(folder: Path) -> str | None:
    """Return what has changed in a cache since it was written."""
    try:
        clips = read_json(folder / _CLIPS_NAME)["clips"]
        damaged = damaged_clips(folder / _FRAMES_NAME, [Part(**part) for part in clips.values()])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return str(error)
    return f"changed on the disk: {', '.join([*clips][index] for index in damaged)}" if damaged else None


def _decoded(
    root: Path, records: Sequence[ClipRecord], size: Size, fit: Fit, num_workers: int, *, keep_alpha: bool
) -> Iterator[np.ndarray | UserError]:
    """Yield each clip in order, or its error, a few decoded ahead by threads (PyAV releases the interpreter's lock)."""
    read, remaining = partial(read_fitted, size=size, fit=fit, keep_alpha=keep_alpha), iter(records)
    with ThreadPoolExecutor(num_workers) as pool:
        waiting: deque[Future[np.ndarray | UserError]] = deque()
        try:
            while True:
                while len(waiting) < 2 * num_workers and (record := next(remaining, None)) is not None:
                    waiting.append(pool.submit(read_clip, root, record, read))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
