"""Perceptual loss: distance between the features of a classification network at several scales (arXiv 1603.08155).

The network's weights are not part of this package; the caller names a file. Two networks are recognized by the names of their
tensors: torchvision's VGG-19 (`features.N.weight`, the published recipe) and the original VGG-16 for BGR images
(`conv1_1.weight`). Shapes: images (n, 3, H, W) in [0, 1].
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lfdm.autoencoder.layers import AntiAliasDownsample
from lfdm.errors import UserError
from lfdm.folders.model_folder import read_tensors
from lfdm.published.weights import read_tensor_dict


@dataclass(frozen=True, kw_only=True)
class _Network:
    """Architecture and normalization of a VGG network, and its tensors' names."""

    name: str
    """Name of the network in reported figures."""
    blocks: tuple[int, ...]
    """Convolutions per block; blocks are separated by 2x2 max pooling."""
    taps: tuple[tuple[int, int], ...]
    """(block, convolution) pairs, counted from 1, whose ReLU outputs are compared."""
    numbered: bool
    """Convolutions are named `features.N` (counting ReLU and pooling layers) instead of `convB_I`."""
    flip: bool
    """The input is BGR instead of RGB."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """The input is (image - mean) / std, in the network's channel order."""
    feature_scale: float
    """Factor of the features, so that one loss weight fits all networks."""

    def convolutions(self) -> Iterator[tuple[int, int, str]]:
        """Yield (block, convolution, name) up to the last tap."""
        position = 0
        for block, count in enumerate(self.blocks, start=1):
            for index in range(1, count + 1):
                yield block, index, f"features.{position}" if self.numbered else f"conv{block}_{index}"
                if (block, index) == self.taps[-1]:
                    return
                position += 2
            position += 1


_VGG19 = _Network(
    name="vgg19",
    blocks=(2, 2, 4, 4, 4),
    taps=((1, 1), (2, 1), (3, 1), (4, 1), (5, 1)),
    numbered=True,
    flip=False,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    feature_scale=1.0,
)
_VGG16 = _Network(
    name="vgg16",
    blocks=(2, 2, 3, 3, 3),
    taps=((1, 2), (2, 2), (3, 3), (4, 3)),
    numbered=False,
    flip=True,
    mean=(103.939 / 255, 116.779 / 255, 123.68 / 255),
    std=(1 / 255, 1 / 255, 1 / 255),
    feature_scale=1 / (255 * 0.226),  # inputs are 255 * 0.226 = 58 times as large as those of torchvision's networks
)


class PerceptualLoss(nn.Module):
    """Sum over scales and layers of mean |features(prediction) - features(target)|.

    The network is frozen, and no gradient flows through the target.

    Args:
        weights: file of a known network.
        num_scales: images are compared at full size, 1/2, 1/4, ... (anti-aliased); published: 4.

    Raises:
        FileNotFoundError: no such file.
        UserError: a file of an unknown network, or with missing or misshapen tensors.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, weights: str | Path, *, num_scales: int = 4) -> None:
        super().__init__()
        tensors = _read_weights(Path(weights))
        self.network = _recognize(tensors, weights)
        self.convolutions = _build_convolutions(self.network, tensors, weights)
        self.downsamples = nn.ModuleList(AntiAliasDownsample(3, 2**scale) for scale in range(num_scales))
        self.register_buffer("mean", torch.tensor(self.network.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.network.std).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the scalar distance of images (n, 3, H, W) each; the published weight is 10.

        Raises:
            UserError: shapes that differ, are not (n, 3, H, W), or are too small for the coarsest scale.
        """
        self._check(prediction, target)
        loss = prediction.new_zeros(())
        for downsample in self.downsamples:
            with torch.no_grad():
                target_features = self.features(downsample(target))
            for feature, target_feature in zip(self.features(downsample(prediction)), target_features, strict=True):
                loss = loss + (feature.float() - target_feature.float()).abs().mean()
        return loss * self.network.feature_scale

    def features(self, image: Tensor) -> list[Tensor]:
        """Return the compared layers of images (n, 3, H, W), without `feature_scale`."""
        x = ((image.flip(1) if self.network.flip else image) - self.mean) / self.std
        outputs = []
        previous = 1
        for (block, index, _), convolution in zip(self.network.convolutions(), self.convolutions, strict=True):
            if block != previous:
                x = F.max_pool2d(x, 2)
                previous = block
            x = F.relu(convolution(x))
            if (block, index) in self.network.taps:
                outputs.append(x)
        return outputs

    def _check(self, prediction: Tensor, target: Tensor) -> None:
        if prediction.shape != target.shape or prediction.ndim != 4 or prediction.shape[1] != 3:
            raise UserError(
                f"prediction and target must both be (n, 3, H, W); got {tuple(prediction.shape)} and {tuple(target.shape)}"
            )
        smallest = 2 ** (len(self.downsamples) + self.network.taps[-1][0] - 2)
        if min(prediction.shape[-2:]) < smallest:
            raise UserError(
                f"images must have at least {smallest} pixels per side with perceptual_scales={len(self.downsamples)}; "
                f"got {tuple(prediction.shape[-2:])}"
            )


def _read_weights(path: Path) -> dict[str, Tensor]:
    return read_tensors(path) if path.suffix == ".safetensors" else read_tensor_dict(path)


def _recognize(tensors: dict[str, Tensor], origin: str | Path) -> _Network:
    for network in (_VGG19, _VGG16):
        if f"{next(network.convolutions())[2]}.weight" in tensors:
            return network
    raise UserError(
        f"{origin} must hold features.0.weight (torchvision's VGG-19) or conv1_1.weight (VGG-16); got {sorted(tensors)[:4]}..."
    )


def _build_convolutions(network: _Network, tensors: dict[str, Tensor], origin: str | Path) -> nn.ModuleList:
    names = [name for _, _, name in network.convolutions()]
    missing = [f"{name}.{part}" for name in names for part in ("weight", "bias") if f"{name}.{part}" not in tensors]
    if missing:
        raise UserError(f"{origin} lacks the tensors {missing}")
    convolutions = nn.ModuleList()
    in_channels = 3
    for name in names:
        weight, bias = tensors[f"{name}.weight"].float(), tensors[f"{name}.bias"].float()
        if weight.shape[1:] != (in_channels, 3, 3) or bias.shape != weight.shape[:1]:
            raise UserError(
                f"{origin}: {name} must be (n, {in_channels}, 3, 3) with n biases; "
                f"got {tuple(weight.shape)} and {tuple(bias.shape)}"
            )
        in_channels = weight.shape[0]
        convolution = nn.Conv2d(weight.shape[1], in_channels, 3, padding=1)
        convolution.load_state_dict({"weight": weight, "bias": bias})
        convolutions.append(convolution)
    return convolutions
