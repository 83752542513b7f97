"""Progress reports in the one form that all rooms use, and parallel work that reports it."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Protocol, TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class Progress(Protocol):
    """Callback that receives the state of some work, such as `progress("decoding clips", 3, 20)`."""

    def __call__(self, work: str, done: int, total: int, /) -> None: ...


def run_all(
    pool: Executor | None, function: Callable[[ItemT], ResultT], items: Sequence[ItemT], *, work: str, progress: Progress | None
) -> list[ResultT]:
    """Return `function(item)` for all items, in their order, computed by `pool` (None: by this thread) and shut it down.

    The first error cancels the items not yet begun.
    """
    results: list[ResultT] = []
    try:
        for result in (map if pool is None else pool.map)(function, items):
            results.append(result)
            if progress is not None:
                progress(work, len(results), len(items))
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)
    return results
