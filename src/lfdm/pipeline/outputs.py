"""Write generated videos, and panels that show their motion.

Shapes: source (H, W, 3) uint8 · frames (b, t, H, W, 3) uint8; both may have alpha, and then 4 channels.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Self

import numpy as np
import torch

from lfdm.config.checks import check_integer, check_number
from lfdm.config.video import MIN_FPS, PanelFormat, PanelKind, SheetFormat
from lfdm.data.alpha import without_alpha
from lfdm.data.animations import ANIMATION_SUFFIXES
from lfdm.data.fitting import fit_frames
from lfdm.data.sprite_sheets import SHEET_SUFFIX, enlarge, sheet_image, write_sheet
from lfdm.data.video import check_target, max_fps, write_video
from lfdm.errors import UserError
from lfdm.folders.files import real_path, remove_leftovers, replaced_input
from lfdm.motion.motion import Motion, check_motion_path
from lfdm.pipeline.result import LatentFlowOutput
from lfdm.pipeline.transfer import MotionTransfer
from lfdm.visualize import draw_panel

OUT_ENDINGS = (".mp4", ".webm", ".mov", ".gif", *ANIMATION_SUFFIXES)
"""Formats that browsers play, and mov for video editors; a path without an ending is a folder of lossless PNGs."""
_ENDINGS = (*OUT_ENDINGS, SHEET_SUFFIX)
MAX_SCALE = 32
REGION_FRAMES = 32
"""Frames whose regions are computed at once."""


@dataclass(frozen=True, kw_only=True)
class VideoFiles:
    """Paths and formats of videos: `wave.mp4`, or several as `wave-0.mp4`, `wave-1.mp4`, ...; panels as `wave-panel.gif`.

    Raises:
        UserError: an ending, rate or scale that is not allowed.
    """

    out: Path
    """Path of the video; its ending decides the format, none = a folder of lossless PNGs."""
    num_videos: int = 1
    """Number of videos in all."""
    fps: float | None = None
    """Frames per second; None = the pipeline's."""
    scale: int = 1
    """Whole factor by which the written video is enlarged (nearest neighbour)."""
    panel: Sequence[PanelKind] = ()
    """Tiles of the panel that is written next to each video; none = no panel."""
    panel_format: PanelFormat = "gif"
    """Format of panels; `png` is a folder of frames."""
    sheet_format: SheetFormat | None = None
    """Data of a sprite sheet (`.json`), see `lfdm.data.sprite_sheets.write_sheet`; None = `aseprite`."""
    motion: Path | None = None
    """File to save the motion of all videos to."""
    sound: Path | None = None
    """Clip whose sound is added to videos; see `write_video`."""

    def __post_init__(self) -> None:
        ending = self.out.suffix.lower()
        if not self.out.name or ending not in ("", *_ENDINGS) or self.out.name.lower() in _ENDINGS:
            allowed = f"{', '.join(OUT_ENDINGS)}, {SHEET_SUFFIX} (a sprite sheet) or nothing (a folder of PNGs)"
            raise UserError(f"out must end in {allowed}; got {str(self.out)!r}")
        if self.sheet_format is not None and ending != SHEET_SUFFIX:
            raise UserError(f"sheet_format has no effect without an out that ends in {SHEET_SUFFIX}; got {self.sheet_format!r}")
        check_integer("num_videos", self.num_videos, 1, 100_000)
        check_integer("scale", self.scale, 1, MAX_SCALE)
        if self.fps is not None:
            self._check_fps(self.fps)
        if self.motion is not None:
            check_motion_path(self.motion)

    def _check_fps(self, fps: float) -> float:
        return check_number("fps", fps, low=MIN_FPS, high=max_fps(self.out))

    def video_path(self, index: int) -> Path:
        """Return the path of video `index`."""
        number = f"-{index}" if self.num_videos > 1 else ""
        return self.out.with_name(f"{self.out.stem}{number}{self.out.suffix}")

    def panel_path(self, index: int) -> Path:
        """Return the path of the panel of video `index`."""
        video = self.video_path(index)
        return video.with_name(f"{video.stem}-panel{'' if self.panel_format == 'png' else f'.{self.panel_format}'}")

    def _video_targets(self) -> Iterator[Path]:
        for index in range(self.num_videos):
            yield (path := self.video_path(index))
            if path.suffix.lower() == SHEET_SUFFIX:
                yield sheet_image(path)
            if self.panel:
                yield self.panel_path(index)

    def with_free_name(self) -> Self:
        """Return these files under the first name of `wave`, `wave-2`, `wave-3`, ... that no video or panel has."""
        numbered = (replace(self, out=self.out.with_stem(f"{self.out.stem}-{number}")) for number in count(2))
        return next(files for files in chain([self], numbered) if not any(map(_holds_something, files._video_targets())))

    def check_targets(self, inputs: Iterable[str | Path], *, overwrite: bool) -> None:
        """Check that writing replaces nothing that is needed; call it before any work.

        Args:
            inputs: Files and folders that are read; those that do not exist are ignored.
            overwrite: Whether videos, panels and motions that exist may be replaced. Inputs never are.

        Raises:
            UserError: a file that would be replaced, or a path that cannot be written.
        """
        read = list(inputs)
        for target in self._video_targets():
            _check_not_input(target, read)
            check_target(target)
            _check_absent(target, overwrite)
        if self.motion is not None:
            _check_not_input(self.motion, read)
            _check_absent(self.motion, overwrite)

    def remove_leftovers(self) -> None:
        """Remove what killed processes left half written in the folders of these files."""
        for folder in {path.parent for path in (self.out, self.motion) if path is not None}:
            remove_leftovers(folder)

    def _write_video(self, path: Path, frames: np.ndarray, fps: float) -> Path:
        if path.suffix.lower() == SHEET_SUFFIX:
            return write_sheet(path, enlarge(frames, self.scale), fps=fps, form=self.sheet_format or "aseprite")
        enlarged = (enlarge(frame[None], self.scale)[0] for frame in frames)
        return write_video(path, enlarged, fps=fps, sound=self.sound)

    def loses_alpha(self) -> bool:
        """Return whether the format of the videos stores no alpha: frames are then composed over white."""
        return self.out.suffix.lower() == ".mp4"

    def write(self, pipeline: MotionTransfer, source: np.ndarray, results: Iterable[LatentFlowOutput]) -> Iterator[Path]:
        """Write the videos of all `results` (with output_type="uint8") one by one and yield the path of each file.

        Raises:
            UserError: a tile that this model cannot draw; raised before the first result is computed.
        """
        if "regions" in self.panel and not pipeline.autoencoder.has_regions:
            raise UserError("panel must not contain 'regions' with this model, whose motion predictor has none")
        fps = self._check_fps(pipeline.config["fps"]) if self.fps is None else self.fps
        motions, index = [], 0
        for result in results:
            assert isinstance(result.frames, np.ndarray)
            assert isinstance(result.warped, np.ndarray)
            if self.motion is not None:
                motions.append(result.motion)
            for i, frames in enumerate(result.frames):
                yield self._write_video(self.video_path(index), frames, fps)
                if self.panel:
                    regions = region_maps(pipeline, without_alpha(frames)) if "regions" in self.panel else None
                    motion = result.motion_over_frames(i)
                    panel = draw_panel(source, frames, result.warped[i], motion, kinds=self.panel, regions=regions)
                    path = self.panel_path(index)
                    yield write_video(path, panel, fps=min(fps, max_fps(path)))
                index += 1
        if self.motion is not None:
            Motion.concatenate(motions, dim=0).save(self.motion)
            yield self.motion


