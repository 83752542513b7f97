"""What videos and frames are turned into before distributions are compared: one interface, several networks, each named in full.

A Frechet distance is a property of its feature extractor. So every extractor carries the name of the figure that it gives: "FVD"
is that of the I3D network trained on Kinetics-400 alone; any other says which it is, as in `FVD[puppets-classifier]`.

Shapes: video (b, 3, t, H, W) in [0, 1] · frames (b, 3, H, W) in [0, 1] · features (b, dim).
"""

from typing import Protocol

import torch
from torch import Tensor

from lfdm.evaluation.classifier import ActionClassifier


class VideoFeatures(Protocol):
    """An extractor of features of whole videos."""

    name: str
    """The Frechet figure as it is printed: "FVD", `FVD[puppets-classifier]`, `FVD[videomae:NAME]`."""
    kernel_name: str
    """The kernel figure: "KVD", `KVD[puppets-classifier]`, `KVD[videomae:NAME]`."""
    dim: int
    """Numbers per video."""
    sha256: str | None
    """Of the weights' file; None where there is no one file."""
    min_frames: int
    """Shortest video it takes."""

    def __call__(self, video: Tensor) -> Tensor:
        """Features (b, dim) float32 of a video (b, 3, t, H, W) in [0, 1]."""
        ...


class FrameFeatures(Protocol):
    """An extractor of features of single frames."""

    name: str
    """The Frechet figure as it is printed: "FID", `FID[vgg16]`."""
    dim: int
    """Numbers per frame."""
    sha256: str | None
    """Of the weights' file; None where there is no one file."""

    def __call__(self, frames: Tensor) -> Tensor:
        """Features (b, dim) float32 of frames (b, 3, H, W) in [0, 1]."""
        ...


def load_extractor(
    spec: str,
    *,
    classifier: ActionClassifier | None = None,
    data_name: str | None = None,
    sha256: str | None = None,
    trust_file: bool = False,
    device: torch.device | str = "cpu",
) -> VideoFeatures:
    """The extractor that `spec` names.

    Args:
        spec: `classifier`, `i3d:PATH`, `i3d-torchscript:PATH` or `videomae:NAME_OR_DIR`.
        classifier: the network trained on the data set itself, for `classifier`.
        data_name: the data set's name, which `classifier` is printed with.
        sha256: what the file must have; for `i3d-torchscript` in place of the stated one.
        trust_file: run a TorchScript file whatever its SHA-256: such a file is a program.

    Raises:
        ValueError: an unknown spec, a file that does not hold the network, or one of another SHA-256.
        FileNotFoundError: no such file.
        ImportError: `videomae` without transformers.
    """
    raise NotImplementedError


def load_frame_extractor(spec: str, *, sha256: str | None = None, device: torch.device | str = "cpu") -> FrameFeatures:
    """The extractor of frames that `spec` names: `vgg16:PATH` or `inception:PATH`.

    Raises:
        ValueError: an unknown spec, a file that does not hold the network, or one of another SHA-256.
        FileNotFoundError: no such file.
        ImportError: `inception` without torchmetrics and torch-fidelity.
    """
    raise NotImplementedError
