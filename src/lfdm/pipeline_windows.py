"""Clips longer than one pass of the network takes, and loops: windows over time whose predictions are blended.

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


def plan_windows(num_frames: int, *, longest: int, loop: bool) -> tuple[Window, ...]:
    """The windows of a clip; none where one pass over all frames will do.

    Args:
        longest: what one pass takes, and the length of windows.
        loop: windows run over the clip's end into its start, so that its last frame is followed by its first.
    """
    if num_frames <= longest and not loop:
        return ()
    length = min(longest, num_frames)
    stride = max(1, round(length * (1 - OVERLAP)))
    if loop:
        count = max(2, math.ceil(num_frames / stride))
        starts = [round(i * num_frames / count) for i in range(count)]
    else:
        count = math.ceil((num_frames - length) / stride) + 1
        starts = [round(i * (num_frames - length) / max(count - 1, 1)) for i in range(count)]
    ramp = torch.minimum(torch.arange(1, length + 1), torch.arange(length, 0, -1)).float()
    frames = [(start + torch.arange(length)) % num_frames for start in starts]
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
