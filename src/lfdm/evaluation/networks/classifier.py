"""A judge of actions: a small space-time network that names the label of a clip from how it changes.

It never sees a frame, only what changed since frame 0 and since the frame before, area-averaged to a small size and divided by
the clip's own contrast: who is shown and how sharply hardly matters, a still clip carries nothing to go by. Training blurs,
shifts and recolours real clips at random for the same reason.

Shapes: video (b, 3, t, H, W) in [0, 1] · logits (b, number of labels).
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from torch import Tensor, nn

from lfdm.data.cache import ClipCache
from lfdm.data.frame_indices import uniform_indices
from lfdm.data.index import labels as labels_of
from lfdm.data.progress import Progress
from lfdm.errors import UserError
from lfdm.evaluation.networks.fitting import fit_classifier, kept_beside
from lfdm.evaluation.settings import ClassifierTraining
from lfdm.folders.model_folder import StrictLoading

MIN_CONTRAST = 0.05
"""Root mean square change below which a clip is not amplified further, in units of the intensity range."""


class ActionClassifier(StrictLoading, ModelMixin, ConfigMixin):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Which of `labels` a clip of `num_frames` frames shows. About 0.17 million parameters at the default widths.

    Args:
        labels: what the logits stand for, in order.
        num_frames: length of the clips it is made for.
        input_size: frames are averaged down to this size first.
        channels: widths at sizes 1, 1/2, 1/4 and 1/8 of that; multiples of 8.
    """

    @register_to_config
    def __init__(
        self, *, labels: Sequence[str], num_frames: int = 16, input_size: int = 32, channels: Sequence[int] = (16, 32, 64, 128)
    ) -> None:
        super().__init__()
        if len(set(labels)) < 2 or len(set(labels)) != len(labels):
            raise UserError(f"a classifier needs two or more different labels; got {list(labels)}")
        self.labels = tuple(labels)
        self.num_frames = num_frames
        self.input_size = input_size
        widths = [6, *channels]
        self.blocks = nn.ModuleList(_SpaceTimeBlock(a, b, stride=1 if i == 0 else 2) for i, (a, b) in enumerate(pairwise(widths)))
        self.num_features = 2 * channels[-1]
        self.head = nn.Linear(self.num_features, len(labels))

    def forward(self, video: Tensor) -> Tensor:
        """Logits (b, n) of a video (b, 3, t, H, W) in [0, 1].

        Raises:
            UserError: another shape or number of frames.
        """
        return self.head(self.features(video))

    def features(self, video: Tensor) -> Tensor:
        """What the logits are computed from, (b, `num_features`): mean and maximum over time of the last block's channels.

        Raises:
            UserError: another shape or number of frames.
        """
        if video.ndim != 5 or video.shape[1] != 3 or video.shape[2] != self.num_frames:
            raise UserError(f"video must be (b, 3, {self.num_frames}, H, W) in [0, 1]; got {tuple(video.shape)}")
        x = rearrange(_changes(video, self.input_size), "b t c h w -> (b t) c h w")
        for block in self.blocks:
            x = block(x, self.num_frames)
        x = rearrange(x, "(b t) c h w -> b c t (h w)", t=self.num_frames).mean(dim=-1)  # (b, c, t)
        return torch.cat((x.mean(dim=-1), x.amax(dim=-1)), dim=1)

    @torch.inference_mode()
    def classify(self, video: Tensor) -> list[str]:
        """The label of every clip of a video (b, 3, t, H, W) in [0, 1]."""
        return [self.labels[i] for i in self(video.to(self.device)).argmax(dim=1).tolist()]


