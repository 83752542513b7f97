"""The project's own motion predictor: global matching, then refinement, without regions.

A shared encoder describes both images; every cell of the driving frame at stride 2 is matched against all cells of the
source (soft matching as in GMFlow, arXiv 2111.13680), which finds motion of any size, also of limbs a few pixels wide; two
stages warp the source's features by what is known and correct it, at stride 4 and, where the flow has stride 2, there (PWC-Net,
arXiv 1709.02371). All heads start at zero: training starts at the identity, no flow and everything visible.

Limbs that turn far look like nothing in the source. In a video they are followed: motion between successive frames, which is
small, says where a cell's counterpart should be, and the match is drawn there (`DenseMotionPredictor`, `tracking`).

Shapes: source (b, 3, H, W) · driving (b, 3, t, H, W), both in [0, 1] · cells n = H/2 * W/2.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from lfdm.autoencoder.convolution import channels_last
from lfdm.autoencoder.layers import ConvBlock
from lfdm.errors import UserError
from lfdm.motion.motion import Motion
from lfdm.motion.warp import identity_grid, warp

QUARTER_LEVEL = 2
OCCLUSION_BIAS = 3.0


@dataclass(frozen=True)
class DenseMotion:
    """`motion`, and for the training of the matching itself: the driving frame put together from matched source cells.

    `matched` and `match_target` are (b * t, 12, H/2, W/2): the pixels of each cell. `match_flow` is the flow before refinement,
    (b * t, 2, H/2, W/2) in half images, where frames were matched on their own at stride 2.
    """

    motion: Motion
    matched: Tensor
    match_target: Tensor
    match_flow: Tensor | None = None


@dataclass(frozen=True)
class Match:
    """What matching says of every driving cell, (b * t, c, h, w) each."""

    flow: Tensor
    """To the expected position of its counterpart, in half images."""
    pixels: Tensor
    """Those of the expected counterpart."""
    evidence: Tensor
    """How well it fits: similarity of features, difference of pixels, spread of the position."""


class DenseNetwork(nn.Module):
    """What the dense predictors share: the encoder of both images, the joint network at stride 4, the heads.

    Args:
        channels: widths at strides 1, 2, 4 (shared encoder) and 8, 16 (joint network); multiples of 8.
        stride: of flow and occlusion, 2 or 4.
        max_residual: the most a refinement stage moves, in half images (0.6 = 30 % of the frame).
        coarse_evidence: channels about the match, the flow among them, that the joint network sees.
        fine_known: channels that the refinement at stride 2 sees beside features.
        fine_outputs: of the refinement.
    """

    def __init__(
        self,
        channels: Sequence[int],
        *,
        stride: int,
        max_residual: float,
        coarse_evidence: int,
        fine_known: int,
        fine_outputs: int,
    ) -> None:
        super().__init__()
        if stride not in (2, 4):
            raise UserError(f"the dense motion predictor works at stride 2 or 4; got {stride}")
        if len(channels) <= QUARTER_LEVEL + 1:
            raise UserError(f"dense_channels needs at least {QUARTER_LEVEL + 2} widths (strides 1, 2, 4, 8); got {channels}")
        self.stride = stride
        self.max_residual = max_residual
        full, half, quarter = channels[: QUARTER_LEVEL + 1]
        joint = channels[QUARTER_LEVEL:]
        self.stem = ConvBlock(5, full)  # the image and its pixels' positions
        self.encoder = nn.ModuleList(
            (
                ConvBlock(full, half, stride=2),
                nn.Sequential(ConvBlock(half, quarter, stride=2), ConvBlock(quarter, quarter)),
            )
        )
        self.join = ConvBlock(2 * quarter + coarse_evidence, quarter)
        self.downs = nn.ModuleList(nn.Sequential(ConvBlock(a, b, stride=2), ConvBlock(b, b)) for a, b in pairwise(joint))
        self.ups = nn.ModuleList(ConvBlock(a + b, b) for a, b in pairwise(joint[::-1]))
        self.coarse_head = _zero_convolution(quarter, 4)
        if stride == 2:
            self.to_fine = nn.Conv2d(quarter, full, 1)
            self.refine = nn.Sequential(ConvBlock(2 * half + full + fine_known, half), ConvBlock(half, half))
            self.fine_head = _zero_convolution(half, fine_outputs)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Features of an image (b, 3, H, W) at strides 2 and 4."""
        position = identity_grid(*image.shape[-2:], corners=False, device=image.device).permute(2, 0, 1).to(image.dtype)
        x = self.stem(channels_last(torch.cat((2 * image - 1, position.expand(len(image), -1, -1, -1)), dim=1)))
        half = self.encoder[0](x)
        return half, self.encoder[1](half)

    def join_at_quarter(self, source: Tensor, driving: Tensor, flow: Tensor, evidence: Tensor, t: int) -> Tensor:
        """The joint network's output at stride 4, from features there and the matched flow (b * t, 2, h, w)."""
        inputs = torch.cat((driving, warp_features(source, flow, t), flow.detach(), evidence), dim=1)
        x = self.join(inputs.to(driving.dtype))  # flow and evidence are float32
        skips = []
        for down in self.downs:
            skips.append(x)
            x = down(x)
        for up in self.ups:
            x = up(torch.cat((F.interpolate(x, scale_factor=2, mode="nearest"), skips.pop()), dim=1))
        return x


