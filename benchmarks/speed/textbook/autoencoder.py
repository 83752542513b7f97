"""Stage 1 in its textbook form, with the weights of a `LatentFlowAutoencoder`: one frame at a time.

As in the published system, the source is encoded again for every decoded frame and for every driving frame.

Shapes: image (b, 3, H, W) and video (b, 3, t, H, W) in [0, 1] · see `lfdm.motion.motion`.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed.textbook.layers import ConvNormReLU, Down, Residual, Up, resize_motion, sample_frame
from benchmarks.speed.textbook.motion import FrameMotion, PlainDenseMotion, PlainRegionMotion
from lfdm.autoencoder.autoencoder import Decoded, LatentFlowAutoencoder, Reconstruction
from lfdm.config.models import AutoencoderConfig
from lfdm.config.predictors import DenseConfig, RegionConfig
from lfdm.folders.model_folder import checked_settings
from lfdm.motion.motion import Motion


class PlainAutoencoder(nn.Module):
    """The same function as `autoencoder`, on copies of its weights.

    Raises:
        RuntimeError: parameter names or shapes differ.
        TypeError: a motion predictor that has no textbook form here.
    """

    def __init__(self, autoencoder: LatentFlowAutoencoder):
        super().__init__()
        config: Any = autoencoder.config
        self.corners, self.padding_mode = config["corners"], config["padding_mode"]
        widths = [min(config["max_channels"], config["channels"] * 2**i) for i in range(config["num_downs"] + 1)]
        self.first = ConvNormReLU(3, widths[0], 7)
        self.downs = nn.ModuleList(Down(a, b) for a, b in pairwise(widths))
        self.bottleneck = nn.Sequential(*(Residual(widths[-1]) for _ in range(config["num_res_blocks"])))
        self.ups = nn.ModuleList(Up(a, b) for a, b in pairwise(reversed(widths)))
        self.final = nn.Conv2d(widths[0], 3, 7, padding=3)
        self.motion_predictor = self._build_predictor(checked_settings(AutoencoderConfig, config))
        self.load_state_dict({name: value.contiguous() for name, value in autoencoder.state_dict().items()})
        self.to(autoencoder.device, autoencoder.dtype).train(autoencoder.training)

    @staticmethod
    def _build_predictor(config: AutoencoderConfig) -> PlainDenseMotion | PlainRegionMotion:
        stride = 2**config.num_downs
        if isinstance(config.predictor, DenseConfig):
            return PlainDenseMotion(config.predictor, stride)
        if isinstance(config.predictor, RegionConfig):
            return PlainRegionMotion(config.predictor, stride, corners=config.corners, padding_mode=config.padding_mode)
        raise TypeError(f"no textbook form of {type(config.predictor).__name__}")

    def encode(self, image: Tensor) -> list[Tensor]:
        """Return the feature maps of every scale, full size first."""
        scales = [self.first(image)]
        for down in self.downs:
            scales.append(down(scales[-1]))
        return scales

    def estimate_motion(self, source: Tensor, video: Tensor) -> Motion:
        """Estimate the motion of all frames (b, 3, t, H, W) relative to the source, frame by frame."""
        predictor: Any = self.motion_predictor
        follows = isinstance(predictor, PlainDenseMotion)
        frames = predictor.track(source, video.unbind(2)) if follows else [predictor(source, frame) for frame in video.unbind(2)]
        return _stack([frame.grid for frame in frames], [frame.occlusion for frame in frames], corners=self.corners)

    def decode(self, image: Tensor, motion: Motion) -> Decoded:
        """Decode all frames of `image` moved by `motion`, frame by frame."""
        grids, occlusions = motion.grid().unbind(1), motion.occlusion.unbind(2)
        frames = [self.decode_frame(image, grid, occlusion) for grid, occlusion in zip(grids, occlusions, strict=True)]
        return Decoded(*(torch.stack(parts, dim=2) for parts in zip(*frames, strict=True)))

    def decode_frame(self, image: Tensor, grid: Tensor, occlusion: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return prediction, warped and inpainted image (b, 3, H, W) for a grid (b, h, w, 2) and occlusion (b, 1, h, w)."""
        scales = self.encode(image)
        warped, visible = self._warp(scales[-1], grid, occlusion)
        x = self.bottleneck(warped * visible)
        x = warped * visible + x * (1 - visible)
        for up, skip in zip(self.ups, reversed(scales[:-1]), strict=True):
            x = up(x)
            warped, visible = self._warp(skip, grid, occlusion)
            x = warped * visible + x * (1 - visible)
        inpainted = self.final(x).sigmoid()
        warped, visible = self._warp(image, grid, occlusion)
        return warped * visible + inpainted * (1 - visible), warped, inpainted

    def forward(self, source: Tensor, driving: Tensor) -> Reconstruction:
        """Reconstruct training pairs, source and driving (b, 3, H, W), as `LatentFlowAutoencoder.forward`."""
        found: FrameMotion = self.motion_predictor(source, driving)
        decoded = self.decode_frame(source, found.grid, found.occlusion)
        return Reconstruction(
            Decoded(*(part.unsqueeze(2) for part in decoded)),
            _stack([found.grid], [found.occlusion], corners=self.corners),
            found.losses,
        )

    def _warp(self, x: Tensor, grid: Tensor, occlusion: Tensor) -> tuple[Tensor, Tensor]:
        grid, occlusion = resize_motion(grid, occlusion, (x.shape[-2], x.shape[-1]), corners=self.corners)
        return sample_frame(x, grid, self.padding_mode), occlusion.to(x.dtype)


def _stack(grids: list[Tensor], occlusions: list[Tensor], *, corners: bool) -> Motion:
    return Motion.from_grid(torch.stack(grids, dim=1), torch.stack(occlusions, dim=2), corners=corners)
