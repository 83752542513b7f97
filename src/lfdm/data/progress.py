"""The one kind of progress callback that all rooms call and accept."""

from typing import Protocol


class Progress(Protocol):
    """A callback that is told how much of some work is done, such as `progress("decoding clips", 3, 20)`."""

    def __call__(self, work: str, done: int, total: int, /) -> None: ...
