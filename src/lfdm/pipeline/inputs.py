"""Convert what a user gives to the pipeline into what its networks take.

Shapes: image (b, 3, H, W) in [0, 1], or (b, 4, H, W) with alpha · video frames in numpy (t, H, W, 3) uint8.
"""

import numbers
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from lfdm.condition.encoder import Condition
from lfdm.config.checks import MAX_SEED, check_integer
from lfdm.config.video import Fit, Size, SizeInput
from lfdm.data.alpha import fill_invisible, fit_premultiplied, unpremultiply
from lfdm.data.fitting import fit_frames
from lfdm.data.images import check_pixels, read_gray, read_image
from lfdm.data.pictures import read_picture
from lfdm.errors import UserError
from lfdm.pipeline.framing import Framing

MAX_MIX = 1000
"""Longest mix; a longer text is none, and to find that out would take minutes."""
MAX_VIDEOS = 10_000
"""Most videos of one call per image and condition."""

_SHARE = r"[^=,]*[^=,\s][^=,]*=\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*"
_MIX = re.compile(f"{_SHARE}(,{_SHARE})*")

SingleImage = str | Path | Image.Image | np.ndarray | Tensor
ImageInput = SingleImage | Sequence[SingleImage]
"""One image, a list of them, or a batch: array (b, H, W, 3), tensor (b, 3, H, W); 4 channels with straight alpha."""
Picture = np.ndarray | Tensor
"""An image that has been read: (H, W, 3) uint8, or a tensor (3, H, W) float32 in [0, 1]; 4 channels with straight alpha."""
Seed = int | torch.Generator
SeedInput = Seed | Sequence[Seed] | None
MaskInput = str | Path | Image.Image | np.ndarray | Tensor
"""(H, W), or with a channel axis of size 1."""
DrivingPart = Image.Image | np.ndarray | Tensor
DrivingInput = str | Path | np.ndarray | Tensor | Iterable[DrivingPart]


@dataclass(frozen=True, eq=False)
class FittedImages:
    """Images at the model's size, float32 in [0, 1]."""

    over_white: Tensor
    """(b, 3, H, W)."""
    premultiplied: Tensor | None = None
    """(b, 4, H, W), where one of the images is not opaque."""
    filled: Tensor | None = None
    """(b, 3, H, W): then, opaque images in which the colours of visible pixels continue into invisible ones."""

    def to(self, device: torch.device) -> "FittedImages":
        """Move the images to a device."""
        if self.premultiplied is None or self.filled is None:
            return FittedImages(self.over_white.to(device))
        return FittedImages(self.over_white.to(device), self.premultiplied.to(device), self.filled.to(device))


def read_images(image: ImageInput, *, keep_alpha: bool = False) -> list[Picture]:
    """Read one or more images of any kind, in their own sizes; alpha is composed over white.

    With `keep_alpha` an image that is not opaque everywhere has 4 channels instead.

    Raises:
        UserError: not an image, values outside their range, NaN.
        FileNotFoundError: no such file.
    """
    if isinstance(image, np.ndarray | Tensor):
        images: Sequence[SingleImage] = list(image) if image.ndim == 4 else [image]
    elif isinstance(image, str | Path | Image.Image):
        images = [image]
    elif isinstance(image, Sequence) and not isinstance(image, bytes | bytearray | memoryview):
        images = image
    else:
        raise UserError(f"image must be a path, PIL image, array, tensor or a list of them; got {type(image).__name__}")
    if not images:
        raise UserError("image must hold at least one image; got none")
    return [
        _read_tensor(one, keep_alpha=keep_alpha) if isinstance(one, Tensor) else read_picture(one, keep_alpha=keep_alpha)
        for one in images
    ]


