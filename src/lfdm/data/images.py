"""Image files and objects of any kind, read as RGB and fitted to a size.

Shapes: an image is (H, W, 3) uint8 RGB, frames are (t, H, W, 3) uint8 RGB.
"""

import io
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lfdm.data.colour_profiles import to_srgb
from lfdm.data.gif_blocks import read_gif_layout
from lfdm.data.gif_frames import compose_gif
from lfdm.errors import UserError
from lfdm.folders.file_kinds import describe_start, is_heif
from lfdm.folders.files import expand_home

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".avif", ".heic", ".heif"})

_FORMATS = frozenset(
    "AVIF BMP DDS DIB GIF HEIF ICO JPEG JPEG2000 MPO PCX PNG PPM PSD QOI SGI TGA TIFF WEBP".split()  # noqa: SIM905
)
"""Formats that are read, by Pillow's names. Its others are refused: EPS, for one, runs Ghostscript on the file."""
MAX_IMAGE_PIXELS = 50_000_000
"""Larger images are refused before they are decoded, except for JPEGs, which can be decoded at a reduced size."""
MAX_REDUCED_PIXELS = 200_000_000
"""Largest JPEG that is decoded at a reduced size: those of phones. A progressive one needs 6 bytes for each of its pixels."""
_WEB = ("http:", "https:")

ItemT = TypeVar("ItemT")


def read_image(source: str | Path | Image.Image | np.ndarray, *, keep_alpha: bool = False) -> np.ndarray:
    """Return an image as (H, W, 3) uint8, from a file, a PIL image or an array.

    Alpha is composited over white; with `keep_alpha`, an image that is not opaque everywhere is (H, W, 4), straight. ICC
    profiles, greyscale, palette, CMYK and 16-bit images are converted to sRGB; EXIF rotation is applied. JPEGs of over 50
    megapixels are decoded at a half, a quarter or an eighth of their size.
    Arrays are (H, W), (H, W, 1), (H, W, 3) or (H, W, 4): uint8, uint16, or floating point in [0, 1].

    Raises FileNotFoundError, and UserError (naming the path) for what is not an image or has over 50 megapixels.
    """
    if isinstance(source, np.ndarray):
        return to_array(Image.fromarray(_array_to_8_bits(source, "image")), keep_alpha=keep_alpha)
    if isinstance(source, Image.Image):
        name = _name(source)
        return to_array(_decode(source, name), name, keep_alpha=keep_alpha)
    if not isinstance(source, str | Path):
        raise UserError(f"an image must be a path, PIL image or array; got {type(source).__name__}")
    with open_image(expand_home(source)) as image:
        return read_image(image, keep_alpha=keep_alpha)


def read_gray(source: str | Path | Image.Image) -> np.ndarray:
    """Return the luminance of an image times its opacity: (H, W) uint8. Raises as `read_image` does."""
    if not isinstance(source, Image.Image):
        with open_image(expand_home(source)) as image:
            return read_gray(image)
    name = _name(source)
    image = _decode(source, name)
    if not _has_alpha(image):
        return np.asarray(Image.fromarray(to_array(image, name)).convert("L"))
    return np.asarray(_over(image, "black").convert("L"))


@contextmanager
def open_image(path: Path, *, data: bytes | None = None, formats: tuple[str, ...] | None = None) -> Iterator[Image.Image]:
    """Open an image file of at most 50 megapixels without decoding it; UserError naming the path for anything else.

    A GIF is given as its first frame, decoded, on its transparent screen.

    Args:
        data: content to read instead of the file; `path` is then only its name.
        formats: Pillow's names of the formats to try, all by default.
    """
    if data is None:
        check_exists(path)
        if path.is_dir():
            raise UserError(f"{path}: a folder, not an image")
    with path.open("rb") if data is None else io.BytesIO(data) as file:
        start = file.read(512)
        file.seek(0)
        if start.startswith(b"GIF8") and (formats is None or "GIF" in formats):
            yield _open_gif(file, path)
            return
        if is_heif(start):
            _register_heif(path)
        with warnings.catch_warnings(), decoding(path):
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused below, with our own message
            try:
                known = set(Image.registered_extensions().values())  # without HEIF as long as no such file was opened
                image = Image.open(file, formats=None if formats is None else [name for name in formats if name in known])
            except UnidentifiedImageError:
                raise _unidentified(path, start, formats) from None
        image.filename = str(path)  # named in later errors
        with image:
            if image.format not in _FORMATS:
                raise UserError(f"{path}: {image.format} pictures are not read; use one of {', '.join(sorted(_FORMATS))}")
            _reduce(image)
            check_pixels(path, *image.size)
            yield image


def _open_gif(file: BinaryIO, path: Path) -> Image.Image:
    layout = read_gif_layout(file, path)
    if layout is None or not layout.frames:
        raise UserError(f"{path}: broken or not a readable image (a GIF without frames)")
    check_pixels(path, layout.width, layout.height)
    image = Image.fromarray(next(guarded(path, compose_gif(file, layout))))
    image.filename = str(path)  # pyright: ignore[reportAttributeAccessIssue] - as `Image.open` sets it
    return image


def _unidentified(path: Path, start: bytes, formats: tuple[str, ...] | None) -> UserError:
    kind = describe_start(start) or "a file in no known format"
    if formats is not None:
        return UserError(f"{path}: broken or not a readable image; must be one of {', '.join(formats)}, got {kind}")
    if kind.endswith(("picture", "GIF", "format")):
        return UserError(f"{path}: broken or not a readable image ({kind})")
    hint = f"; a frame of it is named by time, {path.name}@1.5s, or number, {path.name}@0" if kind.startswith("a video") else ""
    return UserError(f"{path}: not an image but {kind}{hint}")


