"""Trajectories: where the points of the source image go, the counterpart of `Motion`, which is defined on the frames' pixels.

A limb that passes a pixel makes backward flow jump there, but the limb's own points move smoothly. Trajectories are therefore
compressed in time (`lfdm.motion.time_basis`), and then splatted to the frames (`lfdm.motion.splatting`).

Shapes: displacement (b, 2, t, h, w) in half images, (x, y), of the source's cells, with pixel centres · visibility
(b, 1, t, h, w) in [0, 1] · coefficients (b, 2 K + K_o + 1, h, w): of displacement in x, in y, of visibility, then the priority.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from lfdm.errors import UserError
from lfdm.motion.motion import Motion
from lfdm.motion.splatting import Splat, fill_holes, softmax_splat
from lfdm.motion.time_basis import TimeBasis, instants
from lfdm.motion.upsampling import NEIGHBOURS, bilinear_logits, convex_double, neighbours
from lfdm.motion.warp import flow_to_grid

MOST_VISIBLE = 0.98
"""Visibility to which observed ones are clamped before the logit, and that of frame 0."""
DISPLACEMENT_RIDGE = 1e-5
"""Variance of errors of a displacement whose weight is 1: a tenth of a pixel at 64x64."""
VISIBILITY_RIDGE = 1e-2
"""The same of visibility logits."""
SMOOTH_WITHIN = 0.02
"""Root mean square over time, in half images, by which neighbouring cells of one surface may move differently."""


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Displacement of the source's cells in t frames, and whether they are seen there.

    Raises:
        UserError: shapes that do not belong together.
    """

    displacement: Tensor
    """(b, 2, t, h, w): frame k shows the cell at s at s + displacement."""
    visibility: Tensor
    """(b, 1, t, h, w), 1 = seen."""

    def __post_init__(self) -> None:
        b, channels, *rest = self.displacement.shape if self.displacement.ndim == 5 else (0, 0)
        if channels != 2 or self.visibility.shape != (b, 1, *rest):
            raise UserError(
                f"displacement must be (b, 2, t, h, w) and visibility (b, 1, t, h, w); "
                f"got {tuple(self.displacement.shape)} and {tuple(self.visibility.shape)}"
            )

    @property
    def num_frames(self) -> int:
        """Number of frames t."""
        return self.displacement.shape[2]

    def splat(self, priority: Tensor, size: tuple[int, int]) -> Splat:
        """Splat to backward flow at `size` (h, w): the mean of minus the displacement, and its coverage.

        Args:
            priority: (b, 1, h, w) of the source's cells, see `softmax_splat`.
        """
        grid = flow_to_grid(self.displacement, corners=False)
        return softmax_splat(-self.displacement, grid, priority.unsqueeze(2), size, visibility=self.visibility)


@dataclass(frozen=True, eq=False)
class TrajectoryBasis:
    """The functions of time of displacement and of visibility, and the maps from trajectories to coefficients and back."""

    displacement: TimeBasis
    visibility: TimeBasis
    """Functions of time of visibility logits, relative to that of `MOST_VISIBLE`."""

    @classmethod
    def from_trajectories(cls, batches: Callable[[], Iterable[Trajectories]], count: int, visibility_count: int) -> Self:
        """Return the principal components of training trajectories; `batches` is called twice, as they may not fit in memory.

        Raises:
            UserError: see `TimeBasis.from_curves`.
        """
        moved = ((one.displacement, torch.ones_like(one.visibility)) for one in batches())
        seen = ((_relative_logit(one.visibility), torch.ones_like(one.visibility)) for one in batches())
        return cls(TimeBasis.from_curves(moved, count), TimeBasis.from_curves(seen, visibility_count))

    @property
    def num_channels(self) -> int:
        """Channels of the coefficients, the priority included."""
        return 2 * len(self.displacement) + len(self.visibility) + 1

    def fit(self, trajectories: Trajectories, priority: Tensor) -> Tensor:
        """Return the coefficients of trajectories of any number of frames; the priority (b, 1, h, w) is the last channel."""
        everywhere = torch.ones_like(trajectories.visibility)  # weights by visibility were worse with estimated trajectories
        moved = self.displacement.fit(trajectories.displacement, everywhere, ridge=DISPLACEMENT_RIDGE)
        seen = self.visibility.fit(_relative_logit(trajectories.visibility), everywhere, ridge=VISIBILITY_RIDGE)
        return torch.cat((moved, seen, priority), dim=1)

    def trajectories(self, coefficients: Tensor, tau: Tensor) -> Trajectories:
        """Return the trajectories of coefficients at `tau` (t,) in [0, 1]."""
        split = 2 * len(self.displacement)
        displacement = self.displacement.evaluate(coefficients[:, :split], tau)
        logit = self.visibility.evaluate(coefficients[:, split:-1], tau)
        return Trajectories(displacement, torch.sigmoid(logit + _logit(MOST_VISIBLE)))

    def splat(self, coefficients: Tensor, num_frames: int, size: tuple[int, int]) -> Splat:
        """Splat coefficients to the backward flow of frames, from a source grid of twice the size."""
        fine = self.double(coefficients)
        splat = self.trajectories(fine, instants(num_frames)).splat(fine[:, -1:], size)
        cells = fine.shape[-2] * fine.shape[-1] / (size[0] * size[1])
        return Splat(splat.mean, splat.coverage / cells)

    def motion(self, coefficients: Tensor, num_frames: int, size: tuple[int, int]) -> Motion:
        """Return the motion of frames: holes have the flow of what landed around them and are not visible."""
        splat = self.splat(coefficients, num_frames, size)
        return Motion(fill_holes(splat), splat.coverage.clamp(0, 1), corners=False).from_rest()

    def double(self, coefficients: Tensor) -> Tensor:
        """Double height and width of coefficients, without mixing cells that move differently.

        Bilinear interpolation whose weights fall with the difference of the displacements: cells between a limb and the
        background would move like neither.
        """
        moved = coefficients[:, : 2 * len(self.displacement)].float()
        distance = torch.stack([(x - moved).square().sum(1) for x in neighbours(moved)], dim=1)  # (b, 9, h, w)
        logits = bilinear_logits().to(moved).view(1, -1, NEIGHBOURS, 1, 1) - distance.unsqueeze(1) / (2 * SMOOTH_WITHIN**2)
        return convex_double(coefficients, logits.flatten(1, 2)).to(coefficients.dtype)


def _relative_logit(visibility: Tensor) -> Tensor:
    """Return visibility logits relative to frame 0, which is 0 as all is seen there."""
    logit = torch.logit(visibility.float().clamp(1 - MOST_VISIBLE, MOST_VISIBLE)) - _logit(MOST_VISIBLE)
    return torch.cat((torch.zeros_like(logit[:, :, :1]), logit[:, :, 1:]), dim=2)


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))
