"""The convolutional blocks of the motion U-Net, on clips stored frame by frame with channels last.

Legend: b clips, t frames, h w size, c channels, e width of the embedding. Every tensor is ``(b, t, h, w, c)`` and
contiguous: channels-last images for convolutions, tokens for linear layers, and one row per position for the norms.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lfdm.motion.tracing import is_exporting

NORM_EPS = 1e-5
SINUSOID_PERIOD = 10_000


class FrameConv2d(nn.Conv2d):
    """A convolution of each frame."""

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(b, t, h, w, c) -> (b, t, h', w', c')."""
        return _per_frame(super().forward, x)


class FrameConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution of each frame."""

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(b, t, h, w, c) -> (b, t, h', w', c')."""
        return _per_frame(super().forward, x)


class NearestUpsample(nn.Module):
    """Nearest neighbour x2, then a 3x3 convolution with reflected borders."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = FrameConv2d(channels, channels, 3, padding=1, padding_mode="reflect")

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, h, w, c) -> (b, t, 2h, 2w, c)."""
        return self.conv(_per_frame(lambda frames: F.interpolate(frames, scale_factor=2, mode="nearest"), x))


class NormSiLU(nn.Module):
    """Group norm over all frames and positions of a clip, an optional scale and shift, SiLU."""

    def __init__(self, channels: int, num_groups: int):
        super().__init__()
        self.num_groups = num_groups
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, modulation: Tensor | None = None) -> Tensor:
        """(b, t, h, w, c) -> the same; modulation: (b, 2c), scale then shift."""
        gain, offset = self.weight[None], self.bias[None]  # (1, c)
        if modulation is not None:
            scale, shift = modulation.chunk(2, dim=-1)
            gain, offset = gain + gain * scale, offset + offset * scale + shift  # (b, c)
        rows = x.flatten(1, 3)  # (b, t h w, c)
        if is_transformed():
            normed, _ = _normalize_by_moments(rows, self.num_groups)
            return F.silu(normed * gain[:, None] + offset[:, None]).view(x.shape)
        if x.device.type == "cpu" and not torch.is_grad_enabled():
            return _norm_affine_silu(rows, gain, offset, self.num_groups).view(x.shape)
        return _NormAffineSiLU.apply(rows, gain[:, None], offset[:, None], self.num_groups)[0].view(x.shape)


def is_transformed() -> bool:
    """Return whether forward-mode derivatives or a `torch.func` transform are active, or the network is being exported.

    Fused operations then give way to plain ones, as they have reverse-mode derivatives only. Declaring the others for
    `torch.autograd.Function` (`setup_context`) would make each of its calls 60 to 80 us slower.
    """
    return torch.autograd.forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active() or is_exporting()


class _NormAffineSiLU(torch.autograd.Function):
    """silu(group_norm(x) * gain + offset) with a backward of few passes, which can be differentiated again.

    Forward and backward together take 12 ms for (16, 4096, 48) in bfloat16 on one CPU core, and 26 ms with torch's group
    norm, whose backward is slow for channels-last rows. The normalized rows and inverse standard deviations, which the
    backward pass needs, are outputs, so that second derivatives reach x through them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, offset: Tensor, num_groups: int) -> tuple[Tensor, Tensor, Tensor]:
        """x: (b, m, c); gain, offset: (b or 1, 1, c) -> the result and the normalized rows, like x; (b, groups)."""
        normed, inverse_std = _normalize(x, num_groups)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(normed, inverse_std, gain, offset)
        return F.silu(_affine(normed, gain, offset), inplace=True), normed, inverse_std

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        if torch.is_grad_enabled() or gradients[0] is None or gradients[1] is not None or gradients[2] is not None:
            return (*_differentiable_backward(gradients, *ctx.saved_tensors), None)
        normed, inverse_std, gain, offset = ctx.saved_tensors
        groups = (inverse_std.shape[1], -1)
        gradient = torch.ops.aten.silu_backward(gradients[0].contiguous(), _affine(normed, gain, offset))
        to_gain = (gradient * normed).sum(dim=1, keepdim=True).to(inverse_std.dtype)  # (b, 1, c)
        to_offset = gradient.sum(dim=1, keepdim=True).to(inverse_std.dtype)
        # dx = (g - mean(g) - normed * mean(g * normed)) / std with g = gradient * gain, means over a group.
        along = (to_gain * gain).unflatten(-1, groups).mean(-1, keepdim=True) / normed.shape[1]  # (b, 1, groups, 1)
        level = (to_offset * gain).unflatten(-1, groups).mean(-1, keepdim=True) / normed.shape[1]
        inverse_std = inverse_std[:, None, :, None]
        factor = (gain.unflatten(-1, groups) * inverse_std).flatten(2)
        slope = (-along * inverse_std).expand(factor.unflatten(-1, groups).shape).flatten(2)
        constant = (-level * inverse_std).expand(factor.unflatten(-1, groups).shape).flatten(2)
        to_x = gradient.mul_(factor.to(normed.dtype)).add_(_affine(normed, slope, constant))
        return to_x, _sum_to(to_gain, gain), _sum_to(to_offset, offset), None


def _differentiable_backward(
    gradients: tuple[Tensor | None, ...], normed: Tensor, inverse_std: Tensor, gain: Tensor, offset: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the gradients for x, gain and offset from those of all three outputs, by operations with derivatives."""
    to_gain = to_offset = None
    to_normed = torch.zeros_like(normed) if gradients[1] is None else gradients[1]
    if gradients[0] is not None:
        gradient = gradients[0] * _silu_slope(normed * gain + offset)
        to_gain, to_offset = _sum_to(gradient * normed, gain), _sum_to(gradient, offset)
        to_normed = to_normed + gradient * gain
    groups = (inverse_std.shape[1], -1)
    rows, given = normed.unflatten(-1, groups), to_normed.unflatten(-1, groups)  # (b, m, groups, c / groups)
    along = (given * rows).mean((1, 3), keepdim=True)
    to_x = (given - given.mean((1, 3), keepdim=True) - rows * along) * inverse_std[:, None, :, None]
    if gradients[2] is not None:
        per_value = -gradients[2] * inverse_std.square() / (rows.shape[1] * rows.shape[3])
        to_x = to_x + per_value[:, None, :, None] * rows
    return to_x.flatten(2).to(normed.dtype), to_gain, to_offset


