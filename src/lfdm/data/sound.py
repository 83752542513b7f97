"""The sound of a clip, encoded again next to new frames."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import av
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.error import FFmpegError

from lfdm.data.containers import open_container

_CODECS = {".mp4": ("aac", 160_000), ".mov": ("aac", 160_000), ".webm": ("libopus", 128_000)}
"""Encoder and bits per second by the ending of the file; other formats stay silent."""
_RATE = 48_000
"""Samples per second, which both encoders take."""


class SoundTrack:
    """The sound track of a file that is being written: stereo, from the sound of the clip `path` since its first video frame."""

    def __init__(self, file: OutputContainer, path: Path, codec: str, bit_rate: int) -> None:
        self._stream = cast(AudioStream, file.add_stream(codec, rate=_RATE, layout="stereo", bit_rate=bit_rate))
        self._frames = _decode_sound(path)
        self._next = next(self._frames, None)

    def until(self, seconds: float) -> "Iterator[av.Packet[Any]]":
        """Yield the packets of the sound that begins before this time of the new file."""
        while self._next is not None and (self._next.time or 0) < seconds:
            yield from self._stream.encode(self._next)
            self._next = next(self._frames, None)

    def finish(self) -> "Iterator[av.Packet[Any]]":
        """Yield the last packets."""
        yield from self._stream.encode(None)


def add_sound(file: OutputContainer, suffix: str, path: Path | None) -> SoundTrack | None:
    """Add the sound of the clip `path` to a file that is to be written; None if either has no sound."""
    if path is None or suffix not in _CODECS or not has_sound(path):
        return None
    return SoundTrack(file, path, *_CODECS[suffix])


def has_sound(path: Path) -> bool:
    """Return whether a clip has a sound track that can be decoded."""
    return path.is_file() and next(_decode_sound(path), None) is not None


def _decode_sound(path: Path) -> Iterator[av.AudioFrame]:
    """Yield the frames of the first sound track, timed since the first video frame. Damaged sound ends early."""
    try:
        with path.open("rb") as file, open_container(file) as container:
            stream = next(iter(container.streams.audio), None)
            if stream is None or stream.codec_context is None:
                return
            starts = [s.start_time * s.time_base for s in container.streams.video if s.start_time is not None and s.time_base]
            for frame in container.decode(stream):
                if frame.pts is None or not frame.time_base:
                    continue
                frame.pts -= round((starts[0] if starts else 0) / frame.time_base)
                if frame.pts >= 0:
                    yield frame
    except FFmpegError:  # the pictures are what the new file is about
        return
