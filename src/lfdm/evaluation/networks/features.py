"""Interfaces of feature extractors, and what they share.

A Frechet distance is a property of its feature extractor. Every extractor therefore carries the name of its figure: "FVD" is only
that of the I3D network trained on Kinetics-400; all others name their network, as in `FVD[puppets-classifier]`.
docs/evaluation.md lists everything the figures depend on.

Shapes: video (b, 3, t, H, W) in [0, 1] · frames (b, 3, H, W) in [0, 1] · features (b, dim).
"""

import hashlib
import math
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from lfdm.data.frame_indices import uniform_indices
from lfdm.errors import UserError
from lfdm.evaluation.networks.classifier import ActionClassifier
from lfdm.evaluation.networks.frame_network import FrameNetwork
from lfdm.folders.files import expand_home


class VideoFeatures(Protocol):
    """Extractor of features of whole videos."""

    name: str
    """Name of its Frechet distance: "FVD", `FVD[puppets-classifier]`, `FVD[videomae:NAME]`."""
    dim: int
    """Features per video."""
    sha256: str
    """SHA-256 of the weights' file."""
    min_frames: int
    """Length of the shortest video it accepts."""

    def __call__(self, video: Tensor) -> Tensor:
        """Return features (b, dim) float32, on the extractor's device, of a video (b, 3, t, H, W) in [0, 1].

        Raises:
            UserError: another shape, or fewer than `min_frames` frames.
        """
        ...


class FrameFeatures(Protocol):
    """Extractor of features of single frames."""

    name: str
    """Name of its Frechet distance: `FID[vgg16]`. Never plain FID, which is that of Inception-v3."""
    dim: int
    """Features per frame."""
    sha256: str
    """SHA-256 of the weights' file."""

    def __call__(self, frames: Tensor) -> Tensor:
        """Return features (b, dim) float32, on the extractor's device, of frames (b, 3, H, W) in [0, 1].

        Raises:
            UserError: another shape.
        """
        ...


def kernel_name(extractor: VideoFeatures | FrameFeatures) -> str:
    """Return the name of the kernel distance over these features: KVD for FVD, `KVD[vgg16]` for `FVD[vgg16]`, KID for FID."""
    return "K" + extractor.name.removeprefix("F")


class ClassifierFeatures:
    """Features of the data set's own action classifier, before its last layer, as `FVD[DATA-classifier]`.

    They describe the motion, hardly appearance or sharpness. A longer clip is read at `num_frames` evenly spaced frames.
    """

    def __init__(self, classifier: ActionClassifier, sha256: str, data_name: str) -> None:
        self.classifier = classifier.eval()
        self.name = f"FVD[{data_name}-classifier]"
        self.dim = classifier.num_features
        self.min_frames = classifier.num_frames
        self.sha256 = sha256

    @torch.no_grad()
    def __call__(self, video: Tensor) -> Tensor:
        check_video(video, self)
        chosen = uniform_indices(video.shape[2], self.min_frames)
        return self.classifier.features(video[:, :, chosen].to(self.classifier.device).float())


class FrameNetworkFeatures:
    """Features of the data set's own frame network, as `FID[DATA-frames]`."""

    def __init__(self, network: FrameNetwork, sha256: str, data_name: str) -> None:
        self.network = network
        self.name = f"FID[{data_name}-frames]"
        self.dim: int = network.config["dim"]
        self.sha256 = sha256

    @torch.inference_mode()
    def __call__(self, frames: Tensor) -> Tensor:
        return self.network.features(frames.to(self.network.device)).float()


def check_video(video: Tensor, extractor: VideoFeatures) -> None:
    """Raise UserError if `extractor` does not accept `video`."""
    if video.ndim != 5 or video.shape[1] != 3 or video.shape[2] < extractor.min_frames:
        raise UserError(
            f"{extractor.name}: video must be (b, 3, t, H, W) in [0, 1] of at least {extractor.min_frames} frames; "
            f"got {tuple(video.shape)}"
        )


def to_8_bits(pixels: Tensor) -> Tensor:
    """Round pixels in [0, 1] to 8 bits, so that generated frames are treated as recorded ones."""
    return (255 * pixels.float().clamp(0, 1)).round() / 255


def resize_and_crop(video: Tensor, size: int) -> Tensor:
    """Resize the shorter side bilinearly to `size`, the longer in proportion (rounded up), and crop the centre.

    Maps (b, 3, t, H, W) to (b, 3, t, size, size).
    """
    b, height, width = video.shape[0], *video.shape[-2:]
    scale = size / min(height, width)
    shape = [size if n == min(height, width) else math.ceil(n * scale) for n in (height, width)]
    frames = F.interpolate(rearrange(video, "b c t h w -> (b t) c h w"), shape, mode="bilinear", align_corners=False)
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    return rearrange(frames[..., top : top + size, left : left + size], "(b t) c h w -> b c t h w", b=b)


def read_weights(path: str | Path) -> tuple[Path, bytes, str]:
    """Read a weights file: its path with `~` expanded, its content and its SHA-256; FileNotFoundError without the file."""
    path = expand_home(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights {path}")
    content = path.read_bytes()
    return path, content, hashlib.sha256(content).hexdigest()
