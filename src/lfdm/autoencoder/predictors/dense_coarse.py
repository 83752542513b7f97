"""The first dense motion predictor, which matches at stride 4: models saved before 2026-11-24 have it (and load for ever).

Its cells of 4 pixels are wider than a limb, so that limbs which move far are painted rather than warped; new models take
`lfdm.autoencoder.predictors.dense`.

Shapes: source (b, 3, H, W) · driving (b, 3, t, H, W), both in [0, 1] · cells n = H/4 * W/4.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from lfdm.autoencoder.predictors.dense import OCCLUSION_BIAS, DenseMotion, DenseNetwork, double, warp_features
from lfdm.motion.motion import Motion
from lfdm.motion.warp import identity_grid

MATCH_RADIUS = 2.5
"""Cells around the best match that its position is averaged over: two arms that look alike must not meet in the middle."""


class CoarseDenseMotionPredictor(DenseNetwork):
    """Flow and occlusion at `stride` (2 or 4) from a source image and driving frames. Arguments as of `DenseNetwork`.

    `matched` and `match_target` of its result are (b * t, 12, H/4, W/4): the pixels of each cell at stride 2.
    """

    def __init__(self, *, channels: Sequence[int], stride: int, match_channels: int, max_residual: float) -> None:
        super().__init__(channels, stride=stride, max_residual=max_residual, coarse_evidence=3, fine_known=3, fine_outputs=3)
        self.match_projection = nn.Conv2d(channels[2], match_channels, 1)
        self.match_log_scale = nn.Parameter(torch.tensor(2.5))
        self.match_distance_weight = nn.Parameter(torch.tensor(1.0))  # of two equal matches the nearer one is likelier

    def forward(self, source: Tensor, driving: Tensor) -> DenseMotion:
        """Motion of driving frames (b, 3, t, H, W) against the source (b, 3, H, W), at H / stride."""
        b, t = driving.shape[0], driving.shape[2]
        frames = rearrange(driving, "b c t h w -> (b t) c h w")
        source_half, source_quarter = self.encode(source)
        driving_half, driving_quarter = self.encode(frames)

        probability = self._match(source_quarter, driving_quarter, t)  # (b, t * n, n)
        h, w = source_quarter.shape[-2:]
        cells = identity_grid(h, w, corners=False, device=source.device).flatten(0, 1)  # (n, 2)
        pixels = F.pixel_unshuffle(F.avg_pool2d(source, 2), 2).flatten(2).transpose(1, 2)  # (b, n, 12)
        position = _expected_near_best(probability, cells, radius=MATCH_RADIUS * 2 / max(h, w))  # (b, t * n, 2)
        found = torch.cat((position, probability @ pixels.float(), probability.amax(-1, keepdim=True)), dim=-1)
        found = rearrange(found, "b (t h w) c -> (b t) c h w", t=t, h=h, w=w)
        position, matched, confidence = found.split((2, pixels.shape[-1], 1), dim=1)
        match_flow = position - cells.T.reshape(1, 2, h, w)

        hidden = self.join_at_quarter(source_quarter, driving_quarter, match_flow, confidence, t)
        head = self.coarse_head(hidden).float()
        flow = head[:, :1] * match_flow + self.max_residual * torch.tanh(head[:, 1:3])
        occlusion = head[:, 3:]
        if self.stride == 2:
            flow, occlusion = self._refine(source_half, driving_half, hidden, flow, occlusion, t)
        occlusion = torch.sigmoid(occlusion + OCCLUSION_BIAS)
        flow, occlusion = (rearrange(x, "(b t) c h w -> b c t h w", b=b) for x in (flow, occlusion))
        motion = Motion(flow, occlusion, corners=False)
        return DenseMotion(motion, matched, F.pixel_unshuffle(F.avg_pool2d(frames, 2), 2))

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

    def _refine(
        self, source: Tensor, driving: Tensor, hidden: Tensor, flow: Tensor, occlusion: Tensor, t: int
    ) -> tuple[Tensor, Tensor]:
        """From stride 4 to stride 2: flow and occlusion logit, each plus a residual."""
        flow, occlusion, hidden = double(flow), double(occlusion), double(self.to_fine(hidden))
        known = torch.cat((hidden, driving, warp_features(source, flow, t), flow.detach(), occlusion.detach()), dim=1)
        head = self.fine_head(self.refine(known.to(driving.dtype))).float()
        return flow + self.max_residual * torch.tanh(head[:, :2]), occlusion + head[:, 2:]


def _expected_near_best(probability: Tensor, cells: Tensor, *, radius: float) -> Tensor:
    """Mean position (b, m, 2) of the cells (n, 2) under probability (b, m, n), within `radius` of the likeliest."""
    best = cells[probability.argmax(-1)]  # (b, m, 2)
    near = torch.cdist(best, cells.expand(len(best), -1, -1), p=torch.inf) <= radius
    weight = probability * near
    return weight @ cells / weight.sum(-1, keepdim=True)
