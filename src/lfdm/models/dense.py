"""The project's own motion predictor: global matching, then refinement, without regions.

A shared encoder describes both images; every cell of the driving frame is matched against all cells of the source at stride 4
(soft matching as in GMFlow, arXiv 2111.13680), which finds motion of any size; two coarse-to-fine stages warp the source's
features by what is known and add a residual (PWC-Net, arXiv 1709.02371). All heads start at zero: training starts at the
identity, no flow and everything visible.

Shapes: source (b, 3, H, W) · driving (b, 3, t, H, W), both in [0, 1] · cells n = H/4 * W/4.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from lfdm.models.layers import ConvBlock
from lfdm.models.motion import Motion
from lfdm.models.warp import identity_grid, warp

MATCH_LEVEL = 2
MATCH_RADIUS = 2.5
"""Cells around the best match that its position is averaged over: two arms that look alike must not meet in the middle."""
OCCLUSION_BIAS = 3.0


@dataclass(frozen=True)
class DenseMotion:
    """`motion`, and for the training of the matching itself: the driving frame put together from matched source cells.

    `matched` and `match_target` are (b * t, 12, H/4, W/4): the pixels of each cell at stride 2.
    """

    motion: Motion
    matched: Tensor
    match_target: Tensor


class DenseMotionPredictor(nn.Module):
    """Flow and occlusion at `stride` (2 or 4) from a source image and driving frames.

    Args:
        channels: widths at strides 1, 2, 4 (shared encoder) and 8, 16 (joint network); multiples of 8.
        max_residual: the most a refinement stage moves, in half images (0.6 = 30 % of the frame).
    """

    def __init__(self, *, channels: Sequence[int], stride: int, match_channels: int, max_residual: float) -> None:
        super().__init__()
        if stride not in (2, 4):
            raise ValueError(f"the dense motion predictor works at stride 2 or 4; got {stride}")
        if len(channels) <= MATCH_LEVEL + 1:
            raise ValueError(f"dense_channels needs at least {MATCH_LEVEL + 2} widths (strides 1, 2, 4, 8); got {channels}")
        self.stride = stride
        self.max_residual = max_residual
        shared, joint = channels[: MATCH_LEVEL + 1], channels[MATCH_LEVEL:]
        self.stem = ConvBlock(5, shared[0])  # the image and its pixels' positions
        self.encoder = nn.ModuleList(
            (
                ConvBlock(shared[0], shared[1], stride=2),
                nn.Sequential(ConvBlock(shared[1], shared[2], stride=2), ConvBlock(shared[2], shared[2])),
            )
        )
        width = shared[-1]
        self.match_projection = nn.Conv2d(width, match_channels, 1)
        self.match_log_scale = nn.Parameter(torch.tensor(2.5))
        self.match_distance_weight = nn.Parameter(torch.tensor(1.0))  # of two equal matches the nearer one is likelier
        self.join = ConvBlock(2 * width + 3, width)
        self.downs = nn.ModuleList(nn.Sequential(ConvBlock(a, b, stride=2), ConvBlock(b, b)) for a, b in pairwise(joint))
        self.ups = nn.ModuleList(ConvBlock(a + b, b) for a, b in pairwise(joint[::-1]))
        self.coarse_head = _zero_convolution(width, 4)
        if stride == 2:
            self.to_fine = nn.Conv2d(width, shared[0], 1)
            self.refine = nn.Sequential(ConvBlock(2 * shared[1] + shared[0] + 3, shared[1]), ConvBlock(shared[1], shared[1]))
            self.fine_head = _zero_convolution(shared[1], 3)

    def forward(self, source: Tensor, driving: Tensor) -> DenseMotion:
        """Motion of driving frames (b, 3, t, H, W) against the source (b, 3, H, W), at H / stride."""
        b, t = driving.shape[0], driving.shape[2]
        frames = rearrange(driving, "b c t h w -> (b t) c h w")
        source_half, source_quarter = self._encode(source)
        driving_half, driving_quarter = self._encode(frames)

        probability = self._match(source_quarter, driving_quarter, t)  # (b, t * n, n)
        h, w = source_quarter.shape[-2:]
        cells = identity_grid(h, w, corners=False, device=source.device).flatten(0, 1)  # (n, 2)
        pixels = F.pixel_unshuffle(F.avg_pool2d(source, 2), 2).flatten(2).transpose(1, 2)  # (b, n, 12)
        position = _expected_near_best(probability, cells, radius=MATCH_RADIUS * 2 / max(h, w))  # (b, t * n, 2)
        found = torch.cat((position, probability @ pixels.float(), probability.amax(-1, keepdim=True)), dim=-1)
        found = rearrange(found, "b (t h w) c -> (b t) c h w", t=t, h=h, w=w)
        position, matched, confidence = found.split((2, pixels.shape[-1], 1), dim=1)
        match_flow = position - cells.T.reshape(1, 2, h, w)

        hidden = self._joint(source_quarter, driving_quarter, match_flow, confidence, t)
        head = self.coarse_head(hidden).float()
        flow = head[:, :1] * match_flow + self.max_residual * torch.tanh(head[:, 1:3])
        occlusion = head[:, 3:]
        if self.stride == 2:
            flow, occlusion = self._refine(source_half, driving_half, hidden, flow, occlusion, t)
        occlusion = torch.sigmoid(occlusion + OCCLUSION_BIAS)
        flow, occlusion = (rearrange(x, "(b t) c h w -> b c t h w", b=b) for x in (flow, occlusion))
        motion = Motion(flow, occlusion, corners=False)
        return DenseMotion(motion, matched, F.pixel_unshuffle(F.avg_pool2d(frames, 2), 2))

    def _encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        position = identity_grid(*image.shape[-2:], corners=False, device=image.device).permute(2, 0, 1).to(image.dtype)
        x = self.stem(torch.cat((2 * image - 1, position.expand(len(image), -1, -1, -1)), dim=1))
        half = self.encoder[0](x)
        return half, self.encoder[1](half)

    def _match(self, source: Tensor, driving: Tensor, t: int) -> Tensor:
        """Softmax over the source's cells of scaled cosine similarity less squared distance, float32, (b, t * n, n)."""
        keys = F.normalize(self.match_projection(source).float(), dim=1).flatten(2)
        queries = F.normalize(self.match_projection(driving).float(), dim=1)
        queries = rearrange(queries, "(b t) c h w -> b (t h w) c", t=t)
        cells = identity_grid(*source.shape[-2:], corners=False, device=source.device).flatten(0, 1)
        distance = torch.cdist(cells, cells).square().repeat(t, 1)  # (t * n, n)
        with torch.autocast(source.device.type, enabled=False):
            similarity = self.match_log_scale.exp() * (queries @ keys)  # (b, t * n, n)
            return torch.softmax(similarity - F.softplus(self.match_distance_weight) * distance, dim=-1)

    def _joint(self, source: Tensor, driving: Tensor, flow: Tensor, confidence: Tensor, t: int) -> Tensor:
        x = self.join(torch.cat((driving, _warp_features(source, flow, t), flow.detach(), confidence), dim=1))
        skips = []
        for down in self.downs:
            skips.append(x)
            x = down(x)
        for up in self.ups:
            x = up(torch.cat((F.interpolate(x, scale_factor=2, mode="nearest"), skips.pop()), dim=1))
        return x

    def _refine(
        self, source: Tensor, driving: Tensor, hidden: Tensor, flow: Tensor, occlusion: Tensor, t: int
    ) -> tuple[Tensor, Tensor]:
        """From stride 4 to stride 2: flow and occlusion logit, each plus a residual."""
        flow, occlusion, hidden = (
            F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            for x in (flow, occlusion, self.to_fine(hidden))
        )
        known = torch.cat((hidden, driving, _warp_features(source, flow, t), flow.detach(), occlusion.detach()), dim=1)
        head = self.fine_head(self.refine(known)).float()
        return flow + self.max_residual * torch.tanh(head[:, :2]), occlusion + head[:, 2:]


def _expected_near_best(probability: Tensor, cells: Tensor, *, radius: float) -> Tensor:
    """Mean position (b, m, 2) of the cells (n, 2) under probability (b, m, n), within `radius` of the likeliest."""
    best = cells[probability.argmax(-1)]  # (b, m, 2)
    near = torch.cdist(best, cells.expand(len(best), -1, -1), p=torch.inf) <= radius
    weight = probability * near
    return weight @ cells / weight.sum(-1, keepdim=True)


def _warp_features(source: Tensor, flow: Tensor, t: int) -> Tensor:
    """Source features (b, c, h, w) seen through flow (b * t, 2, h, w), no gradient through the flow."""
    grid = identity_grid(*flow.shape[-2:], corners=False, device=flow.device) + flow.detach().permute(0, 2, 3, 1)
    grid = rearrange(grid, "(b t) h w xy -> b t h w xy", t=t)
    return rearrange(warp(source, grid, padding_mode="border"), "b c t h w -> (b t) c h w")


def _zero_convolution(in_channels: int, out_channels: int) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv
