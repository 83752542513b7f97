"""Blocks of the stage-1 networks (MRAA, arXiv 2104.11280; FOMM, arXiv 2003.00196), on images and features (n, c, h, w)."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lfdm.autoencoder.convolution import channels_last, convolve_and_norm, convolve_same, double_and_convolve


class SameBlock(nn.Module):
    """Convolution 7x7 -> batch norm -> ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 7, padding=3)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, c, h, w) to (n, out, h, w)."""
        return convolve_and_norm(x, self.conv, self.norm, convolve_same).relu_()


class DownBlock(nn.Module):
    """Convolution 3x3 -> batch norm -> ReLU -> 2x2 average pooling."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, c, h, w) to (n, out, h/2, w/2)."""
        return F.avg_pool2d(convolve_and_norm(x, self.conv, self.norm, convolve_same).relu_(), 2)


class UpBlock(nn.Module):
    """Nearest-neighbour upsampling x2 -> convolution 3x3 -> batch norm -> ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, c, h, w) to (n, out, 2h, 2w)."""
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
        """Map (n, c, h, w) to the same shape."""
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
        """Map (n, c, h, w) to (n, out, h/stride, w/stride)."""
        return F.silu(self.norm(self.conv(x)))


class ImageEncoder(nn.Module):
    """The down path of an hourglass."""

    def __init__(self, in_channels: int, *, channels: int, depth: int, max_channels: int) -> None:
        super().__init__()
        widths = [in_channels, *(min(max_channels, channels * 2 ** (i + 1)) for i in range(depth))]
        self.blocks = nn.ModuleList(DownBlock(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the input (n, c, h, w) and the output of every level i, (n, c_i, h/2^i, w/2^i)."""
        outputs = [channels_last(x)]
        for block in self.blocks:
            outputs.append(block(outputs[-1]))
        return outputs


class Hourglass(nn.Module):
    """Encoder and decoder with skip connections, also from the input itself; `out_channels` is `channels + in_channels`."""

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
        """Map (n, in, h, w) to (n, out_channels, h, w)."""
        skips = self.encoder(x)
        x = skips.pop()
        for up in self.ups:
            x = torch.cat((up(x), skips.pop()), dim=1)
        return x


class AntiAliasDownsample(nn.Module):
    """Gaussian blur with sigma (factor - 1) / 2, then every `factor`-th pixel from index 0; the identity at factor 1."""

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
        """Map (n, c, h, w) to (n, c, h/factor, w/factor)."""
        if self.factor == 1:
            return x
        padding = self.kernel.shape[-1] // 2
        return F.conv2d(x, self.kernel, stride=self.factor, padding=padding, groups=x.shape[1])
