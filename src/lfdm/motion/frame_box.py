"""How a model's frame lies over a picture of another size or shape.

Shapes: motion (b, 2, t, h, w) and (b, 1, t, h, w), see `lfdm.motion.motion` · points (..., 2), x and y.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lfdm.motion.motion import Motion


class FrameBox(NamedTuple):
    """Part of a picture that a model's frame shows, in pixels of the picture; larger than it where the frame has borders."""

    top: float
    left: float
    height: float
    width: float

    def to_frame(self, points: Tensor) -> Tensor:
        """Return points given in pixels of the picture as positions in the frame, which reaches from -1 to 1."""
        return 2 * (points - self._corner()) / self._extent() - 1

    def to_picture(self, positions: Tensor) -> Tensor:
        """Return positions in the frame as points in pixels of the picture."""
        return (positions + 1) / 2 * self._extent() + self._corner()

    def _corner(self) -> Tensor:
        return torch.tensor([self.left, self.top], dtype=torch.float32)

    def _extent(self) -> Tensor:
        return torch.tensor([self.width, self.height], dtype=torch.float32)

    def motion_over_picture(self, motion: Motion, size: tuple[int, int]) -> Motion:
        """Return the motion of a frame on a grid over a whole picture of `size` (height, width), in half pictures.

        Cells keep about their size. Outside the frame nothing moves and all is visible.
        """
        spans = zip(size, self[:2], self[2:], motion.size, strict=True)
        centres = [_centres(extent, start, length, cells, motion.flow.device) for extent, start, length, cells in spans]
        grid = torch.stack(torch.meshgrid(*centres, indexing="ij")[::-1], dim=-1)
        inside = (grid.abs() < 1).all(dim=-1).to(motion.flow)
        scale = torch.tensor((self.width / size[1], self.height / size[0]), device=grid.device).view(1, 2, 1, 1, 1)

        def placed(values: Tensor) -> Tensor:
            planes = values.movedim(2, 1).flatten(0, 1)
            made = F.grid_sample(
                planes, grid.expand(len(planes), -1, -1, -1).to(planes), padding_mode="border", align_corners=False
            )
            return made.unflatten(0, (len(values), values.shape[2])).movedim(1, 2)

        occlusion = 1 - inside * (1 - placed(motion.occlusion))
        return Motion(placed(motion.flow) * scale * inside, occlusion, motion.corners)


def _centres(extent: int, start: float, length: float, cells: int, device: torch.device) -> Tensor:
    """Return the centres of the picture's cells along one axis, where the frame reaches from -1 to 1."""
    number = max(1, round(extent * cells / length))
    positions = (torch.arange(number, device=device) + 0.5) * (extent / number)
    return 2 * (positions - start) / length - 1