def _read_tensor(image: Tensor, *, keep_alpha: bool) -> Picture:
    if image.ndim != 3 or image.shape[0] not in (3, 4):
        raise UserError(f"an image tensor must be (3, H, W), (4, H, W) or a batch of them; got {tuple(image.shape)}")
    if image.layout is not torch.strided or image.device.type == "meta":
        raise UserError(f"an image tensor must be dense and hold values; got {image.layout} on {image.device}")
    check_pixels("image", image.shape[2], image.shape[1])
    if image.dtype == torch.uint8:
        return read_image(rearrange(image.detach().cpu(), "c h w -> h w c").numpy(), keep_alpha=keep_alpha)
    if not image.is_floating_point():
        raise UserError(f"an image tensor must be uint8 or floating point; got {image.dtype}")
    picture = image.detach().float().cpu()  # first, since torch cannot compare all formats
    if not (picture.numel() and picture.min() >= 0 and picture.max() <= 1):  # also False for NaN
        raise UserError("a floating point image tensor must lie in [0, 1]; got values outside, NaN or no pixels")
    if len(picture) == 3 or (keep_alpha and picture[3].min() < 1):
        return picture
    return over_white(picture[:3] * picture[3:], picture[3:])


def over_white(premultiplied: Tensor, alpha: Tensor) -> Tensor:
    """Compose premultiplied colours over white."""
    return premultiplied + (1 - alpha)


def picture_size(picture: Picture) -> Size:
    """Return the size of a picture."""
    return Size(*(picture.shape[1:] if isinstance(picture, Tensor) else picture.shape[:2]))


def picture_to_8_bits(picture: Picture) -> np.ndarray:
    """Return a picture as (H, W, c) uint8."""
    return _to_8_bits(picture) if isinstance(picture, Tensor) else picture


def fit_images(pictures: Sequence[Picture], *, size: SizeInput, fit: Fit) -> FittedImages:
    """Fit images to the model's size as the training data was.

    Float tensors of this size are taken as they are; everything else passes through 8 bits. Borders of images with alpha are
    transparent.
    """
    frame = Size.parse(size)
    if all(_num_channels(picture) == 3 for picture in pictures):
        return FittedImages(torch.stack([_fit_image(picture, frame, fit) for picture in pictures]))
    rgba = torch.stack([_fit_premultiplied(picture, frame, fit) for picture in pictures])
    straight = (unpremultiply(np.array(_to_8_bits(one))) for one in rgba)
    filled = torch.stack([_to_float(fill_invisible(one)[..., :3]) for one in straight])
    return FittedImages(over_white(rgba[:, :3], rgba[:, 3:]), rgba, filled)


def _num_channels(picture: Picture) -> int:
    return picture.shape[0] if isinstance(picture, Tensor) else picture.shape[-1]


def _fit_premultiplied(picture: Picture, size: Size, fit: Fit) -> Tensor:
    """Fit an image with or without alpha: (4, height, width), premultiplied."""
    if _num_channels(picture) == 3:
        image = _fit_image(picture, size, fit)
        return torch.cat((image, torch.ones_like(image[:1])))
    if isinstance(picture, Tensor):
        if picture.shape[1:] == size:
            return torch.cat((picture[:3] * picture[3:], picture[3:]))
        picture = _to_8_bits(picture)
    if picture.shape[:2] == size:  # exact, where premultiplied colours in 8 bits would be rounded
        return _fit_premultiplied(_to_float(picture), size, fit)
    return _to_float(fit_premultiplied(picture[None], size, fit)[0])


def _to_8_bits(image: Tensor) -> np.ndarray:
    return np.rint(rearrange(image, "c h w -> h w c").numpy() * 255).astype(np.uint8)


def _to_float(frame: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(frame)).permute(2, 0, 1).float() / 255


def _fit_image(picture: Picture, size: Size, fit: Fit) -> Tensor:
    if isinstance(picture, Tensor):
        if picture.shape[1:] == size:
            return picture
        picture = _to_8_bits(picture)
    return _to_float(fit_frames(picture[None], size, fit)[0])