def _check_not_input(target: Path, inputs: Sequence[str | Path]) -> None:
    lost = replaced_input(target, inputs)
    if lost is not None:
        raise UserError(f"{target} would replace the input {lost}; choose another name for it")


def _check_absent(target: Path, overwrite: bool) -> None:
    if not overwrite and _holds_something(target):
        raise UserError(f"{target} exists; choose another name or give --overwrite")


def _holds_something(path: Path) -> bool:
    """Return whether `path` is a file, a link or a folder that is not empty."""
    real = real_path(path)
    return path.is_symlink() or (any(real.iterdir()) if real.is_dir() else real.exists())


@torch.no_grad()
def region_maps(pipeline: MotionTransfer, frames: np.ndarray) -> np.ndarray:
    """Return stage 1's region heat maps (t, K, h, w) of frames (t, H, W, 3) uint8; UserError for a dense motion predictor.

    Frames whose sides the networks cannot take, of the picture's own size, are seen at the model's.
    """
    maps = []
    for start in range(0, len(frames), REGION_FRAMES):
        some = frames[start : start + REGION_FRAMES]
        if any(side % pipeline.side_multiple for side in some.shape[1:3]):
            some = fit_frames(some, pipeline.size, "stretch")
        video = torch.from_numpy(some).permute(3, 0, 1, 2)[None].float() / 255
        maps.append(pipeline.autoencoder.region_heat(video.to(pipeline.device))[0].float().cpu().numpy())
    return np.concatenate(maps, axis=1).swapaxes(0, 1)
