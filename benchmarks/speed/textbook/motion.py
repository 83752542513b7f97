"""Both motion predictors in their textbook form: one source image and one driving frame at a time.

Features, regions and the blurred image of the source are computed again for each frame. The matching of the dense predictor
stores the scores of all pairs of cells; the blur of the region predictor runs at full size.

Shapes: source and driving (b, 3, H, W) in [0, 1] · result: grid (b, h, w, 2) and occlusion (b, 1, h, w).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from benchmarks.speed.textbook.layers import DownPath, Hourglass, blur_and_subsample, sample_frame
from lfdm.autoencoder.predictors.dense import OCCLUSION_BIAS
from lfdm.autoencoder.predictors.equivariance import RandomWarp, equivariance_losses, warp_noise
from lfdm.autoencoder.predictors.predictor import AuxiliaryLoss, LossInputs
from lfdm.autoencoder.predictors.region_geometry import Regions, principal_axes
from lfdm.config.predictors import DenseConfig, RegionConfig
from lfdm.motion.warp import identity_grid


@dataclass(frozen=True, eq=False)
class FrameMotion:
    """Motion of one frame, and the auxiliary losses of its predictor."""

    grid: Tensor
    occlusion: Tensor
    losses: Mapping[str, AuxiliaryLoss] = field(default_factory=dict)


class PlainRegionMotion(nn.Module):
    """The paper's region predictor."""

    def __init__(self, config: RegionConfig, stride: int, *, corners: bool, padding_mode: str):
        super().__init__()
        self.corners = corners
        self.region_predictor = _RegionPredictor(config, stride, corners=corners)
        self.background_predictor = _BackgroundPredictor(config)
        self.flow_predictor = _RegionFlow(config, stride, corners=corners, padding_mode=padding_mode)

    def forward(self, source: Tensor, driving: Tensor) -> FrameMotion:
        regions = self.region_predictor(driving)
        background = self.background_predictor(source, driving)
        grid, occlusion = self.flow_predictor(source, self.region_predictor(source), regions, background)

        def equivariance(inputs: LossInputs) -> Tensor:
            random_warp = RandomWarp.from_noise(inputs.sample(warp_noise).to(inputs.driving.device), corners=self.corners)
            moved = equivariance_losses(random_warp, regions, self.region_predictor(random_warp.transform(inputs.driving)))
            return moved.shift + moved.affine

        return FrameMotion(grid, occlusion, {"equivariance": equivariance})


class _RegionPredictor(nn.Module):
    def __init__(self, config: RegionConfig, stride: int, *, corners: bool):
        super().__init__()
        self.stride, self.corners, self.temperature = stride, corners, config.temperature
        sizes = {"depth": config.depth, "max_channels": config.max_channels}
        self.hourglass = Hourglass(3, channels=config.channels, **sizes)
        self.head = nn.Conv2d(self.hourglass.out_channels, config.num_regions, 7, padding=config.padding)

    def forward(self, image: Tensor) -> Regions:
        logits = self.head(self.hourglass(blur_and_subsample(image, self.stride))).float()
        heatmap = (logits / self.temperature).flatten(2).softmax(-1).view_as(logits)
        grid = identity_grid(*heatmap.shape[-2:], corners=self.corners, device=image.device)
        mean = torch.einsum("nkhw,hwx->nkx", heatmap, grid)
        offset = grid - mean[:, :, None, None]
        covariance = (heatmap[..., None, None] * (offset[..., :, None] * offset[..., None, :])).sum((2, 3))
        return Regions(mean, covariance, principal_axes(covariance), heatmap)


class _BackgroundPredictor(nn.Module):
    def __init__(self, config: RegionConfig):
        super().__init__()
        channels, depth, most = config.channels, config.depth, config.max_channels
        self.encoder = DownPath(6, channels=channels, depth=depth, max_channels=most)
        self.head = nn.Linear(min(most, channels * 2**depth), 6)

    def forward(self, source: Tensor, driving: Tensor) -> Tensor:
        features = self.encoder(torch.cat((source, driving), dim=1))[-1]
        return self.head(features.mean((2, 3))).float().view(-1, 2, 3)


