"""Writing what the pipeline made: videos, and panels that show its motion.

Shapes: source (H, W, 3) uint8 · frames (b, t, H, W, 3) uint8.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from lfdm.data.video import MAX_FPS, MAX_GIF_FPS, MIN_FPS, check_target, write_video
from lfdm.models.motion import Motion
from lfdm.pipeline import LatentFlowOutput, LatentFlowPipeline, frames_to_uint8
from lfdm.pipeline_inputs import SingleImage, check_integer, check_number, prepare_images
from lfdm.visualize import make_panel

OUT_ENDINGS = (".mp4", ".webm", ".gif")
"""Formats that browsers play; without an ending it is a folder of exact PNGs."""
MAX_SCALE = 32


@dataclass(frozen=True, kw_only=True)
class VideoFiles:
    """Where videos go, and how: `wave.mp4`, or of several `wave-0.mp4`, `wave-1.mp4`, ...; a panel as `wave-panel.gif`.

    Raises:
        ValueError: an ending that cannot be written, an impossible rate or enlargement.
    """

    out: Path
    """Its ending decides the format; none = a folder of exact PNGs."""
    num_videos: int = 1
    """How many there will be in all."""
    fps: float
    """Frames per second."""
    scale: int = 1
    """Whole factor by which the written video is enlarged (nearest neighbour)."""
    panel: bool = False
    """Write a panel GIF beside each video."""

    def __post_init__(self) -> None:
        if not self.out.name or self.out.suffix not in ("", *OUT_ENDINGS):
            raise ValueError(f"out must end in {', '.join(OUT_ENDINGS)} or nothing (a folder of PNGs); got {str(self.out)!r}")
        check_integer("num_videos", self.num_videos, 1, 100_000)
        check_integer("scale", self.scale, 1, MAX_SCALE)
        check_number("fps", self.fps, low=MIN_FPS, high=MAX_GIF_FPS if self.out.suffix == ".gif" else MAX_FPS)
        for index in range(self.num_videos):
            check_target(self.video_path(index))

    def video_path(self, index: int) -> Path:
        """Where video `index` goes."""
        number = f"-{index}" if self.num_videos > 1 else ""
        return self.out.with_name(f"{self.out.stem}{number}{self.out.suffix}")

    def panel_path(self, index: int) -> Path:
        """Where the panel of video `index` goes."""
        video = self.video_path(index)
        return video.with_name(f"{video.stem}-panel.gif")

    def write(self, source: np.ndarray, result: LatentFlowOutput, *, first: int = 0) -> list[Path]:
        """Write the videos of `result` (made with output_type="np") as number `first` and up; returns every file's path."""
        assert isinstance(result.frames, np.ndarray)
        assert isinstance(result.warped, np.ndarray)
        paths = []
        for i, frames in enumerate(result.frames):
            enlarged = frames.repeat(self.scale, axis=1).repeat(self.scale, axis=2)
            paths.append(write_video(self.video_path(first + i), enlarged, fps=self.fps))
            if self.panel:
                motion = Motion(result.motion.flow[i : i + 1], result.motion.occlusion[i : i + 1], result.motion.corners)
                panel = make_panel(source, frames, result.warped[i], motion)
                paths.append(write_video(self.panel_path(first + i), panel, fps=min(self.fps, MAX_GIF_FPS)))
        return paths


def fitted_source(pipeline: LatentFlowPipeline, image: SingleImage) -> np.ndarray:
    """The image as the pipeline sees it: (H, W, 3) uint8."""
    fitted: Tensor = prepare_images(image, size=pipeline.config["image_size"], fit=pipeline.config["fit"])
    return frames_to_uint8(fitted[:, :, None])[0, 0]
