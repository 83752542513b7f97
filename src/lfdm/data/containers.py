"""Video files in container formats (mp4, mov, avi, webm, mkv, mpg, ts, wmv, flv), recognised by content and decoded by PyAV."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, cast

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from lfdm.config.video import MAX_FPS, MIN_FPS
from lfdm.data.container_headers import graphics_mode, stated_size
from lfdm.data.frames import Alpha, FrameConverter, StatedColours, deinterlace, stated_colours
from lfdm.data.images import MAX_IMAGE_PIXELS, check_pixels, decoding, guarded
from lfdm.errors import UserError
from lfdm.folders.file_kinds import describe_file

_READ_OPTIONS = {"format_whitelist": "avi,mov,matroska,mpegts,mpeg,mpegvideo,asf,flv,ogg,dv"}
"""The only formats to probe: a playlist disguised as a clip could make the demuxer open other files."""
_CUT_ANYWHERE = frozenset({"mpegts", "mpeg", "mpegvideo", "dv"})
"""Formats made for broadcast and tape: they state no duration, and a recording may begin and end within a frame."""
_MIN_WHOLE = 0.9
"""Least share of the duration in the header that a whole file holds: some encoders write a duration that is slightly too long."""
_RATE_TOLERANCE = 0.05
"""Relative difference up to which a stated frame rate is believed: frame times are rounded, to 1 ms in WebM."""
_UNKNOWN_RATE = 25.0
"""Frames per second of a file that states none."""
_SAME_TIME = Fraction(1, 1_000_000)
"""Seconds by which a time may miss the start of a frame: FFmpeg rounds the start of a file to it."""
_BLOCK_HEADER = 8
"""Most bytes between the position that FFmpeg gives to a block of Matroska and its data: track, time and flags."""
_LOSSLESS_CODEC = "ffv1"
"""Our own lossless clips."""
_ALPHA_OF_MODE: dict[int | None, Alpha] = {257: "over white", 258: "over black"}
"""How colours are stored next to alpha, by the graphics mode of QuickTime."""
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Decoders that give the alpha channel of WebM; FFmpeg's own ones ignore it."""


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """Length, rate and size of a clip as it is read."""

    frames: int
    fps: float
    """Average frames per second, limited to what can be written."""
    width: int
    height: int
    stated_fps: float | None = None
    """Frames per second in the file, where they are outside the limits: of a time lapse, or from a damaged header."""


