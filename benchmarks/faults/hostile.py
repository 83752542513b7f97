"""A hostile file: how it is written, and the command line that reads it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SECRET = "secret-4f1c"
"""Text of a file outside of the folder, which no message may show."""
ESCAPE = "\x1b]0;owned\x07"
"""Changes the title of a terminal that shows it."""
RAN = "RAN"
"""File that hostile code would create in the current folder."""
GENERATE = "generate image.png wave --model ./model --num-inference-steps 1"
TRANSFER = "transfer image.png {} --model ./model"
FOLDER = "data folder tree --out new --size 16 --num-workers 1"
_PICTURE = "generate {} wave --model ./model --num-inference-steps 1"


@dataclass(frozen=True, kw_only=True)
class Hostile:
    """One hostile file or folder."""

    name: str
    """Description in a few words."""
    kind: str
    words: str
    """Command line that reads it, in a folder with the samples."""
    write: Callable[[Path], object]
    """Writes it into the folder of the samples; the folder above holds `secret.txt` and `secret.mp4`."""
    may_work: bool = False
    """True if the command may succeed, within its limits of time and memory; else it must refuse."""


def picture(name: str, ending: str, write: Callable[[Path], object], *, may_work: bool = False) -> Hostile:
    """Return a hostile picture; `write` takes the path."""
    file = f"hostile.{ending}"
    return Hostile(
        name=name, kind="picture", words=_PICTURE.format(file), write=lambda folder: write(folder / file), may_work=may_work
    )


def clip(name: str, ending: str, write: Callable[[Path], object], *, may_work: bool = False) -> Hostile:
    """Return a hostile clip; `write` takes the path."""
    file = f"hostile.{ending}"
    return Hostile(
        name=name, kind="clip", words=TRANSFER.format(file), write=lambda folder: write(folder / file), may_work=may_work
    )


def sparse(path: Path, size: int, start: bytes = b"") -> None:
    """Write a file of `size` bytes that takes no space: `start`, then zeros."""
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)
