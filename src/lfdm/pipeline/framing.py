"""The size in which a picture is animated, and how it is fitted to it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lfdm.config.checks import check
from lfdm.config.video import MAX_SIDE, MIN_MOTION_SIDE, MIN_SIDE, Fit, Size
from lfdm.errors import UserError

MAX_PIXEL_RATIO = 1.5
"""A picture's own size has at most this many times the pixels of training, and at least this part of them."""
PIXEL_WEIGHT = 0.25
"""Cost of another number of pixels compared with that of other proportions, both as logarithms of ratios."""
MAX_STRETCH = 1.25
"""Largest change of a picture's proportions by stretching."""


@dataclass(frozen=True, kw_only=True)
class Framing:
    """How pictures become images of the model."""

    size: Size
    """Size of the images."""
    fit: Fit
    """How pictures are fitted that differ from `shape`."""
    shape: Size | None = None
    """Pictures of about this shape are stretched to `size`, which has it except for rounding; None: no pictures are."""

    def fit_of(self, picture: Size) -> Fit:
        """Return how a picture of a size is fitted."""
        return "stretch" if self.shape is not None and _stretch(picture, self.shape) <= MAX_STRETCH else self.fit


def check_pictures(sizes: Sequence[Size]) -> None:
    """Raise UserError for a picture that is too small to be animated."""
    for size in sizes:
        fits = min(size) >= MIN_SIDE
        check(fits, "image", str(size), f"at least {MIN_SIDE} pixels high and wide, to be animated")


def native_framing(sizes: Sequence[Size], *, training: Size, fit: Fit, multiple: int, least: int) -> Framing:
    """Return the framing of pictures in their own shape, with about as many pixels as the images of training.

    Args:
        sizes: of pictures of one shape.
        fit: how other pictures that belong to them, such as frames of a driving clip, are fitted.
        multiple, least: multiple and minimum of the sides that the networks can take.

    Raises:
        UserError: pictures of several shapes, or a shape that the networks cannot take.
    """
    others = [size for size in sizes if not size.has_shape_of(sizes[0])]
    if others:
        raise UserError(f"image must have one shape with fit='native'; got {sizes[0]} and {others[0]}: one call for each")
    size = _nearest(sizes[0], training, multiple=multiple, least=least)
    if size is None:
        raise UserError(
            f"image must have about the proportions of a size that this model can animate with fit='native': sides are multiples "
            f"of {multiple}, at least {least} ({MIN_MOTION_SIDE} or more cells of motion), with about the pixels of {training}; "
            f"got {sizes[0]} (height x width)"
        )
    return Framing(size=size, fit=fit, shape=sizes[0])


def _nearest(picture: Size, training: Size, *, multiple: int, least: int) -> Size | None:
    """Return the size nearest to the proportions of a picture and to the pixels of training; None if none is near."""
    area = math.prod(training)
    best, lowest = None, math.inf
    for height in range(least, MAX_SIDE + 1, multiple):
        smallest = max(least, multiple * math.ceil(area / MAX_PIXEL_RATIO / height / multiple))
        for width in range(smallest, min(MAX_SIDE, int(area * MAX_PIXEL_RATIO / height)) + 1, multiple):
            size = Size(height, width)
            stretch = _stretch(picture, size)
            cost = math.log(stretch) + PIXEL_WEIGHT * abs(math.log(height * width / area))
            if stretch <= MAX_STRETCH and cost < lowest:
                best, lowest = size, cost
    return best


def _stretch(one: Size, other: Size) -> float:
    """Return the ratio of the proportions of two sizes, 1 or more."""
    ratio = (one.width * other.height) / (one.height * other.width)
    return max(ratio, 1 / ratio)
