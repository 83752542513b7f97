"""Action classifier: a small space-time network that recognises the label of a clip from its changes over time.

It never sees a frame, only the differences to frame 0 and to the previous frame, area-averaged to a small size and divided by the
clip's own contrast: appearance and sharpness hardly matter, and a still clip carries no information. For the same reason training
blurs, shifts and recolours the clips at random.

Shapes: video (b, 3, t, H, W) in [0, 1] · logits (b, number of labels).
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from lfdm.config.registration import register_to_config
from lfdm.data.cache import ClipCache
from lfdm.data.frame_indices import uniform_indices
from lfdm.data.progress import Progress
from lfdm.errors import UserError
from lfdm.evaluation.networks.training import load_or_train, train_network
from lfdm.evaluation.settings import ClassifierTraining
from lfdm.folders.components import Model

MIN_CONTRAST = 0.05
"""Smallest root mean square change by which a clip is divided, in units of the intensity range."""
NORM_GROUPS = 8
MAX_SHIFT = 0.04
"""Largest shift of a training clip, in parts of the frame."""
GAINS = (0.7, 1.3)
"""Range of the contrast factor of every channel of a training clip."""
MAX_BIAS = 0.1
"""Largest brightness offset of a channel, in units of the intensity range."""
DEGRADED_SHARE = 0.5
"""Share of training clips that are blurred and made noisy, as generated clips are."""
NOISE_STD = 0.02
"""Standard deviation of that noise, in units of the intensity range."""
_VERSION = 1
"""Version of network and training; a new one trains stored classifiers again."""


class ActionClassifier(Model):
    """Classifier of clips with `num_frames` frames; about 0.17 million parameters with the default channels.

    Args:
        labels: label of every logit.
        num_frames: length of the clips.
        input_size: larger frames are averaged down to this size.
        channels: channels at sizes 1, 1/2, 1/4 and 1/8 of that; multiples of 8.
    """

    @register_to_config
    def __init__(
        self, *, labels: Sequence[str], num_frames: int = 16, input_size: int = 32, channels: Sequence[int] = (16, 32, 64, 128)
    ) -> None:
        super().__init__()
        if len(set(labels)) < 2 or len(set(labels)) != len(labels):
            raise UserError(f"labels must be two or more different ones; got {list(labels)}")
        self.labels = tuple(labels)
        self.num_frames = num_frames
        self.input_size = input_size
        widths = [6, *channels]
        self.blocks = nn.ModuleList(_SpaceTimeBlock(a, b, stride=1 if i == 0 else 2) for i, (a, b) in enumerate(pairwise(widths)))
        self.num_features = 2 * channels[-1]
        self.head = nn.Linear(self.num_features, len(labels))

    def forward(self, video: Tensor) -> Tensor:
        """Return logits (b, n) of a video (b, 3, num_frames, H, W) in [0, 1]."""
        return self.head(self.features(video))

    def features(self, video: Tensor) -> Tensor:
        """Return the mean and maximum over time of the last block's channels, (b, `num_features`).

        Raises:
            ValueError: another shape or number of frames.
        """
        if video.ndim != 5 or video.shape[1] != 3 or video.shape[2] != self.num_frames:
            raise ValueError(f"video must be (b, 3, {self.num_frames}, H, W) in [0, 1]; got {tuple(video.shape)}")
        x = rearrange(_changes(video, self.input_size), "b t c h w -> (b t) c h w")
        for block in self.blocks:
            x = block(x, self.num_frames)
        x = rearrange(x, "(b t) c h w -> b c t (h w)", t=self.num_frames).mean(dim=-1)  # (b, c, t)
        return torch.cat((x.mean(dim=-1), x.amax(dim=-1)), dim=1)


class _SpaceTimeBlock(nn.Module):
    """A 3x3 convolution of every frame, then a 3-frame convolution of every pixel, each with group norm and SiLU."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.space = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)
        self.space_norm = nn.GroupNorm(NORM_GROUPS, out_channels)
        self.time = nn.Conv2d(out_channels, out_channels, (3, 1), padding=(1, 0))
        self.time_norm = nn.GroupNorm(NORM_GROUPS, out_channels)

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        """Map (b * t, c, h, w) to (b * t, c', h / stride, w / stride)."""
        x = F.silu(self.space_norm(self.space(x)))
        h, w = x.shape[-2:]
        rows = rearrange(x, "(b t) c h w -> b c t (h w)", t=num_frames)
        rows = rows + F.silu(self.time_norm(self.time(rows)))
        return rearrange(rows, "b c t (h w) -> (b t) c h w", h=h, w=w)


