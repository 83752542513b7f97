"""Shards of clips next to other formats: clips a second of processor time, time to begin in mid-epoch, memory.

    python -m benchmarks.shards --out benchmarks/results/shards.json

Other formats are measured where `webdataset` and `datasets` are installed. All read the same clips from this disk on one core.
"""

import argparse
import io
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.experiment.machine import processor_name
from benchmarks.experiment.tables import RESULTS_DIR, write_results
from lfdm.config.video import Size
from lfdm.data.index import ClipRecord, read_index, write_index
from lfdm.data.puppets.data_set import write_puppets
from lfdm.data.sharding import write_shards
from lfdm.data.training_clips import find_clips
from lfdm.data.video import read_video
from lfdm.training.batches import ShardOrder

SHARD_MB = 4.0
SIZE = Size(64, 64)
SHUFFLE = 160
"""Clips that webdataset and datasets shuffle together, about as many as a window of eight shards has."""


def timed(action: Callable[[], Any]) -> float:
    """Return the seconds of processor time of `action`, which other processes of the machine do not change."""
    started = time.process_time()
    action()
    return time.process_time() - started


def in_process(action: Callable[[], Any]) -> float:
    """Return the seconds of `action` in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(timed, (action,))


def size_of(path: Path) -> float:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6


def enlarge(data: Path, out: Path, factor: int) -> None:
    """Make a data set of `factor` copies of each clip, as links."""
    records: list[ClipRecord] = []
    for record in read_index(data):
        for copy in range(factor):
            path = f"{copy}/{record.path}"
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            os.link(data / record.path, out / path)
            records.append(replace(record, path=path, subject=f"{copy}-{record.subject}", split="train"))
    write_index(out, records)


def read_epoch(shards: Path, start: int, count: int) -> None:
    clips = find_clips(shards).open(SIZE, "pad")
    for _, index in ShardOrder(0, clips.shard_sizes or ())(start, start + count):
        clips.clip(clips.usable(index))


def clips_of(data: Path) -> Iterator[tuple[str, np.ndarray]]:
    for record in read_index(data):
        yield record.label, read_video(data / record.path)


def write_tars(data: Path, out: Path) -> None:
    import webdataset  # pyright: ignore[reportMissingImports]

    out.mkdir()
    with webdataset.ShardWriter(str(out / "%05d.tar"), maxsize=int(SHARD_MB * 1e6), verbose=0) as sink:
        for number, (label, frames) in enumerate(clips_of(data)):
            sink.write({"__key__": f"{number:06d}", "npy": frames, "txt": label})


def read_tars(out: Path, start: int, count: int) -> None:
    import webdataset  # pyright: ignore[reportMissingImports]

    urls = [str(path) for path in sorted(out.glob("*.tar"))]
    stream = webdataset.WebDataset(urls, shardshuffle=len(urls), seed=0, empty_check=False).shuffle(SHUFFLE)
    for sample in islice(stream, start, start + count):
        np.load(io.BytesIO(sample["npy"]))


def write_parquet(data: Path, out: Path) -> None:
    import datasets  # pyright: ignore[reportMissingImports]

    def rows() -> Iterator[dict[str, Any]]:
        for label, frames in clips_of(data):
            yield {"label": label, "frames": frames.tobytes()}

    out.mkdir()
    table = datasets.Dataset.from_generator(rows, cache_dir=str(out / "cache"))
    table.save_to_disk(str(out / "arrow"), max_shard_size=f"{int(SHARD_MB)}MB")
    for number in range(len(list((out / "arrow").glob("*.arrow")))):
        shard = table.shard(len(list((out / "arrow").glob("*.arrow"))), number)
        shard.to_parquet(str(out / f"{number:05d}.parquet"))


def read_parquet(out: Path, start: int, count: int) -> None:
    import datasets  # pyright: ignore[reportMissingImports]

    files = [str(path) for path in sorted(out.glob("*.parquet"))]
    stream = datasets.load_dataset("parquet", data_files=files, streaming=True, split="train").shuffle(0, buffer_size=SHUFFLE)
    for sample in stream.skip(start).take(count):
        np.frombuffer(sample["frames"], np.uint8).reshape(-1, *SIZE, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS_DIR / "shards.json")
    out = parser.parse_args().out
    results: dict[str, Any] = {
        "machine": processor_name(),
        "cores": 1,
        "shard_mb": SHARD_MB,
        "rows": [],
    }
    with tempfile.TemporaryDirectory(prefix="lfdm-shards-") as folder:
        root = Path(folder)
        write_puppets(root / "puppets", num_subjects=10, num_takes=1, truth="none", num_workers=1)
        for factor in (2, 20):
            data = root / f"data-{factor}"
            enlarge(root / "puppets", data, factor)
            num, raw = len(read_index(data)), sum(one.frames * one.width * one.height * 3 for one in read_index(data)) / 1e6
            formats: list[tuple[str, Any, Any]] = [("lfdm", partial(write_shards, shard_mb=SHARD_MB, num_workers=1), read_epoch)]
            if factor == 2:
                formats += [("webdataset", write_tars, read_tars), ("datasets", write_parquet, read_parquet)]
            for name, write, read in formats:
                place = root / f"{name}-{factor}"
                try:
                    written = timed(partial(write, data, place))
                except ImportError:
                    continue
                whole = in_process(partial(read, place, 0, num))
                first = in_process(partial(read, place, 0, 1))
                middle = in_process(partial(read, place, num // 2, 1))
                row = {
                    "format": name,
                    "clips": num,
                    "raw_mb": raw,
                    "stored_mb": size_of(place),
                    "write_clips_per_s": num / written,
                }
                row |= {"read_clips_per_s": num / whole, "first_s": first, "resume_s": middle}
                results["rows"].append(
                    {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}
                )
                print(results["rows"][-1], flush=True)
    write_results(results, out)


if __name__ == "__main__":
    main()
