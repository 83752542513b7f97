"""Long work in threads of its own: so many at once, with progress, ended between two steps when nobody waits for it."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
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
    """What the work returned."""

    result: ResultT


class JobCancelled(Exception):  # noqa: N818 - no error
    """Raised within work that nobody waits for any more."""


Report = Callable[[int, int], None]
"""Called by the work after every step with (done, total); raises `JobCancelled` where it should end."""


class Jobs:
    """At most `num_jobs` at once, whatever the web server admits: a cancelled one keeps its place until its step is over."""

    def __init__(self, num_jobs: int) -> None:
        self._pool = ThreadPoolExecutor(num_jobs, thread_name_prefix="lfdm-job")

    async def run(self, work: Callable[[Report], ResultT]) -> AsyncGenerator[JobProgress | Finished[ResultT], None]:
        """Progress as it comes, then the result. Closing this iterator cancels the work.

        Raises:
            Whatever `work` raises.
        """
        loop = asyncio.get_running_loop()
        updates: asyncio.Queue[JobProgress | None] = asyncio.Queue()
        cancelled = threading.Event()

        def tell(update: JobProgress | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(updates.put_nowait, update)

        def report(done: int, total: int) -> None:
            if cancelled.is_set():
                raise JobCancelled
            tell(JobProgress(done, total))

        def end(_: Future[ResultT]) -> None:
            tell(None)

        future = self._pool.submit(work, report)
        future.add_done_callback(end)
        try:
            while (update := await updates.get()) is not None:
                yield update
            yield Finished(future.result())
        finally:
            cancelled.set()
            future.cancel()

    def close(self) -> None:
        """Wait for the running ones; the waiting ones are dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)