class _SpaceTimeBlock(nn.Module):
    """Convolution 3x3 of every frame, then one over 3 frames of every pixel, each with group norm and SiLU: (b * t, c, h, w)."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.space = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)
        self.space_norm = nn.GroupNorm(8, out_channels)
        self.time = nn.Conv2d(out_channels, out_channels, (3, 1), padding=(1, 0))
        self.time_norm = nn.GroupNorm(8, out_channels)

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        x = F.silu(self.space_norm(self.space(x)))
        h, w = x.shape[-2:]
        rows = rearrange(x, "(b t) c h w -> b c t (h w)", t=num_frames)
        rows = rows + F.silu(self.time_norm(self.time(rows)))
        return rearrange(rows, "b c t (h w) -> (b t) c h w", h=h, w=w)


def _changes(video: Tensor, size: int) -> Tensor:
    """Differences to frame 0 and to the frame before, over the clip's contrast: (b, t, 6, size, size)."""
    frames = rearrange(video, "b c t h w -> (b t) c h w")
    frames = F.adaptive_avg_pool2d(frames, size) if max(frames.shape[-2:]) > size else frames
    frames = rearrange(frames, "(b t) c h w -> b t c h w", b=video.shape[0])
    since_first = frames - frames[:, :1]
    since_last = torch.cat((torch.zeros_like(frames[:, :1]), frames.diff(dim=1)), dim=1)
    contrast = since_first.square().mean(dim=(1, 2, 3, 4), keepdim=True).sqrt().clamp_min(MIN_CONTRAST)
    return torch.cat((since_first, since_last), dim=2) / contrast


def train_classifier(
    cache: ClipCache,
    *,
    num_frames: int = 16,
    training: ClassifierTraining | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> ActionClassifier:
    """Train a classifier on every clip of `cache`, real training clips, frames drawn uniformly.

    Raises:
        UserError: fewer than two labels.
    """
    labels = labels_of(cache.records)
    numbers = torch.tensor([labels.index(record.label) for record in cache.records])

    def draw(chosen: np.ndarray, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return augment(load_clips(cache, chosen, num_frames).to(device), generator), numbers[chosen]

    return fit_classifier(
        lambda: ActionClassifier(labels=labels, num_frames=num_frames),
        draw,
        len(cache),
        training or ClassifierTraining(),
        work="training the classifier",
        device=device,
        progress=progress,
    )


def load_clips(cache: ClipCache, indices: Sequence[int] | np.ndarray, num_frames: int) -> Tensor:
    """Clips at `num_frames` uniform frames: (b, 3, t, S, S) float32 in [0, 1]."""
    clips = [cache.clip(int(i))[uniform_indices(cache.num_frames(int(i)), num_frames)] for i in indices]
    return torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3).float() / 255


def augment(video: Tensor, generator: torch.Generator) -> Tensor:
    """Every clip shifted by up to 4 % of the frame, recoloured, and for half of them blurred and made noisy; shape kept."""
    b, _, t, h, w = video.shape

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=video.device)

    theta = torch.eye(2, 3, device=video.device).repeat(b, 1, 1)
    theta[:, :, 2] = 0.08 * (2 * uniform(b, 2) - 1)
    grid = F.affine_grid(theta, [b, 1, h, w], align_corners=False)
    video = F.grid_sample(video.flatten(1, 2), grid, padding_mode="border", align_corners=False).view(b, 3, t, h, w)
    gain, bias = 0.7 + 0.6 * uniform(b, 3, 1, 1, 1), 0.2 * uniform(b, 3, 1, 1, 1) - 0.1
    video = (video - 0.5) * gain + 0.5 + bias
    degrade = (uniform(b, 1, 1, 1, 1) < 0.5).float()
    blurred = F.avg_pool2d(video.flatten(1, 2), 3, stride=1, padding=1, count_include_pad=False).view_as(video)
    noise = 0.02 * torch.randn(video.shape, generator=generator, device=video.device)
    return video + degrade * (uniform(b, 1, 1, 1, 1) * (blurred - video) + noise)


def cached_classifier(
    cache: ClipCache,
    *,
    num_frames: int = 16,
    training: ClassifierTraining | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> tuple[ActionClassifier, Path]:
    """The classifier of these training clips, trained by the first call and kept beside their cache, and its folder."""
    training = training or ClassifierTraining()
    return kept_beside(
        cache,
        ActionClassifier,
        "classifier",
        [_VERSION, [record.label for record in cache.records], num_frames, repr(training)],
        lambda: train_classifier(cache, num_frames=num_frames, training=training, device=device, progress=progress),
        device,
    )


_VERSION = 1
