"""`lfdm data shard`."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from lfdm.cli.console import Values, progress_bar
from lfdm.cli.conversion_report import print_some
from lfdm.config.video import SHARD_MB

MAX_LINES = 20


def data_shard(
    data: Annotated[Path, Positional, arg(metavar="DATA")],
    *,
    out: str,
    shard_mb: float = SHARD_MB,
    num_workers: int | None = None,
) -> Values:
    """Write the clips of a data set as shards, for trainings on data larger than a disk; the same command continues.

    `lfdm train ... --data OUT` reads them: the clips of each split are mixed, decoded once and compressed without loss.

    Args:
        data: Clip data set.
        out: Folder, or URL such as s3://bucket/folder.
        shard_mb: Megabytes of frames in a shard before compression. A training shuffles the clips of eight shards together.
        num_workers: Threads; by default one per core.
    """
    from lfdm.data.sharding import describe_shards, write_shards

    with progress_bar() as progress:
        shards = write_shards(data, out, shard_mb=shard_mb, num_workers=num_workers, progress=progress)
    print_some([f"left out {reason}" for reason in shards.left_out.values()], MAX_LINES)
    for line in describe_shards(shards):
        print(line)
    numbers = {name: len(split.shards) for name, split in shards.splits.items()}
    return {"out": out, "shards": numbers, "left_out": shards.left_out}
