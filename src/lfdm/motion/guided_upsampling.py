"""Motion at the size of a picture, from motion at a model's size, with the full-size picture as the guide.

Bilinear upsampling mixes the flow of a limb with that of what is behind it, which tears and doubles outlines. Here every point
near a motion boundary chooses among the affine motions of the nodes around it, as joint bilateral upsampling does (Kopf et al.,
SIGGRAPH 2007): a motion counts if the colour that it fetches from the picture at this very point is that of its node, so that
the outline in the picture decides where a surface ends.

Shapes: nodes (n, c, h, w) of n frames on a grid · picture (1, c, H, W) in [0, 1] · points (m,), positions in pixels of the
picture or in nodes, where integers are centres · flow in pixels of the picture, channel order (x, y).
"""

from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from lfdm.motion.frame_box import FrameBox
from lfdm.motion.motion import Motion
from lfdm.motion.warp import identity_grid, resize

NODES_PER_CELL = 2
"""Nodes along a side of a motion cell."""
LEARNED_NODES_PER_CELL = 4
"""The same of a cell of the latent where a learned upsampling has made the motion finer."""
RADIUS = 4
"""Half the side of the window in which an affine motion is fitted, in nodes: two cells."""
REACH = 2
"""Distance in nodes up to which nodes compete for a point: one cell, over which the model's flow mixes two surfaces."""
WINDOW_SIGMA = 1.6
"""Standard deviation of that window's weights, in nodes."""
RIDGE = 0.3
"""Variance in square nodes that is added to that of the positions: keeps thin surfaces from tilting."""
COLOUR_SIGMA = 0.05
"""Difference of colour at which two points begin to count as different surfaces."""
BLURRED_SIGMA = 0.08
"""The same against the decoded frame, which is blurred."""
FETCH_SIGMA = 0.1
"""Difference of colour between a node and the pixel that its flow fetches at which the flow begins to count as wrong."""
FRONT = 3.0
"""Additional weight of what moves against most of the frame: of two surfaces that both fit a point, it is usually in front."""
MIN_SPREAD = 0.5
"""Flows around a point that differ by less, in nodes, are interpolated."""
MIN_VISIBLE = 0.8
"""So are they only where occlusion around it is above this."""
SEAM_SIGMA = 0.03
"""Distance from the decoded colours nearby at which a pixel next to a hidden region also counts as hidden."""
HIDDEN, VISIBLE = (0.15, 0.5), (0.4, 0.9)
"""Values of occlusion between which a pixel turns from inpainted to warped, and from checked to trusted (`visible_share`)."""


@dataclass(frozen=True, eq=False)
class MotionNodes:
    """Affine motions of one frame: a point at offset (x, y) nodes from a node moves by flow + x * along_x + y * along_y."""

    table: Tensor
    """(h, w, 11): flow (2), along_x (2), along_y (2), weight, occlusion, colour (3)."""
    smooth: Tensor
    """Flow, occlusion, and the least occlusion within `REACH`, (1, 4, h, w), for interpolation."""
    boundary: Tensor
    """Nodes (h, w) around which motions compete."""

    def part(self, rows: slice, columns: slice) -> "MotionNodes":
        """Return a rectangle of nodes."""
        return MotionNodes(self.table[rows, columns], self.smooth[..., rows, columns], self.boundary[rows, columns])


