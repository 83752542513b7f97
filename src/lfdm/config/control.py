"""Controls of a video's motion: where points go and when, what stays, how much parts move, how it ends, labels over time.

Positions (x, y) are in pixels of the picture as it is given, before fitting, from its upper left corner: the centre of its first
pixel is (0.5, 0.5). Times are 0 at the first frame and 1 at the last, unless `Control.time` says otherwise.
"""

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lfdm.config.checks import check, check_integer, check_number
from lfdm.config.video import MAX_SIDE, Size
from lfdm.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

MAX_TRACKS = 1024
"""Most drags and pins of a video: a point for every cell of the motion."""
MAX_PATH = 10_000
"""Most positions of a drag, one for every frame of the longest video."""
MAX_PART_STRENGTH = 2.0
PIN_DISTANCE = 1.0
"""Pixels from a pin within which no drag may begin."""

Point = tuple[float, float]
TimeUnit = Literal["fraction", "seconds", "frames"]


@dataclass(frozen=True, kw_only=True)
class Drag:
    """A point of the picture and the path that it takes."""

    source: Point
    """Where the point is in the picture, and in the first frame."""
    path: tuple[tuple[float, float, float], ...]
    """(time, x, y) of later positions, in rising order of time; the point moves smoothly from one to the next."""
    radius: float | None = None
    """Pixels around the point that move with it like a rigid piece; None = only the point is given."""
    visible: tuple[tuple[float, float], ...] | None = None
    """Intervals of time in which the position counts; None = up to the last position of the path."""

    def __post_init__(self) -> None:
        name = f"drag from {_shown(self.source)}"
        check(1 <= len(self.path) <= MAX_PATH, f"{name}: path", len(self.path), f"1 to {MAX_PATH} positions")
        _check_finite(name, self.source, *self.path, *(self.visible or ()))
        if self.radius is not None:
            check_number(f"{name}: radius", self.radius, low=0, high=MAX_SIDE)
        times = [0.0, *(time for time, _, _ in self.path)]
        if any(later <= earlier for earlier, later in itertools.pairwise(times)):
            raise UserError(f"{name}: times must rise from above 0; got {', '.join(f'{time:g}' for time in times[1:])}")


@dataclass(frozen=True, kw_only=True)
class PartStrength:
    """A factor of the motion of one part of the picture."""

    value: float
    """0 = the part stays still, 1 = as sampled."""
    at: Point | None = None
    """A point of the part, whose extent is found from its motion; either this or `mask`."""
    mask: "str | Path | Image.Image | None" = None
    """A picture of the image's size, white on the part."""

    def __post_init__(self) -> None:
        check_number("part strength", self.value, low=0, high=MAX_PART_STRENGTH)
        if (self.at is None) == (self.mask is None):
            raise UserError(f"part strength {self.value:g} must have either a point or a mask; got {self.at} and {self.mask}")
        if self.at is not None:
            _check_finite("part strength", self.at)


@dataclass(frozen=True, kw_only=True)
class LabelSpan:
    """A label for a part of the video."""

    label: str
    """Label of the model."""
    start: float
    """Time from which it counts."""
    end: float
    """Time up to which it counts."""

    def __post_init__(self) -> None:
        _check_finite(f"label {self.label!r}", (self.start, self.end))
        ordered = 0 <= self.start < self.end
        check(ordered, f"label {self.label!r}: time", f"{self.start:g}-{self.end:g}", "START-END with 0 <= START < END")


@dataclass(frozen=True, kw_only=True)
class Control:
    """All controls of one video's motion.

    Raises:
        UserError: a value that is not allowed, or two that contradict each other.
    """

    drags: tuple[Drag, ...] = ()
    """Points that move on paths of their own."""
    pins: tuple[Point, ...] = ()
    """Points that stay where they are."""
    strengths: tuple[PartStrength, ...] = ()
    """Factors of the motion of parts."""
    end_image: "str | Path | Image.Image | None" = None
    """Picture of the same shape whose pose the last frame takes."""
    labels: tuple[LabelSpan, ...] = ()
    """Labels over time, instead of one condition."""
    size: tuple[int, int] | None = None
    """(height, width) of the picture that positions refer to; None = the picture that is animated."""
    correct: bool = True
    """Correct the prediction of every sampling step towards drags and pins, which takes about twice as long as without."""
    time: TimeUnit = "fraction"
    """Unit of all times: part of the video, seconds, or frames from 0."""

    def __post_init__(self) -> None:
        count = len(self.drags) + len(self.pins)
        check(count <= MAX_TRACKS, "drags and pins", count, f"at most {MAX_TRACKS}")
        check(self.time in ("fraction", "seconds", "frames"), "time", self.time, "'fraction', 'seconds' or 'frames'")
        check(isinstance(self.correct, bool), "correct", self.correct, "true or false")
        for pin in self.pins:
            _check_finite("pin", pin)
        if self.size is not None:
            Size.parse(self.size, "control size")
        if self.time == "fraction":
            self._check_times(1.0)
        for drag, pin in itertools.product(self.drags, self.pins):
            if math.dist(drag.source, pin) < PIN_DISTANCE:
                raise UserError(f"pin {_shown(pin)} lies on the drag from {_shown(drag.source)}; leave one out")

    @property
    def follows_tracks(self) -> bool:
        """True if there are drags or pins, which need a network that follows tracks."""
        return bool(self.drags or self.pins)

    def for_picture(self, size: Size) -> None:
        """Raise UserError for a position outside a picture of `size`, or of `Control.size` where that is given."""
        height, width = self.size or size
        named = [("pin", pin) for pin in self.pins]
        named += [("part strength at", part.at) for part in self.strengths if part.at is not None]
        for drag in self.drags:
            named += [(f"drag from {_shown(drag.source)}:", point) for point in (drag.source, *(step[1:] for step in drag.path))]
        for name, (x, y) in named:
            if not (0 <= x <= width and 0 <= y <= height):
                raise UserError(f"{name} {_shown((x, y))} must lie inside the picture, 0,0 to {width},{height}")

    def last_time(self, num_frames: int, fps: float) -> float:
        """Return the time of the last frame in the unit of this control, and check all times against it."""
        check_integer("num_frames", num_frames, 2, MAX_PATH)
        last = {"fraction": 1.0, "seconds": (num_frames - 1) / fps, "frames": num_frames - 1.0}[self.time]
        self._check_times(last)
        return last

    def _check_times(self, last: float) -> None:
        times = [(f"drag from {_shown(drag.source)}", drag.path[-1][0]) for drag in self.drags]
        times += [(f"label {span.label!r}", span.end) for span in self.labels]
        for name, time in times:
            if time > last + 1e-6:
                raise UserError(f"{name}: time must be at most {last:g} ({self.time}); got {time:g}")


def _check_finite(name: str, *values: tuple[float, ...]) -> None:
    for value in itertools.chain.from_iterable(values):
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        check(number, name, value, "finite numbers")


def _shown(point: tuple[float, ...]) -> str:
    """Return a point as the command line writes it.

    >>> _shown((20.0, 30.5))
    '20,30.5'
    """
    return ",".join(f"{value:g}" if isinstance(value, int | float) else str(value) for value in point)