@dataclass(frozen=True)
class Described:
    """Images and their features, (n, c, ., .) each."""

    half: Tensor
    """Features at stride 2."""
    quarter: Tensor
    """Features at stride 4."""
    pixels: Tensor
    """Those of each cell at stride 2."""

    def frames(self, b: int, chosen: slice) -> "Described":
        """Some frames of each of b clips."""
        parts = (self.half, self.quarter, self.pixels)
        return Described(*(channels_last(x.unflatten(0, (b, -1))[:, chosen].flatten(0, 1)) for x in parts))


class DenseMotionPredictor(DenseNetwork):
    """Flow and occlusion at `stride` (2 or 4) from a source image and driving frames. Arguments as of `DenseNetwork`.

    `tracking` is how many times as strongly the match of a frame after the first is drawn to where the frame before had it than
    it would be to the cell's own place; 0 matches every frame on its own.
    """

    def __init__(
        self, *, channels: Sequence[int], stride: int, match_channels: int, max_residual: float, tracking: float = 0.0
    ) -> None:
        super().__init__(channels, stride=stride, max_residual=max_residual, coarse_evidence=5, fine_known=8, fine_outputs=4)
        self.matching = Matching((channels[1], channels[2]), match_channels)
        self.tracking = tracking

    def forward(self, source: Tensor, driving: Tensor, before: tuple[Tensor, Tensor] | None = None) -> DenseMotion:
        """Motion of driving frames (b, 3, t, H, W) against the source (b, 3, H, W), at H / stride.

        `before` is the frame before the first driving one (b, 3, H, W) and its flow (b, 2, h, w), if there is one to track from.
        """
        b = len(driving)
        if self.tracking and before is not None:
            driving = torch.cat((before[0].unsqueeze(2), driving), dim=2)
        described_source = self._describe(source)
        frames = self._describe(rearrange(driving, "b c t h w -> (b t) c h w"))
        if not self.tracking or driving.shape[2] == 1:
            return self._estimate(described_source, frames)
        return self._track(described_source, frames, b, None if before is None else before[1])

    def _describe(self, images: Tensor) -> Described:
        return Described(*self.encode(images), F.pixel_unshuffle(images, 2))

    def _track(self, source: Described, frames: Described, b: int, flow: Tensor | None) -> DenseMotion:
        """Frame after frame (of t, the first of which has the flow that is given, or is matched on its own)."""
        t = len(frames.half) // b
        steps = self._estimate(frames.frames(b, slice(0, -1)), frames.frames(b, slice(1, None))).motion.flow
        steps = rearrange(steps, "(b t) c 1 h w -> b t c h w", b=b)
        found: list[DenseMotion] = []
        for k in range(t):
            if k == 0 and flow is not None:
                continue
            expected = None if flow is None else follow(flow, steps[:, k - 1])
            found.append(self._estimate(source, frames.frames(b, slice(k, k + 1)), expected))
            flow = found[-1].motion.flow[:, :, 0]
        matched = torch.stack([motion.matched for motion in found], dim=1).flatten(0, 1)
        targets = torch.stack([motion.match_target for motion in found], dim=1).flatten(0, 1)
        return DenseMotion(Motion.concatenate([motion.motion for motion in found], dim=2), matched, targets)

    def _estimate(self, source: Described, driving: Described, expected: Tensor | None = None) -> DenseMotion:
        """Of b * t driving frames against b sources; the flow that is expected of them is (b * t, 2, h, w)."""
        b = len(source.half)
        t = len(driving.half) // b
        if expected is not None and self.stride == 4:  # matching is at stride 2
            expected = double(expected)
        match = self.matching(source, driving, expected, self.tracking)
        coarse_match, coarse_evidence = F.avg_pool2d(match.flow, 2), F.avg_pool2d(match.evidence, 2)
        hidden = self.join_at_quarter(source.quarter, driving.quarter, coarse_match, coarse_evidence.detach(), t)
        head = self.coarse_head(hidden).float()
        flow = head[:, :1] * coarse_match + self.max_residual * torch.tanh(head[:, 1:3])
        occlusion = head[:, 3:]
        if self.stride == 2:
            detail = match.flow - double(coarse_match)
            known = double(flow), double(occlusion), double(self.to_fine(hidden))
            flow, occlusion = self._refine(source.half, driving.half, match, detail, known, t)
        occlusion = torch.sigmoid(occlusion + OCCLUSION_BIAS)
        flow, occlusion = (rearrange(x, "(b t) c h w -> b c t h w", b=b) for x in (flow, occlusion))
        return DenseMotion(Motion(flow, occlusion, corners=False), match.pixels, driving.pixels, match.flow)

    def _refine(
        self, source: Tensor, driving: Tensor, match: Match, detail: Tensor, known: tuple[Tensor, Tensor, Tensor], t: int
    ) -> tuple[Tensor, Tensor]:
        """From stride 4 to stride 2: flow and occlusion logit, each plus a residual; the match's detail as far as it helps."""
        flow, occlusion, hidden = known
        inputs = (hidden, driving, warp_features(source, flow, t), flow, match.flow, occlusion, match.evidence)
        x = torch.cat([x if x is hidden or x is driving else x.detach() for x in inputs], dim=1)
        head = self.fine_head(self.refine(x.to(driving.dtype))).float()
        flow = flow + head[:, :1] * detail + self.max_residual * torch.tanh(head[:, 1:3])
        return flow, occlusion + head[:, 3:]