class _RegionFlow(nn.Module):
    def __init__(self, config: RegionConfig, stride: int, *, corners: bool, padding_mode: str):
        super().__init__()
        self.stride, self.corners, self.padding_mode = stride, corners, padding_mode
        motions = config.num_regions + 1
        sizes = {"depth": config.depth, "max_channels": config.max_channels}
        self.hourglass = Hourglass(4 * motions, channels=config.flow_channels, **sizes)
        self.mask = nn.Conv2d(self.hourglass.out_channels, motions, 7, padding=3)
        self.occlusion = nn.Conv2d(self.hourglass.out_channels, 1, 7, padding=3)

    def forward(self, image: Tensor, source: Regions, driving: Regions, background: Tensor) -> tuple[Tensor, Tensor]:
        image = blur_and_subsample(image, self.stride)
        n, _, h, w = image.shape
        grid = identity_grid(h, w, corners=self.corners, device=image.device)
        motions = torch.cat((_background_motion(grid, background), _region_motions(grid, source, driving)), dim=1)
        heat = _heat(driving, grid) - _heat(source, grid)
        heat = torch.cat((torch.zeros_like(heat[:, :1]), heat), dim=1)
        copies = image.repeat_interleave(motions.shape[1], dim=0)
        warped = sample_frame(copies, motions.flatten(0, 1), self.padding_mode)
        known = torch.cat((heat[:, :, None].to(warped.dtype), warped.view(n, -1, 3, h, w)), dim=2).flatten(1, 2)
        hidden = self.hourglass(known)
        masks = self.mask(hidden).float().softmax(dim=1)
        return (masks[..., None] * motions).sum(1), self.occlusion(hidden).float().sigmoid()


def _background_motion(grid: Tensor, background: Tensor) -> Tensor:
    homogeneous = torch.cat((grid, torch.ones_like(grid[..., :1])), dim=-1)
    return torch.einsum("nij,hwj->nhwi", background, homogeneous)[:, None]


def _region_motions(grid: Tensor, source: Regions, driving: Regions) -> Tensor:
    turn = source.affine @ torch.linalg.inv(driving.affine)
    turn = turn * torch.where(turn[..., :1, :1] < 0, -1.0, 1.0)
    offset = grid - driving.shift[:, :, None, None]
    return torch.einsum("nkij,nkhwj->nkhwi", turn, offset) + source.shift[:, :, None, None]


def _heat(regions: Regions, grid: Tensor) -> Tensor:
    offset = grid - regions.shift[:, :, None, None]
    precision = torch.linalg.inv(regions.affine @ regions.affine.mT)
    return torch.exp(-0.5 * torch.einsum("nkhwi,nkij,nkhwj->nkhw", offset, precision, offset))


class PlainDenseMotion(nn.Module):
    """Our dense predictor."""

    def __init__(self, config: DenseConfig, stride: int):
        super().__init__()
        widths = config.channels
        (full, half, quarter), joint = widths[:3], widths[2:]
        if stride != 2:
            raise NotImplementedError(f"the textbook form has motion at stride 2 only; got {stride}")
        self.max_residual = config.max_residual
        self.stem = _ConvNormSiLU(5, full)
        self.encoder = nn.ModuleList(
            (
                _ConvNormSiLU(full, half, stride=2),
                nn.Sequential(_ConvNormSiLU(half, quarter, stride=2), _ConvNormSiLU(quarter, quarter)),
            )
        )
        self.join = _ConvNormSiLU(2 * quarter + 5, quarter)
        self.downs = nn.ModuleList(nn.Sequential(_ConvNormSiLU(a, b, stride=2), _ConvNormSiLU(b, b)) for a, b in pairwise(joint))
        self.ups = nn.ModuleList(_ConvNormSiLU(a + b, b) for a, b in pairwise(joint[::-1]))
        self.coarse_head = nn.Conv2d(quarter, 4, 3, padding=1)
        self.to_fine = nn.Conv2d(quarter, full, 1)
        self.refine = nn.Sequential(_ConvNormSiLU(2 * half + full + 8, half), _ConvNormSiLU(half, half))
        self.fine_head = nn.Conv2d(half, 4, 3, padding=1)
        self.matching = _Matching((half, quarter), config.match_channels)
        self.tracking = config.tracking

    def forward(self, source: Tensor, driving: Tensor, expected: Tensor | None = None) -> FrameMotion:
        """source and driving (b, 3, H, W) and the expected flow (b, 2, h, w) -> grid (b, h, w, 2), occlusion (b, 1, h, w)."""
        features, driving_features = self._encode(source), self._encode(driving)
        target = F.pixel_unshuffle(driving, 2)
        pixels = F.pixel_unshuffle(source, 2)
        match, pixels, evidence = self.matching(features, driving_features, pixels, target, expected, self.tracking)

        coarse = F.avg_pool2d(match, 2)
        hidden = self._join(features[1], driving_features[1], coarse, F.avg_pool2d(evidence, 2).detach())
        head = self.coarse_head(hidden).float()
        flow, occlusion = head[:, :1] * coarse + self.max_residual * torch.tanh(head[:, 1:3]), head[:, 3:]
        flow, occlusion, hidden, detail = _double(flow), _double(occlusion), _double(self.to_fine(hidden)), _double(coarse)
        known = (_warp_features(features[0], flow), flow, match, occlusion, evidence)
        x = torch.cat((hidden, driving_features[0], *(part.detach() for part in known)), dim=1)
        head = self.fine_head(self.refine(x)).float()
        flow = flow + head[:, :1] * (match - detail) + self.max_residual * torch.tanh(head[:, 1:3])
        occlusion = occlusion + head[:, 3:]
        grid = identity_grid(*flow.shape[-2:], corners=False, device=flow.device) + flow.permute(0, 2, 3, 1)
        return FrameMotion(grid, torch.sigmoid(occlusion + OCCLUSION_BIAS), {"match": lambda _: (pixels - target).abs().mean()})

    def track(self, source: Tensor, frames: Sequence[Tensor]) -> list[FrameMotion]:
        """Estimate the motion of every frame, tracked from the frame before."""
        found = [self(source, frames[0])]
        for last, frame in pairwise(frames):
            expected = None
            if self.tracking:
                step = self(last, frame).grid
                expected = _flow(step) + sample_frame(_flow(found[-1].grid), step, "border")
            found.append(self(source, frame, expected))
        return found

    def _encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        position = identity_grid(*image.shape[-2:], corners=False, device=image.device).permute(2, 0, 1).to(image.dtype)
        half = self.encoder[0](self.stem(torch.cat((2 * image - 1, position.expand(len(image), -1, -1, -1)), dim=1)))
        return half, self.encoder[1](half)

    def _join(self, source: Tensor, driving: Tensor, flow: Tensor, evidence: Tensor) -> Tensor:
        x = self.join(torch.cat((driving, _warp_features(source, flow), flow.detach(), evidence), dim=1))
        skips = []
        for down in self.downs:
            skips.append(x)
            x = down(x)
        for up in self.ups:
            x = up(torch.cat((F.interpolate(x, scale_factor=2, mode="nearest"), skips.pop()), dim=1))
        return x


