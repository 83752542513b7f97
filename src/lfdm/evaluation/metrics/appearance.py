"""Who is shown: a small network that knows single frames, trained on the data set itself to tell its subjects apart.

Its features serve twice. *Identity*: how alike the later frames of a clip are to its first one, between the likeness of real
clips (1) and that of other subjects (0). *Frame distance*: a Frechet distance of single frames, named after the network.

The whole frame counts, background included: where subjects have backgrounds of their own, keeping those is part of it.

Shapes: frames (b, 3, H, W) in [0, 1] · features (b, dim).
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from lfdm.data.cache import ClipCache
from lfdm.data.progress import Progress
from lfdm.errors import UserError
from lfdm.evaluation.loading import file_sha256
from lfdm.evaluation.networks.fitting import fit_classifier, kept_beside
from lfdm.evaluation.settings import FRAME_TRAINING, ClassifierTraining
from lfdm.folders.model_folder import WEIGHTS_NAME, StrictLoading

MAX_SHIFT = 0.1
"""Training frames are shifted by up to this part of the frame."""


class FrameNetwork(StrictLoading, ModelMixin, ConfigMixin):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Which of `subjects` a frame shows, and features of any frame.

    Args:
        subjects: what the logits stand for, in order.
        input_size: larger frames are averaged down to this size first.
        channels: widths at sizes 1/2, 1/4, 1/8 and 1/16 of that; multiples of 8.
        dim: features.
    """

    @register_to_config
    def __init__(
        self, *, subjects: Sequence[str], input_size: int = 64, channels: Sequence[int] = (24, 48, 96, 96), dim: int = 64
    ) -> None:
        super().__init__()
        if len(set(subjects)) < 2 or len(set(subjects)) != len(subjects):
            raise UserError(f"a frame network needs two or more different subjects; got {list(subjects)[:4]}")
        self.input_size = input_size
        layers: list[nn.Module] = []
        for before, after in pairwise((3, *channels)):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        self.layers = nn.Sequential(*layers)
        self.to_features = nn.Linear(channels[-1], dim)
        self.head = nn.Linear(dim, len(subjects))

    def features(self, frames: Tensor) -> Tensor:
        """(b, dim)."""
        small = F.adaptive_avg_pool2d(frames, self.input_size) if max(frames.shape[-2:]) > self.input_size else frames
        return self.to_features(self.layers(2 * small - 1).mean(dim=(2, 3)))

    def forward(self, frames: Tensor) -> Tensor:
        """Logits (b, number of subjects)."""
        return self.head(F.silu(self.features(frames)))


def cached_frame_network(
    cache: ClipCache,
    *,
    training: ClassifierTraining | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> tuple[FrameNetwork, Path]:
    """The frame network of these training clips, trained by the first call and kept beside their cache, and its folder.

    Raises:
        UserError: fewer than two subjects.
    """
    training = training or FRAME_TRAINING
    subjects = sorted({record.subject for record in cache.records})
    numbers = torch.tensor([subjects.index(record.subject) for record in cache.records])

    def draw(chosen: np.ndarray, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        when = torch.rand(len(chosen), generator=generator, device=generator.device).tolist()
        frames = [cache.clip(int(i))[int(part * cache.num_frames(int(i)))] for part, i in zip(when, chosen, strict=True)]
        images = torch.from_numpy(np.stack(frames)).to(device).permute(0, 3, 1, 2).float() / 255
        return _shift(images, generator), numbers[chosen]

    def train() -> FrameNetwork:
        return fit_classifier(
            lambda: FrameNetwork(subjects=subjects),
            draw,
            len(cache),
            training,
            work="training the frame network",
            device=device,
            progress=progress,
        )

    key = [_VERSION, [record.subject for record in cache.records], repr(training)]
    return kept_beside(cache, FrameNetwork, "frame-network", key, train, device)


_VERSION = 1


def _shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Every image (b, 3, H, W) shifted by up to `MAX_SHIFT` of the frame, and half of them mirrored."""
    theta = torch.eye(2, 3, device=images.device).repeat(len(images), 1, 1)
    theta[:, :, 2] = 2 * MAX_SHIFT * (2 * torch.rand(len(images), 2, generator=generator, device=images.device) - 1)
    mirrored = torch.rand(len(images), generator=generator, device=images.device) < 0.5
    theta[:, 0, 0] = torch.where(mirrored, -1.0, 1.0)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


class FrameNetworkFeatures:
    """A frame network as the extractor `FID[DATA-frames]`; its SHA-256 is that of its folder's weights."""

    def __init__(self, network: FrameNetwork, folder: Path, data_name: str) -> None:
        self.network = network
        self.name = f"FID[{data_name}-frames]"
        self.dim: int = network.config["dim"]
        self.sha256: str | None = file_sha256(folder / WEIGHTS_NAME)

    @torch.inference_mode()
    def __call__(self, frames: Tensor) -> Tensor:
        return self.network.features(frames.to(self.network.device)).float()


def judge_identity(generated: np.ndarray, real: np.ndarray, subjects: Sequence[str]) -> dict[str, Any]:
    """How much the later frames look like the subject of frame 0; see the head of this file.

    Likeness is the cosine of two frames' features, the mean of all real ones taken off. `recognised` is the share of later
    frames whose likest subject (by the mean of its first frames) is their own.

    Args:
        generated, real: features of every frame of every clip, (n, t, d); frame 0 of both is the same image's.
        subjects: of every clip, (n,).

    Returns:
        `value` is 1 where generated frames are as like their source as real ones, 0 where they are as like as another subject.
    """
    names = sorted(set(subjects))
    rows = np.array([names.index(subject) for subject in subjects])
    centre = real.reshape(-1, real.shape[-1]).mean(axis=0, dtype=np.float64)
    source = _unit(real[:, 0] - centre)
    subject_source = _unit(np.stack([source[rows == k].mean(axis=0) for k in range(len(names))]))
    likeness, recognised = {}, {}
    for name, features in (("generated", generated), ("real", real)):
        later = _unit(features[:, 1:] - centre)
        likeness[name] = float(np.einsum("ntd,nd->nt", later, source).mean())
        recognised[name] = float((np.argmax(later @ subject_source.T, axis=-1) == rows[:, None]).mean())
    others = source @ source.T
    different = rows[:, None] != rows[None]
    other = float(others[different].mean()) if different.any() else float("nan")
    distance = likeness["real"] - other
    return {
        "value": (likeness["generated"] - other) / distance if distance else float("nan"),
        **{f"{name}_likeness": value for name, value in likeness.items()},
        "other_subjects_likeness": other,
        **{f"{name}_recognised": value for name, value in recognised.items()},
        "num_clips": len(rows),
        "num_subjects": len(names),
    }


def identity_per_clip(generated: np.ndarray) -> np.ndarray:
    """Mean cosine of every clip's later frames with its first, features (n, t, d) as they are: (n,)."""
    unit = _unit(generated.astype(np.float64))
    return np.einsum("ntd,nd->nt", unit[:, 1:], unit[:, 0]).mean(axis=1)


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)
