"""Tracks: where points of the source image are in every frame, found in a motion, and as maps that a network sees.

Positions are (x, y) with -1 and 1 at the outer edges of the image, in the convention of pixel centres (`lfdm.motion.warp`,
corners=False). A point that the source shows at s is at q in frame k where flow_k(q) = s - q.

Shapes: source (n, 2) · position (n, t, 2) · visible (n, t) bool · maps (TRACK_CHANNELS, t, h, w).
"""

import itertools
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from lfdm.config.models import TRACK_CHANNELS
from lfdm.errors import UserError
from lfdm.motion.motion import Motion
from lfdm.motion.warp import identity_grid

FLOW_SCALE, MASK_SCALE = 32.0, 4.0
"""Factors of displacements, in half images, and of the mask in the maps: a few cells must outweigh all the others' zeros."""
NEIGHBOUR_WEIGHT, NEIGHBOUR_MASK = 0.1, 0.5
"""Weight and mask of the eight cells around a point, which move nearly as it does and may hold points of their own."""
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

    In the cell of its position, and weaker in those around it, each point leaves its flow x and y, times `FLOW_SCALE`, and a mask
    of `MASK_SCALE`; in the cell of its source its displacement and the mask, in three more channels. Points in the same cell are
    averaged; those outside the image are left out.

    Args:
        source: (m, 2).
        position: (m, 2).
        frame: (m,) int64.
    """
    moved = FLOW_SCALE * (position - source)
    at_position = _draw(position, -moved, frame, shape)
    return torch.cat((at_position, _draw(source, moved, frame, shape)))


def _draw(place: Tensor, value: Tensor, frame: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Return the means of `value` (m, 2) in and around the cells at `place` (m, 2), and a mask: (3, t, h, w)."""
    t, h, w = shape
    shown = (place.abs() < 1).all(-1)
    value, frame = value[shown], frame[shown]
    column, row = ((place[shown] + 1) / 2 * place.new_tensor([w, h])).floor().long().unbind(-1)
    total = torch.zeros(t * h * w, TRACK_CHANNELS // 2, device=value.device)
    for down, right in itertools.product((-1, 0, 1), repeat=2):
        x, y, weight = column + right, row + down, 1.0 if down == right == 0 else NEIGHBOUR_WEIGHT
        inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
        carried = weight * torch.cat((value, torch.ones_like(value[:, :1])), dim=1)[inside].float()
        total.index_add_(0, ((frame * h + y) * w + x)[inside], carried)
    weight = total[:, -1:]
    mask = torch.where(weight >= 1, 1.0, NEIGHBOUR_MASK * (weight > 0))
    mean = total[:, :-1] / weight.clamp(min=NEIGHBOUR_WEIGHT)
    return torch.cat((mean, MASK_SCALE * mask), dim=1).T.reshape(-1, t, h, w)


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
