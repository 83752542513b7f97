"""Drags and pins in a call: as tracks in the model's frame, the last correction of a sampled motion, and what is left.

The network makes the motion that follows the tracks. The last correction only removes an error of about a pixel: a larger
one would paint the colour of a point to a place that its limb has not reached (docs/log.md).

Shapes: tracks see `lfdm.motion.tracks`, n drags and pins · motion (b, 2, t, h, w).
"""

import itertools
import math
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from lfdm.config.control import Control, Drag
from lfdm.config.video import Size
from lfdm.diffusion.guidance import Observation
from lfdm.errors import UserError
from lfdm.motion.codec import MotionCodec
from lfdm.motion.frame_box import FrameBox
from lfdm.motion.motion import Motion
from lfdm.motion.track_conflicts import check_conflicts
from lfdm.motion.tracks import VISIBLE, Tracks
from lfdm.motion.warp import identity_grid
from lfdm.pipeline.control_report import ControlReport
from lfdm.pipeline.framing import Framing
from lfdm.pipeline.full_size import frame_box

MAX_CORRECTION = 1.0
"""Largest correction of a sampled motion in pixels of the model's frame ..."""
MAX_CORRECTED_SHARE = 0.05
"""... or as a share of the point's path, if that is more."""
CORRECTION_RADIUS = 2.0
"""Standard deviation in cells of the Gaussian by which a correction falls off."""
RIDGE, NUM_REFINEMENTS = 0.1, 3
"""Damping of the correction, and how often it is repeated for what is left: single points are met to a thousandth, and points
that lie closer together than the correction can tell apart do not tear the motion (docs/log.md)."""


@dataclass(frozen=True, eq=False)
class TrackControl:
    """The drags and pins of a control in the frame of a call."""

    control: Control
    tracks: Tracks
    """Drags, then pins."""
    guides: Tracks
    """Points around drags that have a radius."""
    box: FrameBox
    size: Size

    @classmethod
    def place(cls, control: Control, picture: Size, framing: Framing, *, num_frames: int, fps: float) -> Self:
        """Return the tracks of a control over a video of `picture`.

        Raises:
            UserError: a point outside the part of the picture that the frame shows, or a time after the end.
        """
        last = control.last_time(num_frames, fps)
        box = frame_box(picture, framing.size, framing.fit_of(picture))
        scale = [1.0, 1.0] if control.size is None else [picture.width / control.size[1], picture.height / control.size[0]]
        times = torch.arange(num_frames) * (last / (num_frames - 1))

        def placed(points: Tensor) -> Tensor:
            return box.to_frame(points * torch.tensor(scale))

        found = [_drag_track(drag, times) for drag in control.drags]
        found += [(torch.tensor(pin), torch.tensor(pin).expand(num_frames, 2), times >= 0) for pin in control.pins]
        sources, paths, visible = (torch.stack(parts) for parts in zip(*found, strict=True))
        tracks = Tracks(placed(sources), placed(paths), visible)
        outside = (tracks.source.abs() > 1).any(-1).nonzero().flatten().tolist()
        if outside:
            x, y = sources[outside[0]].tolist()
            raise UserError(f"{x:g},{y:g} must lie in the part of the picture that the model sees; use fit='pad' (--fit pad)")
        return cls(control, tracks, _guides(control, tracks, scale, box), box, framing.size)

    def maps(self, size: tuple[int, int]) -> Tensor:
        """Return the maps for the network, (TRACK_CHANNELS, t, h, w).

        Raises:
            UserError: two points that contradict each other.
        """
        tracks = self.tracks
        check_conflicts(self.control, tracks.source.numpy(), tracks.position.numpy(), tracks.visible.numpy(), size)
        return Tracks.concatenate([tracks, self.guides]).maps(size)

    def observation(self, codec: MotionCodec, num_frames: int, *, device: torch.device) -> Observation:
        """Return the displacements that the flow must have where the tracks are, as values of a clean sample of `codec`."""
        tracks = self.tracks
        position, seen = tracks.position.to(device), tracks.visible.T.to(device)  # (n, t, 2), (t, n)

        def read(sample: Tensor) -> Tensor:
            return _read(codec.decode(sample, num_frames).flow, position)[:, seen].flatten(1)

        return Observation(read=read, values=tracks.flow.transpose(0, 1).to(device)[seen].flatten())

    def correct_motion(
        self, motion: Motion, *, max_correction: float = MAX_CORRECTION, radius: float = CORRECTION_RADIUS
    ) -> tuple[Motion, ControlReport]:
        """Correct a sampled motion within the limits of this file, and report how far the points still are from their targets.

        Args:
            max_correction: in pixels of the model's frame.
            radius: standard deviation in cells by which a correction falls off.
        """
        tracks = self.tracks
        pixels = torch.tensor([self.size.width / 2, self.size.height / 2])
        limit = ((tracks.flow * pixels).norm(dim=-1).T * MAX_CORRECTED_SHARE).clamp(min=max_correction)  # (t, n)
        rest = self._rest(motion)
        step = rest * (limit / (rest * pixels).norm(dim=-1).clamp(min=1e-9)).clamp(max=1)[..., None]
        flow = motion.flow.clone()
        for b, k in itertools.product(range(len(flow)), range(motion.num_frames)):
            seen = tracks.visible[:, k]
            if seen.any():
                flow[b, :, k] += _correction(step[b, k, seen], tracks.position[seen, k], motion.size, radius).to(flow)
        corrected = replace(motion, flow=flow)
        return corrected, self._report(corrected)

    def _rest(self, motion: Motion) -> Tensor:
        """Return what the flow lacks where the tracks are, (b, t, n, 2) on the CPU."""
        return self.tracks.flow.transpose(0, 1) - _read(motion.flow.cpu(), self.tracks.position)

    def _report(self, motion: Motion) -> ControlReport:
        tracks = self.tracks
        pixels = torch.tensor([self.box.width / 2, self.box.height / 2])
        distance = (self._rest(motion) * pixels).norm(dim=-1).masked_fill(~tracks.visible.T, math.nan)
        hidden = _read(motion.occlusion.cpu(), tracks.position)[..., 0] < VISIBLE
        return ControlReport(self.control, tracks, distance.transpose(1, 2), hidden.transpose(1, 2) & tracks.visible)