def _silu_slope(x: Tensor) -> Tensor:
    sigmoid = x.sigmoid()
    return sigmoid * (1 + x * (1 - sigmoid))


def _norm_affine_silu(x: Tensor, gain: Tensor, offset: Tensor, num_groups: int) -> Tensor:
    """Return `_NormAffineSiLU` without gradients on a CPU, in two passes over each clip; gain, offset: (b or 1, c)."""
    clips = []
    for clip, scale, shift in zip(x, gain.expand(len(x), -1), offset.expand(len(x), -1), strict=True):
        normed, _ = _group_norm(clip[None], scale, shift, num_groups)
        clips.append(F.silu(normed, inplace=True))
    return clips[0] if len(clips) == 1 else torch.cat(clips)


def _group_norm(x: Tensor, weight: Tensor, bias: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Apply torch's group norm to channels-last rows (b, m, c); also return the inverse standard deviations (b, groups)."""
    b, m, c = x.shape
    accumulated = torch.promote_types(x.dtype, torch.float32)
    image = x.view(b, m, 1, c).permute(0, 3, 1, 2)
    normed, _, inverse_std = torch.native_group_norm(
        image, weight.to(accumulated), bias.to(accumulated), b, c, m, num_groups, NORM_EPS
    )
    return normed.permute(0, 2, 3, 1).reshape(b, m, c), inverse_std


def _normalize(x: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Subtract each group's mean and divide by its standard deviation.

    Args:
        x: (b, m, c).
        num_groups: groups of neighbouring channels.

    Returns:
        The result, like x, and the inverse standard deviations (b, groups), at least float32.
    """
    if x.device.type != "cpu":
        return _normalize_by_moments(x, num_groups)
    # On a CPU, torch's group norm reads channels-last rows 20 times faster than its var_mean.
    return _group_norm(x, torch.ones(x.shape[-1]), torch.zeros(x.shape[-1]), num_groups)


def _normalize_by_moments(x: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    grouped = x.unflatten(-1, (num_groups, -1)).to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(grouped, dim=(1, 3), correction=0, keepdim=True)
    inverse_std = (variance + NORM_EPS).rsqrt()
    return ((grouped - mean) * inverse_std).to(x.dtype).flatten(2), inverse_std[:, 0, :, 0]


def _affine(x: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    """Return x * gain + offset; x: (b, m, c); gain, offset: (b or 1, 1, c)."""
    y = x * gain.to(x.dtype)
    offset = offset.to(x.dtype)
    if x.device.type == "cpu" and x.dtype == torch.bfloat16:  # a broadcast addition there takes five times as long
        return y.baddbmm_(x.new_ones(len(x), x.shape[1], 1), offset.expand(len(x), -1, -1))
    return y.add_(offset)


def _sum_to(gradient: Tensor, parameter: Tensor) -> Tensor:
    return gradient.sum_to_size(parameter.shape).to(parameter.dtype)


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions with norms around a skip connection; the embedding scales and shifts the first norm."""

    def __init__(self, in_channels: int, out_channels: int, *, num_groups: int, embedding_dim: int | None):
        super().__init__()
        self.modulation = None if embedding_dim is None else nn.Linear(embedding_dim, 2 * out_channels)
        self.conv1 = FrameConv2d(in_channels, out_channels, 3, padding=1)
        self.norm1 = NormSiLU(out_channels, num_groups)
        self.conv2 = FrameConv2d(out_channels, out_channels, 3, padding=1)
        self.norm2 = NormSiLU(out_channels, num_groups)
        self.skip = nn.Identity() if in_channels == out_channels else nn.Linear(in_channels, out_channels)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """(b, t, h, w, c) and embedding (b, e), after its SiLU -> (b, t, h, w, out_channels)."""
        modulation = None if self.modulation is None else self.modulation(embedding)
        y = self.norm1(self.conv1(x), modulation)
        return self.norm2(self.conv2(y)) + self.skip(x)


def sinusoids(position: Tensor, dim: int) -> Tensor:
    """Return the embedding of numbers () or (n,), about 0 to 1000: (1 or n, dim), sines, then cosines."""
    half = dim // 2
    index = torch.arange(half, dtype=position.dtype, device=position.device)
    angles = position.reshape(-1, 1) * torch.exp(index * (-math.log(SINUSOID_PERIOD) / (half - 1)))
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


def _per_frame(operation: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    frames = operation(x.flatten(0, 1).permute(0, 3, 1, 2))  # (b t, c, h, w), channels last in memory
    return frames.permute(0, 2, 3, 1).contiguous().unflatten(0, x.shape[:2])
