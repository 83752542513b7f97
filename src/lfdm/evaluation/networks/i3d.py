"""I3D network (Carreira & Zisserman, arXiv 1705.07750), RGB stream: Inception-v1 with filters inflated to three dimensions.

Its logits, with weights trained on Kinetics-400, are the features of FVD. Parameter names are those of the plain state dicts in
circulation (`Conv3d_1a_7x7.conv3d.weight`, `Mixed_3b.b1a.bn.running_mean`, `logits.conv3d.bias`).

Shapes: video (b, 3, t, 224, 224) in [-1, 1] · logits (b, NUM_CLASSES).
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lfdm.errors import UserError

IMAGE_SIZE = 224
NUM_CLASSES = 400
"""Actions of Kinetics-400."""
MIN_FRAMES = 9
"""Three strides of 2 in time, rounded up, leave the two time steps of the last average (9 -> 5 -> 3 -> 2)."""

_Size = tuple[int, int, int]

_MIXED: dict[str, tuple[int, int, int, int, int, int]] = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
"""Output channels of each block's convolutions, in order b0, b1a, b1b, b2a, b2b, b3b (GoogLeNet, arXiv 1409.4842, table 1)."""


class I3D(nn.Sequential):
    """Classifier of `NUM_CLASSES` actions, with 12.7 million parameters.

    Args:
        eps: epsilon of the batch norms. State dicts do not hold it, and published codes differ: see `extractors.I3DFeatures`.
    """

    def __init__(self, *, eps: float = 1e-5) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["Conv3d_1a_7x7"] = _Unit(3, 64, (7, 7, 7), stride=(2, 2, 2), eps=eps)
        layers["MaxPool3d_2a_3x3"] = _MaxPool((1, 3, 3), (1, 2, 2))
        layers["Conv3d_2b_1x1"] = _Unit(64, 64, (1, 1, 1), eps=eps)
        layers["Conv3d_2c_3x3"] = _Unit(64, 192, (3, 3, 3), eps=eps)
        layers["MaxPool3d_3a_3x3"] = _MaxPool((1, 3, 3), (1, 2, 2))
        channels = 192
        for name, widths in _MIXED.items():
            if name == "Mixed_4b":
                layers["MaxPool3d_4a_3x3"] = _MaxPool((3, 3, 3), (2, 2, 2))
            if name == "Mixed_5b":
                layers["MaxPool3d_5a_2x2"] = _MaxPool((2, 2, 2), (2, 2, 2))
            layers[name] = _Mixed(channels, widths, eps=eps)
            channels = widths[0] + widths[2] + widths[4] + widths[5]
        layers["avg_pool"] = nn.AvgPool3d((2, 7, 7), stride=1)
        layers["logits"] = _Unit(channels, NUM_CLASSES, (1, 1, 1), bare=True)
        super().__init__(layers)

    def forward(self, video: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return logits (b, NUM_CLASSES), averaged over time, of a video (b, 3, t, 224, 224) in [-1, 1].

        Raises:
            UserError: another shape, or fewer than `MIN_FRAMES` frames.
        """
        if video.ndim != 5 or video.shape[1] != 3 or video.shape[2] < MIN_FRAMES or video.shape[3:] != (IMAGE_SIZE, IMAGE_SIZE):
            raise UserError(f"video must be (b, 3, t >= {MIN_FRAMES}, {IMAGE_SIZE}, {IMAGE_SIZE}); got {tuple(video.shape)}")
        x = super().forward(video)  # (b, NUM_CLASSES, t', 1, 1)
        return x.mean(dim=(2, 3, 4))


class _Unit(nn.Module):
    """Convolution, batch norm and ReLU: (b, c, t, h, w) to (b, c', t / s, h / s, w / s); `bare`: only a convolution with bias."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: _Size,
        *,
        stride: _Size = (1, 1, 1),
        eps: float = 1e-5,
        bare: bool = False,
    ) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(in_channels, out_channels, kernel, stride=stride, bias=bare)
        self.bn = None if bare else nn.BatchNorm3d(out_channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv3d(pad_same(x, self.conv3d.kernel_size, self.conv3d.stride))
        return x if self.bn is None else F.relu(self.bn(x))


class _Mixed(nn.Module):
    """Four concatenated branches: 1x1x1; 1x1x1 and 3x3x3, twice; 3x3x3 maximum and 1x1x1. Size (t, h, w) is kept."""

    def __init__(self, in_channels: int, widths: tuple[int, int, int, int, int, int], *, eps: float) -> None:
        super().__init__()
        self.b0 = _Unit(in_channels, widths[0], (1, 1, 1), eps=eps)
        self.b1a = _Unit(in_channels, widths[1], (1, 1, 1), eps=eps)
        self.b1b = _Unit(widths[1], widths[2], (3, 3, 3), eps=eps)
        self.b2a = _Unit(in_channels, widths[3], (1, 1, 1), eps=eps)
        self.b2b = _Unit(widths[3], widths[4], (3, 3, 3), eps=eps)
        self.b3a = _MaxPool((3, 3, 3), (1, 1, 1))
        self.b3b = _Unit(in_channels, widths[5], (1, 1, 1), eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))), dim=1)


class _MaxPool(nn.Module):
    """Max pooling with SAME padding. Inputs come from a ReLU, so padding with zeros changes no maximum."""

    def __init__(self, kernel: _Size, stride: _Size) -> None:
        super().__init__()
        self.kernel = kernel
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool3d(pad_same(x, self.kernel, self.stride), self.kernel, self.stride)


def pad_same(x: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Pad `x` (b, c, t, H, W) with zeros as TensorFlow's SAME does: ceil(n / stride) outputs, the odd zero at the end.

    >>> pad_same(torch.zeros(1, 1, 16, 224, 7), (7, 7, 3), (2, 2, 1)).shape
    torch.Size([1, 1, 21, 229, 9])
    """
    padding: list[int] = []
    for n, k, s in zip(x.shape[2:], kernel, stride, strict=True):
        total = max((-(-n // s) - 1) * s + k - n, 0)
        padding = [total // 2, total - total // 2, *padding]  # F.pad wants the last dimension first
    return F.pad(x, padding)
