"""Video files in and out: files, GIFs and folders of images. Single images and fitting: `lfdm.data.images`.

Shapes: frames are (t, H, W, 3) uint8 RGB, or (t, H, W, 4) with straight alpha.
"""

import re
import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from lfdm.config.checks import check_integer, check_number
from lfdm.config.video import MAX_FPS, MIN_FPS, Fit, SizeInput
from lfdm.data.alpha import add_alpha, fit_premultiplied
from lfdm.data.animations import ANIMATION_SUFFIXES, decode_animation, encode_animation, is_animation, read_animation_timing
from lfdm.data.containers import VideoInfo, beyond_end, decode_file, decode_file_at, read_file_info
from lfdm.data.encoding import FILE_SUFFIXES, encode_file
from lfdm.data.fitting import check_frames, fit_frames
from lfdm.data.gif import decode_gif, encode_gif, read_gif_timing
from lfdm.data.images import IMAGE_SUFFIXES, check_exists, read_image
from lfdm.data.timing import Timing
from lfdm.errors import UserError
from lfdm.folders.files import check_parents, expand_home, real_path, replacing_folder, write_bytes

_VIDEO_ENDINGS = "mp4 m4v mov qt 3gp 3g2 avi divx webm mkv mpg mpeg m2v vob ts mts m2ts wmv asf flv f4v ogv dv gif apng"
VIDEO_SUFFIXES = frozenset(f".{ending}" for ending in _VIDEO_ENDINGS.split(" "))
"""Endings of videos, in lower case. A folder's videos are found by them; how a file is read depends only on its content."""
_WRITTEN_SUFFIXES = (*FILE_SUFFIXES, ".gif", *ANIMATION_SUFFIXES)

MAX_VIDEO_PIXELS = 600_000_000
"""Most frames x height x width that `read_video` decodes (1.8 GB): 290 frames of 1920x1080."""
FOLDER_FPS = 25.0
"""Frames per second of a folder of images, which stores none."""
_SAME_TIME = 1e-6
"""Seconds by which a time may miss the start of a frame, for rounding."""
MAX_GIF_FPS, MAX_ANIMATION_FPS = 50.0, 90.0
"""Browsers slow animations down whose frames last 10 ms or less; a GIF states their time in steps of 10 ms, others in 1 ms."""

FrameSource = np.ndarray | Iterable[np.ndarray]
"""(t, H, W, 3) uint8, or one frame (H, W, 3) after the other; with 4 channels in place of 3, the last one is straight alpha."""


@dataclass(frozen=True, kw_only=True)
class Crop:
    """Rows `top` to `bottom` and columns `left` to `right` (both ends excluded) of frames of `width` x `height`."""

    top: int
    bottom: int
    left: int
    right: int
    width: int
    height: int

    def cut(self, path: Path, frame: np.ndarray) -> np.ndarray:
        """Return that part of a frame (H, W, 3). Raises UserError naming `path` for a frame of another size."""
        height, width = frame.shape[:2]
        if (width, height) != (self.width, self.height):
            raise UserError(f"{path}: frames are {width}x{height}; the crop is one of {self.width}x{self.height}")
        return frame[self.top : self.bottom, self.left : self.right]


# --------------------------------------------------------------------------------------------------------- writing