def _reduce(image: Image.Image) -> None:
    """Let a JPEG that is too large be decoded at the largest allowed half, quarter or eighth of its size."""
    if image.format != "JPEG" or not MAX_IMAGE_PIXELS < image.width * image.height <= MAX_REDUCED_PIXELS:
        return
    for factor in (2, 4, 8):
        size = image.width // factor, image.height // factor
        if (size[0] + 1) * (size[1] + 1) <= MAX_IMAGE_PIXELS:
            image.draft(None, size)
            return


def _register_heif(path: Path) -> None:
    """Make Pillow read HEIC and HEIF, which it does not on its own."""
    try:
        import pillow_heif
    except ImportError:
        raise UserError(f"{path}: a HEIC picture; reading it needs `pip install 'lfdm[heif]'` (or save it as JPEG)") from None
    pillow_heif.register_heif_opener()


def _name(image: Image.Image) -> str:
    return str(getattr(image, "filename", "") or "image")


def _decode(image: Image.Image, name: str) -> Image.Image:
    """Return the decoded image, upright as its EXIF orientation says."""
    check_pixels(name, *image.size)
    with decoding(name):
        upright = ImageOps.exif_transpose(image)
        return upright.convert("LA") if upright.mode == "La" else upright  # Pillow has no other way from La


@contextmanager
def decoding(name: str | Path) -> Iterator[None]:
    """Turn any error that a decoder raises on a damaged file into a UserError naming it; only for calls into decoders.

    They raise errors of every class: OSError, RuntimeError, NotImplementedError, SyntaxError, MemoryError, struct.error, ...
    """
    try:
        yield
    except UserError:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own limit is higher than ours
        raise UserError(f"{name}: over {MAX_IMAGE_PIXELS // 10**6} megapixels; shrink it first ({error})") from error
    except Exception as error:
        raise UserError(f"{name}: broken or not a readable clip or image ({_reason(error)})") from error


def guarded(name: str | Path, items: Iterable[ItemT]) -> Iterator[ItemT]:
    """Yield the items of a decoder's own iterator with its errors handled as by `decoding`."""
    iterator = iter(items)
    while True:
        with decoding(name):
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item


def _reason(error: BaseException) -> str:
    lines = str(getattr(error, "strerror", None) or error).splitlines()
    return next((line for line in lines if line.strip()), type(error).__name__)


def check_exists(path: Path) -> None:
    """Raise FileNotFoundError where there is nothing, UserError for an address, and for a pipe or device, which could block."""
    if path.parts and path.parts[0].lower() in _WEB:
        address = str(path).replace(":/", "://", 1)  # Path makes one slash of two
        raise UserError(
            f"{address}: addresses are not fetched; download the file first (or in Python: diffusers.utils.load_image)"
        )
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if not (path.is_dir() or path.is_file()):
        raise UserError(f"{path}: neither a file nor a folder")


def check_pixels(name: str | Path, width: int, height: int) -> None:
    """Raise UserError for an image of over 50 megapixels."""
    if width * height > MAX_IMAGE_PIXELS:
        raise UserError(f"{name}: {width}x{height} is over {MAX_IMAGE_PIXELS // 10**6} megapixels; shrink it first")


# ------------------------------------------------------------------------------------------------------ conversion


def _array_to_8_bits(array: np.ndarray, name: str | Path) -> np.ndarray:
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (3, 4))) or 0 in array.shape:
        raise UserError(f"{name}: an array must be (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {array.shape}")
    check_pixels(name, array.shape[1], array.shape[0])
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        return np.rint(array / 257.0).astype(np.uint8)
    if not np.issubdtype(array.dtype, np.floating):
        raise UserError(f"{name}: an array must be uint8, uint16 or floating point, got {array.dtype}")
    if not (array.min() >= 0 and array.max() <= 1):  # also False for NaN
        hint = "; divide them by 255" if array.min() >= 0 and 1 < array.max() <= 255 else ""
        raise UserError(f"{name}: floating point values must lie in [0, 1], got {array.min():g}..{array.max():g}{hint}")
    return np.rint(array * 255.0).astype(np.uint8)


def to_array(image: Image.Image, name: str | Path = "image", *, keep_alpha: bool = False) -> np.ndarray:
    """Convert a decoded image, such as one frame of a GIF, to (H, W, 3) uint8; see `read_image`. Errors name it `name`."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):  # 16-bit greyscale, which Pillow would clip instead of scaling
        deep = np.asarray(image)
        if deep.min() < 0 or deep.max() > 65535:
            raise UserError(f"{name}: a greyscale image must lie in 0..65535, got {deep.min()}..{deep.max()}")
        image = Image.fromarray(_array_to_8_bits(deep.astype(np.uint16), name))
    elif image.mode == "F":
        image = Image.fromarray(_array_to_8_bits(np.asarray(image), name))
    with decoding(name):
        image = to_srgb(image, profile)
    if _has_alpha(image):
        rgba = np.asarray(image.convert("RGBA"))
        if keep_alpha and rgba[..., 3].min() < 255:
            return rgba
        image = _over(image, "white")
    with decoding(name):
        return np.asarray(image.convert("RGB"))


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def _over(image: Image.Image, colour: str) -> Image.Image:
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, colour), layer)
