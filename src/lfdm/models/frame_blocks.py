"""The blocks of the motion U-Net, all on clips stored frame by frame with channels last.

Legend: b clips, t frames, h w size, c channels, e width of the embedding, n heads, d channels of a head. Every tensor
is ``(b, t, h, w, c)`` and contiguous, which is at once a channels-last image for convolutions, a token list for linear
layers and one row per position for the norms.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

RunBlock = Callable[..., Tensor]
"""Applies a module or a method to its inputs: `plainly`, or with gradient checkpointing."""

ROTARY_PERIOD = 10_000.0
NORM_EPS = 1e-5
BLOCK_ROWS = 1280
"""Rows (pixels of frames) that attention treats at a time on each thread of a processor, in float32 (twice as many in
bfloat16), so that its wide tensors stay in the cache and every thread has enough to do."""


def plainly(operation: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """`operation` of the inputs: the `RunBlock` that does nothing else."""
    return operation(*inputs)


@dataclass(frozen=True, kw_only=True)
class FrameGeometry:
    """What every temporal attention of one forward pass shares."""

    bias: Tensor
    """(1, n, t, t): added to the scores, row = query frame, column = key frame."""
    cosine: Tensor
    """(t, d/2): rotary turn of each frame."""
    sine: Tensor
    """(t, d/2)."""


class FrameConv2d(nn.Conv2d):
    """A convolution of each frame: (b, t, h, w, c) -> (b, t, h', w', c')."""

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _per_frame(super().forward, x)


class FrameConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution of each frame: (b, t, h, w, c) -> (b, t, h', w', c')."""

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _per_frame(super().forward, x)


class NearestUpsample(nn.Module):
    """Nearest neighbour x2, then a 3x3 convolution with reflected borders: (b, t, h, w, c) -> (b, t, 2h, 2w, c)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = FrameConv2d(channels, channels, 3, padding=1, padding_mode="reflect")

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(_per_frame(lambda frames: F.interpolate(frames, scale_factor=2, mode="nearest"), x))


class NormSiLU(nn.Module):
    """Group norm over all frames and positions of a clip, an optional scale and shift, SiLU."""

    def __init__(self, channels: int, num_groups: int):
        super().__init__()
        self.num_groups = num_groups
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, modulation: Tensor | None = None) -> Tensor:
        """x: (b, t, h, w, c); modulation: (b, 2c), scale then shift."""
        gain, offset = self.weight[None], self.bias[None]  # (1, c)
        if modulation is not None:
            scale, shift = modulation.chunk(2, dim=-1)
            gain, offset = gain + gain * scale, offset + offset * scale + shift  # (b, c)
        rows = x.flatten(1, 3)  # (b, t h w, c)
        if x.device.type == "cpu" and not torch.is_grad_enabled():
            return _norm_affine_silu(rows, gain, offset, self.num_groups).view(x.shape)
        return _NormAffineSiLU.apply(rows, gain[:, None], offset[:, None], self.num_groups).view(x.shape)


class _NormAffineSiLU(torch.autograd.Function):
    """silu(group_norm(x) * gain + offset) with a backward of few passes.

    Forward and backward together take 12 ms for (16, 4096, 48) in bfloat16 on one processor core, and 26 ms with
    torch's group norm, whose backward is slow for channels-last rows.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, offset: Tensor, num_groups: int) -> Tensor:
        """x: (b, m, c); gain, offset: (b or 1, 1, c)."""
        normed, inverse_std = _normalise(x, num_groups)
        ctx.save_for_backward(normed, inverse_std, gain, offset)
        return F.silu(_affine(normed, gain, offset), inplace=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        normed, inverse_std, gain, offset = ctx.saved_tensors
        groups = (inverse_std.shape[1], -1)
        gradient = torch.ops.aten.silu_backward(gradients[0].contiguous(), _affine(normed, gain, offset))
        to_gain = (gradient * normed).sum(dim=1, keepdim=True).float()  # (b, 1, c)
        to_offset = gradient.sum(dim=1, keepdim=True).float()
        # dx = (g - mean(g) - normed * mean(g * normed)) / std with g = gradient * gain, means over a group.
        along = (to_gain * gain).unflatten(-1, groups).mean(-1, keepdim=True) / normed.shape[1]  # (b, 1, groups, 1)
        level = (to_offset * gain).unflatten(-1, groups).mean(-1, keepdim=True) / normed.shape[1]
        inverse_std = inverse_std[:, None, :, None]
        factor = (gain.unflatten(-1, groups) * inverse_std).flatten(2)
        slope = (-along * inverse_std).expand(factor.unflatten(-1, groups).shape).flatten(2)
        constant = (-level * inverse_std).expand(factor.unflatten(-1, groups).shape).flatten(2)
        to_x = gradient.mul_(factor.to(normed.dtype)).add_(_affine(normed, slope, constant))
        return to_x, _sum_to(to_gain, gain), _sum_to(to_offset, offset), None


def _norm_affine_silu(x: Tensor, gain: Tensor, offset: Tensor, num_groups: int) -> Tensor:
    """The forward pass alone on a processor, in two passes over each clip; x: (b, m, c); gain, offset: (b or 1, c)."""
    clips = []
    for clip, scale, shift in zip(x, gain.expand(len(x), -1), offset.expand(len(x), -1), strict=True):
        normed, _ = _group_norm(clip[None], scale, shift, num_groups)
        clips.append(F.silu(normed, inplace=True))
    return clips[0] if len(clips) == 1 else torch.cat(clips)


def _group_norm(x: Tensor, weight: Tensor, bias: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """torch's, for channels-last rows (b, m, c); the result and one over the standard deviations (b, groups)."""
    b, m, c = x.shape
    accumulated = torch.promote_types(x.dtype, torch.float32)
    image = x.view(b, m, 1, c).permute(0, 3, 1, 2)
    normed, _, inverse_std = torch.native_group_norm(
        image, weight.to(accumulated), bias.to(accumulated), b, c, m, num_groups, NORM_EPS
    )
    return normed.permute(0, 2, 3, 1).reshape(b, m, c), inverse_std


def _normalise(x: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Subtract each group's mean and divide by its standard deviation.

    Args:
        x: (b, m, c).
        num_groups: groups of neighbouring channels.

    Returns:
        The result, like x, and one over the standard deviations, (b, groups), at least float32.
    """
    if x.device.type != "cpu":
        return _normalise_by_moments(x, num_groups)
    # torch's forward reads channels-last rows on a processor 20 times faster than its var_mean.
    return _group_norm(x, torch.ones(x.shape[-1]), torch.zeros(x.shape[-1]), num_groups)


def _normalise_by_moments(x: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    grouped = x.unflatten(-1, (num_groups, -1)).to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(grouped, dim=(1, 3), correction=0, keepdim=True)
    inverse_std = (variance + NORM_EPS).rsqrt()
    return ((grouped - mean) * inverse_std).to(x.dtype).flatten(2), inverse_std[:, 0, :, 0]


def _affine(x: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    """x * gain + offset; x: (b, m, c); gain, offset: (b or 1, 1, c)."""
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
        """x: (b, t, h, w, c); embedding: (b, e), after its SiLU."""
        modulation = None if self.modulation is None else self.modulation(embedding)
        y = self.norm1(self.conv1(x), modulation)
        return self.norm2(self.conv2(y)) + self.skip(x)


class SpatialLinearAttention(nn.Module):
    """x + linear attention within each frame (1812.01243): softmax of q over channels, of k over positions.

    Values and outputs are linear in what the keys gather, so that both projections act on that, head by head, instead of
    on every position: softmax(q) ((softmax(k)^T y) Wv^T Wo^T) with y the normed input.
    """

    def __init__(self, channels: int, *, num_heads: int, head_dim: int):
        super().__init__()
        self.num_heads = num_heads
        self.scale = head_dim**-0.5
        self.norm = ChannelNorm(channels)
        self.to_qkv = nn.Linear(channels, 3 * num_heads * head_dim, bias=False)
        self.to_out = nn.Linear(num_heads * head_dim, channels)

    def forward(self, x: Tensor, run: RunBlock = plainly) -> Tensor:
        """x: (b, t, h, w, c); `run` gets one block after the other."""
        h, w = x.shape[2:4]
        rows = x.flatten(0, 1).flatten(1, 2)  # (b t, h w, c)
        return _in_blocks(lambda some: run(self._attend, some), rows, dim=0, rows=h * w).view(x.shape)

    def _attend(self, x: Tensor) -> Tensor:
        """x: (f, h w, c), some frames."""
        heads = (self.num_heads, -1)
        inner = self.to_out.in_features
        to_qk, to_v = self.to_qkv.weight.split((2 * inner, inner))
        to_out = self.scale * self.to_out.weight.T.unflatten(0, heads)  # (n, d, c)
        y = self.norm(x)
        qk = F.linear(y, to_qk)
        q, k = qk.chunk(2, dim=-1)  # (f, h w, n d)
        q = q.unflatten(-1, heads).softmax(dim=-1, dtype=torch.float32).to(qk.dtype).flatten(2)
        k = k.softmax(dim=1, dtype=torch.float32).to(qk.dtype)
        gathered = (k.transpose(1, 2) @ y).unflatten(1, heads)  # (f, n, d, c)
        mixed = (gathered @ to_v.unflatten(0, heads).transpose(1, 2)) @ to_out  # (f, n, d, c)
        return x + torch.baddbmm(self.to_out.bias, q, mixed.flatten(1, 2))


class SpatialAttention(nn.Module):
    """x + softmax attention within each frame."""

    def __init__(self, channels: int, *, num_heads: int, head_dim: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm = ChannelNorm(channels)
        self.to_qkv = nn.Linear(channels, 3 * num_heads * head_dim, bias=False)
        self.to_out = nn.Linear(num_heads * head_dim, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.to_qkv(self.norm(x))
        q, k, v = rearrange(qkv, "b t h w (k n d) -> k (b t) n (h w) d", k=3, n=self.num_heads)
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.to_out(rearrange(y, "(b t) n (h w) d -> b t h w (n d)", t=x.shape[1], h=x.shape[2]))


class TemporalAttention(nn.Module):
    """x + softmax attention of each pixel over the frames, with rotary and relative positions."""

    def __init__(self, channels: int, *, num_heads: int, head_dim: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm = ChannelNorm(channels)
        self.to_qkv = nn.Linear(channels, 3 * num_heads * head_dim, bias=False)
        self.to_out = nn.Linear(num_heads * head_dim, channels, bias=False)

    def forward(self, x: Tensor, geometry: FrameGeometry, run: RunBlock = plainly) -> Tensor:
        """x: (b, t, h, w, c); `run` gets one block after the other."""
        pixels = x.flatten(2, 3)  # (b, t, h w, c)
        rows = x.shape[0] * x.shape[1]
        return _in_blocks(lambda some: run(self._attend, some, geometry), pixels, dim=2, rows=rows).view(x.shape)

    def _attend(self, x: Tensor, geometry: FrameGeometry) -> Tensor:
        """x: (b, t, s, c), some pixels."""
        b, _, s, _ = x.shape
        y = self.norm(rearrange(x, "b t s c -> (b s) t c"))
        qkv = self.to_qkv(y).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (3, b s, n, t, d)
        q, k = _Rotate.apply(qkv[:2], geometry.cosine, geometry.sine)
        y = _biased_attention(q, k, qkv[2], geometry.bias.to(q.dtype))
        y = self.to_out(y.transpose(1, 2).flatten(2))
        return x + rearrange(y, "(b s) t c -> b t s c", b=b, s=s)


def _biased_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v; q, k, v: (s, n, t, d); bias: (1, n, t, t)."""
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    # Clips are short: two batched products take 0.7 of the time of torch's fused kernel here.
    scores = torch.baddbmm(
        bias.expand(len(q), -1, -1, -1).flatten(0, 1),
        q.flatten(0, 1),
        k.flatten(0, 1).transpose(1, 2),
        alpha=q.shape[-1] ** -0.5,
    )
    return (scores.softmax(dim=-1) @ v.flatten(0, 1)).view(q.shape)


class _Rotate(torch.autograd.Function):
    """Rotary position embedding (2104.09864), channel i paired with i + d/2; its gradient is turned back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """x: (..., t, d); cosine, sine: (t, d/2)."""
        ctx.save_for_backward(cosine, sine)
        return _turn(x, cosine, sine)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        return _turn(gradients[0], cosine, -sine), None, None


def _turn(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    cosine, sine = cosine.to(x.dtype), sine.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, first * sine + second * cosine), dim=-1)


class ChannelNorm(nn.Module):
    """Layer norm over channels with a gain and no bias."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, eps=NORM_EPS)


class RelativePositionBias(nn.Module):
    """One learned score per head and bucketed frame distance (T5, 1910.10683, section 2.1).

    Half of the buckets are for earlier keys (and the query itself), half for later ones; in each half the first half is
    one bucket per frame, the rest grow logarithmically up to `max_distance`, beyond which all share the last.
    """

    def __init__(self, *, num_buckets: int, max_distance: int, num_heads: int):
        super().__init__()
        self.max_distance = max_distance
        self.weight = nn.Parameter(torch.randn(num_buckets, num_heads))

    def forward(self, num_frames: int) -> Tensor:
        """(1, n, t, t) float32: row = query frame, column = key frame."""
        frames = torch.arange(num_frames, device=self.weight.device)
        buckets = self.buckets(frames[None, :] - frames[:, None])
        return self.weight.float()[buckets].permute(2, 0, 1)[None].contiguous()

    def buckets(self, offset: Tensor) -> Tensor:
        """Bucket of each key frame minus query frame, int64."""
        half = len(self.weight) // 2
        exact = half // 2
        distance = offset.abs()
        growth = (distance.clamp(min=1).double() / exact).log() / math.log(self.max_distance / exact)
        # The epsilon keeps distances on a boundary (16 frames: log 2 / log 4) in the bucket that starts there.
        far = (exact + (growth * (half - exact) + 1e-9).floor().long()).clamp(max=half - 1)
        return torch.where(distance < exact, distance, far) + half * (offset > 0)


def frame_geometry(num_frames: int, *, bias: RelativePositionBias, head_dim: int) -> FrameGeometry:
    """Relative-position bias and rotary turns (frequencies 10000^(-2i/d)) of `num_frames` frames, from frame 0."""
    table = bias(num_frames)
    exponents = torch.arange(0, head_dim, 2, device=table.device, dtype=torch.float32) / head_dim
    frames = torch.arange(num_frames, device=table.device, dtype=torch.float32)
    angles = frames[:, None] * ROTARY_PERIOD**-exponents
    return FrameGeometry(bias=table, cosine=angles.cos(), sine=angles.sin())


def _in_blocks(operation: Callable[[Tensor], Tensor], x: Tensor, *, dim: int, rows: int) -> Tensor:
    """`operation` on blocks of x along `dim`, each place of which is so many `rows`; in one on other devices."""
    if x.device.type != "cpu":
        return operation(x)
    places = BLOCK_ROWS * torch.get_num_threads() * torch.float32.itemsize // (x.element_size() * rows)
    return torch.cat([operation(block) for block in x.split(max(1, places), dim)], dim)


def _per_frame(operation: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    frames = operation(x.flatten(0, 1).permute(0, 3, 1, 2))  # (b t, c, h, w), channels last in memory
    return frames.permute(0, 2, 3, 1).contiguous().unflatten(0, x.shape[:2])