def prepare_mask(mask: MaskInput, *, size: SizeInput, fit: Fit, image_sizes: Collection[tuple[int, int]] = ()) -> Tensor:
    """Fit a mask as its image is fitted; padding repeats the mask's nearest edge: (1, 1, height, width) float32 in [0, 1].

    A coloured picture counts by its luminance; where it is transparent it counts as black.

    Args:
        image_sizes: (height, width) of the images that it belongs to, which it must have, too.

    Raises:
        UserError: not a mask, values outside their range, NaN, or another size than its image.
        FileNotFoundError: no such file.
    """
    if isinstance(mask, Tensor):
        mask = mask.detach().float().cpu().numpy() if mask.is_floating_point() else mask.cpu().numpy()
    if isinstance(mask, np.ndarray):
        gray = _mask_to_8_bits(mask)
    elif isinstance(mask, str | Path | Image.Image):
        gray = read_gray(mask)
    else:
        raise UserError(f"motion_mask must be a path, PIL image, array or tensor; got {type(mask).__name__}")
    height, width = gray.shape
    for image_height, image_width in image_sizes:
        if (height, width) != (image_height, image_width):
            raise UserError(f"motion_mask must have its image's size, {image_width}x{image_height}; got {width}x{height}")
    fitted = fit_frames(np.repeat(gray[None, ..., None], 3, axis=-1), size, fit, border="edge")[0, ..., 0]
    return torch.from_numpy(fitted.astype(np.float32) / 255)[None, None]


def _mask_to_8_bits(mask: np.ndarray) -> np.ndarray:
    if mask.ndim == 3 and 1 in (mask.shape[0], mask.shape[2]):
        mask = mask[0] if mask.shape[0] == 1 else mask[..., 0]
    if mask.ndim != 2 or mask.size == 0:
        raise UserError(f"a motion_mask must be (H, W), (H, W, 1) or (1, H, W); got {mask.shape}")
    if mask.dtype == np.uint8:
        return mask
    if mask.dtype != bool and not np.issubdtype(mask.dtype, np.floating):
        raise UserError(f"a motion_mask must be uint8, bool or floating point; got {mask.dtype}")
    if not (mask.min() >= 0 and mask.max() <= 1):  # also False for NaN
        raise UserError("a floating point motion_mask must lie in [0, 1]; got values outside or NaN")
    return np.rint(mask * 255.0).astype(np.uint8)


def driving_chunks(driving: DrivingInput, num_frames: int, framing: Framing) -> Iterator[Tensor]:
    """Yield a driving clip, fitted, `num_frames` at a time: (1, 3, n, H, W) float32 in [0, 1].

    Raises:
        UserError: not a frame or chunk of frames, or no frames at all.
    """
    if isinstance(driving, str | Path):
        from lfdm.data.video import iterate_video  # imports PyAV, which takes as long as all else here

        driving = iterate_video(driving)
    parts = [driving] if isinstance(driving, np.ndarray | Tensor) else driving
    if not isinstance(parts, Iterable):
        raise UserError(f"driving must be an array, a tensor, a path or an iterable of frames; got {type(driving).__name__}")
    frames = (frame for part in parts for frame in _driving_frames(part))
    empty = True
    while chunk := list(islice(frames, num_frames)):
        empty = False
        pictures = [picture for frame in chunk for picture in read_images(frame)]
        fit = framing.fit_of(picture_size(pictures[0]))
        yield rearrange(fit_images(pictures, size=framing.size, fit=fit).over_white, "t c h w -> 1 c t h w")
    if empty:
        raise UserError("the driving clip holds no frames")