def write_video(path: str | Path, frames: FrameSource, *, fps: float, lossless: bool = False, sound: Path | None = None) -> Path:
    """Write `frames` in the format that the ending of `path` names, and return the path.

    An iterable of frames is consumed one by one.

    - `.avi` (FFV1) and no ending (a folder `frame-00000.png`, ...) are always lossless;
    - `.mp4` is H.264 in yuv420p, which every browser plays; odd sizes are padded by repeating the last row or column.
      It blurs colours over 2x2 pixels: `lossless` writes exact RGB, which most browsers refuse;
    - `.webm` is VP9 in yuv420p, or exact RGB with `lossless`;
    - `.mov` is ProRes 4444, for video editors, or PNG frames with `lossless`;
    - `.apng` (an animated PNG) is exact, `.webp` with `lossless`;
    - `.gif` has its own palette for each frame (exact up to 256 colours) and frame times in steps of 10 ms.

    All of them store alpha, except for `.mp4`, where frames are composed over white, and `lossless` `.webm`, which is refused. A
    pixel of a `.gif` is visible (at least half alpha) or not.

    Parent folders are made. The file is written under a temporary name and then renamed; a folder is replaced only if it
    holds nothing but frames.

    Args:
        sound: clip whose sound is kept, from its first frame on and as long as the frames last, in `.mp4` and `.mov` (AAC) and
            `.webm` (Opus); the other formats are silent.

    Raises:
        UserError: frames of another shape or type, no frames, an `fps` or ending that is not allowed, or `lossless` with `.gif`.
        OSError: the disk refuses to write.
    """
    path = expand_home(path)
    check_target(path)
    if path.suffix:
        data = encode_video(frames, path.suffix, fps=fps, lossless=lossless, sound=sound)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, data)
        return path
    check_number("fps", fps, low=MIN_FPS, high=MAX_FPS)
    frames = _checked(frames)
    with replacing_folder(path) as temporary:
        for index, frame in enumerate(frames):
            Image.fromarray(frame).save(temporary / f"frame-{index:05d}.png")
    return path


def encode_video(frames: FrameSource, suffix: str, *, fps: float, lossless: bool = False, sound: Path | None = None) -> bytes:
    """Encode a file of the format `suffix` in memory; see `write_video`."""
    suffix = suffix.lower()
    if suffix not in _WRITTEN_SUFFIXES:
        raise UserError(f"cannot write {suffix!r}; use {', '.join(_WRITTEN_SUFFIXES)} or no ending (a folder)")
    fps = check_number("fps", fps, low=MIN_FPS, high=max_fps(Path(f"video{suffix}")))
    checked = _checked(frames)
    if suffix in ANIMATION_SUFFIXES:
        return encode_animation(checked, suffix, fps=fps, lossless=lossless)
    if suffix != ".gif":
        return encode_file(checked, suffix, fps=fps, lossless=lossless, sound=sound)
    if lossless:
        raise UserError("lossless: a gif has 256 colours a frame; use .avi, .mov, .mp4, .webm or no ending (a folder)")
    return encode_gif(checked, fps=fps)


def _checked(frames: FrameSource) -> Iterator[np.ndarray]:
    """Yield frames (H, W, 3) or (H, W, 4) uint8. Raises UserError for others, for none, and where their size changes."""
    if isinstance(frames, np.ndarray):
        check_frames(frames, may_have_alpha=True)
        return iter(frames)

    def check(frame: np.ndarray) -> np.ndarray:
        check_frames(frame[None], may_have_alpha=True)
        return frame

    return _one_size("frames", map(check, frames))


def max_fps(path: Path) -> float:
    """Return the highest rate that the format of `path` can store."""
    suffix = path.suffix.lower()
    return MAX_GIF_FPS if suffix == ".gif" else MAX_ANIMATION_FPS if suffix in ANIMATION_SUFFIXES else MAX_FPS


def check_target(path: Path) -> None:
    """Raise UserError where `write_video` could only write to `path` by replacing something that is no video of that form."""
    check_parents(path)
    real = real_path(path)
    if not path.suffix and real.exists() and not _holds_frames_only(real):
        raise UserError(f"{path}: exists and is not a folder of frame-*.png files; choose another name")
    if path.suffix and real.is_dir():
        raise UserError(f"{path}: a folder has this name; choose another one")


def _holds_frames_only(path: Path) -> bool:
    return path.is_dir() and all(re.fullmatch(r"frame-\d{5,}\.png", entry.name) for entry in path.iterdir())


# --------------------------------------------------------------------------------------------------------- reading


