"""Tracks of real motion as a control: points of a clip, followed through it, for another picture."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lfdm.config.control import Drag, Point
from lfdm.config.video import PictureFit, Size
from lfdm.errors import UserError
from lfdm.motion.frame_box import FrameBox
from lfdm.motion.motion import Motion
from lfdm.motion.tracks import VISIBLE, Tracks, find_tracks
from lfdm.motion.warp import identity_grid
from lfdm.pipeline.control import estimate_driving_motion
from lfdm.pipeline.full_size import frame_box
from lfdm.pipeline.inputs import fit_images
from lfdm.pipeline.transfer import MotionTransfer

MIN_APART = 3.0
"""Least distance in cells between points that are chosen because they move most."""


def track_clip(
    pipe: MotionTransfer, frames: np.ndarray, points: Sequence[Point] | int, fit: PictureFit | None = None
) -> tuple[Drag, ...]:
    """Follow points of the first frame of a clip (t, H, W, 3) uint8, or a number of those that move most, by stage 1.

    Args:
        points: positions in pixels, or a number.
        fit: how frames are fitted, as of a picture.

    Raises:
        UserError: a point outside the frame, or one that is never seen again.
    """
    framing, size = pipe.framing([frames[0]], fit), Size(*frames.shape[1:3])
    box = frame_box(size, framing.size, framing.fit_of(size))
    image = fit_images([frames[0]], size=framing.size, fit=framing.fit_of(size)).over_white.to(pipe.device)
    with torch.no_grad():
        motion = estimate_driving_motion(pipe.autoencoder, image, frames, relative=True, framing=framing).to("cpu")
    chosen = moving_points(motion, points, box) if isinstance(points, int) else points
    return track_points(motion, chosen, size, box)


def track_points(motion: Motion, points: Sequence[Point], size: Size, box: FrameBox) -> tuple[Drag, ...]:
    """Follow points of the first frame, in pixels of frames of `size`, through a motion of batch size 1.

    Args:
        box: part of the frames that the motion covers.

    Raises:
        UserError: a point outside the frame, or one that is never seen again.
    """
    for x, y in points:
        if not (0 <= x <= size.width and 0 <= y <= size.height):
            raise UserError(f"point {x:g},{y:g} must lie inside the clip, 0,0 to {size.width},{size.height}")
    return drags_of(find_tracks(motion, box.to_frame(torch.tensor(points).view(-1, 2))), box)


def moving_points(motion: Motion, count: int, box: FrameBox) -> list[Point]:
    """Return the points of the first frame, in pixels, that move most: at most `count`, some way apart."""
    flow = motion.flow[0] - motion.flow[0].flatten(2).median(2).values[..., None, None]
    h, w = motion.size
    cells = identity_grid(h, w, corners=False)
    last = motion.num_frames - 1
    moved, frame = (flow.norm(dim=0) * (motion.occlusion[0, 0] > VISIBLE))[last // 2 :].max(0)
    frame = (frame + last // 2)[None, ..., None].expand(1, -1, -1, 2)
    shown = motion.flow[0].permute(1, 2, 3, 0).gather(0, frame)[0] + cells
    order = moved.flatten().argsort(descending=True)
    found: list[Tensor] = []
    for source in shown.reshape(-1, 2)[order]:
        inside = bool((source.abs() < 1).all())
        apart = all(float(((source - other) * torch.tensor([w / 2, h / 2])).norm()) >= MIN_APART for other in found)
        if inside and apart:
            found.append(source)
        if len(found) == count:
            break
    return [(float(x), float(y)) for x, y in box.to_picture(torch.stack(found))]


def drags_of(tracks: Tracks, box: FrameBox) -> tuple[Drag, ...]:
    """Return tracks as drags in pixels, with a position for every frame in which the point is seen.

    Raises:
        UserError: a point that is never seen after the first frame.
    """
    sources, positions = box.to_picture(tracks.source), box.to_picture(tracks.position)
    last = tracks.visible.shape[1] - 1
    drags = []
    for source, position, visible in zip(sources, positions, tracks.visible, strict=True):
        frames = [k for k in range(1, last + 1) if visible[k]]
        if not frames:
            raise UserError(f"point {float(source[0]):g},{float(source[1]):g} is not seen after the first frame; choose another")
        path = tuple((k / last, round(float(position[k, 0]), 3), round(float(position[k, 1]), 3)) for k in frames)
        drags.append(Drag(source=(float(source[0]), float(source[1])), path=path, visible=_intervals(frames, last)))
    return tuple(drags)


def _intervals(frames: list[int], last: int) -> tuple[tuple[float, float], ...]:
    """Return the runs of consecutive frames as intervals of time."""
    runs: list[list[int]] = []
    for k in frames:
        if runs and runs[-1][1] == k - 1:
            runs[-1][1] = k
        else:
            runs.append([k, k])
    return tuple((a / last, b / last) for a, b in runs)
