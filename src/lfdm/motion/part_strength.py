"""Strength of parts: points of the source move less or more along their own paths.

A mask in the frame would cut a limb that leaves it. Here the amount belongs to places of the source: every cell shows some point
of the source, which is moved to where it is at that amount of its displacement.

Shapes: amount (b, 1, H, W), over the source · motion with pixel centres, see `lfdm.motion.motion`.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from lfdm.errors import UserError
from lfdm.motion.motion import Motion
from lfdm.motion.splatting import HOLE_COVERAGE, softmax_splat

PART_PRIORITY = 10.0
"""Logarithm by which cells of a changed part win over others that land in the same place."""
HIDDEN = 0.1
"""Visibility from which a cell shows a point of the source; limbs that move fast are often half hidden."""
CHANGED = 0.02
"""Difference of an amount from 1 that changes a cell."""
NUM_PARTS, ITERATIONS = 4, 12
"""Parts of a frame that k-means looks for, and its rounds."""
FLOW_WEIGHT = 3.0
"""Weight of displacements, relative to positions, when cells are grouped into parts."""


def scale_at_source(motion: Motion, amount: Tensor) -> Motion:
    """Return a motion whose points of the source move by `amount` of their displacement; where it is 1, nothing changes.

    What a part uncovers shows the source at its own place.

    Raises:
        UserError: a motion with the other coordinate convention.
    """
    if motion.corners:
        raise UserError("motion must have corners=False for part strengths; got corners=True")
    grid, t = motion.grid(), motion.num_frames
    tall = rearrange(grid, "b t h w xy -> b (t h) w xy")
    field = amount.to(motion.flow)
    share = rearrange(F.grid_sample(field, tall, padding_mode="border", align_corners=False), "b c (t h) w -> b c t h w", t=t)
    share = torch.where(motion.occlusion > HIDDEN, share, 1)  # hidden cells show no point of the source
    changed = ((share - 1).abs() > CHANGED).to(motion.flow)
    moved = grid - (share * motion.flow).permute(0, 2, 3, 4, 1)  # where each cell's point is now
    values = torch.cat((share * motion.flow, motion.occlusion), dim=1)
    splat = softmax_splat(values, moved, PART_PRIORITY * changed, motion.size)
    covered = splat.coverage > HOLE_COVERAGE
    flow, occlusion = torch.where(covered, splat.mean[:, :2], 0), torch.where(covered, splat.mean[:, 2:], 1)
    touched = changed.amax((3, 4), keepdim=True) > 0  # (b, 1, t, 1, 1)
    return Motion(torch.where(touched, flow, motion.flow), torch.where(touched, occlusion, motion.occlusion))


def find_part(motion: Motion, point: Tensor) -> Tensor:
    """Return the part of the source around a point (2,) that moves with it, for every sample: (b, 1, h, w) in [0, 1].

    K-means groups the cells of the frame in which the point moves most by displacement and by place in the source.
    """
    return torch.cat([_find_part(motion.samples(b, b + 1), point.to(motion.flow)) for b in range(len(motion.flow))])


def _find_part(motion: Motion, point: Tensor) -> Tensor:
    grid = motion.grid()[0]  # (t, h, w, 2)
    hidden = motion.occlusion[0, 0].flatten(1) <= HIDDEN
    apart = (grid - point).norm(dim=-1).flatten(1).masked_fill(hidden, torch.inf)
    nearest = apart.argmin(1)  # the cell of each frame that shows the point
    flow = motion.flow[0].permute(1, 2, 3, 0).flatten(1, 2)  # (t, h w, 2)
    at_point = flow[torch.arange(len(flow)), nearest]
    k = int(at_point.norm(dim=-1).argmax())
    features = torch.cat((grid[k].reshape(-1, 2), FLOW_WEIGHT * flow[k]), dim=-1)
    labels = _k_means(features, int(nearest[k]))
    same = (labels == labels[nearest[k]]).to(motion.flow).view(1, 1, 1, *motion.size)
    shown = motion.occlusion[:, :, k : k + 1]  # what is hidden shows no part
    landed = softmax_splat(same, motion.grid()[:, k : k + 1], 0 * same, motion.size, visibility=shown).mean[:, :, 0]
    return F.max_pool2d(landed, 5, 1, 2).clamp(0, 1)


def _k_means(features: Tensor, first: int) -> Tensor:
    """Return the group of each row of `features` (n, d); centres begin far apart, the first one at row `first`."""
    chosen = [first]
    for _ in range(NUM_PARTS - 1):
        chosen.append(int(torch.cdist(features, features[chosen]).amin(1).argmax()))
    centres = features[chosen]
    for _ in range(ITERATIONS):
        labels = torch.cdist(features, centres).argmin(1)
        member = F.one_hot(labels, len(centres)).to(features)
        count = member.sum(0)[:, None]
        centres = torch.where(count > 0, member.T @ features / count.clamp(min=1), centres)
    return torch.cdist(features, centres).argmin(1)
