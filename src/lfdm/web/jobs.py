"""Long work in threads: a limited number at once, with progress, cancelled between two steps when nobody waits for it."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class JobProgress:
    """`done` of `total` steps."""

    done: int
    total: int


@dataclass(frozen=True)
class Finished(Generic[ResultT]):
    """The result of a job."""

    result: ResultT


class JobCancelled(Exception):  # noqa: N818 - not an error
    """Raised inside a job that nobody waits for any more."""


Report = Callable[[int, int], None]
"""Called by the job after every step with (done, total); raises `JobCancelled` if the job should stop."""


def _guard(work: Callable[[Report], ResultT]) -> Callable[[Report], ResultT]:
    """Turn what would end the server, such as SystemExit, into an error of the job."""

    def guarded(report: Report) -> ResultT:
        try:
            return work(report)
        except Exception:
            raise
        except BaseException as error:
            raise RuntimeError(f"the job ended with {error!r}") from error

    return guarded


class Jobs:
    """Runs at most `num_jobs` jobs at once; a cancelled one occupies its place until its current step is over."""

    def __init__(self, num_jobs: int) -> None:
        self._pool = ThreadPoolExecutor(num_jobs, thread_name_prefix="lfdm-job")

    async def run(self, work: Callable[[Report], ResultT]) -> AsyncGenerator[JobProgress | Finished[ResultT], None]:
        """Yield the progress of `work`, then its result. Closing this generator cancels the work.

        Raises:
            Exception: whatever `work` raises.
        """
        loop = asyncio.get_running_loop()
        updates: asyncio.Queue[JobProgress | None] = asyncio.Queue()
        cancelled = threading.Event()

        def put(update: JobProgress | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(updates.put_nowait, update)

        def report(done: int, total: int) -> None:
            if cancelled.is_set():
                raise JobCancelled
            put(JobProgress(done, total))

        future = self._pool.submit(_guard(work), report)
        future.add_done_callback(lambda _: put(None))
        try:
            while (update := await updates.get()) is not None:
                yield update
            yield Finished(future.result())
        finally:
            cancelled.set()
            future.cancel()

    def close(self) -> None:
        """Wait for running jobs and drop waiting ones."""
        self._pool.shutdown(wait=True, cancel_futures=True)
