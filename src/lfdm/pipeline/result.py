"""What a pipeline's call returns, and its forms.

Shapes: video (b, 3, t, H, W) in [0, 1].
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from lfdm.config.checks import check_integer
from lfdm.config.video import PanelKind
from lfdm.data.video import MAX_GIF_FPS, encode_video, write_video
from lfdm.errors import UserError
from lfdm.motion.motion import Motion
from lfdm.visualize import draw_panel

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

    def show(
        self, kinds: Sequence[PanelKind] = ("generated", "flow", "occlusion"), *, sample: int = 0, fps: float = 8.0
    ) -> "VideoPreview":
        """One sample and its motion as a moving picture, which a notebook shows and `.save("motion.gif")` writes.

        Args:
            kinds: tiles of `lfdm.visualize.draw_panel` but `source` and `regions`, which an output does not hold.
            sample: which of the batch.
            fps: frames per second.

        Raises:
            UserError: no such sample, or a tile that cannot be drawn.
        """
        check_integer("sample", sample, 0, len(self.motion.flow) - 1)
        frames, warped = (_sample_to_uint8(video, sample) for video in (self.frames, self.warped))
        motion = self.motion.samples(sample, sample + 1)
        return VideoPreview(np.stack(list(draw_panel(None, frames, warped, motion, kinds=kinds))), fps)


@dataclass(frozen=True, repr=False)
class VideoPreview:
    """A video (t, H, W, 3) uint8 that notebooks show by themselves, as a GIF within the page."""

    frames: np.ndarray
    fps: float

    def save(self, path: str | Path) -> Path:
        """Write it as `lfdm.data.video.write_video` does: gif, mp4, webm, or a folder of PNGs."""
        return write_video(path, self.frames, fps=self.fps)

    def _repr_html_(self) -> str:
        data = base64.b64encode(encode_video(self.frames, ".gif", fps=min(self.fps, MAX_GIF_FPS))).decode()
        return f'<img alt="{len(self.frames)} frames" src="data:image/gif;base64,{data}">'

    def __repr__(self) -> str:
        t, height, width = self.frames.shape[:3]
        return f"<{type(self).__name__}: {t} frames of {width}x{height}; .save(path) writes it>"


def _sample_to_uint8(video: Frames, sample: int) -> np.ndarray:
    if isinstance(video, Tensor):
        return frames_to_uint8(video[sample : sample + 1])[0]
    return video[sample] if isinstance(video, np.ndarray) else np.stack([np.asarray(frame) for frame in video[sample]])


def check_output_type(output_type: object) -> None:
    """UserError for anything but `pil`, `np`, `pt`."""
    if output_type not in get_args(OutputType):
        raise UserError(f"output_type must be one of {', '.join(get_args(OutputType))}; got {output_type!r}")


def frames_to_uint8(video: Tensor, *, truncate: bool = False) -> np.ndarray:
    """(b, 3, t, H, W) in [0, 1] -> (b, t, H, W, 3) uint8.

    Rounded; `truncate` is the published behaviour, kept for the paper presets. Both give an 8-bit image back exactly.
    """
    scaled = video.float().clamp(0, 1) * 255
    scaled = scaled if truncate else scaled.round()
    return rearrange(scaled.to(torch.uint8), "b c t h w -> b t h w c").cpu().numpy()
