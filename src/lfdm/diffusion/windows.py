"""Clips longer than one pass of the network takes: windows over time whose predictions are blended.

At every denoising step the network predicts each window alone; where windows overlap, their predictions are averaged with
weights that fall towards a window's ends (MultiDiffusion, arXiv 2302.08113, over time). Given the noisy sample, a prediction is
linear in the clean motion, so this blends motion. All of it stays relative to the one source image: colours cannot drift.

Shapes: motion sample (b, 3, t, h, w).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

OVERLAP = 0.5
"""Share of a window that the next one covers, too."""


@dataclass(frozen=True)
class Window:
    """Some frames in the order of time, (n,) int64, and the weight of each in the blend, (n,) float32."""

    frames: Tensor
    weights: Tensor


def plan_windows(num_frames: int, *, longest: int) -> tuple[Window, ...]:
    """The windows of a clip, each of `longest` frames; none where one pass over all frames will do."""
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


def predict_in_windows(
    predict: Callable[[Tensor, Tensor], Tensor], windows: Sequence[Window]
) -> Callable[[Tensor, Tensor], Tensor]:
    """`predict` for samples of any length: of each window, one after the other, blended."""

    def blended(sample: Tensor, timestep: Tensor) -> Tensor:
        total = torch.zeros_like(sample)
        for window in windows:
            frames = window.frames.to(sample.device)
            weights = window.weights.to(sample).view(1, 1, -1, 1, 1)
            total.index_add_(2, frames, weights * predict(sample[:, :, frames], timestep).to(sample.dtype))
        return total

    return blended
