"""Video files in and out (PyAV, Pillow). Single pictures and fitting: `lfdm.data.images`.

Shapes: frames are (t, H, W, 3) uint8 RGB.
"""

import io
import re
import struct
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, cast

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from PIL import Image, ImageSequence

from lfdm.config.checks import check_number
from lfdm.config.video import MAX_FPS, MIN_FPS, Fit
from lfdm.data.images import (
    IMAGE_SUFFIXES,
    MAX_IMAGE_PIXELS,
    check_exists,
    check_frames,
    check_pixels,
    fit_frames,
    naming,
    open_image,
    over_white,
    read_image,
)
from lfdm.errors import UserError
from lfdm.folders.files import check_parents, replacing_folder, write_bytes

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".webm", ".gif"})

MAX_VIDEO_PIXELS = 600_000_000
"""Frames x height x width that `read_video` decodes at most (1.8 GB): 290 frames of 1920x1080."""
FOLDER_FPS = 25.0
"""Frames per second taken for a folder of images, which stores none."""

# Only these may be probed: a playlist dressed up as a clip could make the demuxer open other files.
_READ_OPTIONS = {"format_whitelist": "avi,mov,matroska"}
# BT.709 in limited range, converted so and said so in the file: then all players agree on the colours.
_COLOURS: dict[str, dict[str, Any]] = {"yuv420p": {"dst_colorspace": "ITU709", "dst_color_range": "MPEG"}}
_COLOUR_TAGS = {"colorspace": "bt709", "color_primaries": "bt709", "color_trc": "bt709", "color_range": "tv"}
FrameSource = np.ndarray | Iterable[np.ndarray]
"""(t, H, W, 3) uint8, or frame after frame."""
MAX_GIF_FPS = 50.0


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a clip holds, before it is decoded."""

    frames: int
    fps: float
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Crop:
    """Rows `top` to `bottom` and columns `left` to `right` (both ends excluded) of frames of `width` x `height`."""

    top: int
    bottom: int
    left: int
    right: int
    width: int
    height: int


# --------------------------------------------------------------------------------------------------------- writing


def write_video(path: str | Path, frames: FrameSource, *, fps: float, lossless: bool = False) -> Path:
    """Write `frames` in the format that the ending of `path` names, and return the path.

    They are an array (t, H, W, 3) uint8, or an iterable of (H, W, 3) that are drawn and written one by one.

    - `.avi` (FFV1) and no ending (a folder `frame-00000.png`, ...) give back the same bytes, whatever `lossless` says;
    - `.mp4` is H.264 in yuv420p, which every browser plays; odd sizes are padded by repeating the last row or column.
      It blurs colours over 2x2 pixels: for small clips `lossless` writes exact RGB, which most browsers refuse;
    - `.webm` is VP9 in yuv420p, or exact RGB with `lossless`;
    - `.gif` has a palette of its own for each frame (exact up to 256 colours) and times in steps of 10 ms; equal frames in a row
      are stored as one that is shown longer.

    Parent folders are made. The file is written under a temporary name and then renamed, so an existing one is
    replaced only by a whole one; a folder is replaced only if it holds nothing but frames.

    Raises UserError for frames of another shape or type, no frames, an impossible `fps`, an unknown ending, and
    `lossless` where the format cannot; OSError where the disk refuses.
    """
    path = Path(path)
    fps = _check_format(path, fps)
    check_target(path)
    if not path.suffix:
        _write_folder(path, _checked(frames))
        return path
    data = _ENCODERS[path.suffix](_checked(frames), fps, lossless)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, data)
    return path


def encode_video(frames: FrameSource, suffix: str, *, fps: float) -> bytes:
    """What `write_video` puts into a file of the ending `suffix`; raises as it does."""
    if not suffix:
        raise UserError("encode_video makes one file; got no ending")
    fps = _check_format(Path(f"video{suffix}"), fps)
    return _ENCODERS[suffix](_checked(frames), fps, False)


def _checked(frames: FrameSource) -> Iterator[np.ndarray]:
    """The frames one by one: at least one, all of one size."""
    if isinstance(frames, np.ndarray):
        check_frames(frames)
        return iter(frames)
    rest = iter(frames)
    first = next(rest, None)
    if first is None:
        raise UserError("frames must hold at least one frame; got none")
    check_frames(first[None])
    return chain([first], _of_size(rest, first.shape))


def _of_size(frames: Iterator[np.ndarray], shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    for frame in frames:
        check_frames(frame[None])
        if frame.shape != shape:
            raise UserError(f"frames must be of one size; got {shape}, then {frame.shape}")
        yield frame


def max_fps(path: Path) -> float:
    """The highest rate that the format of `path` can store."""
    return MAX_GIF_FPS if path.suffix == ".gif" else MAX_FPS


def _check_format(path: Path, fps: float) -> float:
    if path.suffix and path.suffix not in _ENCODERS:
        raise UserError(f"{path}: cannot write {path.suffix!r}; use .mp4, .webm, .gif, .avi or no ending (a folder)")
    return check_number("fps", fps, low=MIN_FPS, high=max_fps(path))


def _encode(
    frames: Iterator[np.ndarray], fps: float, *, container: str, codec: str, pixel_format: str, options: dict[str, str]
) -> bytes:
    """One video stream, encoded in memory: errors of the disk then come from plain file writing alone."""
    buffer = io.BytesIO()
    first = next(frames)
    with av.open(buffer, "w", format=container) as file:
        stream = cast(VideoStream, file.add_stream(codec, rate=Fraction(fps).limit_denominator(60_000), options=options))
        stream.height, stream.width, stream.pix_fmt = *first.shape[:2], pixel_format
        reformatter = VideoReformatter()  # one for all frames: setting it up costs more than a small frame
        for frame in chain([first], frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture = reformatter.reformat(picture, format=pixel_format, **_COLOURS.get(pixel_format, {}))
            file.mux(stream.encode(picture))
        file.mux(stream.encode())
    return buffer.getvalue()


def _encode_avi(frames: Iterator[np.ndarray], fps: float, lossless: bool) -> bytes:  # noqa: ARG001 - it always is
    return _encode(frames, fps, container="avi", codec="ffv1", pixel_format="bgr0", options={})


def _encode_mp4(frames: Iterator[np.ndarray], fps: float, lossless: bool) -> bytes:
    if lossless:
        options = {"qp": "0"}
        return _encode(frames, fps, container="mp4", codec="libx264rgb", pixel_format="rgb24", options=options)
    even = (np.pad(frame, ((0, len(frame) % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge") for frame in frames)
    options = {"crf": "12", "preset": "slow", **_COLOUR_TAGS}
    return _encode(even, fps, container="mp4", codec="libx264", pixel_format="yuv420p", options=options)


def _encode_webm(frames: Iterator[np.ndarray], fps: float, lossless: bool) -> bytes:
    pixel_format, options = ("gbrp", {"lossless": "1"}) if lossless else ("yuv420p", {"crf": "12", "b": "0", **_COLOUR_TAGS})
    return _encode(frames, fps, container="webm", codec="libvpx-vp9", pixel_format=pixel_format, options=options)


def _encode_gif(frames: Iterator[np.ndarray], fps: float, lossless: bool) -> bytes:
    if lossless:
        raise UserError("lossless: a gif has 256 colours a frame; use .avi, .mp4, .webm or no ending (a folder)")
    images = [Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE) for frame in frames]
    ends = np.rint(np.arange(len(images) + 1) * 100 / fps)  # in 10 ms: rounding must not add up over the clip
    durations = [int(d) * 10 for d in np.diff(ends)]
    buffer = io.BytesIO()
    try:
        images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=False)
    except struct.error:  # equal frames have become one, whose time does not fit into its 16 bits
        raise UserError("a gif can show no picture longer than 655 s; use .mp4, or more frames per second") from None
    return buffer.getvalue()


_ENCODERS: dict[str, Callable[[Iterator[np.ndarray], float, bool], bytes]] = {
    ".avi": _encode_avi,
    ".mp4": _encode_mp4,
    ".webm": _encode_webm,
    ".gif": _encode_gif,
}


def check_target(path: Path) -> None:
    """UserError where `write_video` could only write to `path` by replacing something that is no video of that form."""
    check_parents(path)
    if not path.suffix and path.exists() and not _holds_frames_only(path):
        raise UserError(f"{path}: exists and is not a folder of frame-*.png files; choose another name")
    if path.suffix and path.is_dir():
        raise UserError(f"{path}: a folder has this name; choose another one")


def _write_folder(path: Path, frames: Iterator[np.ndarray]) -> None:
    with replacing_folder(path) as temporary:
        for index, frame in enumerate(frames):
            Image.fromarray(frame).save(temporary / f"frame-{index:05d}.png")


def _holds_frames_only(path: Path) -> bool:
    return path.is_dir() and all(re.fullmatch(r"frame-\d{5,}\.png", entry.name) for entry in path.iterdir())


# --------------------------------------------------------------------------------------------------------- reading


def read_video(path: str | Path, *, max_frames: int | None = None, max_pixels: int = MAX_VIDEO_PIXELS) -> np.ndarray:
    """The frames of a video file, a GIF or a folder of images (in natural order): (t, H, W, 3) uint8.

    `max_frames` keeps the first so many. A GIF's longer pauses become repeated frames, as in a video of constant rate; of a video
    file each stored frame is given once, whatever its rate does.

    Raises FileNotFoundError, and UserError naming the path for anything that is not a whole clip: broken or truncated,
    without frames, of changing size, or above `max_pixels` pixels (frames x height x width).
    """
    return _collect(Path(path), iterate_video(path, max_frames=max_frames), max_pixels)


def iterate_video(path: str | Path, *, max_frames: int | None = None) -> Iterator[np.ndarray]:
    """The frames (H, W, 3) uint8 that `read_video` gives, one at a time, so that a clip of any length is never held whole.

    Raises as `read_video` does, but for clips that are too large, and as the frames are taken.
    """
    path = Path(path)
    check_exists(path)
    if max_frames is not None and max_frames < 1:
        raise UserError(f"max_frames must be at least 1, got {max_frames}")
    return _one_size(path, islice(_iterate(path), max_frames))


def read_fitted(
    path: str | Path,
    size: int,
    fit: Fit,
    *,
    max_frames: int | None = None,
    crop: Crop | None = None,
    only: Collection[int] | None = None,
) -> np.ndarray:
    """`read_video` and `fit_frames` in one, frame by frame: a long clip is never in memory at its own size.

    `crop` cuts before fitting. `only` keeps the frames of those indices; what lies beyond the end is left out.

    Raises as `read_video` does, and UserError for an impossible size or fit, or frames that are not the crop's.
    """
    path = Path(path)
    check_exists(path)
    chosen = None if only is None else frozenset(only)
    numbered = enumerate(islice(_iterate(path), max_frames))
    frames = (frame for index, frame in numbered if chosen is None or index in chosen)
    fitted = (fit_frames(_cut(path, frame, crop)[None], size, fit)[0] for frame in frames)
    return _collect(path, fitted, MAX_VIDEO_PIXELS)


def _cut(path: Path, frame: np.ndarray, crop: Crop | None) -> np.ndarray:
    if crop is None:
        return frame
    height, width = frame.shape[:2]
    if (width, height) != (crop.width, crop.height):
        raise UserError(f"{path}: frames are {width}x{height}; the crop is one of {crop.width}x{crop.height}")
    return frame[crop.top : crop.bottom, crop.left : crop.right]


def video_info(path: str | Path) -> VideoInfo:
    """Number of frames, average rate and stored size (before any rotation) of a clip, undecoded but for a GIF.

    Raises FileNotFoundError, and UserError naming the path for what is not a clip.
    """
    path = Path(path)
    check_exists(path)
    if path.is_dir():
        files = _frame_files(path)
        height, width = read_image(files[0]).shape[:2]
        return VideoInfo(frames=len(files), fps=FOLDER_FPS, width=width, height=height)
    if path.suffix.lower() == ".gif":
        repeats, fps, (width, height) = _gif_timing(path)
        return VideoInfo(frames=sum(repeats), fps=fps, width=width, height=height)
    _check_suffix(path)
    with path.open("rb") as file, naming(path), _open_clip(file) as container:
        stream = _video_stream(container)
        frames = sum(_is_shown(packet) for packet in container.demux(stream))
        fps = float(stream.average_rate or stream.guessed_rate or FOLDER_FPS)
        return VideoInfo(frames=frames, fps=fps, width=stream.width, height=stream.height)


def _one_size(path: Path, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    shape: tuple[int, ...] | None = None
    for frame in frames:
        if shape is not None and frame.shape != shape:
            raise UserError(f"{path}: frames change size from {shape[:2]} to {frame.shape[:2]}")
        shape = frame.shape
        yield frame
    if shape is None:
        raise UserError(f"{path}: holds no frames")


def _collect(path: Path, frames: Iterable[np.ndarray], max_pixels: int) -> np.ndarray:
    kept: list[np.ndarray] = []
    pixels = 0
    for frame in _one_size(path, frames):
        pixels += frame.shape[0] * frame.shape[1]
        if pixels > max_pixels:
            raise UserError(f"{path}: more than {max_pixels} pixels in all; read fewer frames with max_frames")
        kept.append(frame)
    return np.stack(kept)


def _iterate(path: Path) -> Iterator[np.ndarray]:
    if path.is_dir():
        return (read_image(file) for file in _frame_files(path))
    if path.suffix.lower() == ".gif":
        return _iterate_gif(path)
    _check_suffix(path)
    return _iterate_file(path)


def _check_suffix(path: Path) -> None:
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        raise UserError(f"{path}: unknown ending; a clip is a folder of images or one of {sorted(VIDEO_SUFFIXES)}")


def _iterate_file(path: Path) -> Iterator[np.ndarray]:
    whole_packets = decoded = end = 0
    with path.open("rb") as file, naming(path), _open_clip(file) as container:
        stream = _video_stream(container)
        check_pixels(path, stream.width, stream.height)
        stream.codec_context.options = {"max_pixels": str(MAX_IMAGE_PIXELS)}  # a size that changes within the stream
        stream.codec_context.thread_count = 1  # clips are small; the cache decodes several at once
        reformatter = VideoReformatter()
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise UserError("the file ends in the middle of a frame")
            whole_packets += _is_shown(packet)
            end = max(end, (packet.pts or 0) + (packet.duration or 0))
            for frame in packet.decode():
                decoded += 1
                yield _upright(reformatter.reformat(frame, format="rgb24"), frame.rotation)
        _check_whole(container, stream, end, lost=whole_packets - decoded)


def _is_shown(packet: "av.Packet[Any]") -> bool:
    """Not the empty one of a dropped frame or at the end, nor one that an edit list cuts away (a phone's trimmed clip)."""
    return packet.size > 0 and not packet.is_discard


def _check_whole(container: InputContainer, stream: VideoStream, end: int, lost: int) -> None:
    """UserError where the last packet ends before what the header promises (in time: frames may come at any rate)."""
    ends, promised = _seconds(end, stream), _promised_seconds(container, stream)
    if stream.codec_context.name == "ffv1":  # our lossless form: every frame counts
        frame = 1 / float(stream.average_rate or FOLDER_FPS)
        whole = lost <= 0 and ends > promised - frame / 2
    else:  # some encoders write a duration that is a little off
        whole = ends >= 0.9 * promised
    if not whole:
        raise UserError(f"truncated: {ends:.2f} of {promised:.2f} s, {max(lost, 0)} frames in it are broken")


def _promised_seconds(container: InputContainer, stream: VideoStream) -> float:
    """The duration in the header; 0 where it says nothing, or may mean a longer sound track."""
    if stream.duration:
        return _seconds(stream.duration, stream)
    if len(container.streams) > 1 or not container.duration:
        return 0.0
    return container.duration / av.time_base


def _seconds(time: int, stream: VideoStream) -> float:
    return float(time * (stream.time_base or 0))


def _open_clip(file: BinaryIO) -> InputContainer:
    return cast(InputContainer, av.open(file, options=_READ_OPTIONS))


def _video_stream(container: InputContainer) -> VideoStream:
    if not container.streams.video:
        raise UserError("no video stream")
    stream = container.streams.video[0]
    if stream.codec_context is None:  # as it is for a codec that is not known
        raise UserError("an unknown codec")
    return stream


def _upright(frame: av.VideoFrame, degrees: int) -> np.ndarray:
    """(H, W, 3), turned as the file's display matrix says (phones store portrait clips lying down)."""
    array = frame.to_ndarray()
    return np.rot90(array, round(degrees / 90) % 4) if degrees else array


def _iterate_gif(path: Path) -> Iterator[np.ndarray]:
    repeats, _, _ = _gif_timing(path)
    with open_image(path) as image:
        for frame, repeat in zip(ImageSequence.Iterator(image), repeats, strict=True):
            array = over_white(frame.copy())
            for _ in range(repeat):
                yield array


def _gif_timing(path: Path) -> tuple[list[int], float, tuple[int, int]]:
    """How often each frame of a GIF is to be repeated to get a constant rate, that rate, and (width, height).

    The shortest time between two frames is one step (writers merge equal frames into one longer one).
    """
    with open_image(path) as image:
        durations = [float(frame.info.get("duration", 0)) or 100.0 for frame in ImageSequence.Iterator(image)]
        size = image.size
    shortest = min(durations)
    repeats = [max(1, round(duration / shortest)) for duration in durations]
    return repeats, 1000.0 * sum(repeats) / sum(durations), size


def _frame_files(path: Path) -> list[Path]:
    files = [file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")]
    if not files:
        raise UserError(f"{path}: a folder without images; a clip is a folder of frames or a video file")
    return sorted(files, key=natural_key)


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """Sort key in which `frame-9` comes before `frame-10`.

    >>> [p.name for p in sorted([Path("a10.png"), Path("a9.png"), Path("A1.png")], key=natural_key)]
    ['A1.png', 'a9.png', 'a10.png']
    """
    parts = re.split(r"(\d+)", path.name.lower())
    key = [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts if part]
    return [*key, (-1, 0, path.name)]  # names that differ in capitals alone have an order, too
