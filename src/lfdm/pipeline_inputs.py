"""What a user may give to the pipeline, turned into what its networks take.

Shapes: image (b, 3, S, S) in [0, 1] · video frames in numpy (t, H, W, 3) uint8.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from lfdm.config import Fit
from lfdm.data.images import fit_frames, read_image
from lfdm.settings import MAX_SEED as MAX_SEED
from lfdm.settings import check_integer as check_integer
from lfdm.settings import check_number as check_number

SingleImage = str | Path | Image.Image | np.ndarray | Tensor
ImageInput = SingleImage | Sequence[SingleImage]
"""One image, a list of them, or a batch: array (b, H, W, 3), tensor (b, 3, H, W)."""
Seed = int | torch.Generator
SeedInput = Seed | Sequence[Seed] | None


def prepare_images(image: ImageInput, *, size: int, fit: Fit) -> Tensor:
    """One or more images of any kind, fitted as the training data was: (b, 3, size, size) float32 in [0, 1].

    Float tensors that have this size already are taken as they are; everything else passes through 8 bits.

    Raises:
        ValueError: not an image, values outside their range, NaN.
        FileNotFoundError: no such file.
    """
    if isinstance(image, np.ndarray | Tensor):
        images: Sequence[SingleImage] = list(image) if image.ndim == 4 else [image]
    elif isinstance(image, str | Path | Image.Image):
        images = [image]
    elif isinstance(image, Sequence):
        images = image
    else:
        raise ValueError(f"image must be a path, PIL image, array, tensor or a list of them; got {type(image).__name__}")
    if not images:
        raise ValueError("image must hold at least one image; got none")
    return torch.stack([_prepare_image(one, size, fit) for one in images])


def _prepare_image(image: SingleImage, size: int, fit: Fit) -> Tensor:
    if isinstance(image, Tensor):
        _check_tensor(image)
        if image.is_floating_point() and image.shape[1:] == (size, size):
            return image.detach().float().cpu()
        image = rearrange(image.detach().cpu(), "c h w -> h w c").numpy() if not image.is_floating_point() else _to_array(image)
    frame = fit_frames(read_image(image)[None], size, fit)[0]
    return torch.from_numpy(np.array(frame)).permute(2, 0, 1).float() / 255


def _to_array(image: Tensor) -> np.ndarray:
    return rearrange(image.detach().float().cpu(), "c h w -> h w c").numpy()


def _check_tensor(image: Tensor) -> None:
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"an image tensor must be (3, H, W) or (b, 3, H, W); got {tuple(image.shape)}")
    if image.dtype == torch.uint8:
        return
    if not image.is_floating_point():
        raise ValueError(f"an image tensor must be uint8 or floating point; got {image.dtype}")
    if not (image.numel() and image.min() >= 0 and image.max() <= 1):  # also False for NaN
        raise ValueError("a floating point image tensor must lie in [0, 1]; got values outside, NaN or no pixels")


def prepare_video(frames: np.ndarray | Tensor, *, size: int, fit: Fit) -> Tensor:
    """Driving frames, (t, H, W, 3) uint8 or (3, t, H, W) in [0, 1], fitted: (1, 3, t, size, size) float32 in [0, 1]."""
    if isinstance(frames, Tensor):
        if frames.ndim != 4 or frames.shape[0] != 3:
            raise ValueError(f"a driving tensor must be (3, t, H, W); got {tuple(frames.shape)}")
        images = prepare_images(frames.transpose(0, 1), size=size, fit=fit)
    else:
        images = torch.from_numpy(np.array(fit_frames(frames, size, fit))).permute(0, 3, 1, 2).float() / 255
    return rearrange(images, "t c h w -> 1 c t h w")


def sample_generators(generator: SeedInput, batch_size: int) -> list[torch.Generator]:
    """One fresh generator per sample, so that a sample does not depend on the batch it is made in.

    Each is seeded with one draw from the given generator of that sample, or, for a single one, from that in order: a list
    of generators then gives the samples that each gives alone, and one generator the samples that it gives one after the
    other. An integer stands for a CPU generator of that seed; None for torch's default one.

    Raises:
        ValueError: not one generator per sample.
    """
    if generator is None or isinstance(generator, int | torch.Generator):
        generators = [_generator(generator)] * batch_size
    else:
        generators = [_generator(one) for one in generator]
    if len(generators) != batch_size:
        raise ValueError(f"generator must be one, or a list of {batch_size}, one per sample; got {len(generators)}")
    fresh = []
    for one in generators:
        device = torch.device("cpu") if one is None else one.device
        seed = int(torch.randint(MAX_SEED, (), generator=one, device=device))
        fresh.append(torch.Generator(device).manual_seed(seed))
    return fresh


def _generator(seed: Seed | None) -> torch.Generator | None:
    if isinstance(seed, bool) or not (seed is None or isinstance(seed, int | torch.Generator)):
        raise ValueError(f"generator must be a torch.Generator or an integer seed; got {type(seed).__name__}")
    if not isinstance(seed, int):
        return seed
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"a seed must be from 0 to {MAX_SEED}; got {seed}")
    return torch.Generator().manual_seed(seed)
