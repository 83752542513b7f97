"""The sound of a driving clip in a new video."""

from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
import pytest
from av.audio.stream import AudioStream
from av.video.stream import VideoStream

from lfdm.data.sound import has_sound
from lfdm.data.video import read_video, video_info, write_video

RATE = 44_100


def clip_with_beep(path: Path, *, seconds: float, beep: tuple[float, float], codec: str = "aac") -> Path:
    """Write a clip at 10 frames per second whose sound is a tone of 440 Hz between the two times, and silence."""
    time = np.arange(round(seconds * RATE)) / RATE
    tone = np.where((time >= beep[0]) & (time < beep[1]), 0.5 * np.sin(2 * np.pi * 440 * time), 0.0).astype(np.float32)
    with av.open(path, "w") as file:
        video = cast(VideoStream, file.add_stream("libx264", rate=10))
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        audio = cast(AudioStream, file.add_stream(codec, rate=RATE, layout="mono"))
        for _ in range(round(seconds * 10)):
            file.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8)).reformat(format="yuv420p")))
        for start in range(0, len(tone), 1024):
            frame = av.AudioFrame.from_ndarray(tone[None, start : start + 1024], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, start, Fraction(1, RATE)
            file.mux(audio.encode(frame))
        file.mux(video.encode())
        file.mux(audio.encode(None))
    return path


def loudness(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return times and loudness of the sound in blocks of about 20 ms."""
    with av.open(path) as file:
        blocks = [(frame.time, np.abs(frame.to_ndarray()).mean()) for frame in file.decode(audio=0)]
    times, values = np.array(blocks, float).T
    return times, values / values.max()


@pytest.mark.parametrize("name", ["a.mp4", "a.webm"])
def test_sound_is_kept_in_time_and_cut_with_the_frames(tmp_path: Path, name: str) -> None:
    source = clip_with_beep(tmp_path / "driving.mp4", seconds=3, beep=(0.5, 1.0))
    path = write_video(tmp_path / name, np.zeros((20, 32, 32, 3), np.uint8), fps=10, sound=source)
    times, values = loudness(path)
    loud = times[values > 0.3]
    assert loud.min() == pytest.approx(0.5, abs=0.06)
    assert loud.max() == pytest.approx(1.0, abs=0.06)
    assert times.max() == pytest.approx(2.0, abs=0.1)
    assert len(read_video(path)) == video_info(path).frames == 20


def test_frames_are_the_same_with_sound(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    source = clip_with_beep(tmp_path / "driving.mkv", seconds=0.5, beep=(0, 1))
    path = write_video(tmp_path / "a.mp4", iter(frames), fps=10, lossless=True, sound=source)
    assert np.array_equal(read_video(path), frames)
    assert loudness(path)[0].max() < 0.6  # shorter than the frames


@pytest.mark.parametrize("name", ["a.gif", "a.avi", "a"])
def test_silent_formats_ignore_sound(tmp_path: Path, name: str) -> None:
    source = clip_with_beep(tmp_path / "driving.mov", seconds=0.5, beep=(0, 1), codec="pcm_s16le")
    assert has_sound(source)
    path = write_video(tmp_path / name, np.arange(4 * 192, dtype=np.uint8).reshape(4, 8, 8, 3), fps=10, sound=source)
    assert not has_sound(path)


def test_clips_without_sound_give_a_silent_file(tmp_path: Path) -> None:
    frames = np.arange(4 * 192, dtype=np.uint8).reshape(4, 8, 8, 3)
    for name in ("driving.mp4", "driving.gif", "driving"):
        source = write_video(tmp_path / name, frames, fps=10)
        assert not has_sound(write_video(tmp_path / "out.mp4", frames, fps=10, sound=source))


def test_damaged_sound_ends_early_and_never_the_writing(tmp_path: Path) -> None:
    source = clip_with_beep(tmp_path / "driving.mkv", seconds=3, beep=(0, 3))
    data = bytearray(source.read_bytes())
    source.write_bytes(data[: len(data) // 2])
    path = write_video(tmp_path / "a.mp4", np.zeros((20, 32, 32, 3), np.uint8), fps=10, sound=source)
    assert len(read_video(path)) == 20
