"""Tracks: where points of the source image are in every frame, found in a motion, and as maps that a network sees.

Positions are (x, y) with -1 and 1 at the outer edges of the image, in the convention of pixel centres (`lfdm.motion.warp`,
corners=False). A point that the source shows at s is at q in frame k where flow_k(q) = s - q.

Shapes: source (n, 2) · position (n, t, 2) · visible (n, t) bool · maps (TRACK_CHANNELS, t, h, w).
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from lfdm.errors import UserError
from lfdm.motion.motion import Motion
from lfdm.motion.warp import identity_grid

FLOW_SCALE = 12.0
"""Factor of displacements in the maps: those of most moving limbs, in half images, are then about 1."""
WIDTHS = (1 / 32, 3 / 32, 8 / 32)
"""Standard deviations of the Gaussians by which tracks spread, as fractions of the frame: a hand, a limb, a figure."""
LIMB = 1
"""Index in `WIDTHS` of a limb's width."""
MIN_WEIGHT = 1e-3
"""Weight of zero displacement, which the maps approach far from all points."""
VISIBLE = 0.5
"""Least visibility of a cell that shows a point of the source."""
MAX_DISTANCE = 1.0
"""Largest distance in cells between a point and the source position of the cell that shows it."""
_CHUNK = 32
"""Points that are looked for at once: their distances to all cells of 16 frames of 32x32 take 2 MB."""


@dataclass(frozen=True, eq=False)
class Tracks:
    """Positions of n points of the source in t frames.

    Raises:
        UserError: shapes that do not belong together.
    """

    source: Tensor
    """(n, 2), positions in the source image."""
    position: Tensor
    """(n, t, 2), positions in the frames; meaningless where not visible."""
    visible: Tensor
    """(n, t) bool, whether the position is known and the point is seen there."""

    def __post_init__(self) -> None:
        n, t = self.visible.shape
        if self.source.shape != (n, 2) or self.position.shape != (n, t, 2):
            got = ", ".join(str(tuple(x.shape)) for x in (self.source, self.position, self.visible))
            raise UserError(f"tracks must have source (n, 2), position (n, t, 2) and visible (n, t); got {got}")

    @property
    def flow(self) -> Tensor:
        """(n, t, 2), the displacement from the positions to the source: the flow of a motion that follows these tracks."""
        return self.source[:, None] - self.position

    @classmethod
    def concatenate(cls, tracks: list[Self]) -> Self:
        """Return all points of tracks with the same number of frames."""
        return cls(*(torch.cat([getattr(one, name) for one in tracks]) for name in ("source", "position", "visible")))

    def shifted(self, offset: Tensor) -> Self:
        """Return tracks of the points that lie next to these by `offset` (n, 2) in the source and in every frame."""
        return replace(self, source=self.source + offset, position=self.position + offset[:, None])

    def seen(self, visible: Tensor) -> Self:
        """Return these tracks where they are visible and `visible` (n, t) is True."""
        return replace(self, visible=self.visible & visible)

    def maps(self, size: tuple[int, int]) -> Tensor:
        """Return the maps (TRACK_CHANNELS, t, h, w) of these tracks on a grid of `size` (h, w)."""
        point, frame = self.visible.nonzero(as_tuple=True)
        return track_maps(self.source[point], self.position[point, frame], frame, (self.visible.shape[1], *size))


def track_maps(source: Tensor, position: Tensor, frame: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Draw m observed points into maps of `shape` (t, h, w), float32.

    Around positions, and then around sources, each width of `WIDTHS` has three channels: the displacements x and y of the points,
    times `FLOW_SCALE`, as means weighted by Gaussians, and the sum of the weights, at most 1. At positions they are flow,
    from there to the source; at sources they are the opposite. Points outside the image are left out.

    Args:
        source: (m, 2).
        position: (m, 2).
        frame: (m,) int64.
    """
    moved = FLOW_SCALE * (position - source)
    return torch.cat((_spread(position, -moved, frame, shape), _spread(source, moved, frame, shape)))


def near_tracks(maps: Tensor) -> Tensor:
    """Return how near each cell is to a track, from 0 to 1 at its position: the weight of `LIMB` in maps (b, ..., t, h, w)."""
    return maps[:, 3 * LIMB + 2 :][:, :1]


def _spread(place: Tensor, value: Tensor, frame: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Return the Gaussian-weighted means of `value` (m, 2) at `place` (m, 2), and the weights: (3 len(WIDTHS), t, h, w)."""
    t, h, w = shape
    shown = (place.abs() < 1).all(-1)
    value, frame = value[shown], frame[shown]
    column, row = ((place[shown] + 1) / 2 * place.new_tensor([w, h])).floor().long().unbind(-1)
    total = torch.zeros(t * h * w, 3, device=value.device)
    total.index_add_(0, (frame * h + row) * w + column, torch.cat((value, torch.ones_like(value[:, :1])), dim=1).float())
    total = total.T.reshape(3, t, h, w)
    maps = []
    for width in WIDTHS:
        spread = _bells(h, width, total) @ total @ _bells(w, width, total)
        weight = spread[2:]
        maps += [spread[:2] / (weight + MIN_WEIGHT), weight.clamp(max=1)]
    return torch.cat(maps)


def _bells(cells: int, width: float, like: Tensor) -> Tensor:
    """Return the Gaussian of each cell along an axis, 1 at its middle: (cells, cells)."""
    axis = torch.arange(cells, dtype=like.dtype, device=like.device)
    return torch.exp(-(axis[:, None] - axis).square() / (2 * (width * cells) ** 2))


def find_tracks(motion: Motion, source: Tensor) -> Tracks:
    """Follow points (n, 2) of the source through a motion of batch size 1.

    In each frame a point is at the visible cell whose source position is nearest, moved by what is left of the distance; it is
    not visible where that distance is more than a cell.

    Raises:
        UserError: a motion with the other coordinate convention, or of several samples.
    """
    if motion.corners or len(motion.flow) != 1:
        raise UserError(f"motion must have corners=False and one sample; got {motion.corners} and {len(motion.flow)} samples")
    t, (h, w) = motion.num_frames, motion.size
    cells = identity_grid(h, w, corners=False, device=motion.flow.device).reshape(1, -1, 2)
    shown = motion.grid()[0].reshape(t, -1, 2)  # source position of every cell
    hidden = motion.occlusion[0, 0].reshape(t, -1) < VISIBLE
    scale = shown.new_tensor([w / 2, h / 2])
    positions, visibles = [], []
    for points in source.split(_CHUNK):
        apart = (points[:, None, None] - shown) * scale  # (n, t, h w, 2) in cells
        distance = apart.square().sum(-1).masked_fill(hidden, torch.inf)
        nearest, index = distance.min(-1)  # (n, t)
        rest = apart.gather(2, index[..., None, None].expand(-1, -1, 1, 2))[:, :, 0] / scale
        positions.append(cells[0][index] + rest)
        visibles.append(nearest < MAX_DISTANCE**2)
    return Tracks(source, torch.cat(positions), torch.cat(visibles))
