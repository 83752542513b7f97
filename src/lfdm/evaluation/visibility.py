"""How much of what moves the first frame shows, estimated by stage 1 where the exact motion is not known.

Frame k at p shows the first frame at p + flow(p); the first frame's point q is in frame k at q + displacement(q). A surface that
both show returns to its place: flow(p) + displacement(p + flow(p)) = 0 (Sundaram, Brox, Keutzer, ECCV 2010). Stage 1 loses fast
limbs, too, so that the share tends to be too low.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.data.index import ClipRecord
from lfdm.data.progress import Progress
from lfdm.data.video import read_fitted
from lfdm.motion.motion import Motion
from lfdm.motion.warp import warp
from lfdm.pipeline.transfer import Stage1Pipeline

MOVING = 0.03
"""A pixel moves if its flow is longer than this fraction of the image's short side."""
CONTRAST = 0.08
"""It belongs to a figure, not to background that a figure revealed, if a colour differs by this much from the clip's median."""
TOLERANCE = 0.06
"""Length of a cycle's error, as a fraction of the short side, that counts as none; it may also grow with the flow."""
RELATIVE_TOLERANCE = 0.1
"""Fraction of the squared lengths of flow and displacement that the squared error may have."""
MAX_CLIPS = 10
"""Clips of a label that are measured, evenly spaced."""


def visible_by_label(
    stage1: Stage1Pipeline, root: Path, records: Sequence[ClipRecord], *, progress: Progress | None = None
) -> dict[str, float]:
    """Return for each label the share of moving figures whose surface the first frame shows, too.

    Labels of which nothing moves are left out.

    Raises:
        FileNotFoundError, UserError: a clip that is missing or damaged.
    """
    by_label: dict[str, list[ClipRecord]] = {}
    for record in records:
        by_label.setdefault(record.label, []).append(record)
    spaced = {label: np.linspace(0, len(clips) - 1, min(MAX_CLIPS, len(clips))).astype(int) for label, clips in by_label.items()}
    chosen = [by_label[label][index] for label, indices in sorted(spaced.items()) for index in indices]
    counts = {label: np.zeros(2) for label in sorted(by_label)}
    for done, record in enumerate(chosen, 1):
        frames = read_fitted(root / record.path, stage1.config["image_size"], stage1.config["fit"])
        video = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].to(stage1.autoencoder.device).float() / 255
        moving, visible = cycle_visibility(stage1.autoencoder, video)
        counts[record.label] += (int(moving.sum()), int((moving & visible).sum()))
        if progress is not None:
            progress("estimating what first frames show", done, len(chosen))
    return {label: float(visible / moving) for label, (moving, visible) in counts.items() if moving}


@torch.inference_mode()
def cycle_visibility(autoencoder: LatentFlowAutoencoder, video: Tensor) -> tuple[Tensor, Tensor]:
    """Return which cells of the latent's grid show a moving figure, and which a surface of frame 0: (t, h, w) bool each.

    Args:
        video: (1, 3, t, H, W) in [0, 1], of a still camera.
    """
    forward = autoencoder.estimate_motion(video[:, :, 0], video)
    frames = video[0].transpose(0, 1)
    if autoencoder.motion_predictor.kind == "dense":
        displacement = autoencoder.track_points(video)[0].transpose(0, 1)
    else:
        displacement = autoencoder.estimate_motion(frames, frames[:1].expand_as(frames)).flow[:, :, 0]
    moving, consistent = consistent_cells(forward, displacement.float(), (video.shape[-2], video.shape[-1]))
    contrast = (frames - frames.median(0, keepdim=True).values).abs().amax(1, keepdim=True)
    return moving & (F.adaptive_avg_pool2d(contrast, (moving.shape[1], moving.shape[2]))[:, 0] > CONTRAST), consistent


def consistent_cells(motion: Motion, displacement: Tensor, image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return which cells move, and which return to their place: (t, h, w) bool each.

    Args:
        motion: of one clip (1, 2, t, h, w), relative to frame 0.
        displacement: (t, 2, h, w) of the cells of frame 0, in half images.
        image_size: (height, width), whose short side is the unit of the tolerances.
    """
    height, width = image_size
    scale = (displacement.new_tensor([width, height]) / (2 * min(image_size)))[:, None, None]  # half images -> short sides
    grid = motion.grid()[0, :, None].float()
    back = warp(displacement, grid, padding_mode="border")[:, :, 0] * scale
    there = motion.flow[0].float().transpose(0, 1) * scale
    allowed = RELATIVE_TOLERANCE * (there.square() + back.square()).sum(1) + TOLERANCE**2
    inside = (grid[:, 0].abs() <= 1).all(-1)
    return there.norm(dim=1) > MOVING, inside & ((there + back).square().sum(1) < allowed)
