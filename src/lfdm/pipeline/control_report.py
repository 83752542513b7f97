"""How near the points of drags and pins came to their targets."""

from dataclasses import dataclass

from torch import Tensor

from lfdm.config.control import Control
from lfdm.motion.tracks import Tracks

SHOWN_DISTANCE = 1.0
"""Distance in pixels of the picture from which it is reported."""


@dataclass(frozen=True, eq=False)
class ControlReport:
    """How near points came to their targets."""

    control: Control
    targets: Tracks
    """Drags, then pins, as places in the model's frame."""
    distance: Tensor
    """(b, n, t): distance in pixels of the picture between the point and the point that a frame shows at its target; NaN where it
    has none."""
    hidden: Tensor
    """(b, n, t) bool: the motion calls the target newly uncovered, so that the point is not seen there."""

    def messages(self, sample: int) -> list[str]:
        """Return a line for each point of a sample that misses its last place by over `SHOWN_DISTANCE`, or is hidden there."""
        lines = []
        points = [*(drag.source for drag in self.control.drags), *self.control.pins]
        for index, (x, y) in enumerate(points):
            kind = "drag" if index < len(self.control.drags) else "pin"
            distance = self.distance[sample, index]
            last = int((~distance.isnan()).nonzero().max())
            if self.hidden[sample, index, last]:
                lines.append(f"{kind} {x:g},{y:g}: hidden behind the figure or the picture's edge at its last place")
            elif distance[last] > SHOWN_DISTANCE:
                lines.append(f"{kind} {x:g},{y:g}: {distance[last]:.1f} pixels are left to its last place")
        return lines
