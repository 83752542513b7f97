"""The paper's motion predictor: regions found without labels, one affine motion each (MRAA, arXiv 2104.11280; LFDM, 2303.13744).

A network finds the regions of an image (`lfdm.autoencoder.predictors.region_geometry`); another decides for every pixel which
region's motion holds.

Shapes: image (n, 3, H, W) in [0, 1] · K regions · motion size (h, w) = (H, W) / stride.
"""

from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn

from lfdm.autoencoder.layers import AntiAliasDownsample, Hourglass, ImageEncoder
from lfdm.autoencoder.predictors.equivariance import RandomWarp, equivariance_losses, warp_noise
from lfdm.autoencoder.predictors.predictor import LossInputs, MotionEstimate, MotionPredictor
from lfdm.autoencoder.predictors.region_geometry import Regions, heatmap_regions, region_heat, relative_affine, transform
from lfdm.config.predictors import RegionConfig
from lfdm.motion.motion import Motion
from lfdm.motion.warp import identity_grid, warp


class RegionMotionPredictor(MotionPredictor):
    """Flow and occlusion from the relative motion of regions. H and W must be multiples of `stride * 2**config.depth`."""

    has_regions = True

    def __init__(self, config: RegionConfig, *, stride: int, corners: bool, padding_mode: str) -> None:
        super().__init__(config, stride=stride, corners=corners, padding_mode=padding_mode)
        self.region_predictor = RegionPredictor(config, stride=stride, corners=corners)
        self.background_predictor = BackgroundPredictor(config)
        self.flow_predictor = RegionFlowPredictor(config, stride=stride, corners=corners, padding_mode=padding_mode)

    def predict(self, source: Tensor, driving: Tensor, before: tuple[Tensor, Tensor] | None = None) -> MotionEstimate:  # noqa: ARG002
        """Estimate motion (see `MotionPredictor.predict`); every frame is compared with the source only."""
        t = driving.shape[2]
        frames = rearrange(driving, "b c t h w -> (b t) c h w")
        background = self.background_predictor(source.repeat_interleave(t, dim=0), frames)
        regions = self.region_predictor(frames)
        motion = self.flow_predictor(source, self.region_predictor(source), regions, background)
        return MotionEstimate(motion, {"equivariance": partial(self._equivariance_loss, regions)})

    def region_heat(self, frames: Tensor) -> Tensor:
        """Return the Gaussians (n, K, h, w), of peak 1, of the regions in frames (n, 3, H, W)."""
        h, w = (side // self.stride for side in frames.shape[-2:])
        return region_heat(self.region_predictor(frames), identity_grid(h, w, corners=self.corners, device=frames.device))

    def _equivariance_loss(self, regions: Regions, inputs: LossInputs) -> Tensor:
        """Return the equivariance of the driving frames' `regions` under random warps, position and axes added."""
        random_warp = RandomWarp.from_noise(inputs.sample(warp_noise).to(inputs.driving.device), corners=self.corners)
        losses = equivariance_losses(random_warp, regions, self.region_predictor(random_warp.transform(inputs.driving)))
        return losses.shift + losses.affine


class RegionPredictor(nn.Module):
    """Finds K regions of an image."""

    def __init__(self, config: RegionConfig, *, stride: int, corners: bool) -> None:
        super().__init__()
        self.temperature, self.corners = config.temperature, corners
        self.downsample = AntiAliasDownsample(3, stride)
        self.hourglass = Hourglass(3, channels=config.channels, depth=config.depth, max_channels=config.max_channels)
        self.head = nn.Conv2d(self.hourglass.out_channels, config.num_regions, 7, padding=config.padding)

    def forward(self, image: Tensor) -> Regions:
        """Return the regions of images (n, 3, H, W)."""
        logits = self.head(self.hourglass(self.downsample(image))).float()  # (n, K, h', w')
        heatmap = torch.softmax(logits.flatten(2) / self.temperature, dim=-1).view_as(logits)
        return heatmap_regions(heatmap, corners=self.corners, aspect=image.shape[-1] / image.shape[-2])


class BackgroundPredictor(nn.Module):
    """Predicts one affine motion for everything outside the regions; it starts at the identity."""

    def __init__(self, config: RegionConfig) -> None:
        super().__init__()
        widths = {"channels": config.channels, "depth": config.depth, "max_channels": config.max_channels}
        self.encoder = ImageEncoder(6, **widths)
        self.head = nn.Linear(min(config.max_channels, config.channels * 2**config.depth), 6)
        nn.init.zeros_(self.head.weight)
        with torch.no_grad():
            self.head.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]))

    def forward(self, source: Tensor, driving: Tensor) -> Tensor:
        """Map images (n, 3, H, W) each to the first two rows of B (n, 2, 3), which takes driving to source points."""
        features = self.encoder(torch.cat((source, driving), dim=1))[-1]
        return self.head(features.mean((-2, -1))).float().unflatten(-1, (2, 3))


