"""Where drags and pins should be, and where they came to, for the player."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lfdm.motion.tracks import find_tracks
from lfdm.pipeline.result import LatentFlowOutput

Place = tuple[float, float] | None
"""Fractions of the frame's width and height; None where a point has no target or is not seen."""


@dataclass(frozen=True, kw_only=True)
class TrackPoint:
    """A drag or a pin in every frame."""

    kind: str
    """`drag` or `pin`."""
    target: tuple[Place, ...]
    reached: tuple[Place, ...]
    distance: tuple[float | None, ...]
    """Pixels of the picture between the two, as the pipeline reports them."""


def track_points(output: LatentFlowOutput) -> tuple[TrackPoint, ...]:
    """Return the drags and pins of an output's first sample; none without a control that has any."""
    report = output.control
    if report is None:
        return ()
    reached = find_tracks(output.motion.samples(0, 1).to("cpu"), report.targets.source)
    rows = [_places(tracks.position, tracks.visible, output) for tracks in (report.targets, reached)]
    distances = [[None if value != value else round(value, 2) for value in row] for row in report.distance[0].tolist()]
    kinds = ["drag"] * len(report.control.drags) + ["pin"] * len(report.control.pins)
    return tuple(
        TrackPoint(kind=kind, target=tuple(places), reached=tuple(found), distance=tuple(distance))
        for kind, places, found, distance in zip(kinds, *rows, distances, strict=True)
    )


def _places(position: Tensor, visible: Tensor, output: LatentFlowOutput) -> list[list[Place]]:
    """Return positions (n, t, 2) in the model's frame as fractions of the output's frames."""
    box, share = output.frame_box, (position + 1) / 2
    if box is not None:
        height, width = output.frames.shape[2:4]  # pyright: ignore[reportAttributeAccessIssue] - uint8 frames
        share = box.to_picture(position) / torch.tensor([width, height])
    return [
        [(round(x, 4), round(y, 4)) if seen else None for (x, y), seen in zip(places, row, strict=True)]
        for places, row in zip(share.tolist(), visible.tolist(), strict=True)
    ]
