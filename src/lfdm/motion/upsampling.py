"""Convex upsampling: every fine cell is a weighted mean of the 3x3 coarse cells around it (RAFT, arXiv 2003.12039, section 3.3).

Shapes: x (n, c, h, w) · logits (n, 36, h, w): for each of the four fine cells of a coarse cell, row by row, its 9 neighbours.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBOURS = 9
FINE_CELLS = 4
SMALLEST_WEIGHT = 1e-3
"""Initial weight of neighbours that bilinear interpolation ignores: at zero their logits would have no gradient."""


def bilinear_logits() -> Tensor:
    """Return the logits (36,) whose weights are those of bilinear interpolation, up to `SMALLEST_WEIGHT`."""
    line = torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.75, 0.25]])  # of the first and the second fine cell
    weights = torch.einsum("ir,js->ijrs", line, line).clamp(min=SMALLEST_WEIGHT)
    return weights.log().flatten()


def convex_double(x: Tensor, logits: Tensor) -> Tensor:
    """Double height and width: (n, c, 2h, 2w) float32. Cells outside the image are copies of its edge.

    The mean is taken of the difference to the coarse cell itself, so that equal neighbours give exactly their value.
    """
    n, c, h, w = x.shape
    x = x.float()
    weights = torch.softmax(logits.float().unflatten(1, (FINE_CELLS, NEIGHBOURS)), dim=2)
    fine = x.unsqueeze(2).expand(-1, -1, FINE_CELLS, -1, -1)
    for k, neighbour in enumerate(neighbours(x)):
        if k != NEIGHBOURS // 2:
            fine = fine + weights[:, None, :, k] * (neighbour - x).unsqueeze(2)
    return F.pixel_shuffle(fine.reshape(n, c * FINE_CELLS, h, w), 2)


def neighbours(x: Tensor) -> list[Tensor]:
    """Return the 3x3 neighbours of every cell of (n, c, h, w), row by row, each (n, c, h, w); edges are repeated outside."""
    h, w = x.shape[-2:]
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    return [padded[:, :, top : top + h, left : left + w] for top in range(3) for left in range(3)]
