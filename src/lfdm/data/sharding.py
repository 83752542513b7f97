"""Write the clips of a data set as shards, in a folder or a bucket. Imports no torch."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np

from lfdm.config.checks import check_number
from lfdm.config.video import SHARD_MB
from lfdm.data.index import CLIP_INDEX_NAME, ClipRecord, Split, check_workers, read_clip, read_index
from lfdm.data.progress import Progress
from lfdm.data.shard_file import SHARD_VERSION, Shard, ShardList, SplitSummary, import_arrow, write_shard
from lfdm.data.video import read_video
from lfdm.errors import UserError
from lfdm.folders.files import expand_home, remove_leftovers, temporary_path
from lfdm.folders.lock import locked
from lfdm.folders.remote import StoredFolder

MAX_SHARD_MB = 4096.0


@dataclass(frozen=True)
class _Plan:
    """A shard to write."""

    file: str
    split: Split
    records: Sequence[ClipRecord]


def write_shards(
    data: str | Path,
    out: str | Path,
    *,
    shard_mb: float = SHARD_MB,
    num_workers: int | None = None,
    progress: Progress | None = None,
) -> ShardList:
    """Write the clips of the data set `data` into shards in `out`, a folder or a URL that fsspec opens; return their list.

    Clips are decoded once, keep their own size and alpha and are compressed without loss. They are mixed before they are
    divided among shards, so that a few shards hold all kinds of clips. Broken clips are left out. The same call continues: shards
    that are in the list, which is saved after each, are not written again.

    Raises:
        FileNotFoundError: no such data set.
        UserError: `out` holds shards of other clips, no clip is usable, or the network fails again and again.
        MissingExtraError: without pyarrow, or what fsspec needs for the URL.
    """
    data, folder = expand_home(data), StoredFolder(str(out))
    check_number("shard_mb", shard_mb, low=0.001, high=MAX_SHARD_MB)
    check_workers(num_workers)
    import_arrow()
    records = read_index(data)
    digest = hashlib.sha256(json.dumps([SHARD_VERSION, shard_mb, [asdict(record) for record in records]]).encode())
    source = digest.hexdigest()[:16]
    _check_target(folder)
    with locked(folder.local) if folder.local is not None else nullcontext():
        if folder.local is not None:
            remove_leftovers(folder.local)
        known = ShardList.read(folder)
        if known is not None and known.source != source:
            raise UserError(f"{out} holds shards of other clips or another shard_mb; choose another --out")
        if known is None:
            known = ShardList(
                source=source, complete=False, splits={name: SplitSummary() for name in get_args(Split)}, left_out={}
            )
        return _write_missing(data, folder, _plan(records, shard_mb * 1e6), known, num_workers, progress)


def _check_target(folder: StoredFolder) -> None:
    if folder.local is not None and (folder.local / CLIP_INDEX_NAME).exists():
        raise UserError(f"{folder.url} is a data set; choose another folder for its shards")


def _plan(records: Sequence[ClipRecord], shard_bytes: float) -> list[_Plan]:
    """Divide the mixed clips of each split among shards of about `shard_bytes` bytes."""
    plans: list[_Plan] = []
    for split in get_args(Split):
        members = [record for record in records if record.split == split]
        if not members:
            continue
        mixed = [members[i] for i in np.random.default_rng(0).permutation(len(members))]
        sizes = np.cumsum([record.frames * record.height * record.width * 3 for record in mixed])
        numbers = ((sizes - 1) // shard_bytes).astype(int)
        for number, shard in enumerate(np.unique(numbers)):
            chosen = np.flatnonzero(numbers == shard)
            plans.append(_Plan(f"{split}-{number:05d}.arrow", split, mixed[chosen[0] : chosen[-1] + 1]))
    return plans


def _write_missing(
    data: Path, folder: StoredFolder, plans: Sequence[_Plan], known: ShardList, num_workers: int | None, progress: Progress | None
) -> ShardList:
    done, total = 0, sum(len(plan.records) for plan in plans)
    written = {shard.file for split in known.splits.values() for shard in split.shards}
    with ThreadPoolExecutor(num_workers or os.cpu_count() or 1) as pool:
        for plan in plans:
            if plan.file not in written:
                known = _write_one(data, folder, plan, known, pool)
                known.write(folder)
            done += len(plan.records)
            if progress is not None:
                progress("writing shards", done, total)
    if not known.complete:
        known = replace(known, complete=True)
        known.write(folder)
    if not any(split.labels for split in known.splits.values()):
        first = next(iter(known.left_out.values()))
        raise UserError(f"{data}: no clip is usable; the first of {len(known.left_out)}: {first}")
    return known


def _write_one(data: Path, folder: StoredFolder, plan: _Plan, known: ShardList, pool: ThreadPoolExecutor) -> ShardList:
    """Write a shard and return the list with it."""
    left_out: dict[str, str] = {}
    labels: Counter[str] = Counter()
    shapes: Counter[tuple[int, int]] = Counter()
    has_alpha = False

    def clips() -> Iterator[tuple[dict[str, Any], dict[str, np.ndarray]]]:
        nonlocal has_alpha
        read = partial(read_clip, data, read=_read_with_alpha)
        for record, frames in zip(plan.records, pool.map(read, plan.records), strict=True):
            if isinstance(frames, UserError):
                left_out[record.path] = str(frames)
                continue
            labels[record.label] += 1
            shapes[frames.shape[1], frames.shape[2]] += 1
            has_alpha |= frames.shape[-1] == 4
            yield asdict(record), {"frames": frames}

    with folder.writing(plan.file) as path:
        temporary = temporary_path(path)
        try:
            count = write_shard(temporary, clips())
            size = temporary.stat().st_size
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    before = known.splits[plan.split]
    counted = Counter({(height, width): count for height, width, count in before.shapes}) + shapes
    summary = SplitSummary(
        shards=[*before.shards, *([Shard(file=plan.file, clips=count, size=size)] if count else [])],
        labels=dict(Counter(before.labels) + labels),
        shapes=[(*shape, number) for shape, number in counted.items()],
        has_alpha=before.has_alpha or has_alpha,
    )
    return replace(known, splits={**known.splits, plan.split: summary}, left_out={**known.left_out, **left_out})


def _read_with_alpha(path: Path) -> np.ndarray:
    """Read a clip (t, H, W, 3) uint8 or, where a pixel is not opaque, (t, H, W, 4)."""
    frames = read_video(path, keep_alpha=True)
    return frames if (frames[..., 3] < 255).any() else frames[..., :3]


def describe_shards(shards: ShardList) -> list[str]:
    """Return a line for each split that has clips."""
    lines = []
    for name, split in shards.splits.items():
        if split.shards:
            clips, size = sum(split.labels.values()), sum(shard.size for shard in split.shards)
            lines.append(f"{name}: {clips} clips in {len(split.shards)} shards, {size / 1e6:.1f} MB")
    return lines
