"""What a pipeline's call returns, and its forms.

Shapes: video (b, 3, t, H, W) in [0, 1].
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from lfdm.models.motion import Motion

OutputType = Literal["pil", "np", "pt"]
Frames = list[list[Image.Image]] | np.ndarray | Tensor


@dataclass(frozen=True)
class LatentFlowOutput:
    """Videos and what they were made with.

    `frames`, and `warped` (the source image warped alone), are as `output_type` says: `pil` a list per sample of lists of
    images, `np` (b, t, H, W, 3) uint8, `pt` (b, 3, t, H, W) in [0, 1].
    """

    frames: Frames
    warped: Frames
    motion: Motion


def check_output_type(output_type: object) -> None:
    """ValueError for anything but `pil`, `np`, `pt`."""
    if output_type not in get_args(OutputType):
        raise ValueError(f"output_type must be one of {', '.join(get_args(OutputType))}; got {output_type!r}")


def frames_to_uint8(video: Tensor, *, truncate: bool = False) -> np.ndarray:
    """(b, 3, t, H, W) in [0, 1] -> (b, t, H, W, 3) uint8.

    Rounded; `truncate` is the published behaviour, kept for the paper presets. Both give an 8-bit image back exactly.
    """
    scaled = video.float().clamp(0, 1) * 255
    scaled = scaled if truncate else scaled.round()
    return rearrange(scaled.to(torch.uint8), "b c t h w -> b t h w c").cpu().numpy()