class RegionFlowPredictor(nn.Module):
    """Combines the motions of background and regions by masks, and predicts occlusion."""

    def __init__(self, config: RegionConfig, *, stride: int, corners: bool, padding_mode: str) -> None:
        super().__init__()
        self.corners, self.padding_mode = corners, padding_mode
        num_motions = config.num_regions + 1
        self.downsample = AntiAliasDownsample(3, stride)
        widths = {"channels": config.flow_channels, "depth": config.depth, "max_channels": config.max_channels}
        self.hourglass = Hourglass(4 * num_motions, **widths)  # a heat map and a warped image for each motion
        self.mask = nn.Conv2d(self.hourglass.out_channels, num_motions, 7, padding=3)
        self.occlusion = nn.Conv2d(self.hourglass.out_channels, 1, 7, padding=3)

    def forward(self, image: Tensor, source: Regions, driving: Regions, background: Tensor) -> Motion:
        """Return the motion of b * t frames against b images (b, 3, H, W), at (h, w).

        Args:
            source: regions of the b images.
            driving: regions of the frames, clip by clip.
            background: affine motion of each frame's background (b * t, 2, 3).
        """
        image = self.downsample(image)  # (b, 3, h, w)
        b, t = image.shape[0], driving.shift.shape[0] // image.shape[0]
        grid = identity_grid(image.shape[-2], image.shape[-1], corners=self.corners, device=image.device)
        motions = _candidate_motions(grid, source.repeat_interleave(t), driving, background)  # (b t, K + 1, h, w, 2)
        heat = region_heat(driving, grid) - region_heat(source, grid).repeat_interleave(t, dim=0)
        heat = torch.cat((torch.zeros_like(heat[:, :1]), heat), dim=1)

        points = rearrange(motions, "(b t) m h w xy -> b (t m) h w xy", b=b)
        warped = warp(image, points, padding_mode=self.padding_mode)  # (b, 3, t (K + 1), h, w)
        warped = rearrange(warped, "b c (t m) h w -> (b t) m c h w", t=t)
        known = torch.cat((heat.unsqueeze(2).to(warped.dtype), warped), dim=2).flatten(1, 2)  # (b t, 4 (K + 1), h, w)

        hidden = self.hourglass(known)
        masks = torch.softmax(self.mask(hidden).float(), dim=1)
        occlusion = torch.sigmoid(self.occlusion(hidden).float())
        sampled = (masks.unsqueeze(-1) * motions).sum(1)  # (b t, h, w, 2)
        return Motion.from_grid(
            rearrange(sampled, "(b t) h w xy -> b t h w xy", b=b),
            rearrange(occlusion, "(b t) c h w -> b c t h w", b=b),
            corners=self.corners,
        )


def _candidate_motions(grid: Tensor, source: Regions, driving: Regions, background: Tensor) -> Tensor:
    """Map every point of `grid` by each candidate motion, background first: (n, K + 1, h, w, 2)."""
    moved = transform(background[:, None, :, :2], grid) + background[:, None, None, None, :, 2]
    offset = grid - driving.shift[:, :, None, None]
    regions = transform(relative_affine(source, driving), offset) + source.shift[:, :, None, None]
    return torch.cat((moved, regions), dim=1)