class _Matching(nn.Module):
    def __init__(self, widths: tuple[int, int], channels: int):
        super().__init__()
        self.projections = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)
        self.log_scale = nn.Parameter(torch.tensor(0.0))
        self.distance_weight = nn.Parameter(torch.tensor(0.0))

    def forward(
        self,
        source: tuple[Tensor, Tensor],
        driving: tuple[Tensor, Tensor],
        pixels: Tensor,
        target: Tensor,
        flow: Tensor | None,
        pull: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Match at stride 2: return the flow, the matched pixels and the evidence.

        Matches are pulled towards `flow`, with `pull` times the weight, or towards zero flow if there is none.
        """
        keys, queries = self._features(*source), self._features(*driving)
        h, w = keys.shape[-2:]
        grid = identity_grid(h, w, corners=False, device=keys.device)
        with torch.autocast(keys.device.type, enabled=False):
            position = rearrange(grid, "h w xy -> (h w) xy")
            centre, weight = position[None], F.softplus(self.distance_weight)
            if flow is not None:
                centre, weight = position + rearrange(flow.float(), "b xy h w -> b (h w) xy"), pull * weight
            distance = (centre[:, :, None] - position[None, None]).square().sum(-1)
            key, query = (rearrange(x, "b c h w -> b (h w) c") for x in (keys, queries))
            scores = self.log_scale.exp() * torch.einsum("bic,bjc->bij", query, key) - weight * distance
            weights = scores.softmax(dim=-1)
            expected = torch.einsum("bij,jx->bix", weights, position)
            far = torch.einsum("bij,j->bi", weights, position.square().sum(-1))
            feature = torch.einsum("bij,bjc->bic", weights, key)
            matched = torch.einsum("bij,bjc->bic", weights, rearrange(pixels.float(), "b c h w -> b (h w) c"))
            flow, feature, matched = (rearrange(x, "b (h w) c -> b c h w", h=h) for x in (expected - position, feature, matched))
            spread = rearrange(far - expected.square().sum(-1), "b (h w) -> b 1 h w", h=h).clamp(min=0)
        similarity = (feature * queries).sum(1, keepdim=True)
        difference = (matched - target).abs().mean(1, keepdim=True)
        return flow, matched, torch.cat((similarity, difference, spread), dim=1)

    def _features(self, half: Tensor, quarter: Tensor) -> Tensor:
        half, quarter = (projection(x) for projection, x in zip(self.projections, (half, quarter), strict=True))
        return F.normalize((half + _double(quarter)).float(), dim=1)


class _ConvNormSiLU(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)
        self.norm = nn.GroupNorm(8, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(self.conv(x)))


def _warp_features(source: Tensor, flow: Tensor) -> Tensor:
    grid = identity_grid(*flow.shape[-2:], corners=False, device=flow.device) + flow.detach().permute(0, 2, 3, 1)
    return sample_frame(source, grid, "border")


def _flow(grid: Tensor) -> Tensor:
    return (grid - identity_grid(*grid.shape[1:3], corners=False, device=grid.device)).permute(0, 3, 1, 2)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
