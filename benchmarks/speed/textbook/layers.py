"""Blocks of stage 1 in their textbook form (MRAA, 2104.11280; FOMM, 2003.00196), and the sampling of one frame.

Shapes: (n, c, h, w) in and out; a motion of one frame is a grid (n, h, w, 2) with an occlusion map (n, 1, h, w).
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lfdm.motion.warp import identity_grid


class ConvNormReLU(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class Down(ConvNormReLU):
    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(super().forward(x), 2)


class Up(ConvNormReLU):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.interpolate(x, scale_factor=2, mode="nearest"))


class Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.norm1(x)))
        return x + self.conv2(F.relu(self.norm2(y)))


class DownPath(nn.Module):
    """x (n, c, h, w) -> list of the outputs at every resolution, the input first."""

    def __init__(self, in_channels: int, *, channels: int, depth: int, max_channels: int):
        super().__init__()
        widths = [in_channels, *(min(max_channels, channels * 2 ** (i + 1)) for i in range(depth))]
        self.blocks = nn.ModuleList(Down(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = [x]
        for block in self.blocks:
            outputs.append(block(outputs[-1]))
        return outputs


class Hourglass(nn.Module):
    def __init__(self, in_channels: int, *, channels: int, depth: int, max_channels: int):
        super().__init__()
        self.encoder = DownPath(in_channels, channels=channels, depth=depth, max_channels=max_channels)
        self.ups = nn.ModuleList()
        for i in reversed(range(depth)):
            incoming = min(max_channels, channels * 2 ** (i + 1)) * (1 if i == depth - 1 else 2)
            self.ups.append(Up(incoming, min(max_channels, channels * 2**i)))
        self.out_channels = channels + in_channels

    def forward(self, x: Tensor) -> Tensor:
        skips = self.encoder(x)
        x = skips.pop()
        for up in self.ups:
            x = torch.cat((up(x), skips.pop()), dim=1)
        return x


def blur_and_subsample(image: Tensor, factor: int) -> Tensor:
    """Blur the whole image (Gaussian, sigma = (factor - 1) / 2) and keep every `factor`-th pixel."""
    if factor == 1:
        return image
    sigma = (factor - 1) / 2
    radius = round(4 * sigma)
    offsets = torch.arange(-radius, radius + 1, device=image.device, dtype=torch.float32)
    line = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = torch.outer(line, line) / line.sum() ** 2
    channels = image.shape[1]
    blurred = F.conv2d(image, kernel.to(image.dtype).expand(channels, 1, -1, -1), padding=radius, groups=channels)
    return blurred[:, :, ::factor, ::factor]


def sample_frame(x: Tensor, grid: Tensor, padding_mode: str) -> Tensor:
    """Sample x (n, c, H, W) at grid (n, h, w, 2) in float32: (n, c, h, w)."""
    with torch.autocast(x.device.type, enabled=False):
        sampled = F.grid_sample(x.float(), grid.float(), mode="bilinear", padding_mode=padding_mode, align_corners=False)
    return sampled.to(x.dtype)


def resize_motion(grid: Tensor, occlusion: Tensor, size: tuple[int, int], *, corners: bool) -> tuple[Tensor, Tensor]:
    """Resize the motion of a frame: as a grid with end-point identities, as a displacement with pixel centres."""
    if tuple(grid.shape[1:3]) == size:
        return grid, occlusion
    if not corners:
        grid = grid - identity_grid(*grid.shape[1:3], corners=False, device=grid.device)
    grid = F.interpolate(grid.permute(0, 3, 1, 2), size=size, mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
    if not corners:
        grid = grid + identity_grid(*size, corners=False, device=grid.device)
    return grid, F.interpolate(occlusion, size=size, mode="bilinear", align_corners=False)
