"""The motion U-Net in its textbook form, with the weights of a `MotionUNet3D`.

As in Video Diffusion Models (2204.03458): clips are ``(b, c, t, h, w)``, every convolution is a `Conv3d`,
attention is two einsums around a softmax of stored scores, and the image latent is repeated over frames and concatenated at
every step.

Legend: b clips, t frames, h w size, c channels, e width of the embedding, n heads, d channels of a head.
"""

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from lfdm.config.models import FLOW_CHANNELS
from lfdm.denoiser.unet3d import MotionUNet3D


class PlainUNet(nn.Module):
    """The same function as `unet`, on copies of its weights.

    Raises:
        RuntimeError: parameter names or shapes differ.
    """

    def __init__(self, unet: MotionUNet3D):
        super().__init__()
        config: Any = unet.config
        self.patch, self.dim, self.head_dim = config["patch_size"], config["dim"], config["head_dim"]
        self.max_distance = config["relative_position_max_distance"]
        patch_area = self.patch**2
        self.channels = config["sample_channels"] * patch_area
        multipliers = tuple(config["channel_multipliers"])
        spatial = config["spatial_attention_levels"] or (True,) * len(multipliers)
        temporal = config["temporal_attention_levels"] or (True,) * len(multipliers)
        widths = (self.dim, *(self.dim * multiplier for multiplier in multipliers))
        kernel, inputs = config["input_kernel"], self.channels + config["latent_channels"] * patch_area

        self.conv_in = _frame_conv(inputs, self.dim, kernel, padding=kernel // 2)
        self.temporal_attention_in = _TemporalAttention(self.dim, config) if temporal[0] else None
        self.time_embedding = nn.Sequential(nn.Linear(self.dim, 4 * self.dim), nn.GELU(), nn.Linear(4 * self.dim, 4 * self.dim))
        self.relative_position_bias = nn.Embedding(config["relative_position_buckets"], config["num_heads"])
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for i in range(len(multipliers)):
            fine, coarse, last = widths[i], widths[i + 1], i == len(multipliers) - 1
            resample = None if last else _frame_conv(coarse, coarse, 4, stride=2, padding=1)
            self.down.append(_Level(fine, coarse, config, spatial[i], temporal[i], resample))
            resample = None if i == 0 else _upsampler(fine, config["upsample"])
            self.up.insert(0, _Level(2 * coarse, fine, config, spatial[i], temporal[i], resample))
        self.middle = _Middle(widths[-1], config)
        outputs = (FLOW_CHANNELS, config["sample_channels"] - FLOW_CHANNELS)
        splits = outputs if config["separate_heads"] else (sum(outputs),)
        self.heads = nn.ModuleList(_Head(2 * self.dim, self.dim, n * patch_area, config) for n in splits)
        self.load_state_dict(_textbook_weights(unet, self.state_dict()))
        self.to(unet.device, unet.dtype)

    def forward(self, sample: Tensor, timestep: Tensor, condition: Tensor, latent: Tensor) -> Tensor:
        """Predict (b, 3, t, h, w) from sample (b, 3, t, h, w), timestep () or (b,), condition (b, d) and latent (b, c, h, w)."""
        frames = sample.shape[2]
        latent = repeat(latent, "b c h w -> b c t h w", t=frames)
        x = torch.cat((self._to_patches(sample), self._to_patches(latent)), dim=1)
        embedding = torch.cat((self._embed_time(timestep, len(sample)), condition), dim=-1)
        bias = self._position_bias(frames)

        x = self.conv_in(x)
        stem = x
        if self.temporal_attention_in is not None:
            x = self.temporal_attention_in(x, bias)
        skips = []
        for level in self.down:
            skip, x = level(x, embedding, bias)
            skips.append(skip)
        x = self.middle(x, embedding, bias)
        for level in self.up:
            _, x = level(torch.cat((x, skips.pop()), dim=1), embedding, bias)
        x = torch.cat((x, stem), dim=1)
        return self._from_patches(torch.cat([head(x) for head in self.heads], dim=1))

    def _to_patches(self, x: Tensor) -> Tensor:
        return rearrange(x, "b c t (h i) (w j) -> b (c i j) t h w", i=self.patch, j=self.patch)

    def _from_patches(self, x: Tensor) -> Tensor:
        return rearrange(x, "b (c i j) t h w -> b c t (h i) (w j)", i=self.patch, j=self.patch)

    def _embed_time(self, timestep: Tensor, batch: int) -> Tensor:
        half = self.dim // 2
        frequencies = torch.exp(torch.arange(half, device=timestep.device) * (-math.log(10_000) / (half - 1)))
        angles = timestep.float().expand(batch)[:, None] * frequencies
        waves = torch.cat((angles.sin(), angles.cos()), dim=-1)
        return self.time_embedding(waves.to(self.relative_position_bias.weight.dtype))

    def _position_bias(self, frames: int) -> Tensor:
        """Return (n, t, t): one score per head and bucketed distance (T5, 1910.10683), row = query, column = key."""
        position = torch.arange(frames, device=self.relative_position_bias.weight.device)
        offset = position[None, :] - position[:, None]
        half = self.relative_position_bias.num_embeddings // 2
        exact = half // 2
        distance = offset.abs()
        ratio = (distance.clamp(min=1).double() / exact).log() / math.log(self.max_distance / exact)
        far = (exact + (ratio * (half - exact) + 1e-9).floor().long()).clamp(max=half - 1)
        bucket = torch.where(distance < exact, distance, far) + half * (offset > 0)
        return rearrange(self.relative_position_bias(bucket), "i j n -> n i j")


class _Level(nn.Module):
    def __init__(
        self, in_channels: int, out_channels: int, config: Any, spatial: bool, temporal: bool, resample: nn.Module | None
    ):
        super().__init__()
        widths = (in_channels, *(out_channels,) * config["num_resnets"])
        self.resnets = nn.ModuleList(_ResnetBlock(a, b, config) for a, b in pairwise(widths))
        self.spatial_attention = _SpatialLinearAttention(out_channels, config) if spatial else None
        self.temporal_attention = _TemporalAttention(out_channels, config) if temporal else None
        self.resample = nn.Identity() if resample is None else resample

    def forward(self, x: Tensor, embedding: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        for resnet in self.resnets:
            x = resnet(x, embedding)
        if self.spatial_attention is not None:
            x = self.spatial_attention(x)
        if self.temporal_attention is not None:
            x = self.temporal_attention(x, bias)
        return x, self.resample(x)


class _Middle(nn.Module):
    def __init__(self, channels: int, config: Any):
        super().__init__()
        self.resnet1 = _ResnetBlock(channels, channels, config)
        self.spatial_attention = _SpatialAttention(channels, config)
        self.temporal_attention = _TemporalAttention(channels, config)
        self.resnet2 = _ResnetBlock(channels, channels, config)

    def forward(self, x: Tensor, embedding: Tensor, bias: Tensor) -> Tensor:
        x = self.spatial_attention(self.resnet1(x, embedding))
        return self.resnet2(self.temporal_attention(x, bias), embedding)


class _Head(nn.Module):
    def __init__(self, in_channels: int, channels: int, out_channels: int, config: Any):
        super().__init__()
        self.resnet = _ResnetBlock(in_channels, channels, config, embedded=False)
        self.out = nn.Conv3d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.resnet(x))


class _ResnetBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, config: Any, *, embedded: bool = True):
        super().__init__()
        embedding_dim = 4 * config["dim"] + config["condition_dim"]
        self.modulation = nn.Linear(embedding_dim, 2 * out_channels) if embedded else None
        self.conv1 = _frame_conv(in_channels, out_channels, 3, padding=1)
        self.norm1 = nn.GroupNorm(config["num_groups"], out_channels)
        self.conv2 = _frame_conv(out_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(config["num_groups"], out_channels)
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv3d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        y = self.norm1(self.conv1(x))
        if self.modulation is not None and embedding is not None:
            scale, shift = rearrange(self.modulation(F.silu(embedding)), "b c -> b c 1 1 1").chunk(2, dim=1)
            y = y * (scale + 1) + shift
        y = F.silu(self.norm2(self.conv2(F.silu(y))))
        return y + self.skip(x)


class _ChannelNorm(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt() * self.weight.view(1, -1, 1, 1, 1)


class _SpatialLinearAttention(nn.Module):
    def __init__(self, channels: int, config: Any):
        super().__init__()
        self.num_heads, inner = config["num_heads"], config["num_heads"] * config["head_dim"]
        self.scale = config["head_dim"] ** -0.5
        self.norm = _ChannelNorm(channels)
        self.to_qkv = nn.Conv2d(channels, 3 * inner, 1, bias=False)
        self.to_out = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, _, h, w = x.shape
        frames = rearrange(self.norm(x), "b c t h w -> (b t) c h w")
        qkv = self.to_qkv(frames).chunk(3, dim=1)
        q, k, v = (rearrange(part, "b (n d) h w -> b n d (h w)", n=self.num_heads) for part in qkv)
        q, k = q.softmax(dim=-2) * self.scale, k.softmax(dim=-1)
        context = torch.einsum("b n d i, b n e i -> b n d e", k, v)
        y = torch.einsum("b n d e, b n d i -> b n e i", context, q)
        y = self.to_out(rearrange(y, "b n e (h w) -> b (n e) h w", h=h, w=w))
        return x + rearrange(y, "(b t) c h w -> b c t h w", b=b)


class _Attention(nn.Module):
    """Softmax attention of (..., s, c) over s."""

    def __init__(self, channels: int, config: Any):
        super().__init__()
        self.num_heads, inner = config["num_heads"], config["num_heads"] * config["head_dim"]
        self.scale = config["head_dim"] ** -0.5
        self.norm = _ChannelNorm(channels)
        self.to_qkv = nn.Linear(channels, 3 * inner, bias=False)
        self.to_out = nn.Linear(inner, channels, bias=False)

    def attend(self, x: Tensor, bias: Tensor | None) -> Tensor:
        qkv = self.to_qkv(x).chunk(3, dim=-1)
        q, k, v = (rearrange(part, "... s (n d) -> ... n s d", n=self.num_heads) for part in qkv)
        q = q * self.scale
        if bias is not None:
            q, k = _rotate(q), _rotate(k)
        scores = torch.einsum("... n i d, ... n j d -> ... n i j", q, k)
        if bias is not None:
            scores = scores + bias
        y = torch.einsum("... n i j, ... n j d -> ... n i d", scores.softmax(dim=-1), v)
        return self.to_out(rearrange(y, "... n s d -> ... s (n d)"))


class _SpatialAttention(_Attention):
    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        y = self.attend(rearrange(self.norm(x), "b c t h w -> b t (h w) c"), None)
        return x + rearrange(y, "b t (h w) c -> b c t h w", h=h, w=w)


class _TemporalAttention(_Attention):
    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        y = self.attend(rearrange(self.norm(x), "b c t h w -> b (h w) t c"), bias)
        return x + rearrange(y, "b (h w) t c -> b c t h w", h=h, w=w)


def _rotate(x: Tensor) -> Tensor:
    """Apply rotary positions (2104.09864) to (..., t, d); channel i is paired with i + d/2, as our weights are stored."""
    t, d = x.shape[-2:]
    frequencies = 10_000 ** (-torch.arange(0, d, 2, device=x.device, dtype=torch.float32) / d)
    angles = torch.arange(t, device=x.device)[:, None] * frequencies
    cosine, sine = (torch.cat((turn, turn), dim=-1).to(x.dtype) for turn in (angles.cos(), angles.sin()))
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((-second, first), dim=-1) * sine


def _frame_conv(in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, padding: int = 0) -> nn.Conv3d:
    return nn.Conv3d(in_channels, out_channels, (1, kernel, kernel), (1, stride, stride), (0, padding, padding))


def _upsampler(channels: int, kind: str) -> nn.Module:
    if kind == "nearest":
        return _NearestUpsample(channels)
    return nn.ConvTranspose3d(channels, channels, (1, 4, 4), (1, 2, 2), (0, 1, 1))


class _NearestUpsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = _frame_conv(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=(1, 2, 2), mode="nearest")
        return self.conv(F.pad(x, (1, 1, 1, 1, 0, 0), mode="reflect"))


def _textbook_weights(unet: MotionUNet3D, shapes: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of `unet` in the textbook's shapes: kernels gain axes of length 1, the stem is one kernel."""
    weights = {name: value.detach().contiguous() for name, value in unet.state_dict().items()}
    motion, latent = weights.pop("motion_in.weight"), weights.pop("latent_in.weight")
    weights["conv_in.weight"] = torch.cat((motion, latent), dim=1)
    weights["conv_in.bias"] = weights.pop("latent_in.bias")
    for name, value in weights.items():
        shape = shapes[name].shape if name in shapes else value.shape
        if value.numel() == shape.numel():
            weights[name] = value.reshape(shape)
    return weights