def _drag_track(drag: Drag, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return source (2,), positions (t, 2) and visibility (t,) of a drag at `times` (t,)."""
    keys = torch.tensor([0.0, *(step[0] for step in drag.path)])
    points = torch.tensor([drag.source, *(step[1:] for step in drag.path)])
    intervals = drag.visible or ((0.0, float(keys[-1])),)
    tolerance = 1e-4 * float(times[-1])
    visible = torch.stack([(times >= a - tolerance) & (times <= b + tolerance) for a, b in intervals]).any(0)
    return points[0], _interpolate(keys, points, times), visible


def _interpolate(keys: Tensor, points: Tensor, times: Tensor) -> Tensor:
    """Return a smooth path (t, 2) through `points` (n, 2) at the times `keys` (n,), at rest at both ends: a Hermite spline."""
    slopes = torch.zeros_like(points)
    slopes[1:-1] = (points[2:] - points[:-2]) / (keys[2:] - keys[:-2])[:, None]
    times = times.clamp(float(keys[0]), float(keys[-1]))
    i = (torch.searchsorted(keys, times, right=True) - 1).clamp(0, len(keys) - 2)
    step = (keys[i + 1] - keys[i])[:, None]
    u = (times - keys[i])[:, None] / step
    start, end = 2 * u**3 - 3 * u**2 + 1, 3 * u**2 - 2 * u**3
    curved = (u**3 - 2 * u**2 + u) * slopes[i] + (u**3 - u**2) * slopes[i + 1]
    return start * points[i] + end * points[i + 1] + step * curved


def _guides(control: Control, tracks: Tracks, scale: list[float], box: FrameBox) -> Tracks:
    """Return the points around the sources of drags with a radius, which take the same paths: (m, ...)."""
    extent = torch.tensor([box.width, box.height])
    rows, offsets = [], []
    for index, drag in enumerate(control.drags):
        if drag.radius:
            reach = 2 * drag.radius * torch.tensor(scale) / extent
            steps = torch.linspace(-1, 1, 2 * max(1, round(drag.radius / 2)) + 1)
            disk = torch.cartesian_prod(steps, steps)
            disk = disk[(disk.norm(dim=-1) <= 1) & (disk.norm(dim=-1) > 0)] * reach
            rows += [index] * len(disk)
            offsets.append(disk)
    chosen = torch.tensor(rows, dtype=torch.long)
    found = Tracks(tracks.source[chosen], tracks.position[chosen], tracks.visible[chosen])
    return found.shifted(torch.cat(offsets)) if offsets else found


def _read(maps: Tensor, position: Tensor) -> Tensor:
    """Return maps (b, c, t, h, w) at positions (n, t, 2), bilinear, float32: (b, t, n, c)."""
    frames = rearrange(maps.float(), "b c t h w -> (b t) c h w")
    places = position.transpose(0, 1).repeat(len(maps), 1, 1)[:, None]  # (b t, 1, n, 2)
    found = F.grid_sample(frames, places, padding_mode="border", align_corners=False)
    return rearrange(found, "(b t) c 1 n -> b t n c", b=len(maps))


def _correction(rest: Tensor, place: Tensor, size: tuple[int, int], radius: float) -> Tensor:
    """Return the smooth field (2, h, w) whose bilinear values at `place` (n, 2) are nearly `rest` (n, 2)."""
    h, w = size
    cells = identity_grid(h, w, corners=False).reshape(-1, 2)
    apart = (cells[None] - place[:, None]) * torch.tensor([w / 2, h / 2])
    bumps = torch.exp(-apart.square().sum(-1) / (2 * radius**2)).view(-1, h, w)  # (n, h, w)
    gram = _read(bumps[None, :, None], place[:, None])[0, 0].double()  # value of bump j at place i: (n, n)
    damped = gram + RIDGE * torch.eye(len(gram), dtype=gram.dtype)
    weights = torch.zeros_like(rest, dtype=gram.dtype)
    for _ in range(NUM_REFINEMENTS):
        weights += torch.linalg.lstsq(damped, rest - gram @ weights).solution
    return torch.einsum("nc,nhw->chw", weights.float(), bumps)
