"""Check requests: every field, whatever a client sent.

Shapes: mask (H, W) float in [0, 1].
"""

import base64
import binascii
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
from PIL import Image

from lfdm.config.checks import MAX_SEED, check_integer, check_number, shown
from lfdm.config.control import Control, PartStrength
from lfdm.config.video import PictureFit
from lfdm.data.images import open_image, read_gray
from lfdm.errors import UserError
from lfdm.pipeline.control import MAX_STRENGTH
from lfdm.pipeline.control_file import FORMAT, VERSION, parse_control, parse_labels
from lfdm.pipeline.inputs import parse_condition
from lfdm.web.limits import ServeLimits
from lfdm.web.storage import Storage
from lfdm.web.uploads import IMAGE_FORMATS, check_megapixels, read_upload

MAX_MASK_BYTES = 400_000
MAX_MASK_MEGAPIXELS = 1.0
MAX_EXACT_INTEGER = 2**60
"""Integers beyond this are not compared with limits, since they may not fit into a float."""
MAX_LABEL = 1000
"""Most characters of a label or a mix."""
MAX_WEIGHT = 1e6
"""Largest weight of a label in a mix."""
MAX_CONTROL = 1_000_000
"""Most characters of the text of a control.json, masks included."""
PAGE_SEED = 2**53 - 1
"""Largest integer that JavaScript represents exactly."""


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Labels, examples, limits and defaults of the served model."""

    labels: tuple[str, ...]
    """Known labels; without any, requests are unconditional."""
    examples: tuple[Path, ...]
    """Pictures that a request may name instead of uploading one."""
    max_frames: int
    max_steps: int
    """Number of steps of the model's noise schedule."""
    num_frames: int
    num_inference_steps: int
    guidance_scale: float
    guidance_range: tuple[float, float]
    """Smallest and largest scale of the page's slider; no request may have a larger one."""
    fit: PictureFit
    """How pictures of another shape than the model's are fitted by default."""
    follows_tracks: bool = False
    """The model follows drags and pins."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GenerateRequest:
    """A picture, a label, and how to sample."""

    image: Path
    mask: np.ndarray | None
    condition: str | dict[str, float] | None
    """Label, mix of labels, or None for unconditional generation."""
    seeds: tuple[int, ...]
    num_inference_steps: int
    guidance_scale: float
    motion_strength: float
    num_frames: int
    loop: bool
    fit: PictureFit
    full_size: bool
    """Frames in the picture's own size."""
    control: Control | None
    """Masks of part strengths may be smaller copies of the picture's shape."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TransferRequest:
    """A picture and a driving clip."""

    image: Path
    mask: np.ndarray | None
    driving: Path
    relative: bool
    motion_strength: float
    fit: PictureFit
    full_size: bool
    audio: bool
    """Keep the sound of the clip."""


class RequestReader:
    """Converts JSON values to requests.

    Every method raises UserError naming the field, its value and what is allowed.
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
        fit: object = None,
        full_size: object = False,
        unconditional: object,
        control: object = None,
        end_image: object = None,
    ) -> GenerateRequest:
        """Check the fields of `/generate`; None for steps, guidance, frames or fit means the model's default.

        A label may be several over time, as the command line writes them. `control` is the text of a control.json, since gradio
        takes every object with a `path` for a file; its masks are PNGs as data URLs.
        """
        choices = self.choices
        spans = parse_labels(label) if isinstance(label, str) and len(label) <= MAX_LABEL else ()
        checked = self._control(control, end_image)
        if spans:
            checked = replace(checked or Control(), labels=spans)
        videos = _integer("num_videos", num_videos, 1, self.limits.num_videos)
        first = _integer("seed", seed, 0, MAX_SEED - videos)
        max_steps = min(self.limits.num_inference_steps, choices.max_steps)
        steps = min(choices.num_inference_steps, max_steps) if num_inference_steps is None else num_inference_steps
        scale = choices.guidance_scale if guidance_scale is None else guidance_scale
        frames = choices.num_frames if num_frames is None else num_frames
        return GenerateRequest(
            image=self._image(image),
            mask=self._mask(mask),
            condition=None if spans else self._condition(label, unconditional),
            seeds=tuple(range(first, first + videos)),
            num_inference_steps=_integer("num_inference_steps", steps, 1, max_steps),
            guidance_scale=_number("guidance_scale", scale, choices.guidance_range[1]),
            motion_strength=_number("motion_strength", motion_strength, MAX_STRENGTH),
            num_frames=_integer("num_frames", frames, 2, choices.max_frames),
            loop=_boolean("loop", loop),
            fit=self._fit(fit),
            full_size=_boolean("full_size", full_size),
            control=checked,
        )

    def transfer(
        self,
        *,
        image: object,
        mask: object,
        driving: object,
        relative: object,
        motion_strength: object,
        fit: object = None,
        full_size: object = False,
        audio: object,
    ) -> TransferRequest:
        """Check the fields of `/transfer`."""
        return TransferRequest(
            image=self._image(image),
            mask=self._mask(mask),
            driving=self._file("driving", driving, "an uploaded clip"),
            relative=_boolean("relative", relative),
            motion_strength=_number("motion_strength", motion_strength, MAX_STRENGTH),
            fit=self._fit(fit),
            full_size=_boolean("full_size", full_size),
            audio=_boolean("audio", audio),
        )

    def _image(self, image: object) -> Path:
        """Return the path of an uploaded file or of the example of that name."""
        if isinstance(image, str):
            examples = {path.stem: path for path in self.choices.examples}
            if image not in examples:
                raise UserError(f"image must be an uploaded picture or one of {', '.join(examples)}; got {shown(image)}")
            return examples[image]
        return self._file("image", image, "an uploaded picture or the name of an example")

    def _file(self, name: str, value: object, allowed: str) -> Path:
        if not isinstance(value, dict) or not value.get("path"):
            if value in (None, {}):
                raise UserError(f"{name} is missing: give {allowed}")
            raise UserError(f"{name} must be {allowed}; got {shown(value)}")
        try:
            return self.storage.find(value["path"])
        except UserError as error:
            raise UserError(f"{name}: {error}") from None

    def _fit(self, fit: object) -> PictureFit:
        found = self.choices.fit if fit is None else next((one for one in get_args(PictureFit) if one == fit), None)
        if found is None:
            raise UserError(f"fit must be one of {', '.join(get_args(PictureFit))}; got {shown(fit)}")
        return found

    def _condition(self, label: object, unconditional: object) -> str | dict[str, float] | None:
        """Return a label or a mix, given as `{"wave": 0.7, "jump": 0.3}` or as the command line writes it."""
        labels = self.choices.labels
        if _boolean("unconditional", unconditional) or not labels:
            if label is not None:
                raise UserError(f"label must be left out with unconditional; got {shown(label)}")
            return None
        chosen = parse_condition(label, labels) if isinstance(label, str) and len(label) <= MAX_LABEL else label
        if isinstance(chosen, dict) and set(chosen) <= set(labels):
            mix = {str(name): _number(f"label: the weight of {name}", weight, MAX_WEIGHT) for name, weight in chosen.items()}
            if sum(mix.values()) > 0:
                return mix
        if not isinstance(chosen, str) or chosen not in labels:
            mix = ",".join(f"{name}={share}" for name, share in zip(labels, (0.7, 0.3), strict=False))
            raise UserError(f"label must be one of {', '.join(labels)}, or a mix such as {mix}; got {shown(label)}")
        return chosen

    def _control(self, control: object, end_image: object) -> Control | None:
        """Return the control of the text of a control.json and an uploaded end image; None without either."""
        if control is not None and (not isinstance(control, str) or len(control) > MAX_CONTROL):
            raise UserError(f"control must be the text of a control.json, at most {MAX_CONTROL} characters; got {shown(control)}")
        try:
            content = {} if control is None else json.loads(control)
        except (ValueError, RecursionError):
            raise UserError("control must be the text of a control.json; got no JSON") from None
        if not isinstance(content, dict) or "end_image" in content:
            raise UserError(
                f"control must be a JSON object, without end_image, which is a field of its own; got {shown(control)}"
            )
        try:
            parsed = parse_control({"format": FORMAT, "version": VERSION, **content}, self._part_mask) if content else None
        except UserError as error:
            raise UserError(f"control: {error}") from None
        if end_image in (None, {}):
            return parsed
        picture = read_upload(self._file("end_image", end_image, "an uploaded picture"), self.limits)
        return replace(parsed or Control(), end_image=Image.fromarray(picture))

    def _part_mask(self, value: object) -> Image.Image:
        mask = self._mask(value)
        if mask is None:
            raise UserError("a mask is empty")
        return _to_gray_image(mask)

    def _mask(self, mask: object) -> np.ndarray | None:
        """Read a mask, white where the picture moves: nothing, a PNG as data URL (from the page's brush) or an uploaded picture.

        Pictures are read as the pipeline reads them.
        """
        if mask in (None, "", {}):
            return None
        if isinstance(mask, dict):
            data, formats = self._file("mask", mask, "an uploaded picture").read_bytes(), IMAGE_FORMATS
        elif isinstance(mask, str) and mask.startswith("data:image/png;base64,"):
            data, formats = _decode_base64(mask.partition(",")[2]), ("PNG",)
        else:
            raise UserError(f"mask must be left out, an uploaded picture or a PNG as a data URL; got {shown(mask)}")
        if len(data) > MAX_MASK_BYTES:
            raise UserError(f"mask may have at most {MAX_MASK_BYTES} bytes; this one has {len(data)}")
        with open_image(Path("mask"), data=data, formats=formats) as picture:
            check_megapixels(picture.width * picture.height, MAX_MASK_MEGAPIXELS, "a mask")
            return read_gray(picture).astype(np.float32) / 255