def _changes(video: Tensor, size: int) -> Tensor:
    """Return the differences to frame 0 and to the previous frame, divided by the clip's contrast: (b, t, 6, size, size)."""
    frames = rearrange(video, "b c t h w -> (b t) c h w")
    frames = F.adaptive_avg_pool2d(frames, size) if max(frames.shape[-2:]) > size else frames
    frames = rearrange(frames, "(b t) c h w -> b t c h w", b=video.shape[0])
    since_first = frames - frames[:, :1]
    since_last = torch.cat((torch.zeros_like(frames[:, :1]), frames.diff(dim=1)), dim=1)
    contrast = since_first.square().mean(dim=(1, 2, 3, 4), keepdim=True).sqrt().clamp_min(MIN_CONTRAST)
    return torch.cat((since_first, since_last), dim=2) / contrast


def load_or_train_classifier(
    cache: ClipCache,
    *,
    num_frames: int = 16,
    training: ClassifierTraining,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> tuple[ActionClassifier, Path]:
    """Return the classifier of these training clips, trained by the first call and stored next to their cache, and its folder.

    Raises:
        UserError: fewer than two labels.
    """
    clip_labels = [record.label for record in cache.records]

    def make(labels: list[str]) -> ActionClassifier:
        return ActionClassifier(labels=labels, num_frames=num_frames)

    def load_batch(chosen: np.ndarray, generator: torch.Generator) -> Tensor:
        return augment(load_clips(cache, chosen, num_frames).to(device), generator)

    def train() -> ActionClassifier:
        task = "training the classifier"
        return train_network(make, load_batch, clip_labels, training, task=task, device=device, progress=progress)

    key = [_VERSION, clip_labels, num_frames, repr(training)]
    return load_or_train(cache, ActionClassifier, "classifier", key, train, device)


def load_clips(cache: ClipCache, indices: Sequence[int] | np.ndarray, num_frames: int) -> Tensor:
    """Load clips at `num_frames` evenly spaced frames: (b, 3, t, S, S) float32 in [0, 1]."""
    clips = [cache.clip(int(i))[uniform_indices(cache.num_frames(int(i)), num_frames)] for i in indices]
    return torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3).float() / 255


def augment(video: Tensor, generator: torch.Generator) -> Tensor:
    """Shift and recolour every clip of a video (b, 3, t, H, W), and blur some of them and add noise; the shape is kept."""
    b, _, t, h, w = video.shape

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=video.device)

    theta = torch.eye(2, 3, device=video.device).repeat(b, 1, 1)
    theta[:, :, 2] = 2 * MAX_SHIFT * (2 * uniform(b, 2) - 1)  # the grid is 2 wide
    grid = F.affine_grid(theta, [b, 1, h, w], align_corners=False)
    video = F.grid_sample(video.flatten(1, 2), grid, padding_mode="border", align_corners=False).view(b, 3, t, h, w)
    gain = GAINS[0] + (GAINS[1] - GAINS[0]) * uniform(b, 3, 1, 1, 1)
    bias = 2 * MAX_BIAS * uniform(b, 3, 1, 1, 1) - MAX_BIAS
    video = (video - 0.5) * gain + 0.5 + bias
    degrade = (uniform(b, 1, 1, 1, 1) < DEGRADED_SHARE).float()
    blurred = F.avg_pool2d(video.flatten(1, 2), 3, stride=1, padding=1, count_include_pad=False).view_as(video)
    noise = NOISE_STD * torch.randn(video.shape, generator=generator, device=video.device)
    return video + degrade * (uniform(b, 1, 1, 1, 1) * (blurred - video) + noise)
