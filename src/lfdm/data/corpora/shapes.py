"""The common shape of clips, and the size that they have without bars."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from lfdm.config.video import SIDE_MULTIPLE, Size, training_size
from lfdm.errors import UserError

MAX_SHAPES_SHOWN = 4


@dataclass(frozen=True, kw_only=True)
class CommonShape:
    """The shape of most clips."""

    size: Size
    """The size of their frames: sides are multiples, so its proportions are rounded."""
    shape: Size
    """The most frequent size of clips of this shape."""
    num_clips: int
    """Number of clips of this shape, of `total` in all."""
    total: int

    def describe(self, fit: str) -> str:
        """Return a line for the user; `fit` is how the other clips are fitted."""
        num_others = self.total - self.num_clips
        which = "most" if num_others else "all"
        line = f"size: {self.size} (height x width), the shape of {which} clips ({_width_first(self.shape)}, width x height)"
        return f"{line}; {num_others} of other shapes are fitted ({fit})" if num_others else line


def find_common_shape(sizes: Iterable[Size], short_side: int, *, may_differ: bool, multiple: int = SIDE_MULTIPLE) -> CommonShape:
    """Return the shape of most clips of the given `sizes`, and the nearest size with the given short side.

    Args:
        multiple: sides are multiples of this.

    Raises:
        UserError: a short side that is not allowed, or clips of several shapes unless they `may_differ`.
    """
    training_size(short_side)
    counts = Counter(sizes)
    shape = max(counts, key=lambda one: (sum(num for other, num in counts.items() if one.has_shape_of(other)), counts[one]))
    alike = sum(num for other, num in counts.items() if shape.has_shape_of(other))
    if not may_differ and alike < counts.total():
        shown = [f"{_width_first(one)} ({num} clips)" for one, num in counts.most_common(MAX_SHAPES_SHOWN)]
        more = ", ..." if len(counts) > len(shown) else ""
        raise UserError(
            f"size must be given where clips differ in shape, such as --size 64x112; "
            f"got None for clips of {', '.join(shown)}{more}"
        )
    long_side = max(short_side, round(short_side * max(shape) / min(shape) / multiple) * multiple)
    sides = (short_side, long_side) if shape.height <= shape.width else (long_side, short_side)
    return CommonShape(size=training_size(sides), shape=shape, num_clips=alike, total=counts.total())


def _width_first(size: Size) -> str:
    """Return a video's size as its files state it, width x height."""
    return f"{size.width}x{size.height}"