def read_video(
    path: str | Path, *, max_frames: int | None = None, max_pixels: int = MAX_VIDEO_PIXELS, keep_alpha: bool = False
) -> np.ndarray:
    """Return the first `max_frames` frames (default: all) of a file, a GIF or a folder of images: (t, H, W, 3) uint8.

    Files are recognised by their content. Images of a folder come in natural order. Longer frames of a GIF, WebP or APNG are
    repeated, as in a video of constant rate; each stored frame of a video file is given once, whatever its duration, as a player
    shows it: upright, with square pixels, deinterlaced, over white, in standard dynamic range. With `keep_alpha` frames are
    (t, H, W, 4), opaque where the clip stores no alpha.

    Raises FileNotFoundError, and UserError naming the path for anything that is not a whole clip: broken or truncated,
    without frames, of changing size, or above `max_pixels` pixels (frames x height x width).
    """
    return _collect(expand_home(path), iterate_video(path, max_frames=max_frames, keep_alpha=keep_alpha), max_pixels)


def iterate_video(path: str | Path, *, max_frames: int | None = None, keep_alpha: bool = False) -> Iterator[np.ndarray]:
    """Yield the frames (H, W, 3) uint8 that `read_video` returns, so that a clip of any length is never in memory as a whole.

    Raises as `read_video` does while iterating, except for clips that are too large.
    """
    path = expand_home(path)
    check_exists(path)
    if max_frames is not None:
        max_frames = check_integer("max_frames", max_frames, 1, sys.maxsize)
    return _one_size(path, islice(_decode(path, keep_alpha=keep_alpha), max_frames))


def read_fitted(
    path: str | Path,
    size: SizeInput,
    fit: Fit,
    *,
    max_frames: int | None = None,
    crop: Crop | None = None,
    only: Collection[int] | None = None,
    keep_alpha: bool = False,
) -> np.ndarray:
    """Read a clip, crop it and fit it to `size` frame by frame: a long clip is never in memory at its own size.

    Args:
        only: indices of the frames to return; those beyond the end are ignored.
        keep_alpha: return frames of four channels, premultiplied.

    Raises as `read_video` and `fit_frames` do, and UserError for frames of another size than the crop's.
    """
    path = expand_home(path)
    check_exists(path)
    chosen = None if only is None else frozenset(only)
    numbered = enumerate(islice(_decode(path, keep_alpha=keep_alpha), max_frames))
    frames = (frame for index, frame in numbered if chosen is None or index in chosen)
    cut = frames if crop is None else (crop.cut(path, frame) for frame in frames)
    fitted = fit_premultiplied if keep_alpha else fit_frames
    return _collect(path, (fitted(frame[None], size, fit)[0] for frame in cut), MAX_VIDEO_PIXELS)


def read_frame(path: str | Path, index: int, *, keep_alpha: bool = False) -> np.ndarray:
    """Return the frame (H, W, 3) uint8, or (H, W, 4) with `keep_alpha`, of this index in what `read_video` returns.

    Raises as `read_video` does, and UserError for an index beyond the end.
    """
    path = expand_home(path)
    check_exists(path)
    frame = next(_decode(path, first=index, keep_alpha=keep_alpha), None)
    if frame is None:
        num_frames = video_info(path).frames
        raise UserError(f"{path}: has no frame {index}; the frames are 0 to {num_frames - 1}")
    return frame


def read_frame_at(path: str | Path, seconds: Fraction, *, keep_alpha: bool = False) -> np.ndarray:
    """Return the frame (H, W, 3) uint8, or (H, W, 4) with `keep_alpha`, that a player shows at a time since the start of a clip.

    Raises as `read_video` does, and UserError for a time beyond the end.
    """
    path = expand_home(path)
    check_exists(path)
    timing = None if path.is_dir() else _read_timing(path)
    if timing is None and path.is_file():
        return decode_file_at(path, seconds, keep_alpha=keep_alpha)
    rates = [1 / FOLDER_FPS] * len(_frame_files(path)) if timing is None else timing.durations
    ends = np.cumsum(rates)
    if seconds > ends[-1] + _SAME_TIME:
        raise beyond_end(path, seconds, float(ends[-1]))
    stored = min(int(np.searchsorted(ends, float(seconds) + _SAME_TIME, side="right")), len(ends) - 1)
    return read_frame(path, stored if timing is None else sum(timing.repeats[:stored]), keep_alpha=keep_alpha)


