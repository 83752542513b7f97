"""The motion U-Net: what predicts noise, v or velocity for a clip's optical flow and occlusion.

Architecture after Video Diffusion Models (2204.03458) as latent flow diffusion uses it (2303.13744): convolutions and
spatial attention see one frame, temporal attention sees one pixel over all frames.

Legend: b clips, t frames, h w latent size, p patch size, q frame patch size, c channels, e width of the embedding (time,
then condition). Inside the network tensors are ``(b, t/q, h/p, w/p, c)``, as `frame_blocks` has them.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from torch import Tensor, nn

from lfdm.config.models import FLOW_CHANNELS, UNetConfig
from lfdm.denoiser.attention import (
    FrameGeometry,
    RelativePositionBias,
    RunBlock,
    SpatialAttention,
    SpatialLinearAttention,
    TemporalAttention,
    frame_geometry,
)
from lfdm.denoiser.blocks import FrameConv2d, FrameConvTranspose2d, NearestUpsample, ResnetBlock, is_transformed
from lfdm.denoiser.network import DenoiserContext, DenoiserNetwork
from lfdm.errors import UserError
from lfdm.folders.model_folder import checked_settings

TIMESTEP_PERIOD = 10_000


class Level(nn.Module):
    """The blocks of one resolution, then the change to the next one, if any."""

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
        """Its output at its own resolution and at the next one."""
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
        x = run(self.spatial_attention, run(self.resnet1, x, embedding))
        return run(self.resnet2, self.temporal_attention(x, geometry, run), embedding)


class Head(nn.Module):
    """One output: a residual block without the embedding, then a linear layer."""

    def __init__(self, in_channels: int, channels: int, out_channels: int, *, num_groups: int):
        super().__init__()
        self.resnet = ResnetBlock(in_channels, channels, num_groups=num_groups, embedding_dim=None)
        self.out = nn.Linear(channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.resnet(x))


class MotionUNet3D(DenoiserNetwork):
    """Predicts the diffusion target of a clip's motion from its noisy motion, the image latent and a condition.

    The defaults are the paper's network (2303.13744, 42.7 M parameters). The cost of a forward pass is nearly
    proportional to frames * positions * dim^2 / (patch_size^2 * frame_patch_size).

    The arguments are documented in `lfdm.config.models.UNetConfig`, which checks them.

    Raises:
        UserError: an argument is outside of what is allowed.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        *,
        sample_channels: int = 3,
        latent_channels: int = 256,
        condition_dim: int = 768,
        dim: int = 64,
        channel_multipliers: Sequence[int] = (1, 2, 4, 8),
        patch_size: int = 1,
        frame_patch_size: int = 1,
        num_heads: int = 8,
        head_dim: int = 32,
        num_groups: int = 8,
        num_resnets: int = 2,
        upsample: Literal["transpose", "nearest"] = "transpose",
        spatial_attention_levels: Sequence[bool] | None = None,
        temporal_attention_levels: Sequence[bool] | None = None,
        input_kernel: int = 7,
        separate_heads: bool = True,
        relative_position_buckets: int = 32,
        relative_position_max_distance: int = 32,
    ):
        super().__init__()
        settings = checked_settings(UNetConfig, self.config)
        num_levels = len(channel_multipliers)
        spatial = spatial_attention_levels or (True,) * num_levels
        temporal = temporal_attention_levels or (True,) * num_levels
        self.size_multiple = settings.size_multiple
        self.frame_multiple = frame_patch_size
        self.gradient_checkpointing = False
        self.dim = dim
        self.patch_size = patch_size
        self.frame_patch_size = frame_patch_size
        self.head_dim = head_dim
        folded = frame_patch_size * patch_size**2
        heads = {"num_heads": num_heads, "head_dim": head_dim}
        embedding_dim = 4 * dim + condition_dim
        blocks = {"num_groups": num_groups, "embedding_dim": embedding_dim}

        self.motion_in = FrameConv2d(sample_channels * folded, dim, input_kernel, padding=input_kernel // 2, bias=False)
        self.latent_in = nn.Conv2d(latent_channels * patch_size**2, dim, input_kernel, padding=input_kernel // 2)
        self.temporal_attention_in = TemporalAttention(dim, **heads) if temporal[0] else None
        self.time_embedding = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, 4 * dim))
        self.relative_position_bias = RelativePositionBias(
            num_buckets=relative_position_buckets, max_distance=relative_position_max_distance, num_heads=num_heads
        )

        widths = (dim, *(dim * m for m in channel_multipliers))
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        for i, (coarse_in, coarse_out) in enumerate(itertools.pairwise(widths)):
            last = i == num_levels - 1
            self.down.append(
                Level(
                    coarse_in,
                    coarse_out,
                    num_resnets=num_resnets,
                    spatial_attention=SpatialLinearAttention(coarse_out, **heads) if spatial[i] else None,
                    temporal_attention=TemporalAttention(coarse_out, **heads) if temporal[i] else None,
                    resample=None if last else FrameConv2d(coarse_out, coarse_out, 4, stride=2, padding=1),
                    **blocks,
                )
            )
            self.up.insert(
                0,
                Level(
                    2 * coarse_out,
                    coarse_in,
                    num_resnets=num_resnets,
                    spatial_attention=SpatialLinearAttention(coarse_in, **heads) if spatial[i] else None,
                    temporal_attention=TemporalAttention(coarse_in, **heads) if temporal[i] else None,
                    resample=None if i == 0 else _upsampler(upsample, coarse_in),
                    **blocks,
                ),
            )
        self.middle = Middle(widths[-1], **blocks, **heads)

        occlusion_channels = sample_channels - FLOW_CHANNELS
        splits = (FLOW_CHANNELS, occlusion_channels) if separate_heads else (sample_channels,)
        self.heads = nn.ModuleList(Head(2 * dim, dim, n * folded, num_groups=num_groups) for n in splits)

    def prepare(self, context: DenoiserContext) -> dict[str, Any]:
        """Return the keyword arguments of `forward`, besides the condition, that stay the same at every step of sampling."""
        embedding = self.embed_latent(context.latent.to(self.dtype))
        return {"latent_embedding": embedding, "attention_frames": context.attention_frames}

    def embed_latent(self, latent: Tensor) -> Tensor:
        """The image latent's part of the first convolution, which no frame and no timestep changes.

        Args:
            latent: (b, latent_channels, h, w).

        Returns:
            (b, dim, h/p, w/p), for `forward(..., latent_embedding=...)`.

        Raises:
            UserError: the shape does not fit.
        """
        channels = self.config["latent_channels"]
        if latent.ndim != 4 or latent.shape[1] != channels:
            raise UserError(f"latent has shape {tuple(latent.shape)}; allowed: (b, {channels}, h, w)")
        self._check_size("latent", *latent.shape[-2:])
        patches = F.pixel_unshuffle(latent, self.patch_size)  # (b, c p p, h/p, w/p)
        return self.latent_in(patches.contiguous(memory_format=torch.channels_last))

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        condition: Tensor,
        latent: Tensor | None = None,
        *,
        latent_embedding: Tensor | None = None,
        attention_frames: int | None = None,
    ) -> Tensor:
        """Predict the diffusion target.

        Args:
            sample: (b, sample_channels, t, h, w), noisy motion, any t from 1.
            timestep: one for all or (b,), on the schedule's scale of 0 to 1000.
            condition: (k b, condition_dim), k conditions of every sample: the first of all samples, then the second, ...
                What does not depend on them, up to the first attention over frames, is computed once.
            latent: (b, latent_channels, h, w), the image latent; or else
            latent_embedding: (b, dim, h/p, w/p), what `embed_latent` made of it.
            attention_frames: how many frames around it each frame attends to, for clips longer than those of training; None =
                all.

        Returns:
            (k b, sample_channels, t, h, w), in the order of `condition` and the channel order of `sample`.

        Raises:
            UserError: a shape does not fit, or not exactly one of `latent` and `latent_embedding` is given.
        """
        if (latent is None) == (latent_embedding is None):
            got = "neither" if latent is None else "both"
            raise UserError(f"got {got} of latent and latent_embedding; allowed: exactly one")
        self._check_inputs(sample, condition)
        if latent_embedding is None:
            assert latent is not None
            latent_embedding = self.embed_latent(latent)
        self._check_latent_embedding(latent_embedding, sample)

        embedding = self._embed(timestep, condition, batch_size=len(sample))  # (k b, e)
        patches = self._fold(sample)  # (b, t/q, h/p, w/p, c q p p)
        geometry = frame_geometry(
            patches.shape[1],
            bias=self.relative_position_bias,
            head_dim=self.head_dim,
            attention_frames=attention_frames and math.ceil(attention_frames / self.frame_patch_size),
        )
        x = self.motion_in(patches) + latent_embedding.permute(0, 2, 3, 1)[:, None]  # (b, t/q, h/p, w/p, dim)
        stem = x
        if self.temporal_attention_in is not None:
            x = self.temporal_attention_in(x, geometry, self._run)
        if len(condition) > len(sample):
            x, stem = (z.repeat(len(condition) // len(sample), 1, 1, 1, 1) for z in (x, stem))

        skips = []
        for level in self.down:
            skip, x = level(x, embedding, geometry, self._run)
            skips.append(skip)
        x = self.middle(x, embedding, geometry, self._run)
        for level in self.up:
            _, x = level(torch.cat((x, skips.pop()), dim=-1), embedding, geometry, self._run)

        x = torch.cat((x, stem), dim=-1)  # (k b, t/q, h/p, w/p, 2 dim)
        outputs = torch.cat([self._run(head, x) for head in self.heads], dim=-1)
        return self._unfold(outputs)[:, :, : sample.shape[2]]

    def _fold(self, sample: Tensor) -> Tensor:
        """Patches of frames and positions as channels; a last patch that is not full repeats the last frame."""
        p, q = self.patch_size, self.frame_patch_size
        missing = -sample.shape[2] % q
        if missing:
            sample = torch.cat((sample, sample[:, :, -1:].expand(-1, -1, missing, -1, -1)), dim=2)
        return rearrange(sample, "b c (t k) (h i) (w j) -> b t h w (c k i j)", k=q, i=p, j=p)

    def _unfold(self, patches: Tensor) -> Tensor:
        p, q = self.patch_size, self.frame_patch_size
        return rearrange(patches, "b t h w (c k i j) -> b c (t k) (h i) (w j)", k=q, i=p, j=p)

    def _run(self, operation: Callable[..., Tensor], *inputs: Tensor | FrameGeometry) -> Tensor:
        """The output of a block; with gradient checkpointing, its inside is computed again in the backward pass."""
        checkpoint = self._gradient_checkpointing_func
        if checkpoint is None or not (self.gradient_checkpointing and torch.is_grad_enabled()) or is_transformed():
            return operation(*inputs)
        return checkpoint(operation, *inputs)

    def _embed(self, timestep: Tensor | float, condition: Tensor, *, batch_size: int) -> Tensor:
        """Time, then condition, after the SiLU that comes before every modulation: (b, 4 dim + condition_dim)."""
        precision = torch.promote_types(self.dtype, torch.float32)
        time = torch.as_tensor(timestep, dtype=precision, device=condition.device)
        if time.ndim > 1 or (time.ndim == 1 and len(time) not in (1, batch_size)):
            raise UserError(f"timestep has shape {tuple(time.shape)}; allowed: () or ({batch_size},)")
        half = self.dim // 2
        index = torch.arange(half, dtype=precision, device=time.device)
        angles = time.reshape(-1, 1) * torch.exp(index * (-math.log(TIMESTEP_PERIOD) / (half - 1)))
        waves = torch.cat((angles.sin(), angles.cos()), dim=-1).expand(batch_size, -1)
        time_embedding = self.time_embedding(waves.to(self.dtype)).repeat(len(condition) // batch_size, 1)
        return F.silu(torch.cat((time_embedding, condition.to(time_embedding.dtype)), dim=-1))

    def _check_inputs(self, sample: Tensor, condition: Tensor) -> None:
        channels, width = self.config["sample_channels"], self.config["condition_dim"]
        if sample.ndim != 5 or sample.shape[1] != channels or len(sample) < 1 or sample.shape[2] < 1:
            raise UserError(f"sample has shape {tuple(sample.shape)}; allowed: (b, {channels}, t, h, w) with b, t >= 1")
        if condition.ndim != 2 or condition.shape[1] != width or len(condition) < 1 or len(condition) % len(sample):
            allowed = f"({len(sample)}, {width}), or a multiple of {len(sample)} rows"
            raise UserError(f"condition has shape {tuple(condition.shape)}; allowed: {allowed}")
        self._check_size("sample", *sample.shape[-2:])

    def _check_size(self, name: str, height: int, width: int) -> None:
        multiple = self.size_multiple
        if height < 1 or width < 1 or height % multiple or width % multiple:
            raise UserError(f"{name} has size {height}x{width}; allowed: multiples of {multiple}")

    def _check_latent_embedding(self, latent_embedding: Tensor, sample: Tensor) -> None:
        p = self.patch_size
        allowed = (len(sample), self.dim, sample.shape[3] // p, sample.shape[4] // p)
        if latent_embedding.shape != allowed:
            raise UserError(
                f"latent or latent_embedding does not fit the sample {tuple(sample.shape)}: its embedding has shape "
                f"{tuple(latent_embedding.shape)}; allowed: {allowed}"
            )


def _upsampler(kind: Literal["transpose", "nearest"], channels: int) -> nn.Module:
    if kind == "nearest":
        return NearestUpsample(channels)
    return FrameConvTranspose2d(channels, channels, 4, stride=2, padding=1)