class Matching(nn.Module):
    """Soft matching of driving cells against all source cells at stride 2, by features of strides 2 and 4.

    The score of a pair is a scaled cosine similarity less a weight times the squared distance (of two equal matches the
    nearer one is likelier), or where a flow is expected, a larger weight times that to the expected place. Both are one inner
    product, so that fused attention never stores the n x n scores.
    """

    def __init__(self, widths: tuple[int, int], channels: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)
        self.log_scale = nn.Parameter(torch.tensor(2.5))
        self.distance_weight = nn.Parameter(torch.tensor(1.0))

    def forward(self, source: Described, driving: Described, expected: Tensor | None = None, pull: float = 1.0) -> Match:
        """Of b * t driving images against b sources; the expected flow is (b * t, 2, h, w), `pull` the factor of its weight."""
        keys, queries = self.features(source.half, source.quarter), self.features(driving.half, driving.quarter)
        b, h, w = len(keys), *keys.shape[-2:]
        grid = identity_grid(h, w, corners=False, device=keys.device).permute(2, 0, 1)[None]  # (1, 2, h, w)
        square = grid.square().sum(1, keepdim=True)
        centre = grid if expected is None else grid + expected.detach()
        with torch.autocast(keys.device.type, enabled=False):
            weight = F.softplus(self.distance_weight) * (1.0 if expected is None else pull)
            key = _stack(keys, grid, -weight * square)
            query = _stack(self.log_scale.exp() * queries, 2 * weight * centre, torch.ones_like(square))
            value = _stack(keys, grid, square, source.pixels.float())
            size = 8 * math.ceil(max(key.shape[1], value.shape[1]) / 8)  # fused attention takes one width, CUDA's of eights
            query, key, value = (_cells(x, b, size) for x in (query, key, value))
            found = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        found = rearrange(found, "b 1 (t h w) c -> (b t) c h w", h=h, w=w)
        feature, position, far, matched, _ = found.split((keys.shape[1], 2, 1, 12, size - keys.shape[1] - 15), dim=1)
        spread = (far - position.square().sum(1, keepdim=True)).clamp(min=0)
        similarity = (feature * queries).sum(1, keepdim=True)
        difference = (matched - driving.pixels).abs().mean(1, keepdim=True)
        return Match(position - grid, matched, torch.cat((similarity, difference, spread), dim=1))

    def features(self, half: Tensor, quarter: Tensor) -> Tensor:
        """What is compared, of norm 1 at stride 2: (n, match_channels, h, w) from features at strides 2 and 4."""
        half, quarter = (projection(x) for projection, x in zip(self.projections, (half, quarter), strict=True))
        return F.normalize((half + double(quarter)).float(), dim=1)


def _stack(*parts: Tensor) -> Tensor:
    """Channels side by side, repeated over the largest batch."""
    batch = max(len(part) for part in parts)
    return torch.cat([part.expand(batch, -1, -1, -1) for part in parts], dim=1)


def _cells(x: Tensor, batch: int, width: int) -> Tensor:
    """(batch * t, c, h, w) -> (batch, 1, t * h * w, width), channels filled up with zeros."""
    return F.pad(rearrange(x, "(b t) c h w -> b 1 (t h w) c", b=batch), (0, width - x.shape[1])).contiguous()


def double(x: Tensor) -> Tensor:
    """Twice the height and width, bilinear."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def follow(flow: Tensor, step: Tensor) -> Tensor:
    """Flow of a frame, (b, 2, h, w), from that of the frame before and the step between them: step(x) + flow(x + step(x))."""
    grid = identity_grid(*step.shape[-2:], corners=False, device=step.device) + step.permute(0, 2, 3, 1)
    return step + warp(flow, grid.unsqueeze(1), padding_mode="border")[:, :, 0]


def warp_features(source: Tensor, flow: Tensor, t: int) -> Tensor:
    """Source features (b, c, h, w) seen through flow (b * t, 2, h, w), no gradient through the flow."""
    grid = identity_grid(*flow.shape[-2:], corners=False, device=flow.device) + flow.detach().permute(0, 2, 3, 1)
    grid = rearrange(grid, "(b t) h w xy -> b t h w xy", t=t)
    return channels_last(rearrange(warp(source, grid, padding_mode="border"), "b c t h w -> (b t) c h w"))


def _zero_convolution(in_channels: int, out_channels: int) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv
