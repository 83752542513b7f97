"""Instants of a clip, and interpolation in time between them.

A clip lasts from tau = 0, its first frame, to tau = 1, its last, whatever its number of frames: frame k of t is at
k / (t - 1).
"""

import torch
from torch import Tensor

NUM_KNOTS = 16
"""Evenly spaced instants at which the motion of a clip is described; between them it is cubic."""
MIN_FRAMES = 3
"""Fewest frames of a clip that is interpolated: its ends are extended as parabolas."""


def instants(num_frames: int) -> Tensor:
    """Return tau of the frames of a clip: (num_frames,) float64 from 0 to 1; a single frame is at 0."""
    return torch.arange(num_frames, dtype=torch.float64) / max(1, num_frames - 1)


def interpolation(tau: Tensor, num_knots: int) -> Tensor:
    """Return the matrix (t, num_knots) that interpolates values at evenly spaced knots at `tau` (t,) in [0, 1].

    Cubic (Catmull-Rom): passes through the knots and reproduces parabolas.
    """
    values = torch.eye(num_knots, dtype=torch.float64)
    before = 3 * values[:1] - 3 * values[1:2] + values[2:3]
    after = 3 * values[-1:] - 3 * values[-2:-1] + values[-3:-2]
    values = torch.cat((before, values, after))
    position = tau.double() * (num_knots - 1)
    left = position.floor().clamp(0, num_knots - 2).long()
    u = (position - left).unsqueeze(1)
    weights = (u * (u * (2 - u) - 1) / 2, 1 + u * u * (3 * u - 5) / 2, u * (1 + u * (4 - 3 * u)) / 2, u * u * (u - 1) / 2)
    return sum((weight * values[left + k] for k, weight in enumerate(weights)), torch.zeros(len(tau), num_knots).double())