def video_info(path: str | Path) -> VideoInfo:
    """Return the number of frames, average rate and size of a clip as it is read; read from headers where they tell it.

    Raises FileNotFoundError, and UserError naming the path for what is not a clip.
    """
    path = expand_home(path)
    check_exists(path)
    if path.is_dir():
        files = _frame_files(path)
        height, width = read_image(files[0]).shape[:2]
        return VideoInfo(frames=len(files), fps=FOLDER_FPS, width=width, height=height)
    timing = _read_timing(path)
    if timing is not None:
        return VideoInfo(frames=sum(timing.repeats), fps=timing.fps, width=timing.width, height=timing.height)
    return read_file_info(path)


def _read_timing(path: Path) -> Timing | None:
    """Read the timing of an animated picture; None for a file of any other kind."""
    if is_animation(path):
        return read_animation_timing(path)
    return read_gif_timing(path) if _is_gif(path) else None


def _decode(path: Path, *, first: int = 0, keep_alpha: bool = False) -> Iterator[np.ndarray]:
    """Yield the frames from index `first` on."""
    if not path.is_dir() and not is_animation(path) and not _is_gif(path):
        return decode_file(path, first=first, keep_alpha=keep_alpha)
    decode = _decode_folder if path.is_dir() else decode_animation if is_animation(path) else decode_gif
    return islice(decode(path, keep_alpha=keep_alpha), first, None)


def _decode_folder(path: Path, *, keep_alpha: bool) -> Iterator[np.ndarray]:
    """Yield the images of a folder. Raises UserError naming two of different sizes, which no clip has."""
    first: tuple[str, tuple[int, ...]] | None = None
    for file in _frame_files(path):
        frame = read_image(file, keep_alpha=keep_alpha)
        frame = add_alpha(frame) if keep_alpha else frame
        first = first or (file.name, frame.shape)
        if frame.shape != first[1]:
            sizes = [f"{name} is {shape[1]}x{shape[0]}" for name, shape in (first, (file.name, frame.shape))]
            raise UserError(f"{path}: frames must have one size; {', '.join(sizes)}")
        yield frame


def _is_gif(path: Path) -> bool:
    """Return whether a file is a GIF by its first bytes. Raises UserError for a still image, going by its ending."""
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise UserError(f"{path}: an image; a clip is a folder of images or a video, such as .mp4, .mov, .webm, .avi or .gif")
    with path.open("rb") as file:
        return file.read(4) == b"GIF8"


def _one_size(name: str | Path, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    shape: tuple[int, ...] | None = None
    for frame in frames:
        if shape is not None and frame.shape != shape:
            raise UserError(f"{name}: change size from {shape[:2]} to {frame.shape[:2]}")
        shape = frame.shape
        yield frame
    if shape is None:
        raise UserError(f"{name}: must hold at least one frame; got none")


def _collect(path: Path, frames: Iterable[np.ndarray], max_pixels: int) -> np.ndarray:
    collected, shape, pixels = bytearray(), (), 0  # grows in place: a list and its copy as one array would take twice as much
    for frame in _one_size(path, frames):
        pixels += frame.shape[0] * frame.shape[1]
        if pixels > max_pixels:
            raise UserError(f"{path}: more than {max_pixels} pixels in all; read fewer frames with max_frames")
        collected += np.ascontiguousarray(frame).data
        shape = frame.shape
    return np.frombuffer(collected, np.uint8).reshape(-1, *shape)


def _frame_files(path: Path) -> list[Path]:
    files = [file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")]
    if not files:
        raise UserError(f"{path}: a folder without images; a clip is a folder of frames or a video file")
    return sorted(files, key=natural_key)


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """Return a sort key in which `frame-9` comes before `frame-10`.

    >>> [p.name for p in sorted([Path("a10.png"), Path("a9.png"), Path("A1.png")], key=natural_key)]
    ['A1.png', 'a9.png', 'a10.png']
    """
    parts = re.split(r"(\d+)", path.name.lower())
    key = [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts if part]
    return [*key, (-1, 0, path.name)]  # names that differ only in capitals also need an order
