"""Choices and limits for images, videos, panels and folders of clips, and the size of frames."""

import numbers
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, Self

from lfdm.config.checks import check

Fit = Literal["pad", "crop", "stretch"]
"""How frames of another shape are fitted: black borders, the central part, or stretched."""
PictureFit = Literal["pad", "crop", "stretch", "native"]
"""How a picture is fitted; `native` animates it in its own shape instead of the model's."""
SheetFormat = Literal["aseprite", "hash", "array"]
OutputSize = Literal["model", "native"]
"""Size of frames: the one in which the model makes them, or that of the picture, whose own pixels are moved."""
FolderLayout = Literal["auto", "label", "label-subject", "split-label", "split-label-subject", "ucf101", "kth", "unlabelled"]
PanelFormat = Literal["gif", "mp4", "png"]
PanelKind = Literal["source", "generated", "warped", "flow", "grid", "arrows", "occlusion", "overlay", "regions"]

MIN_FPS = 0.01
MAX_FPS = 1000.0
SHARD_MB = 128.0
"""Megabytes of frames in a shard, before they are compressed."""

MIN_SIDE, MAX_SIDE = 16, 4096
"""Smallest and largest side of a picture that is animated and of clips for training, in pixels."""
SIDE_MULTIPLE = 16
"""Sides of clips for training are multiples of this, as the networks need."""
MIN_MOTION_SIDE = 8
"""Smallest side of the grid of motion, in cells: a coarser one cannot describe the motion of a limb."""

SAME_SHAPE = 0.03
"""Largest relative difference of proportions that count as one shape: 854x480 and 1920x1080 are both 16:9."""

SizeSetting = int | tuple[int, int]
"""A size as settings and JSON hold it: one number for a square, otherwise (height, width)."""
SizeInput = int | str | Sequence[int]
"""A size as users give it: one number for a square, a text such as "96x128" (height x width), or (height, width)."""

_SIZE_TEXT = re.compile(r"\s*(\d{1,9})\s*(?:[xX×]\s*(\d{1,9})\s*)?")  # noqa: RUF001 - the multiplication sign, too


class Size(NamedTuple):
    """Height and width in pixels (or cells); as text "96x128"."""

    height: int
    """Pixels, or cells."""
    width: int
    """Pixels, or cells."""

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"

    @classmethod
    def parse(cls, value: object, name: str = "size", *, low: int = 1, high: int = MAX_SIDE, multiple: int = 1) -> Self:
        """Return a size in any form of `SizeInput`.

        Raises:
            UserError: another form, or a side that is below `low`, above `high` or no multiple of `multiple`.
        """
        sides = _sides(value)
        valid = len(sides) == 2 and all(low <= side <= high and side % multiple == 0 for side in sides)
        kind = "a whole number" if multiple == 1 else f"a multiple of {multiple}"
        check(valid, name, value, f"{kind} from {low} to {high}, or HEIGHTxWIDTH of two such numbers")
        return cls(*sides)

    @property
    def setting(self) -> SizeSetting:
        """This size as settings and JSON hold it."""
        return self.height if self.height == self.width else (self.height, self.width)

    def has_shape_of(self, other: "Size") -> bool:
        """Return whether this size and another have the same proportions, except for rounding."""
        first, second = self.width * other.height, other.width * self.height
        return abs(first - second) <= SAME_SHAPE * max(first, second)

    def cells(self, stride: int) -> "Size":
        """Return the size in cells of `stride` pixels."""
        return Size(self.height // stride, self.width // stride)


def training_size(value: object, name: str = "size") -> Size:
    """Return a size of clips for training, whose sides are multiples of 16 from 16 to 4096; UserError for any other."""
    return Size.parse(value, name, low=MIN_SIDE, multiple=SIDE_MULTIPLE)


def is_one_number(value: SizeInput) -> bool:
    """Return whether a size is given by one number, as 128 or "128"."""
    return isinstance(value, int) or (isinstance(value, str) and value.strip().isdecimal())


def _sides(value: object) -> tuple[int, ...]:
    """Return height and width; () for anything that is not a size."""
    if isinstance(value, str):
        match = _SIZE_TEXT.fullmatch(value)
        return () if match is None else (int(match[1]), int(match[2] or match[1]))
    sides = value if isinstance(value, list | tuple) else (value, value)
    whole = [int(side) for side in sides if isinstance(side, numbers.Integral) and not isinstance(side, bool)]
    return tuple(whole) if len(whole) == len(sides) else ()
