"""Frame network: a small network that recognises the subject of a single frame, trained on the data set's training clips.

Its features measure identity (`lfdm.evaluation.metrics.identity`) and a Frechet distance of single frames. It sees the whole
frame: where every subject has a background of its own, keeping the background is part of the identity.

Shapes: frames (b, 3, H, W) in [0, 1] · features (b, dim).
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lfdm.config.registration import register_to_config
from lfdm.data.cache import ClipCache
from lfdm.data.progress import Progress
from lfdm.errors import UserError
from lfdm.evaluation.networks.training import load_or_train, train_network
from lfdm.evaluation.settings import ClassifierTraining
from lfdm.folders.components import Model

NORM_GROUPS = 8
MAX_SHIFT = 0.1
"""Largest shift of a training frame, in parts of the frame."""
MIRRORED_SHARE = 0.5
"""Share of training frames that are mirrored."""
_VERSION = 1
"""Version of network and training; a new one trains stored networks again."""


class FrameNetwork(Model):
    """Classifier of the subject of a frame, whose features describe any frame.

    Args:
        subjects: subject of every logit.
        input_size: larger frames are averaged down to this size.
        channels: channels at sizes 1/2, 1/4, 1/8 and 1/16 of that; multiples of 8.
        dim: number of features.
    """

    @register_to_config
    def __init__(
        self, *, subjects: Sequence[str], input_size: int = 64, channels: Sequence[int] = (24, 48, 96, 96), dim: int = 64
    ) -> None:
        super().__init__()
        if len(set(subjects)) < 2 or len(set(subjects)) != len(subjects):
            raise UserError(f"subjects must be two or more different ones; got {list(subjects)[:4]}")
        self.input_size = input_size
        layers: list[nn.Module] = []
        for before, after in pairwise((3, *channels)):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(NORM_GROUPS, after), nn.SiLU()]
        self.layers = nn.Sequential(*layers)
        self.to_features = nn.Linear(channels[-1], dim)
        self.head = nn.Linear(dim, len(subjects))

    def features(self, frames: Tensor) -> Tensor:
        """Return features (b, dim) of frames (b, 3, H, W) in [0, 1]."""
        small = F.adaptive_avg_pool2d(frames, self.input_size) if max(frames.shape[-2:]) > self.input_size else frames
        return self.to_features(self.layers(2 * small - 1).mean(dim=(2, 3)))

    def forward(self, frames: Tensor) -> Tensor:
        """Return logits (b, number of subjects) of frames (b, 3, H, W) in [0, 1]."""
        return self.head(F.silu(self.features(frames)))


def load_or_train_frame_network(
    cache: ClipCache,
    *,
    training: ClassifierTraining,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> tuple[FrameNetwork, Path]:
    """Return the frame network of these training clips, trained by the first call and stored next to their cache, and its folder.

    Raises:
        UserError: fewer than two subjects.
    """
    clip_subjects = [record.subject for record in cache.records]

    def make(subjects: list[str]) -> FrameNetwork:
        return FrameNetwork(subjects=subjects)

    def load_batch(chosen: np.ndarray, generator: torch.Generator) -> Tensor:
        positions = torch.rand(len(chosen), generator=generator, device=generator.device).tolist()
        frames = [cache.clip(int(i))[int(at * cache.num_frames(int(i)))] for at, i in zip(positions, chosen, strict=True)]
        images = torch.from_numpy(np.stack(frames)).to(device).permute(0, 3, 1, 2).float() / 255
        return _augment(images, generator)

    def train() -> FrameNetwork:
        task = "training the frame network"
        return train_network(make, load_batch, clip_subjects, training, task=task, device=device, progress=progress)

    return load_or_train(cache, FrameNetwork, "frame-network", [_VERSION, clip_subjects, repr(training)], train, device)


def _augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift every image (b, 3, H, W) and mirror some of them."""
    theta = torch.eye(2, 3, device=images.device).repeat(len(images), 1, 1)
    theta[:, :, 2] = 2 * MAX_SHIFT * (2 * torch.rand(len(images), 2, generator=generator, device=images.device) - 1)
    mirrored = torch.rand(len(images), generator=generator, device=images.device) < MIRRORED_SHARE
    theta[:, 0, 0] = torch.where(mirrored, -1.0, 1.0)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
