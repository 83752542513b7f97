"""Variables that the baselines diffuse: pixels or frame latents of a clip, normalised like our motion.

Shapes: video (b, 3, t, H, W) in [0, 1] · sample (b, c, t, h, w).
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, Self

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from einops import rearrange
from torch import Tensor

from lfdm.errors import UserError
from lfdm.folders.files import write_bytes
from lfdm.folders.model_folder import read_json

LEAST_STD = 1e-4


class ClipSpace(Protocol):
    """Conversion between videos and diffusion samples."""

    @property
    def num_channels(self) -> int:
        """Channels of a sample, c."""
        ...

    def encode(self, video: Tensor) -> Tensor:
        """Return the clean sample of a video."""
        ...

    def decode(self, sample: Tensor) -> Tensor:
        """Return the video of a sample."""
        ...

    def clamp(self, sample: Tensor) -> Tensor:
        """Clamp each channel of a clean sample to the range of the training set."""
        ...


@dataclass(frozen=True)
class ChannelStatistics:
    """Mean, standard deviation and range of every channel, measured on the training set."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def measure(cls, parts: Iterable[Tensor]) -> Self:
        """Measure tensors (n, c, ...), one at a time; UserError if there are none."""
        count, sums = 0, []
        for part in parts:
            values = part.double().transpose(0, 1).flatten(1)
            count += values.shape[1]
            sums.append(torch.stack((values.sum(1), values.square().sum(1), values.amin(1), values.amax(1))))
        if not count:
            raise UserError("no clips to measure")
        joined = torch.stack(sums)  # (parts, 4, c)
        mean = joined[:, 0].sum(0) / count
        std = (joined[:, 1].sum(0) / count - mean.square()).clamp(min=0).sqrt().clamp(min=LEAST_STD)
        columns = (mean, std, joined[:, 2].amin(0), joined[:, 3].amax(0))
        return cls(*(tuple(column.tolist()) for column in columns))

    def normalize(self, values: Tensor) -> Tensor:
        """Normalise values (b, c, ...) to zero mean and unit variance per channel."""
        return (values - _like(self.mean, values)) / _like(self.std, values)

    def restore(self, sample: Tensor) -> Tensor:
        """Invert `normalize`."""
        return sample * _like(self.std, sample) + _like(self.mean, sample)

    def clamp(self, sample: Tensor) -> Tensor:
        """Clamp each channel of a normalised sample to its range."""
        limits = (self.normalize(_like(edge, sample)) for edge in (self.low, self.high))
        low, high = limits
        return torch.minimum(torch.maximum(sample, low), high)

    def save(self, path: Path) -> None:
        """Write as JSON, atomically."""
        write_bytes(path, (json.dumps(asdict(self), indent=2) + "\n").encode())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        return cls(**{name: tuple(values) for name, values in read_json(path).items()})


def _like(values: tuple[float, ...], sample: Tensor) -> Tensor:
    return torch.tensor(values, dtype=sample.dtype, device=sample.device).view(1, -1, *(1,) * (sample.ndim - 2))


@dataclass(frozen=True)
class PixelSpace:
    """Pixels, normalised per colour channel."""

    statistics: ChannelStatistics
    num_channels: int = 3

    def encode(self, video: Tensor) -> Tensor:
        return self.statistics.normalize(video)

    def decode(self, sample: Tensor) -> Tensor:
        return self.statistics.restore(sample).clamp(0, 1)

    def clamp(self, sample: Tensor) -> Tensor:
        return self.statistics.clamp(sample)


@dataclass(frozen=True)
class LatentSpace:
    """Latents of single frames by an `AutoencoderKL` (arXiv 2112.10752), normalised per channel."""

    statistics: ChannelStatistics
    autoencoder: AutoencoderKL

    @property
    def num_channels(self) -> int:
        return self.autoencoder.config["latent_channels"]

    def encode(self, video: Tensor) -> Tensor:
        frames = rearrange(video, "b c t h w -> (b t) c h w")
        return self.statistics.normalize(
            rearrange(encode_frames(self.autoencoder, frames), "(b t) c h w -> b c t h w", b=len(video))
        )

    def decode(self, sample: Tensor) -> Tensor:
        latents = rearrange(self.statistics.restore(sample), "b c t h w -> (b t) c h w")
        return rearrange(decode_latents(self.autoencoder, latents), "(b t) c h w -> b c t h w", b=len(sample)).clamp(0, 1)

    def clamp(self, sample: Tensor) -> Tensor:
        return self.statistics.clamp(sample)


def encode_frames(autoencoder: AutoencoderKL, frames: Tensor) -> Tensor:
    """Return the mode of the latents (n, c, h, w) of frames (n, 3, H, W) in [0, 1], not normalised."""
    return autoencoder.encode(2 * frames - 1).latent_dist.mode()  # pyright: ignore[reportAttributeAccessIssue]


def decode_latents(autoencoder: AutoencoderKL, latents: Tensor) -> Tensor:
    """Decode latents (n, c, h, w) to frames (n, 3, H, W), roughly in [0, 1]."""
    decoded = autoencoder.decode(latents)  # pyright: ignore[reportArgumentType]
    return (decoded.sample + 1) / 2  # pyright: ignore[reportAttributeAccessIssue]