@dataclass(kw_only=True)
class _OpenFile:
    """An open video file, and what is known from its packets so far."""

    path: Path
    file: BinaryIO
    container: InputContainer
    stream: VideoStream
    decoder: VideoCodecContext
    colours: StatedColours | None
    """Of the container, which are known only before a frame is decoded."""
    keep_alpha: bool
    times: list[int] = field(default_factory=list)
    """Times of the frames up to now, in units of the stream and in stored order."""
    end: int = 0
    """End of the last frame up to now, as far as known."""
    num_frames: int = 0
    last_byte: int = 0
    """End of the last packet of any stream up to now, in bytes."""

    def packets(self) -> "Iterator[av.Packet[Any]]":
        """Yield the packets of the stream and keep account. Raises UserError for a file that ends within a frame."""
        for packet in guarded(self.path, self.container.demux()):
            if packet.size and packet.pos is not None:
                self.last_byte = max(self.last_byte, packet.pos + packet.size)
            if packet.stream.index != self.stream.index:
                continue
            if packet.is_corrupt and self.container.format.name not in _CUT_ANYWHERE:
                raise UserError(f"{self.path}: truncated: the file ends in the middle of a frame")
            time = packet.dts if packet.pts is None else packet.pts
            if _is_shown(packet):
                self.num_frames += 1
                self.times += [] if time is None else [time]
            if time is not None:
                self.end = max(self.end, time + (packet.duration or 0))
            yield packet

    def decode(self, packet: "av.Packet[Any]") -> list[av.VideoFrame]:
        """Decode a packet to none, one or more frames."""
        with decoding(self.path):
            return self.decoder.decode(packet)

    def frames(self) -> Iterator[av.VideoFrame]:
        """Yield the frames as they are decoded, deinterlaced."""
        return deinterlace(self.path, (frame for packet in self.packets() for frame in self.decode(packet)))

    def convert(self, frame: av.VideoFrame) -> np.ndarray:
        """Return a frame as (H, W, 3) uint8, or (H, W, 4) with `keep_alpha`, as a player shows it."""
        check_pixels(self.path, *self.converter.size(frame))
        with decoding(self.path):
            return self.converter.convert(frame)

    @cached_property
    def converter(self) -> FrameConverter:
        """The converter of the stream's frames."""
        alpha = _ALPHA_OF_MODE.get(graphics_mode(self.file)) if self._is_mov() else None
        return FrameConverter(self.stream.sample_aspect_ratio, alpha or "straight", self.colours, keep_alpha=self.keep_alpha)

    def seconds(self, time: int) -> float:
        """Convert a time of the stream."""
        return float(time * (self.stream.time_base or 0))

    def start_of(self, frame: av.VideoFrame, index: int) -> Fraction:
        """Return when a frame begins, in seconds since the start of the file, where players start their clock."""
        if frame.pts is None:  # a stream without times
            return index / Fraction(self._stated_rate())
        return frame.pts * Fraction(frame.time_base or 0) - Fraction(max(self.container.start_time or 0, 0), av.time_base)

    def length(self) -> float:
        """Return the seconds from the start of the file to the end of pictures and sound, after all packets."""
        pictures = self._latest_end() if self.times else self.num_frames / self.frame_rate()
        return max(pictures, (self.container.duration or 0) / av.time_base)

    def promised_seconds(self) -> float:
        """Return the duration in the header; 0 where it has none, or one that may be that of a longer sound track."""
        if self.stream.duration:
            return self.seconds(self.stream.duration)
        if len(self.container.streams) > 1 or not self.container.duration:
            return 0.0
        return self.container.duration / av.time_base

    def frame_rate(self) -> float:
        """Return the average frames per second, after all packets.

        A table of frames (mp4, mov) and broadcast formats are believed, other headers only if the frame times agree: browsers
        record WebM without a rate, and FFmpeg then guesses one that is up to 30 times too high.
        """
        stated = self._stated_rate()
        intervals = len(self.times) - 1
        span = self.seconds(max(self.times) - min(self.times)) if intervals > 0 else 0.0
        if span <= 0:  # a single frame
            intervals, span = self.num_frames, self.promised_seconds()
        if self._has_frame_table() or self.container.format.name in _CUT_ANYWHERE or span <= 0:
            return stated
        agrees = abs(span - intervals / stated) <= max(_RATE_TOLERANCE * span, 2 * self.seconds(1))
        return stated if agrees else intervals / span

    def _stated_rate(self) -> float:
        return float(self.stream.average_rate or self.stream.guessed_rate or _UNKNOWN_RATE)

    def check_whole(self, num_decoded: int) -> None:
        """Raise UserError for a truncated file, after all packets."""
        missing = max(self.num_frames - num_decoded, 0)
        ends, promised = self.seconds(self.end), self.promised_seconds()
        if self.decoder.name == _LOSSLESS_CODEC:  # every frame counts
            whole = missing == 0 and ends > promised - 0.5 / self.frame_rate()
        elif self.num_frames == 1:  # nothing tells how long it lasts
            whole = True
        else:
            all_there = self._is_all_there()
            whole = self._latest_end() >= _MIN_WHOLE * promised if all_there is None else all_there
        if not whole:
            raise UserError(f"{self.path}: truncated: {ends:.2f} of {promised:.2f} s, {missing} frames in it are broken")

    def _is_all_there(self) -> bool | None:
        """Return whether the file is as long as its own structure says, or its format needs no end; None if nothing tells."""
        if self.container.format.name in _CUT_ANYWHERE:
            return True
        size = self.file.seek(0, 2)
        if self._is_mov() and any(entry.pos + entry.size > size for entry in self.stream.index_entries):
            return False
        stated = stated_size(self.file)
        if self._has_frame_table() or (stated is not None and stated <= size):
            return True
        # Of a live recording in Matroska: the last block ends the file, while one that was cut off leaves a rest.
        return True if self._is_matroska() and size - self.last_byte <= _BLOCK_HEADER else None

    def _latest_end(self) -> float:
        """Return the time in seconds at which the last frame may end, which can state no duration."""
        times = np.sort(self.times)
        longest = int(np.diff(times).max()) if len(times) > 1 else 0
        start = self.stream.start_time or 0
        return self.seconds(max(self.end, int(times[-1]) + longest if len(times) else 0) - max(start, 0))

    def _is_mov(self) -> bool:
        return self.container.format.name.startswith("mov")

    def _is_matroska(self) -> bool:
        return self.container.format.name.startswith("matroska")

    def _has_frame_table(self) -> bool:
        return self._is_mov() and self.stream.frames > 0


