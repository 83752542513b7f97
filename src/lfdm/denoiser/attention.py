"""The attention layers of the motion U-Net, on clips stored frame by frame with channels last.

Legend: b clips, t frames, h w size, c channels, n heads, d channels of a head. Tensors are ``(b, t, h, w, c)`` and
contiguous, as in `lfdm.denoiser.blocks`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from lfdm.denoiser.blocks import NORM_EPS, is_transformed
from lfdm.errors import UserError
from lfdm.motion.tracing import is_exporting

RunBlock = Callable[..., Tensor]
"""Applies a module or method to its inputs, `directly` or with gradient checkpointing."""

ROTARY_PERIOD = 10_000.0
BLOCK_ROWS = 1280
"""Rows (pixels of frames) that each CPU thread processes at a time in float32, and twice as many in bfloat16: few enough that
the wide tensors of attention stay in the cache, enough to keep every thread busy."""

MAX_FUSED_BATCH = 65_535
"""Largest batch of torch's fused kernels (a side of a CUDA grid); above it torch 2.6 fails and later versions are slower."""


def directly(operation: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """Return `operation(*inputs)`: the `RunBlock` without gradient checkpointing."""
    return operation(*inputs)


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameGeometry:
    """The positions of frames, shared by all temporal attention layers of a forward pass."""

    bias: Tensor
    """(1, n, t, t), added to the scores; row = query frame, column = key frame; -inf = no attention."""
    cosine: Tensor
    """(t, d/2), rotary position embedding of each frame."""
    sine: Tensor
    """(t, d/2)."""


class SpatialLinearAttention(nn.Module):
    """x + linear attention within each frame (1812.01243): softmax of q over channels, of k over positions.

    Both projections, of values and of outputs, are linear. They are therefore applied to the d x c matrix that the keys
    gather for each head instead of to every position: softmax(q) ((softmax(k)^T y) Wv^T Wo^T), with y the normalized input.
    """

    def __init__(self, channels: int, *, num_heads: int, head_dim: int):
        super().__init__()
        self.num_heads = num_heads
        self.scale = head_dim**-0.5
        self.norm = ChannelNorm(channels)
        self.to_qkv = nn.Linear(channels, 3 * num_heads * head_dim, bias=False)
        self.to_out = nn.Linear(num_heads * head_dim, channels)

    def forward(self, x: Tensor, run: RunBlock = directly) -> Tensor:
        """(b, t, h, w, c) -> the same; `run` applies each block."""
        h, w = x.shape[2:4]
        rows = x.flatten(0, 1).flatten(1, 2)  # (b t, h w, c)
        return _in_blocks(lambda block: run(self._attend, block), rows, dim=0, rows=h * w).view(x.shape)

    def _attend(self, x: Tensor) -> Tensor:
        """(f, h w, c) -> the same, for some frames."""
        heads = (self.num_heads, -1)
        inner = self.to_out.in_features
        to_qk, to_v = self.to_qkv.weight.split((2 * inner, inner))
        to_out = self.scale * self.to_out.weight.T.unflatten(0, heads)  # (n, d, c)
        y = self.norm(x)
        qk = F.linear(y, to_qk)
        q, k = qk.chunk(2, dim=-1)  # (f, h w, n d)
        precision = torch.promote_types(qk.dtype, torch.float32)
        q = q.unflatten(-1, heads).softmax(dim=-1, dtype=precision).to(qk.dtype).flatten(2)
        k = k.softmax(dim=1, dtype=precision).to(qk.dtype)
        gathered = (k.transpose(1, 2) @ y).unflatten(1, heads)  # (f, n, d, c)
        mixed = (gathered @ to_v.unflatten(0, heads).transpose(1, 2)) @ to_out  # (f, n, d, c)
        return x + torch.baddbmm(self.to_out.bias, q, mixed.flatten(1, 2))


class _SoftmaxAttention(nn.Module):
    """The layers of softmax attention over positions or frames."""

    def __init__(self, channels: int, *, num_heads: int, head_dim: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm = ChannelNorm(channels)
        self.to_qkv = nn.Linear(channels, 3 * num_heads * head_dim, bias=False)
        self.to_out = nn.Linear(num_heads * head_dim, channels, bias=False)


class SpatialAttention(_SoftmaxAttention):
    """x + softmax attention within each frame."""

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, h, w, c) -> the same."""
        qkv = self.to_qkv(self.norm(x))
        q, k, v = rearrange(qkv, "b t h w (k n d) -> k (b t) n (h w) d", k=3, n=self.num_heads)
        y = _attention(q, k, v)
        return x + self.to_out(rearrange(y, "(b t) n (h w) d -> b t h w (n d)", t=x.shape[1], h=x.shape[2]))


class TemporalAttention(_SoftmaxAttention):
    """x + softmax attention of each pixel over the frames, with rotary and relative positions."""

    def forward(self, x: Tensor, geometry: FrameGeometry, run: RunBlock = directly) -> Tensor:
        """(b, t, h, w, c) -> the same; `run` applies each block."""
        pixels = x.flatten(2, 3)  # (b, t, h w, c)
        rows = x.shape[0] * x.shape[1]
        return _in_blocks(lambda block: run(self._attend, block, geometry), pixels, dim=2, rows=rows).view(x.shape)

    def _attend(self, x: Tensor, geometry: FrameGeometry) -> Tensor:
        """(b, t, s, c) -> the same, for some pixels."""
        b, _, s, _ = x.shape
        y = self.norm(rearrange(x, "b t s c -> (b s) t c"))
        qkv = self.to_qkv(y).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (3, b s, n, t, d)
        rotate = _rotate if is_transformed() else _Rotate.apply
        q, k = rotate(qkv[:2], geometry.cosine, geometry.sine)
        y = _attention(q, k, qkv[2], geometry.bias.to(q.dtype))
        y = self.to_out(y.transpose(1, 2).flatten(2))
        return x + rearrange(y, "(b s) t c -> b t s c", b=b, s=s)


def _attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return softmax(q k^T / sqrt(d) + bias) v; q, k, v: (s, n, t, d); bias: (1, n, t, t).

    torch's fused kernels have first derivatives in reverse mode only. On the CPU, plain products have all derivatives and
    are faster for short clips (0.7 of the time); second derivatives on other devices need
    `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`.
    """
    on_cpu = q.device.type == "cpu"
    if not (is_transformed() or (on_cpu and (bias is not None or torch.is_grad_enabled()))):
        return _fused_attention(q, k, v, bias)
    queries, keys, scale = q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), q.shape[-1] ** -0.5
    if bias is None:
        scores = scale * (queries @ keys)
    else:
        scores = torch.baddbmm(bias.expand(q.shape[0], -1, -1, -1).flatten(0, 1), queries, keys, alpha=scale)
    return (scores.softmax(dim=-1) @ v.flatten(0, 1)).view(q.shape)


