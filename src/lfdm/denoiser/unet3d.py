"""The motion U-Net: predicts noise, v or velocity for the optical flow and occlusion of a clip.

Architecture after Video Diffusion Models (2204.03458) as latent flow diffusion uses it (2303.13744): convolutions and
spatial attention see one frame, temporal attention sees one pixel over all frames.

Legend: b clips, t frames, h w latent size, p patch size, c channels, e width of the embedding (time, then condition), k
conditions of a sample. Inside the network tensors are ``(b, t, h/p, w/p, c)``, as in `lfdm.denoiser.blocks`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lfdm.config.diffusion import NUM_TRAIN_TIMESTEPS
from lfdm.config.models import FLOW_CHANNELS, TRACK_CHANNELS, UNetConfig
from lfdm.config.registration import register_to_config
from lfdm.denoiser.attention import FrameGeometry, RelativePositionBias, TemporalAttention, frame_geometry
from lfdm.denoiser.blocks import FrameConv2d, ResnetBlock, is_transformed, sinusoids
from lfdm.denoiser.levels import Head, Middle, make_levels
from lfdm.denoiser.network import DenoiserContext, DenoiserNetwork
from lfdm.denoiser.track_inputs import TrackInputs
from lfdm.errors import UserError
from lfdm.folders.model_folder import checked_settings


class MotionUNet3D(DenoiserNetwork):
    """Predicts the diffusion target of a clip's motion from its noisy motion, the image latent and a condition.

    The defaults are the paper's network (2303.13744, 42.7 M parameters). The cost of a forward pass is nearly
    proportional to frames * positions * dim^2 / patch_size^2.

    The arguments are documented in `lfdm.config.models.UNetConfig`, which checks them.

    Raises:
        UserError: an argument that is not allowed.
    """

    blocks = (ResnetBlock,)

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
        num_heads: int = 8,
        head_dim: int = 32,
        num_groups: int = 8,
        num_resnets: int = 2,  # noqa: ARG002 - read from the registered configuration, as are the next two
        upsample: Literal["transpose", "nearest"] = "transpose",  # noqa: ARG002
        spatial_attention_levels: Sequence[bool] | None = None,  # noqa: ARG002
        temporal_attention_levels: Sequence[bool] | None = None,
        input_kernel: int = 7,
        separate_heads: bool = True,
        relative_position_buckets: int = 32,
        relative_position_max_distance: int = 32,
        flow_map: bool = False,
        max_guidance: float | None = None,
        track_inputs: bool = False,
    ):
        super().__init__()
        settings = checked_settings(UNetConfig, self.config)
        self.size_multiple = settings.size_multiple
        self.flow_map, self.max_guidance, self.track_inputs = flow_map, max_guidance, track_inputs
        self.gradient_checkpointing = False
        self.dim, self.patch_size, self.head_dim = dim, patch_size, head_dim
        heads = {"num_heads": num_heads, "head_dim": head_dim}
        area, padding = patch_size**2, input_kernel // 2

        self.motion_in = FrameConv2d(sample_channels * area, dim, input_kernel, padding=padding, bias=False)
        self.latent_in = nn.Conv2d(latent_channels * area, dim, input_kernel, padding=padding)
        at_start = temporal_attention_levels is None or temporal_attention_levels[0]
        self.temporal_attention_in = TemporalAttention(dim, **heads) if at_start else None
        self.time_embedding = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, 4 * dim))
        self.relative_position_bias = RelativePositionBias(
            num_buckets=relative_position_buckets, max_distance=relative_position_max_distance, num_heads=num_heads
        )
        down, up = zip(*make_levels(settings), strict=True)
        self.down, self.up = nn.ModuleList(down), nn.ModuleList(reversed(up))
        coarsest = dim * channel_multipliers[-1]
        self.middle = Middle(coarsest, num_groups=num_groups, embedding_dim=4 * dim + condition_dim, **heads)
        splits = (FLOW_CHANNELS, sample_channels - FLOW_CHANNELS) if separate_heads else (sample_channels,)
        self.heads = nn.ModuleList(Head(2 * dim, dim, n * area, num_groups=num_groups) for n in splits)
        self.guidance_embedding = None if max_guidance is None else nn.Linear(dim, 4 * dim)
        if self.guidance_embedding is not None:  # it starts as the network without guidance
            nn.init.zeros_(self.guidance_embedding.weight)
            nn.init.zeros_(self.guidance_embedding.bias)
        self.tracks = TrackInputs(dim, latent_channels, patch_size, num_groups) if track_inputs else None

    def enable_gradient_checkpointing(self) -> None:
        self.gradient_checkpointing = True

    def prepare(self, context: DenoiserContext) -> dict[str, Any]:
        """Return the keyword arguments of `forward`, other than the condition, that stay the same at every step of sampling."""
        embedding = self.embed_latent(context.latent.to(self.dtype))
        inputs = {"latent_embedding": embedding, "attention_frames": context.attention_frames}
        if context.tracks is None or self.tracks is None:
            return inputs
        tracks = context.tracks.to(self.dtype)
        return {**inputs, "tracks": tracks, "track_embedding": self.tracks.embed(context.latent.to(self.dtype), tracks)}

    def embed_latent(self, latent: Tensor) -> Tensor:
        """Return the latent's part of the first convolution, (b, dim, h/p, w/p), for `forward(..., latent_embedding=...)`.

        It depends on neither frame nor timestep.

        Args:
            latent: (b, latent_channels, h, w).

        Raises:
            UserError: another shape.
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
        until: Tensor | float | None = None,
        guidance: Tensor | float | None = None,
        tracks: Tensor | None = None,
        track_embedding: Tensor | None = None,
    ) -> Tensor:
        """Predict the diffusion target.

        A flow map (Decoupled MeanFlow, 2510.24474) predicts its mean over the time from `timestep` to `until`: the way down and
        the middle see `timestep`, the way up sees `until`.

        Args:
            sample: (b, sample_channels, t, h, w), noisy motion of any length.
            timestep: one for all or (b,), 0 to 1000.
            condition: (k b, condition_dim), the first condition of all samples, then the second, ... What does not depend on
                them, up to the first attention over frames, is computed once.
            latent: (b, latent_channels, h, w), of the image; either this or
            latent_embedding: (b, dim, h/p, w/p), the result of `embed_latent`.
            attention_frames: number of frames around it that each frame attends to, for clips longer than those of training;
                None = all.
            until: only for networks with `flow_map`; None = `timestep`.
            guidance: guidance scale, 1 to `max_guidance`, only for networks with one; None = 1.
            tracks: (b, TRACK_CHANNELS, t, h, w), see `lfdm.motion.tracks`, only for networks with `track_inputs`; None = free.
            track_embedding: (b, t, h/p, w/p, dim), their part of the input as `prepare` computes it; None = from `latent`.

        Returns:
            (k b, sample_channels, t, h, w), in the order of `condition` and the channel order of `sample`.

        Raises:
            UserError: another shape, both or neither of `latent` and `latent_embedding`, or `until`, `guidance` or
                `tracks` for a network without that input.
        """
        self._check_inputs(sample, condition, until, guidance, tracks)
        latent_embedding = self._latent_embedding(sample, latent, latent_embedding)
        stem = self.motion_in(self._patches(sample)) + latent_embedding.permute(0, 2, 3, 1)[:, None]  # (b, t, h/p, w/p, dim)
        if tracks is not None:
            stem = stem + (self._track_embedding(latent, tracks) if track_embedding is None else track_embedding)
        embedding = self._embed(timestep, guidance, condition, batch_size=sample.shape[0])  # (k b, e)
        late = embedding if until is None else self._embed(until, guidance, condition, batch_size=sample.shape[0])
        around = {"head_dim": self.head_dim, "attention_frames": attention_frames}
        geometry = frame_geometry(sample.shape[2], bias=self.relative_position_bias, **around)
        x = stem
        if self.temporal_attention_in is not None:
            x = self.temporal_attention_in(x, geometry, self._run)
        if condition.shape[0] > sample.shape[0]:
            x, stem = (z.repeat(condition.shape[0] // sample.shape[0], 1, 1, 1, 1) for z in (x, stem))

        skips = []
        for level in self.down:
            skip, x = level(x, embedding, geometry, self._run)
            skips.append(skip)
        x = self.middle(x, embedding, geometry, self._run)
        for level in self.up:
            _, x = level(torch.cat((x, skips.pop()), dim=-1), late, geometry, self._run)
        return self._outputs(torch.cat((x, stem), dim=-1), tracks)

    def _track_embedding(self, latent: Tensor | None, tracks: Tensor) -> Tensor:
        if latent is None or self.tracks is None:
            raise UserError("tracks need the latent, or the embedding of the tracks")
        return self.tracks.embed(latent, tracks)

    def _outputs(self, x: Tensor, tracks: Tensor | None) -> Tensor:
        """(k b, t, h/p, w/p, 2 dim) -> (k b, c, t, h, w)."""
        outputs = torch.cat([self._run(head, x) for head in self.heads], dim=-1)
        outputs = rearrange(outputs, "b t h w (c i j) -> b c t (h i) (w j)", i=self.patch_size, j=self.patch_size)
        if tracks is None or self.tracks is None:
            return outputs
        flow = outputs[:, :FLOW_CHANNELS] + self.tracks.shift(x, tracks.repeat(x.shape[0] // tracks.shape[0], 1, 1, 1, 1))
        return torch.cat((flow, outputs[:, FLOW_CHANNELS:]), dim=1)

    def _patches(self, sample: Tensor) -> Tensor:
        """(b, c, t, h, w) -> (b, t, h/p, w/p, c p p)."""
        return rearrange(sample, "b c t (h i) (w j) -> b t h w (c i j)", i=self.patch_size, j=self.patch_size)

    def _run(self, operation: Callable[..., Tensor], *inputs: Tensor | FrameGeometry) -> Tensor:
        """Apply a block; with gradient checkpointing its activations are recomputed in the backward pass."""
        if not (self.gradient_checkpointing and torch.is_grad_enabled()) or is_transformed():
            return operation(*inputs)
        return checkpoint(operation, *inputs, use_reentrant=False)

    def _embed(self, timestep: Tensor | float, guidance: Tensor | float | None, condition: Tensor, *, batch_size: int) -> Tensor:
        """Return time and guidance, then condition, after the SiLU before every modulation: (k b, 4 dim + condition_dim)."""
        precision = torch.promote_types(self.dtype, torch.float32)
        time = torch.as_tensor(timestep, dtype=precision, device=condition.device)
        if time.ndim > 1 or (time.ndim == 1 and time.shape[0] not in (1, batch_size)):
            raise UserError(f"timestep has shape {tuple(time.shape)}; allowed: () or ({batch_size},)")
        embedding = self.time_embedding(sinusoids(time, self.dim).to(self.dtype).expand(batch_size, -1))
        if self.guidance_embedding is not None:
            scale = torch.as_tensor(1.0 if guidance is None else guidance, dtype=precision, device=condition.device)
            position = NUM_TRAIN_TIMESTEPS * scale.log() / math.log(self.config["max_guidance"])  # as timesteps, 0 to 1000
            embedding = embedding + self.guidance_embedding(sinusoids(position, self.dim).to(self.dtype))
        embedding = embedding.repeat(condition.shape[0] // batch_size, 1)
        return F.silu(torch.cat((embedding, condition.to(embedding.dtype)), dim=-1))

    def _latent_embedding(self, sample: Tensor, latent: Tensor | None, embedding: Tensor | None) -> Tensor:
        """Return the one that is given, embedded and of the sample's shape."""
        if (latent is None) == (embedding is None):
            got = "neither" if latent is None else "both"
            raise UserError(f"got {got} of latent and latent_embedding; allowed: exactly one")
        if latent is not None:
            embedding = self.embed_latent(latent)
        assert embedding is not None
        allowed = (sample.shape[0], self.dim, *(size // self.patch_size for size in sample.shape[3:]))
        if embedding.shape != allowed:
            raise UserError(
                f"latent or latent_embedding does not match the sample {tuple(sample.shape)}: its embedding has shape "
                f"{tuple(embedding.shape)}; allowed: {allowed}"
            )
        return embedding

    def _check_inputs(self, sample: Tensor, condition: Tensor, until: object, guidance: object, tracks: Tensor | None) -> None:
        if (until is not None and not self.flow_map) or (guidance is not None and self.max_guidance is None):
            raise UserError("until needs a network with flow_map=True, guidance one with max_guidance")
        if tracks is not None and not self.track_inputs:
            raise UserError("tracks need a network with track_inputs=True")
        channels, width = self.config["sample_channels"], self.config["condition_dim"]
        if sample.ndim != 5 or sample.shape[1] != channels or sample.shape[0] < 1 or sample.shape[2] < 1:
            raise UserError(f"sample has shape {tuple(sample.shape)}; allowed: (b, {channels}, t, h, w) with b, t >= 1")
        if condition.ndim != 2 or condition.shape[1] != width or condition.shape[0] < 1 or condition.shape[0] % sample.shape[0]:
            allowed = f"({sample.shape[0]}, {width}), or a multiple of {sample.shape[0]} rows"
            raise UserError(f"condition has shape {tuple(condition.shape)}; allowed: {allowed}")
        self._check_size("sample", *sample.shape[-2:])
        if tracks is not None and tracks.shape != (sample.shape[0], TRACK_CHANNELS, *sample.shape[2:]):
            allowed = f"{(sample.shape[0], TRACK_CHANNELS, *sample.shape[2:])}"
            raise UserError(f"tracks have shape {tuple(tracks.shape)}; allowed: {allowed}")

    def _check_size(self, name: str, height: int, width: int) -> None:
        multiple = self.size_multiple
        if height < 1 or width < 1 or height % multiple or width % multiple:
            raise UserError(f"{name} has size {height}x{width}; allowed: multiples of {multiple}")