def resize_mask(mask: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Resize a mask (h, w) to the size (H, W) of its picture; the page's brush paints on a smaller copy.

    Raises:
        UserError: the mask has other proportions than the picture.
    """
    (h, w), (height, width) = mask.shape, image_size
    scale = max(h, w) / max(height, width)
    if max(abs(h - height * scale), abs(w - width * scale)) > 1:
        raise UserError(f"mask must have the proportions of its picture, {width}x{height}; got {w}x{h}")
    resized = Image.fromarray(mask).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized).clip(0, 1)


def with_masks_of_size(control: Control, image_size: tuple[int, int]) -> Control:
    """Return a control whose masks of part strengths have the size (H, W) of their picture; UserError as `resize_mask`."""

    def resized(part: PartStrength) -> PartStrength:
        if not isinstance(part.mask, Image.Image):
            return part
        mask = resize_mask(np.asarray(part.mask, np.float32) / 255, image_size)
        return replace(part, mask=_to_gray_image(mask))

    return replace(control, strengths=tuple(resized(part) for part in control.strengths))


def _to_gray_image(mask: np.ndarray) -> Image.Image:
    return Image.fromarray((255 * mask).round().astype(np.uint8))


def _decode_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:  # ValueError: not ASCII
        raise UserError("mask is not base64") from error


def _boolean(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"{name} must be true or false; got {shown(value)}")
    return value


def _integer(name: str, value: object, low: int, high: int) -> int:
    """Check an integer; 10.0 counts as one, since JavaScript and JSON do not distinguish it from 10."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return check_integer(name, value, low, high)


def _number(name: str, value: object, high: float) -> float:
    if isinstance(value, int) and abs(value) > MAX_EXACT_INTEGER:
        value = float("inf")
    return check_number(name, value, low=0, high=high)
