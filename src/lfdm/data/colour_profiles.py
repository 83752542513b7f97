"""Pictures in the colours of their ICC profile, converted to sRGB."""

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

_UNSEEN = 2
"""Largest change of an 8-bit value by a profile that is another spelling of sRGB; such pictures are kept bit for bit."""
_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Pillow's mode by the colour space of a profile."""
_COLOUR_MODES = {"RGB": "RGB", "RGBA": "RGB", "P": "RGB", "PA": "RGB", "CMYK": "CMYK", "L": "L", "LA": "L", "1": "L"}
"""Kind of colours by the mode of an image."""


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return an image in sRGB, its transparency kept: RGB or RGBA.

    It is returned as it is without a profile, with one that is damaged or belongs to another kind of image, and where the profile
    changes no value by more than 2.
    """
    kind = _COLOUR_MODES.get(image.mode)
    transform = _transform(profile, kind) if profile and kind else None
    if transform is None:
        return image
    converted = transform.apply(image.convert(transform.input_mode))
    if "A" in image.mode or "transparency" in image.info:
        converted.putalpha(image.convert("RGBA").getchannel("A"))
    return converted


@lru_cache(maxsize=4)
def _transform(profile: bytes, kind: str) -> ImageCms.ImageCmsTransform | None:
    """Build the transform of a profile for images of `kind`; None where there is none or it changes nothing."""
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _MODES.get(getattr(opened.profile, "xcolor_space", ""))
        if mode is None or (mode != kind and (mode, kind) != ("RGB", "L")):
            return None
        transform = ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), mode, "RGB")
        samples = _samples(mode)
        change = np.asarray(transform.apply(samples), np.int16) - np.asarray(samples.convert("RGB"), np.int16)
    except Exception:  # littlecms raises errors of several classes; a picture is worth more than its profile
        return None
    return transform if np.abs(change).max() > _UNSEEN else None


def _samples(mode: str) -> Image.Image:
    """Return colours spread over all that images of a mode can have."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    levels = np.linspace(0, 255, 9).astype(np.uint8)
    grid = np.stack(np.meshgrid(*[levels] * len(mode), indexing="ij"), axis=-1).reshape(1, -1, len(mode))
    return Image.frombytes(mode, (grid.shape[1], 1), grid.tobytes())
