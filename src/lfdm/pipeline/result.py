"""The result of a pipeline call, and the forms of its videos.

Shapes: decoded video (b, 3, t, H, W) in [0, 1], or (b, 4, t, H, W) with straight alpha · `Frames` as `OutputType` says.
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
from lfdm.errors import UserError
from lfdm.motion.frame_box import FrameBox
from lfdm.motion.motion import Motion
from lfdm.pipeline.control_report import ControlReport
from lfdm.visualize import draw_panel

OutputType = Literal["pil", "np", "pt", "uint8"]
"""`pil`: a list per sample of lists of images; `np`: (b, t, H, W, 3) float32 in [0, 1]; `pt`: tensor (b, t, 3, H, W) in [0, 1];
`uint8`: array (b, t, H, W, 3). With alpha there are 4 channels, and images of mode RGBA."""
SampledOutputType = OutputType | Literal["latent"]
"""Also `latent` in a call: the diffused sample (b, *codec.sample_shape), from which no frames are decoded."""
Frames = list[list[Image.Image]] | np.ndarray | Tensor


@dataclass(frozen=True, eq=False)
class LatentFlowOutput:
    """Generated videos and their motion."""

    frames: Frames
    """The videos, in the form of `output_type`."""
    warped: Frames
    """The source image after warping only, in the same form; empty with `latent`."""
    motion: Motion
    """flow (b, 2, t, h, w) and occlusion (b, 1, t, h, w), of the model's frame."""
    frame_box: FrameBox | None = None
    """Part of the frames that the model's frame shows, where they have the picture's own size; None = all."""
    control: ControlReport | None = None
    """How near the points of drags and pins came to their targets."""

    def motion_over_frames(self, sample: int) -> Motion:
        """Return the motion of one sample on a grid over its frames, as drawings need it."""
        motion = self.motion.samples(sample, sample + 1)
        if self.frame_box is None:
            return motion
        return self.frame_box.motion_over_picture(motion, _size(self.frames))

    def to_tuple(self) -> tuple[Frames, Frames, Motion]:
        """Return (frames, warped, motion)."""
        return self.frames, self.warped, self.motion

    def show(
        self, kinds: Sequence[PanelKind] = ("generated", "flow", "arrows", "occlusion"), *, sample: int = 0, fps: float = 8.0
    ) -> "VideoPreview":
        """Draw one sample and its motion; a notebook shows the result, `.save("motion.gif")` writes it.

        Args:
            kinds: tiles of `lfdm.visualize.draw_panel`; not `source` and `regions`, which an output does not hold.
            sample: index in the batch.
            fps: frames per second.

        Raises:
            UserError: no frames or no such sample, or a tile that cannot be drawn.
        """
        if len(self.warped) == 0:
            raise UserError("output_type must be one with frames to show them; got 'latent'")
        check_integer("sample", sample, 0, len(self.motion.flow) - 1)
        frames, warped = (_sample_to_uint8(video, sample) for video in (self.frames, self.warped))
        panel = draw_panel(None, frames, warped, self.motion_over_frames(sample), kinds=kinds)
        return VideoPreview(np.stack(list(panel)), fps)


@dataclass(frozen=True, repr=False, eq=False)
class VideoPreview:
    """A video (t, H, W, 3) uint8 that notebooks show as an embedded GIF."""

    frames: np.ndarray
    fps: float

    def save(self, path: str | Path) -> Path:
        """Write a gif, mp4 or webm file, or a folder of PNGs; see `lfdm.data.video.write_video`."""
        from lfdm.data.video import write_video  # imports PyAV, which takes as long as all else here

        return write_video(path, self.frames, fps=self.fps)

    def _repr_html_(self) -> str:
        from lfdm.data.video import MAX_GIF_FPS, encode_video

        data = base64.b64encode(encode_video(self.frames, ".gif", fps=min(self.fps, MAX_GIF_FPS))).decode()
        return f'<img alt="{len(self.frames)} frames" src="data:image/gif;base64,{data}">'

    def __repr__(self) -> str:
        t, height, width = self.frames.shape[:3]
        return f"<{type(self).__name__}: {t} frames of {width}x{height}; .save(path) writes it>"


class VideoBuffer:
    """Collects decoded chunks into a video in its final form.

    Args:
        image: images (b, 3, H, W) or (b, 4, H, W) of the video's size, channels and device.
        length: number of frames.
        truncate: see `frames_to_uint8`.
    """

    video: Frames

    def __init__(self, image: Tensor, length: int, output_type: OutputType, *, truncate: bool) -> None:
        self.truncate = truncate
        batch, channels, height, width = image.shape
        if output_type == "pt":
            self.video = torch.empty(batch, length, channels, height, width, device=image.device)
        elif output_type == "pil":
            self.video = [[] for _ in range(batch)]
        else:
            dtype = np.float32 if output_type == "np" else np.uint8
            self.video = np.empty((batch, length, height, width, channels), dtype)

    def put(self, chunk: Tensor, start: int) -> None:
        """Store frames (b, 3, n, H, W) or (b, 4, n, H, W) from index `start` on."""
        stop = start + chunk.shape[2]
        if isinstance(self.video, Tensor):
            self.video[:, start:stop] = rearrange(chunk.clamp(0, 1), "b c t h w -> b t c h w")
        elif isinstance(self.video, np.ndarray) and self.video.dtype == np.float32:
            self.video[:, start:stop] = rearrange(chunk.float().clamp(0, 1), "b c t h w -> b t h w c").cpu().numpy()
        elif isinstance(self.video, np.ndarray):
            self.video[:, start:stop] = frames_to_uint8(chunk, truncate=self.truncate)
        else:
            for images, sample in zip(self.video, frames_to_uint8(chunk, truncate=self.truncate), strict=True):
                images += [Image.fromarray(frame) for frame in sample]


def _size(video: Frames) -> tuple[int, int]:
    """Return height and width of the frames of a video in any form."""
    if isinstance(video, Tensor):
        return video.shape[-2], video.shape[-1]
    if isinstance(video, np.ndarray):
        return video.shape[2], video.shape[3]
    return video[0][0].height, video[0][0].width


def _sample_to_uint8(video: Frames, sample: int) -> np.ndarray:
    """Return sample `sample` of a video in any form as (t, H, W, 3) uint8, or (t, H, W, 4) with alpha."""
    frames = video[sample]
    if isinstance(frames, list):
        return np.stack([np.asarray(frame) for frame in frames])
    if isinstance(frames, Tensor):
        frames = rearrange(frames, "t c h w -> t h w c").float().cpu().numpy()
    return frames if frames.dtype == np.uint8 else np.rint(frames * 255).astype(np.uint8)


def check_output_type(output_type: object, *, sampled: bool = False) -> None:
    """Raise UserError for anything but an `OutputType`, or `latent` where a sample was diffused."""
    allowed = (*get_args(OutputType), "latent") if sampled else get_args(OutputType)
    if output_type not in allowed:
        raise UserError(f"output_type must be one of {', '.join(allowed)}; got {output_type!r}")


def frames_to_uint8(video: Tensor, *, truncate: bool = False) -> np.ndarray:
    """Convert a video (b, c, t, H, W) in [0, 1] to (b, t, H, W, c) uint8.

    Values are rounded; `truncate` is the published behaviour, kept for the paper presets. Both give an 8-bit image back exactly.
    """
    scaled = video.float().clamp(0, 1) * 255
    scaled = scaled if truncate else scaled.round()
    return rearrange(scaled.to(torch.uint8), "b c t h w -> b t h w c").cpu().numpy()
