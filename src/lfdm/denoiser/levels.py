"""The levels of the motion U-Net: what runs at each resolution, and the output heads.

Legend: b clips, t frames, h w size, c channels, e width of the embedding. Tensors are ``(b, t, h, w, c)``, as in
`lfdm.denoiser.blocks`.
"""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

from torch import Tensor, nn

from lfdm.config.models import UNetConfig
from lfdm.denoiser.attention import FrameGeometry, RunBlock, SpatialAttention, SpatialLinearAttention, TemporalAttention
from lfdm.denoiser.blocks import FrameConv2d, FrameConvTranspose2d, NearestUpsample, ResnetBlock


class Level(nn.Module):
    """The blocks of one resolution, then the change to the next one."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        num_resnets: int,
        num_groups: int,
        embedding_dim: int,
        spatial_attention: nn.Module | None,
        temporal_attention: nn.Module | None,
        resample: nn.Module | None,
    ):
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(
                in_channels if i == 0 else out_channels,
                out_channels,
                num_groups=num_groups,
                embedding_dim=embedding_dim,
            )
            for i in range(num_resnets)
        )
        self.spatial_attention = spatial_attention
        self.temporal_attention = temporal_attention
        self.resample = nn.Identity() if resample is None else resample

    def forward(self, x: Tensor, embedding: Tensor, geometry: FrameGeometry, run: RunBlock) -> tuple[Tensor, Tensor]:
        """(b, t, h, w, c), (b, e) -> the output at this resolution and at the next one; `run` applies each block."""
        for resnet in self.resnets:
            x = run(resnet, x, embedding)
        if self.spatial_attention is not None:
            x = self.spatial_attention(x, run)
        if self.temporal_attention is not None:
            x = self.temporal_attention(x, geometry, run)
        return x, self.resample(x)


class Middle(nn.Module):
    """The blocks of the coarsest resolution, with full attention in space and time."""

    def __init__(self, channels: int, *, num_groups: int, embedding_dim: int, num_heads: int, head_dim: int):
        super().__init__()
        self.resnet1 = ResnetBlock(channels, channels, num_groups=num_groups, embedding_dim=embedding_dim)
        self.spatial_attention = SpatialAttention(channels, num_heads=num_heads, head_dim=head_dim)
        self.temporal_attention = TemporalAttention(channels, num_heads=num_heads, head_dim=head_dim)
        self.resnet2 = ResnetBlock(channels, channels, num_groups=num_groups, embedding_dim=embedding_dim)

    def forward(self, x: Tensor, embedding: Tensor, geometry: FrameGeometry, run: RunBlock) -> Tensor:
        """(b, t, h, w, c), (b, e) -> (b, t, h, w, c)."""
        x = run(self.spatial_attention, run(self.resnet1, x, embedding))
        return run(self.resnet2, self.temporal_attention(x, geometry, run), embedding)


class Head(nn.Module):
    """One output: a residual block without the embedding, then a linear layer."""

    def __init__(self, in_channels: int, channels: int, out_channels: int, *, num_groups: int):
        super().__init__()
        self.resnet = ResnetBlock(in_channels, channels, num_groups=num_groups, embedding_dim=None)
        self.out = nn.Linear(channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, h, w, in_channels) -> (b, t, h, w, out_channels)."""
        return self.out(self.resnet(x))


def make_levels(config: UNetConfig) -> Iterator[tuple[Level, Level]]:
    """Yield the levels on the way down and on the way up, from the finest resolution to the coarsest."""
    widths = (config.dim, *(config.dim * multiplier for multiplier in config.channel_multipliers))
    last = len(config.channel_multipliers) - 1
    for i, (fine, coarse) in enumerate(itertools.pairwise(widths)):
        halve = None if i == last else partial(FrameConv2d, coarse, coarse, 4, stride=2, padding=1)
        double = None if i == 0 else partial(_upsampler, config.upsample, fine)
        yield _level(config, i, fine, coarse, halve), _level(config, i, 2 * coarse, fine, double)


def _level(config: UNetConfig, index: int, channels: int, out: int, resample: Callable[[], nn.Module] | None) -> Level:
    """Build a level; the order in which its parts are made decides their initial weights."""
    heads = {"num_heads": config.num_heads, "head_dim": config.head_dim}
    spatial, temporal = config.spatial_attention_levels, config.temporal_attention_levels
    return Level(
        channels,
        out,
        num_resnets=config.num_resnets,
        num_groups=config.num_groups,
        embedding_dim=4 * config.dim + config.condition_dim,
        spatial_attention=SpatialLinearAttention(out, **heads) if spatial is None or spatial[index] else None,
        temporal_attention=TemporalAttention(out, **heads) if temporal is None or temporal[index] else None,
        resample=None if resample is None else resample(),
    )


def _upsampler(kind: Literal["transpose", "nearest"], channels: int) -> nn.Module:
    if kind == "nearest":
        return NearestUpsample(channels)
    return FrameConvTranspose2d(channels, channels, 4, stride=2, padding=1)