def fit_nodes(motion: Motion, image: Tensor, frames: Tensor, size: tuple[int, int]) -> list[MotionNodes]:
    """Fit an affine motion around every node of every frame to the flow of the surface that is seen there.

    Neighbours count if they have the node's colour in the decoded frame and if their flow fetches their own colour.

    Args:
        motion: of one sample and n frames.
        image: source image (1, 3, S_h, S_w) at the model's size.
        frames: decoded frames (n, 3, S_h, S_w).
        size: of the grid of nodes (h, w).
    """
    half = torch.tensor((size[1] / 2, size[0] / 2), device=image.device).view(1, 2, 1, 1)
    flow = resize(motion.flow.float(), size)[0].movedim(1, 0) * half
    occlusion = resize(motion.occlusion.float(), size)[0].movedim(1, 0).clamp(0, 1)
    image, frames = (F.interpolate(x.float(), size=size, mode="area") for x in (image, frames))
    trust = (0.02 + occlusion) * _fetches_own_colour(flow, image, frames) + 1e-4
    moving = F.max_pool2d(flow.abs().amax(1, keepdim=True), 2 * RADIUS + 1, 1, RADIUS) > 0
    affine = _fit_affine(flow, trust, frames) * moving  # what rests stays exactly at rest
    flow = affine[:, :2]
    usual = flow.flatten(2).median(dim=2).values[..., None, None]
    front = (flow - usual).norm(dim=1, keepdim=True).div(2).clamp(max=1)
    weight = (1 + FRONT * front) * (_fetches_own_colour(flow, image, frames) + 1e-3) * (0.05 + occlusion)
    side = 2 * REACH + 1
    highest, lowest = (F.max_pool2d(x, side, 1, REACH) for x in (flow, -flow))
    least = -F.max_pool2d(-occlusion, side, 1, REACH)
    boundary = ((highest + lowest).amax(dim=1) > MIN_SPREAD) | (least[:, 0] < MIN_VISIBLE)
    table = torch.cat((affine, weight, occlusion, frames), dim=1).permute(0, 2, 3, 1).contiguous()
    smooth = torch.cat((flow, occlusion, least), dim=1)
    return [MotionNodes(table[k], smooth[k : k + 1], boundary[k]) for k in range(len(flow))]


def _fetches_own_colour(flow: Tensor, image: Tensor, frames: Tensor) -> Tensor:
    """Return from 0 to 1 how well the image at position + flow (in nodes) matches the frame: (n, 1, h, w)."""
    h, w = flow.shape[-2:]
    scale = torch.tensor((2 / w, 2 / h), device=flow.device)
    grid = identity_grid(h, w, corners=False, device=flow.device) + flow.movedim(1, -1) * scale
    fetched = F.grid_sample(image.expand(len(flow), -1, -1, -1), grid, padding_mode="border", align_corners=False)
    return torch.exp((fetched - frames).square().mean(1, keepdim=True) / (-2 * FETCH_SIGMA**2))


def _fit_affine(flow: Tensor, trust: Tensor, frames: Tensor) -> Tensor:
    """Fit weighted affine motions in windows (moving least squares): (n, 6, h, w)."""
    h, w = flow.shape[-2:]
    around = (RADIUS,) * 4
    flows, trusts = F.pad(flow, around), F.pad(trust, around)
    colours = F.pad(frames, around, mode="replicate")
    products = torch.zeros(len(flow), 9, h, w, device=flow.device)
    results = torch.zeros(len(flow), 6, h, w, device=flow.device)
    for y, x in product(range(-RADIUS, RADIUS + 1), repeat=2):
        window = (..., slice(RADIUS + y, RADIUS + y + h), slice(RADIUS + x, RADIUS + x + w))
        difference = (colours[window] - frames).square().sum(1, keepdim=True)
        near = float(torch.tensor((x * x + y * y) / (-2 * WINDOW_SIGMA**2)).exp())
        weight = near * trusts[window] * _similar(difference, COLOUR_SIGMA).square()
        terms = torch.tensor((1.0, x, y), device=flow.device)
        products += weight * torch.outer(terms, terms).view(1, 9, 1, 1)
        results += weight * torch.einsum("k,nchw->nkchw", terms, flows[window]).flatten(1, 2)
    matrix = products.permute(0, 2, 3, 1).unflatten(-1, (3, 3))
    ridge = torch.tensor((0.0, RIDGE, RIDGE), device=flow.device).diag()
    matrix = matrix + matrix[..., :1, :1] * ridge
    solved = torch.linalg.solve(matrix, results.permute(0, 2, 3, 1).unflatten(-1, (3, 2)))
    return solved.flatten(-2).movedim(-1, 1)


def _similar(squared: Tensor, sigma: float) -> Tensor:
    """Return 1 for equal colours, falling with their squared difference; its heavy tail ranks even poor matches."""
    return sigma**2 / (sigma**2 + squared)


