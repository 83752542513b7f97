"""Clips longer than one pass of the network takes: windows over time whose predictions are blended.

At every step the network predicts each window separately; where windows overlap, their predictions are averaged with
weights that fall towards a window's ends (MultiDiffusion, 2302.08113, over time). Given the noisy sample, a prediction is
linear in the clean motion, so this blends motion. All motion stays relative to the one source image: colours cannot drift.

Shapes: sample (b, c, t, h, w).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lfdm.diffusion.guidance import Prediction

OVERLAP = 0.5
"""Fraction of a window that the next one also covers."""


@dataclass(frozen=True, eq=False)
class Window:
    """Consecutive frames, (n,) int64, and the weight of each in the blend, (n,) float32."""

    frames: Tensor
    weights: Tensor


def plan_windows(num_frames: int, *, longest: int) -> tuple[Window, ...]:
    """Return the windows of a clip, each of `longest` frames; none if one pass over all frames is enough."""
    if num_frames <= longest:
        return ()
    stride = max(1, round(longest * (1 - OVERLAP)))
    count = math.ceil((num_frames - longest) / stride) + 1
    starts = [round(i * (num_frames - longest) / (count - 1)) for i in range(count)]
    ramp = torch.minimum(torch.arange(1, longest + 1), torch.arange(longest, 0, -1)).float()
    frames = [start + torch.arange(longest) for start in starts]
    total = torch.zeros(num_frames)
    for chosen in frames:
        total[chosen] += ramp
    return tuple(Window(chosen, ramp / total[chosen]) for chosen in frames)


def blend_windows(windows: Sequence[Window], predictions: Sequence[Prediction]) -> Prediction:
    """Return the prediction for samples of any length, blended from those of all windows, made one after the other.

    Args:
        predictions: one for each window, given that window's part of the sample.
    """

    def predict(sample: Tensor, timestep: Tensor, *until: Tensor) -> Tensor:
        total = torch.zeros_like(sample)
        for window, predict_window in zip(windows, predictions, strict=True):
            frames = window.frames.to(sample.device)
            weights = window.weights.to(sample).view(1, 1, -1, 1, 1)
            total.index_add_(2, frames, weights * predict_window(sample[:, :, frames], timestep, *until).to(sample.dtype))
        return total

    return predict