def _driving_frames(part: DrivingPart) -> Sequence[SingleImage]:
    """Split a chunk into its frames; a single frame is a chunk of one."""
    if isinstance(part, Image.Image):
        return [part]
    if isinstance(part, np.ndarray) and part.ndim in (3, 4) and part.shape[-1] == 3:
        return list(part) if part.ndim == 4 else [part]
    if isinstance(part, Tensor) and part.ndim in (3, 4) and part.shape[0] == 3:
        return list(part.unbind(1)) if part.ndim == 4 else [part]
    got = tuple(part.shape) if isinstance(part, np.ndarray | Tensor) else type(part).__name__
    raise UserError(f"driving frames must be (t, H, W, 3), (H, W, 3), tensors (3, t, H, W) or (3, H, W); got {got}")


def parse_condition(text: str | None, labels: Sequence[str]) -> Condition:
    """Parse a condition as the command line writes it: `wave`, or a mix, `wave=0.7,jump=0.3`. An exact label wins.

    >>> parse_condition("wave=0.7, jump=.3", ["wave", "jump"]), parse_condition("wave", ["wave"])
    ({'wave': 0.7, 'jump': 0.3}, 'wave')

    Raises:
        UserError: a label that occurs twice in a mix.
    """
    if text is None or text in labels or len(text) > MAX_MIX or not _MIX.fullmatch(text):
        return text
    pairs = [(name.strip(), float(weight)) for name, weight in (part.rsplit("=", 1) for part in text.split(","))]
    mix = dict(pairs)
    if len(mix) < len(pairs):
        raise UserError(f"condition must name each label of a mix once; got {text!r}")
    return mix


def match_conditions(num_images: int, embedding: Tensor, negative: Tensor, *, num_videos: int) -> tuple[Tensor, Tensor]:
    """Repeat the embeddings of a condition and a negative condition, (n, D) each, to one per video.

    Returns:
        Two tensors (b, D), b = pairs of image and condition * num_videos.

    Raises:
        UserError: numbers of images and conditions that do not match.
    """
    num_videos = check_integer("num_videos", num_videos, 1, MAX_VIDEOS)
    pairs = max(num_images, len(embedding))
    if num_images not in (1, pairs) or len(embedding) not in (1, pairs) or len(embedding) == 0:
        raise UserError(f"condition must be one, or one per image ({num_images}); got {len(embedding)}")
    if len(negative) not in (1, pairs):
        raise UserError(f"negative_condition must be one, or one per condition ({pairs}); got {len(negative)}")
    embedding, negative = (rows.expand(pairs, -1).repeat_interleave(num_videos, dim=0) for rows in (embedding, negative))
    return embedding, negative


def sample_generators(generator: SeedInput, batch_size: int) -> list[torch.Generator]:
    """Return one new generator per sample, so that a sample does not depend on the batch it is generated in.

    Each is seeded with one number from that sample's generator; a single generator seeds all samples in order. A list of
    generators thus gives the same samples as one call each, and a single generator the same as calls one after the other. An
    integer stands for a CPU generator with that seed, None for torch's default generator.

    Raises:
        UserError: not one generator per sample.
    """
    if isinstance(generator, Sequence) and not isinstance(generator, str):
        generators = [_generator(one) for one in generator]
    else:
        generators = [_generator(generator)] * batch_size
    if len(generators) != batch_size:
        raise UserError(f"generator must be one, or a list of {batch_size}, one per sample; got {len(generators)}")
    fresh = []
    for one in generators:
        device = torch.device("cpu") if one is None else one.device
        seed = int(torch.randint(MAX_SEED, (), generator=one, device=device))
        fresh.append(torch.Generator(device).manual_seed(seed))
    return fresh


def _generator(seed: object) -> torch.Generator | None:
    if seed is None or isinstance(seed, torch.Generator):
        return seed
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral):
        raise UserError(f"generator must be a torch.Generator, an integer seed or a list of these; got {type(seed).__name__}")
    number = int(seed)
    if not 0 <= number <= MAX_SEED:
        raise UserError(f"a seed must be from 0 to {MAX_SEED}; got {number}")
    return torch.Generator().manual_seed(number)