def _fused_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *, largest: int = MAX_FUSED_BATCH) -> Tensor:
    """Return `_attention` by torch's kernel, for at most `largest` sequences at a time."""
    if len(q) <= largest:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    parts = zip(*(x.split(largest) for x in (q, k, v)), strict=True)
    return torch.cat([F.scaled_dot_product_attention(*part, attn_mask=bias) for part in parts])


class _Rotate(torch.autograd.Function):
    """Rotary position embedding (2104.09864), channel i paired with i + d/2; the gradient is rotated back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """x: (..., t, d) -> the same; cosine, sine: (t, d/2)."""
        ctx.save_for_backward(cosine, sine)
        return _rotate(x, cosine, sine)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        return _rotate(gradients[0], cosine, -sine), None, None


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    cosine, sine = cosine.to(x.dtype), sine.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, first * sine + second * cosine), dim=-1)


class ChannelNorm(nn.Module):
    """Layer norm over channels with a gain and no bias."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(..., c) -> the same."""
        return F.layer_norm(x, self.weight.shape, self.weight, eps=NORM_EPS)


class RelativePositionBias(nn.Module):
    """A learned score per head and bucket of frame distance (T5, 1910.10683, section 2.1).

    Half of the buckets are for the query's own and earlier frames, half for later ones. In each half, the first half of the
    buckets covers one distance each, the rest grow logarithmically, and the last one covers all beyond `max_distance`.
    """

    def __init__(self, *, num_buckets: int, max_distance: int, num_heads: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_buckets, num_heads))
        starts = torch.tensor(_bucket_starts(num_buckets // 2, max_distance))
        self.register_buffer("starts", starts, persistent=False)
        self.starts: Tensor

    def forward(self, num_frames: int) -> Tensor:
        """Return the scores (1, n, t, t) float32; row = query frame, column = key frame."""
        frames = torch.arange(num_frames, device=self.weight.device)
        buckets = self.buckets(frames[None, :] - frames[:, None])
        return self.weight.float()[buckets].permute(2, 0, 1)[None].contiguous()

    def buckets(self, offset: Tensor) -> Tensor:
        """Return the bucket of each key frame minus query frame, int64."""
        half = len(self.weight) // 2
        return torch.bucketize(offset.abs(), self.starts, right=True) + half * (offset > 0)


def _bucket_starts(count: int, max_distance: int) -> list[int]:
    """Return the smallest distance of each of `count` buckets but the first, which starts at 0."""
    exact = count // 2
    distance = np.arange(exact, max_distance + 1)
    growth = np.log(distance / exact) / math.log(max_distance / exact)
    # The epsilon keeps distances on a boundary (16 frames: log 2 / log 4) in the bucket that starts there.
    bucket = exact + np.floor(growth * (count - exact) + 1e-9)
    return [*range(1, exact), *(int(distance[np.argmax(bucket >= number)]) for number in range(exact, count))]


def frame_geometry(
    num_frames: int, *, bias: RelativePositionBias, head_dim: int, attention_frames: int | None = None
) -> FrameGeometry:
    """Return the relative-position bias and rotary embedding (frequencies 10000^(-2i/d)) of the frames of a clip.

    Args:
        attention_frames: number of frames around it that each frame attends to, at a clip's ends the first or last ones;
            None = all. With the number of frames in training, a network meets no new distances or numbers of keys.

    Raises:
        UserError: `attention_frames` below 1.
    """
    if attention_frames is not None and attention_frames < 1:
        raise UserError(f"attention_frames must be at least 1, or None for all; got {attention_frames}")
    table = bias(num_frames)
    if attention_frames is not None and (is_exporting() or attention_frames < num_frames):
        table = table.masked_fill(~_around(num_frames, attention_frames, table.device), -math.inf)
    exponents = torch.arange(0, head_dim, 2, device=table.device, dtype=torch.float32) / head_dim
    frames = torch.arange(num_frames, device=table.device, dtype=torch.float32)
    angles = frames[:, None] * ROTARY_PERIOD**-exponents
    return FrameGeometry(bias=table, cosine=angles.cos(), sine=angles.sin())


def _around(num_frames: int, count: int, device: torch.device) -> Tensor:
    """Return (t, t) bool: whether the key frame (column) is among the `count` frames around the query frame (row)."""
    frames = torch.arange(num_frames, device=device)
    first = (frames - count // 2).clamp(0, torch.sym_max(num_frames - count, 0))[:, None]
    return (frames >= first) & (frames < first + count)


def _in_blocks(operation: Callable[[Tensor], Tensor], x: Tensor, *, dim: int, rows: int) -> Tensor:
    """Apply `operation` to blocks of x along `dim`, each index of which has `rows` rows; on a GPU or in an export, to all."""
    if x.device.type != "cpu" or is_exporting():
        return operation(x)
    places = BLOCK_ROWS * torch.get_num_threads() * torch.float32.itemsize // (x.element_size() * rows)
    return torch.cat([operation(block) for block in x.split(max(1, places), dim)], dim)
