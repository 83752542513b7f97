"""Result files of page and API: a video, and sheets of all frames for the players.

Shapes: frames (t, H, W, 3) uint8, or (t, H, W, 4) with alpha.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lfdm.data.sound import has_sound
from lfdm.data.sprite_sheets import sheet_columns, tile
from lfdm.data.video import write_video
from lfdm.motion.motion import Motion
from lfdm.visualize import draw_warped_grid, flow_scale, flow_to_color, in_half_widths, occlusion_to_gray
from lfdm.web.track_points import TrackPoint

FILE_SIDE = 256
"""Side in pixels to which videos are enlarged by a whole factor, since players blur small ones."""
CALLS_PER_FRAME = 2
"""Calls of `after_frame` per frame: one for the video, one for its flow."""
MAX_WEBP_SIDE = 16_383
"""Largest side of a WebP picture, in pixels."""
MOTION_SIDE = 192
"""Side in pixels at which flow and occlusion are drawn, large enough for fine grid lines."""
SHEET_FRAME_SIDE = 512
"""Side in pixels to which larger frames are reduced in the player; the file has them in full."""


@dataclass(frozen=True, kw_only=True)
class VideoResult:
    """One video and the pictures of its motion."""

    title: str
    file: Path
    """mp4, or webm with alpha."""
    sheets: dict[str, Path]
    """Pictures `video`, `flow` and `occlusion` of all frames, row by row."""
    columns: int
    """Frames per row of a sheet."""
    num_frames: int
    fps: float
    max_flow: float
    """Displacement drawn in full saturation, in pixels of the video."""
    has_sound: bool = False
    note: str = ""
    """Remarks for the user about the video."""
    points: tuple[TrackPoint, ...] = ()
    """Drags and pins, and where they came to."""


def write_result(
    folder: Path,
    name: str,
    title: str,
    frames: np.ndarray,
    motion: Motion,
    *,
    fps: float,
    after_frame: Callable[[], None],
    sound: Path | None = None,
    note: str = "",
) -> VideoResult:
    """Write the files of one video and its motion (of one sample) to `folder`; `sound` is a clip whose sound the video gets.

    `after_frame` is called `CALLS_PER_FRAME` times per frame as they are drawn; an exception it raises ends the work.

    Raises:
        UserError: more frames than fit into a sheet; raised before anything is written.
    """
    shown, width = _reduced(frames), frames.shape[2]
    t, shown_height, shown_width = shown.shape[:3]
    factor = max(1, MOTION_SIDE // max(shown_height, shown_width))
    size = (shown_width * factor, shown_height * factor)
    columns = sheet_columns(t, size[1], size[0], largest=MAX_WEBP_SIDE)
    file = write_video(folder / f"{name}{_ending(frames)}", _enlarged(frames, after_frame), fps=fps, sound=sound)
    flow = motion.flow[0].permute(1, 2, 3, 0).float().cpu().numpy()  # (t, h, w, 2)
    occlusion = motion.occlusion[0, 0].float().cpu().numpy()
    scale = flow_scale(in_half_widths(flow, (size[1], size[0])))
    pictures = {
        "video": shown,
        "flow": np.stack([_draw_flow(frame, size, scale) for frame in _each(flow, after_frame)]),
        "occlusion": np.stack([occlusion_to_gray(_resize(frame, size)) for frame in occlusion]),
    }
    sheets = {key: _write_sheet(folder / f"{name}-{key}.webp", value, columns) for key, value in pictures.items()}
    return VideoResult(
        title=title,
        file=file,
        sheets=sheets,
        columns=columns,
        num_frames=t,
        fps=fps,
        max_flow=scale * width / 2,
        has_sound=sound is not None and has_sound(sound),
        note=note,
    )


def _reduced(frames: np.ndarray) -> np.ndarray:
    """Reduce frames (t, H, W, c) for the player."""
    height, width = frames.shape[1:3]
    share = SHEET_FRAME_SIDE / max(height, width)
    if share >= 1:
        return frames
    size = (max(1, round(width * share)), max(1, round(height * share)))
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX)) for frame in frames])


def _ending(frames: np.ndarray) -> str:
    return ".webm" if frames.shape[-1] == 4 else ".mp4"  # mp4 stores no alpha


def _draw_flow(flow: np.ndarray, size: tuple[int, int], scale: float) -> np.ndarray:
    large = np.stack([_resize(flow[..., axis], size) for axis in range(2)], axis=-1)
    return draw_warped_grid(flow_to_color(in_half_widths(large, (size[1], size[0])), max_flow=scale), large)


def _write_sheet(path: Path, frames: np.ndarray, columns: int) -> Path:
    Image.fromarray(tile(frames, columns)).save(path, "WEBP", lossless=True, quality=0, method=0)
    return path


def _each(frames: np.ndarray, after_frame: Callable[[], None]) -> Iterator[np.ndarray]:
    for frame in frames:
        yield frame
        after_frame()


def _enlarged(frames: np.ndarray, after_frame: Callable[[], None]) -> Iterator[np.ndarray]:
    factor = max(1, FILE_SIDE // max(frames.shape[1:3]))
    return (frame.repeat(factor, axis=0).repeat(factor, axis=1) for frame in _each(frames, after_frame))


def _resize(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
