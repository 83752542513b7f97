"""Progress reports in the one form that all rooms use, and parallel work that reports it."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from lfdm.errors import UserError

if TYPE_CHECKING:
    from tqdm import tqdm

MAX_WAITING = 1000
"""Items that wait in a pool: each takes a few kilobytes there."""

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class Progress(Protocol):
    """Callback that receives the state of some work, such as `progress("decoding clips", 3, 20)`."""

    def __call__(self, work: str, done: int, total: int, /) -> None: ...


class NotedProgress(Progress, Protocol):
    """A `Progress` that also shows a note, such as the loss."""

    def __call__(self, work: str, done: int, total: int, /, *, note: str = "") -> None: ...


class TqdmBars:
    """Bars of tqdm, which suit notebooks and terminals, one for each named work."""

    def __init__(self) -> None:
        self._bars: dict[str, tqdm[Any]] = {}

    def __call__(self, work: str, done: int, total: int, /, *, note: str = "") -> None:
        """Show the state of a work on the bar of its name, with a note behind it."""
        from tqdm.auto import tqdm

        if work not in self._bars:
            self._bars[work] = tqdm(desc=work, total=total)
        bar = self._bars[work]
        bar.total = total
        bar.set_postfix_str(note, refresh=False)
        bar.update(done - bar.n)
        if done >= total:
            self._bars.pop(work).close()


def worker_processes(num_workers: int) -> ProcessPoolExecutor | None:
    """Return a pool of `num_workers` new processes, which end with this one; None for fewer than two.

    They are started and not forked: a process with threads, or one in which OpenGL has been used, cannot be.
    """
    if num_workers < 2:
        return None
    return ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn"), initializer=_begin_worker)


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def run_all(
    pool: Executor | None, function: Callable[[ItemT], ResultT], items: Sequence[ItemT], *, work: str, progress: Progress | None
) -> list[ResultT]:
    """Return `function(item)` for all items, in their order, computed by `pool` (None: by this thread) and shut it down.

    The first error cancels the items not yet begun.

    Raises:
        UserError: a process of the pool was killed.
    """
    results: list[ResultT] = []
    try:
        for result in map(function, items) if pool is None else _results(pool, function, items):
            results.append(result)
            if progress is not None:
                progress(work, len(results), len(items))
    except BrokenExecutor as error:
        raise UserError(f"{work}: a process was killed, perhaps for lack of memory; fewer num_workers need less") from error
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)
    return results


def _results(pool: Executor, function: Callable[[ItemT], ResultT], items: Iterable[ItemT]) -> Iterator[ResultT]:
    waiting: deque[Future[ResultT]] = deque()
    for item in items:
        if len(waiting) == MAX_WAITING:
            yield waiting.popleft().result()
        waiting.append(pool.submit(function, item))
    while waiting:
        yield waiting.popleft().result()
