"""What a request may ask for: every field checked, whatever a client sent.

Shapes: mask (H, W) float in [0, 1].
"""

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lfdm.config.checks import MAX_SEED, check_integer, check_number
from lfdm.config.diffusion import MAX_GUIDANCE_SCALE
from lfdm.data.images import open_image, read_gray
from lfdm.errors import UserError
from lfdm.pipeline.control import MAX_STRENGTH
from lfdm.web.limits import ServeLimits
from lfdm.web.storage import Storage
from lfdm.web.uploads import IMAGE_FORMATS, check_megapixels

MAX_MASK_BYTES = 400_000
MAX_MASK_MEGAPIXELS = 1.0
PAGE_SEED = 2**53 - 1
"""Largest seed that a browser can write exactly."""


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the served model offers."""

    labels: tuple[str, ...]
    """Without labels a request is unconditional."""
    examples: tuple[Path, ...]
    """Pictures that can be asked for by name instead of uploading one."""
    max_frames: int
    max_steps: int
    """Of the model's noise schedule."""
    num_frames: int
    num_inference_steps: int
    guidance_scale: float
    """What is taken where a request leaves them out."""


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """One picture, a label, and how to sample."""

    image: Path
    mask: np.ndarray | None
    label: str | None
    seeds: tuple[int, ...]
    num_inference_steps: int
    guidance_scale: float
    motion_strength: float
    num_frames: int
    loop: bool


@dataclass(frozen=True, kw_only=True)
class TransferRequest:
    """One picture and a driving clip."""

    image: Path
    mask: np.ndarray | None
    driving: Path
    relative: bool
    motion_strength: float


class RequestReader:
    """Turns loose JSON values into requests.

    Every method raises UserError naming the field, what was got and what is allowed.
    """

    def __init__(self, choices: Choices, limits: ServeLimits, storage: Storage) -> None:
        self.choices = choices
        self.limits = limits
        self.storage = storage

    def generate(
        self,
        *,
        image: object,
        mask: object,
        label: object,
        seed: object,
        num_inference_steps: object,
        guidance_scale: object,
        motion_strength: object,
        num_videos: object,
        num_frames: object,
        loop: object,
    ) -> GenerateRequest:
        """One picture, a label, and how to sample."""
        videos = _whole("num_videos", num_videos, 1, self.limits.num_videos)
        first = _whole("seed", seed, 0, MAX_SEED - videos)
        most_steps = min(self.limits.num_inference_steps, self.choices.max_steps)
        return GenerateRequest(
            image=self._image(image),
            mask=self._mask(mask),
            label=self._label(label),
            seeds=tuple(range(first, first + videos)),
            num_inference_steps=_whole(
                "num_inference_steps", _or(num_inference_steps, min(self.choices.num_inference_steps, most_steps)), 1, most_steps
            ),
            guidance_scale=_number("guidance_scale", _or(guidance_scale, self.choices.guidance_scale), 0, MAX_GUIDANCE_SCALE),
            motion_strength=_number("motion_strength", motion_strength, 0, MAX_STRENGTH),
            num_frames=_whole("num_frames", _or(num_frames, self.choices.num_frames), 2, self.choices.max_frames),
            loop=_flag("loop", loop),
        )

    def transfer(
        self, *, image: object, mask: object, driving: object, relative: object, motion_strength: object
    ) -> TransferRequest:
        """One picture and a driving clip."""
        return TransferRequest(
            image=self._image(image),
            mask=self._mask(mask),
            driving=self._file("driving", driving, "an uploaded clip"),
            relative=_flag("relative", relative),
            motion_strength=_number("motion_strength", motion_strength, 0, MAX_STRENGTH),
        )

    def _image(self, image: object) -> Path:
        """An uploaded file, or an example by its name."""
        if isinstance(image, str):
            examples = {path.stem: path for path in self.choices.examples}
            if image not in examples:
                raise UserError(f"image must be an uploaded picture or one of {_listed(examples)}; got {_shown(image)}")
            return examples[image]
        return self._file("image", image, "an uploaded picture or the name of an example")

    def _file(self, name: str, value: object, allowed: str) -> Path:
        if not isinstance(value, dict) or not value.get("path"):
            raise UserError(f"{name} is missing: give {allowed}" if value in (None, {}) else f"{name} must be {allowed}")
        return self.storage.find(value["path"])

    def _label(self, label: object) -> str | None:
        labels = self.choices.labels
        if label is None and not labels:
            return None
        if not isinstance(label, str) or label not in labels:
            raise UserError(f"label must be one of {_listed(labels)}; got {_shown(label)}")
        return label

    def _mask(self, mask: object) -> np.ndarray | None:
        """None, a PNG as a data URL (as the page's brush sends it), or an uploaded picture: white moves, black stays.

        Pictures are read as the pipeline reads them.
        """
        if mask in (None, "", {}):
            return None
        if isinstance(mask, dict):
            data, formats = self._file("mask", mask, "an uploaded picture").read_bytes(), IMAGE_FORMATS
        elif isinstance(mask, str) and mask.startswith("data:image/png;base64,"):
            data, formats = _from_base64(mask.partition(",")[2]), ("PNG",)
        else:
            raise UserError(f"mask must be left out, an uploaded picture or a PNG as a data URL; got {_shown(mask)}")
        if len(data) > MAX_MASK_BYTES:
            raise UserError(f"mask may have {MAX_MASK_BYTES} bytes; this one has {len(data)}")
        with open_image(Path("mask"), data=data, formats=formats) as picture:
            check_megapixels(picture.width * picture.height, MAX_MASK_MEGAPIXELS, "a mask")
            return read_gray(picture).astype(np.float32) / 255


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError("mask is not base64") from error


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"{name} must be true or false; got {_shown(value)}")
    return value


def _or(value: object, default: object) -> object:
    return default if value is None else value


def _whole(name: str, value: object, low: int, high: int) -> int:
    """JavaScript and JSON do not tell 10.0 from 10."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return check_integer(name, _short(value), low, high)


def _number(name: str, value: object, low: float, high: float) -> float:
    if isinstance(value, int) and abs(value) > 2**60:
        value = float("inf")  # an integer beyond floats has no float to compare
    return check_number(name, _short(value), low=low, high=high)


class _Short:
    """In place of a value that is no number: its repr fits into a message."""

    def __init__(self, value: object) -> None:
        self._shown = _shown(value)

    def __repr__(self) -> str:
        return self._shown


def _short(value: object) -> object:
    """Numbers as they are, anything else as a `_Short`."""
    return value if isinstance(value, int | float) and abs(value) < 1e300 else _Short(value)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