def read_file_info(path: Path) -> VideoInfo:
    """Count the frames of a file without decoding more than the first. Raises UserError naming the path for what is no clip."""
    with _open(path) as opened:
        size = None
        for packet in opened.packets():
            if size is None and (frames := opened.decode(packet)):
                size = opened.converter.size(frames[0])
        width, height = size or (opened.stream.width, opened.stream.height)
        stated = opened.frame_rate()
        fps = min(max(stated, MIN_FPS), MAX_FPS)
        stated_fps = None if fps == stated else stated
        return VideoInfo(frames=opened.num_frames, fps=fps, width=width, height=height, stated_fps=stated_fps)


def decode_file(path: Path, *, first: int = 0, keep_alpha: bool = False) -> Iterator[np.ndarray]:
    """Yield the frames (H, W, 3) uint8, or (H, W, 4) with `keep_alpha`, from index `first` on, each once, as a player
    shows them.

    Raises UserError naming the path for a file that is broken or truncated.
    """
    with _open(path, keep_alpha=keep_alpha) as opened:
        num_decoded = 0
        for frame in opened.frames():
            num_decoded += 1
            if num_decoded > first:
                yield opened.convert(frame)
        opened.check_whole(num_decoded)


def decode_file_at(path: Path, seconds: Fraction, *, keep_alpha: bool = False) -> np.ndarray:
    """Return the frame (H, W, 3) uint8, or (H, W, 4) with `keep_alpha`, that a player shows at a time since the file starts.

    That is the last one that starts by then; the first one is shown from the start, the last one to the end of the sound.

    Raises UserError naming the path for a file that is broken, and for a time beyond the end.
    """
    with _open(path, keep_alpha=keep_alpha) as opened:
        shown = None
        for index, frame in enumerate(opened.frames()):
            if shown is not None and opened.start_of(frame, index) > seconds + _SAME_TIME:
                return opened.convert(shown)
            shown = frame
        if shown is None:
            raise UserError(f"{path}: must hold at least one frame; got none")
        if seconds > (length := opened.length()) + _SAME_TIME:
            raise beyond_end(path, seconds, length)
        return opened.convert(shown)


def beyond_end(path: Path, seconds: Fraction, length: float) -> UserError:
    """Return the error of a time beyond the end of a clip."""
    return UserError(f"{path}: has no frame at {float(seconds):g} s; it lasts {length:.2f} s")


def open_container(file: BinaryIO) -> InputContainer:
    """Open a file of one of the known formats; text in it, such as a title, may be in any encoding."""
    return cast(InputContainer, av.open(file, options=_READ_OPTIONS, metadata_errors="replace"))


@contextmanager
def _open(path: Path, *, keep_alpha: bool = False) -> Iterator[_OpenFile]:
    """Open the first video stream of a file. Raises UserError naming the path for what holds none that can be decoded."""
    with path.open("rb") as file:
        try:
            with decoding(path):
                container = open_container(file)
        except UserError as error:
            raise _not_opened(path, error) from error
        with container:
            streams = (s for s in container.streams.video if Disposition.attached_pic not in s.disposition)
            stream = next(streams, None)
            if stream is None:
                raise UserError(f"{path}: no video stream")
            if stream.codec_context is None:
                raise UserError(f"{path}: an unknown codec")
            check_pixels(path, stream.width, stream.height)
            decoder = _decoder(stream)
            decoder.options = {"max_pixels": str(MAX_IMAGE_PIXELS)}  # a size that changes within the stream
            decoder.thread_count = 1  # clips are small; the cache decodes several at once
            yield _OpenFile(
                path=path,
                file=file,
                container=container,
                stream=stream,
                decoder=decoder,
                colours=stated_colours(stream),
                keep_alpha=keep_alpha,
            )


def _not_opened(path: Path, error: UserError) -> UserError:
    """Return the error for a file in none of the formats: it says what the file is, or is `error` for a broken clip."""
    kind = describe_file(path)
    return error if kind is None or kind.startswith("a video") else UserError(f"{path}: not a clip but {kind}")


def _decoder(stream: VideoStream) -> VideoCodecContext:
    name = _ALPHA_DECODERS.get(stream.codec_context.codec.canonical_name)
    tags = {key.lower(): value for key, value in stream.metadata.items()}  # FFmpeg's own files have it in capitals
    if name is None or tags.get("alpha_mode") != "1":
        return stream.codec_context
    return cast(VideoCodecContext, av.CodecContext.create(name, "r"))


def _is_shown(packet: "av.Packet[Any]") -> bool:
    """Return whether a packet holds a frame of the clip.

    The empty packets of dropped frames and of the end do not, nor do those that an edit list cuts away (a phone's trimmed clip).
    """
    return packet.size > 0 and not packet.is_discard
