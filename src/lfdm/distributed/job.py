"""A batch job: the videos of a table, made in this process or on a Ray cluster, continued where an earlier run ended."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Protocol

from lfdm.distributed.requests import Row, VideoRequest, group_requests
from lfdm.distributed.results import Manifest, Result, check_settings
from lfdm.distributed.worker import BatchSettings, VideoWorker
from lfdm.folders.files import remove_leftovers
from lfdm.folders.lock import locked
from lfdm.folders.remote import StoredFolder
from lfdm.folders.sources import find_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """Requests that are made together, and the keys of those whose videos are missing."""

    requests: Sequence[VideoRequest]
    wanted: Sequence[str]


class BatchRunner(Protocol):
    """Makes batches and yields the results of each when it is done, in any order."""

    def __call__(self, settings: BatchSettings, batches: Sequence[Batch]) -> Iterator[Sequence[Result]]: ...


class Progress(Protocol):
    """Is called after every batch."""

    def __call__(self, work: str, done: int, total: int, *, note: str = "") -> None: ...


@dataclass(frozen=True)
class Summary:
    """Outcome of a job."""

    videos: int
    """Videos that are there, of this run and earlier ones."""
    earlier: int
    """Number of videos of earlier runs."""
    failed: int
    """Requests without a video; the manifest says why."""


def run_batch(
    rows: Sequence[Row], settings: BatchSettings, runner: BatchRunner, *, parquet: bool = False, progress: Progress | None = None
) -> Summary:
    """Make the videos of all rows that have none yet; the manifest is written as the work goes on.

    Args:
        rows: see `lfdm.distributed.requests.read_requests`.
        parquet: also write the manifest as Parquet at the end.

    Raises:
        UserError: another process works on the folder, it holds a batch with other settings, or the model cannot be read.
    """
    folder = StoredFolder(settings.out)
    find_folder(settings.model)  # a wrong name must not leave a folder of results
    with locked(folder.local) if folder.local is not None else nullcontext():
        stored = asdict(settings)
        del stored["out"], stored["base"]
        check_settings(folder, stored)
        if folder.local is not None:
            remove_leftovers(folder.local)
        manifest = Manifest(folder, rows)
        manifest.read()
        requests = [row.request for row in rows if row.request is not None]
        earlier = len(manifest.results)
        whole = group_requests(requests, settings.batch_size)
        batches = [Batch(batch, wanted) for batch in whole if (wanted := manifest.missing(batch))]
        try:
            for results in runner(settings, batches):
                manifest.add(results)
                if progress is not None:
                    progress("videos", len(manifest.results), len(requests), note=_note(manifest))
        finally:
            manifest.save()
        if parquet:
            manifest.save_parquet()
    videos = _num_videos(manifest.results.values())
    return Summary(videos, earlier, len(rows) - videos)


def _num_videos(results: Iterable[Result]) -> int:
    return sum(result.file is not None for result in results)


def _note(manifest: Manifest) -> str:
    failed = len(manifest.results) - _num_videos(manifest.results.values())
    return f"{failed} failed" if failed else ""


def run_here(device: str) -> BatchRunner:
    """Return a runner that makes all batches in this process."""

    def run(settings: BatchSettings, batches: Sequence[Batch]) -> Iterator[Sequence[Result]]:
        if batches:
            worker = VideoWorker(settings, device)
            for batch in batches:
                yield worker.make(batch.requests, batch.wanted)

    return run