def upsample_motion(nodes: MotionNodes, guide: Tensor, blurred: Tensor, x: Tensor, y: Tensor, box: FrameBox) -> Tensor:
    """Return flow, occlusion and the least occlusion nearby (4, m) at points of a picture.

    Args:
        guide: the picture (1, 3, H, W).
        blurred: the decoded frame at the points, enlarged: (3, m).
        x, y: the points, in pixels of the picture.
        box: the part of the picture that the nodes cover; around it motion is that of the nearest node.
    """
    h, w = nodes.boundary.shape
    step_x, step_y = box.width / w, box.height / h
    u, v = (x + 0.5 - box.left) / step_x - 0.5, (y + 0.5 - box.top) / step_y - 0.5
    motion = sample_points(nodes.smooth, u, v)
    column, row = u.round().clamp(0, w - 1).long(), v.round().clamp(0, h - 1).long()
    inside = ((u - column).abs() <= 1) & ((v - row).abs() <= 1)
    chosen = (nodes.boundary[row, column] & inside).nonzero()[:, 0]
    if len(chosen):
        u, v, x, y = (one[chosen] for one in (u, v, x, y))
        motion[:3, chosen] = _choose(nodes, guide, blurred[:, chosen], (x, y), (u, v), (step_x, step_y))
    motion[:2] *= torch.tensor((step_x, step_y), device=x.device).view(2, 1)
    return motion


def _choose(
    nodes: MotionNodes,
    guide: Tensor,
    blurred: Tensor,
    pixel: tuple[Tensor, Tensor],
    node: tuple[Tensor, Tensor],
    step: tuple[float, float],
) -> Tensor:
    """Average flow (in nodes) and occlusion (3, m) of the nodes around points, weighted by how well each explains the colour."""
    h, w = nodes.boundary.shape
    table = nodes.table.reshape(h * w, -1)
    (x, y), (u, v) = pixel, node
    first_u, first_v = (one.sub(REACH).floor() + 1 for one in node)
    total = torch.zeros(4, len(u), device=u.device)
    for j, i in product(range(2 * REACH), repeat=2):
        nu, nv = first_u + i, first_v + j
        flow_x, flow_y, along_x_x, along_x_y, along_y_x, along_y_y, weight, occlusion, *colour = table[
            (nv.clamp(0, h - 1) * w + nu.clamp(0, w - 1)).long()
        ].T
        near = (REACH - (u - nu).abs()) * (REACH - (v - nv).abs())
        du, dv = u - nu.clamp(0, w - 1), v - nv.clamp(0, h - 1)
        flow_x = flow_x + du * along_x_x + dv * along_y_x
        flow_y = flow_y + du * along_x_y + dv * along_y_y
        fetched = sample_points(guide, x + flow_x * step[0], y + flow_y * step[1])
        fits = _similar((fetched - torch.stack(colour)).square().sum(0), COLOUR_SIGMA).square()
        weight = weight * fits * _similar((fetched - blurred).square().sum(0), BLURRED_SIGMA)
        weight = near * (weight + 1e-8)
        total += weight * torch.stack((flow_x, flow_y, occlusion, torch.ones_like(u)))
    return total[:3] / total[3]


def sample_points(image: Tensor, x: Tensor, y: Tensor, *, mode: str = "bilinear") -> Tensor:
    """Sample an image (1, c, H, W) at points (m,) in its pixels; its edge continues outside: (c, m)."""
    height, width = image.shape[-2:]
    grid = torch.stack(((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), dim=-1).view(1, 1, -1, 2)
    return F.grid_sample(image, grid, mode=mode, padding_mode="border", align_corners=False)[0, :, 0]


def warp_points(planes: Tensor, flow: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Warp planes (1, c, H, W) in [0, 1] by a flow (2, m) at their pixels (x, y): (c, m), bicubic, exact where nothing moves."""
    moved = sample_points(planes, x + flow[0], y + flow[1], mode="bicubic").clamp(0, 1)
    still = planes[0, :, y.long(), x.long()]
    return torch.where((flow == 0).all(dim=0), still, moved)


def visible_share(occlusion: Tensor, least: Tensor, warped: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the share (m,) of the warped picture in each pixel; the rest is inpainted.

    Near what is hidden, warped pixels (3, m) must have a colour that the decoded frame has there: the outline of what moved away
    would otherwise stay behind.

    Args:
        occlusion, least: of each point and the least nearby, (m,).
        low, high: range (3, m) of the decoded frame's colours around each point.
    """
    outside = warped - torch.minimum(torch.maximum(warped, low), high)
    agrees = torch.exp(outside.square().mean(0) / (-2 * SEAM_SIGMA**2))
    return _smooth_step(occlusion, *HIDDEN) * torch.lerp(agrees, torch.ones_like(agrees), _smooth_step(least, *VISIBLE))


def _smooth_step(x: Tensor, low: float, high: float) -> Tensor:
    share = ((x - low) / (high - low)).clamp(0, 1)
    return share * share * (3 - 2 * share)
