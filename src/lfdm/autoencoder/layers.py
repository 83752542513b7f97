"""Blocks of the stage-1 networks (MRAA, arXiv 2104.11280; FOMM, arXiv 2003.00196). All take and return (n, c, h, w)."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lfdm.autoencoder.convolution import channels_last, convolve_and_norm, convolve_same, double_and_convolve


class SameBlock(nn.Module):
    """Convolution 7x7 -> batch norm -> ReLU at one resolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 7, padding=3)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return convolve_and_norm(x, self.conv, self.norm, convolve_same).relu_()


class DownBlock(nn.Module):
    """Convolution 3x3 -> batch norm -> ReLU -> average over 2x2."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(convolve_and_norm(x, self.conv, self.norm, convolve_same).relu_(), 2)


class UpBlock(nn.Module):
    """Nearest x2 -> convolution 3x3 -> batch norm -> ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return convolve_and_norm(x, self.conv, self.norm, double_and_convolve).relu_()


class ResBlock(nn.Module):
    """Pre-activation residual block of two 3x3 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm1(x).relu_()
        hidden = convolve_and_norm(hidden, self.conv1, self.norm2, convolve_same).relu_()
        return x + self.conv2(hidden)


class ConvBlock(nn.Module):
    """Convolution 3x3 -> group norm -> SiLU, optionally with stride 2."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)
        self.norm = nn.GroupNorm(8, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(self.conv(x)))


class ImageEncoder(nn.Module):
    """The down path of an hourglass: outputs of every resolution, the input first."""

    def __init__(self, in_channels: int, *, channels: int, depth: int, max_channels: int) -> None:
        super().__init__()
        widths = [in_channels, *(min(max_channels, channels * 2 ** (i + 1)) for i in range(depth))]
        self.blocks = nn.ModuleList(DownBlock(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = [channels_last(x)]
        for block in self.blocks:
            outputs.append(block(outputs[-1]))
        return outputs


class Hourglass(nn.Module):
    """Encoder and decoder with skips down to the input itself: returns `channels + in_channels` channels at the input's size."""

    def __init__(self, in_channels: int, *, channels: int, depth: int, max_channels: int) -> None:
        super().__init__()
        self.encoder = ImageEncoder(in_channels, channels=channels, depth=depth, max_channels=max_channels)
        ups = []
        for i in reversed(range(depth)):
            incoming = min(max_channels, channels * 2 ** (i + 1)) * (1 if i == depth - 1 else 2)
            ups.append(UpBlock(incoming, min(max_channels, channels * 2**i)))
        self.ups = nn.ModuleList(ups)
        self.out_channels = channels + in_channels

    def forward(self, x: Tensor) -> Tensor:
        skips = self.encoder(x)
        x = skips.pop()
        for up in self.ups:
            x = torch.cat((up(x), skips.pop()), dim=1)
        return x


class AntiAliasDownsample(nn.Module):
    """Gaussian blur, sigma (factor - 1) / 2, then every `factor`-th pixel from index 0; the image itself at factor 1."""

    kernel: Tensor

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        sigma = (factor - 1) / 2
        size = 2 * round(4 * sigma) + 1
        axis = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
        line = torch.exp(-(axis**2) / (2 * max(sigma, 1e-6) ** 2))
        kernel = line[:, None] * line[None, :]
        kernel = (kernel / kernel.sum()).expand(channels, 1, size, size).contiguous()
        self.register_buffer("kernel", kernel, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.factor == 1:
            return x
        padding = self.kernel.shape[-1] // 2
        return F.conv2d(x, self.kernel, stride=self.factor, padding=padding, groups=x.shape[1])
