"""Limits of uploads hold before anything is decoded."""

import struct
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lfdm.data.video import VideoInfo, write_video
from lfdm.web.limits import ServeLimits
from lfdm.web.uploads import open_clip, read_upload

LIMITS = ServeLimits(upload_megabytes=0.5, image_megapixels=1, clip_megapixels=1, clip_frames=20, clip_seconds=5)


def moving_square(num_frames: int, size: int = 32) -> np.ndarray:
    frames = np.zeros((num_frames, size, size, 3), np.uint8)
    for k in range(num_frames):
        frames[k, 4:12, k % (size - 8) : k % (size - 8) + 8] = 200
    return frames


def png_header(width: int, height: int) -> bytes:
    """A PNG of that size in its header and one compressed block of zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    ihdr = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1_000_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", ihdr) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_a_picture_and_a_clip_within_the_limits_are_read(tmp_path: Path) -> None:
    picture = np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)
    Image.fromarray(picture).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_upload(tmp_path / "a.png", LIMITS), picture)
    clip = moving_square(6)
    for name in ("a.gif", "a.avi"):
        read = open_clip(write_video(tmp_path / name, clip, fps=5), LIMITS)
        np.testing.assert_array_equal(np.stack(list(read.frames)), clip)
        assert read.num_frames == 6
        assert read.fps == pytest.approx(5)


@pytest.mark.parametrize(("width", "height"), [(1001, 1000), (60_000, 60_000), (2**31 - 1, 1)])
def test_a_picture_with_too_many_pixels_is_refused_undecoded(tmp_path: Path, width: int, height: int) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header(width, height))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"bomb\.png: .*megapixels"):
        read_upload(tmp_path / "bomb.png", LIMITS)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("limits", "word"),
    [
        (replace(LIMITS, clip_frames=5), "5 frames"),
        (replace(LIMITS, clip_seconds=1), "1 seconds"),
        (replace(LIMITS, clip_megapixels=0.005), "0.005 megapixels"),
        (replace(LIMITS, upload_megabytes=0.0001), "0.0001 MB"),
    ],
)
@pytest.mark.parametrize("ending", ["mp4", "gif", "webm"])
def test_a_clip_beyond_a_limit_is_refused(tmp_path: Path, limits: ServeLimits, word: str, ending: str) -> None:
    path = write_video(tmp_path / f"long.{ending}", moving_square(10), fps=5)
    with pytest.raises(ValueError, match=rf"^long\.{ending}: .*{word}"):
        open_clip(path, limits)


def test_decoding_stops_where_the_frames_hold_more_than_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a file says of itself, which is all that the checks before decoding can see."""
    path = write_video(tmp_path / "liar.avi", moving_square(10), fps=5)
    modest = VideoInfo(frames=10, fps=5, width=8, height=8)
    monkeypatch.setattr("lfdm.web.uploads.video_info", lambda _: modest)
    clip = open_clip(path, replace(LIMITS, clip_megapixels=0.005))
    with pytest.raises(ValueError, match=r"liar\.avi: .*0\.005 megapixels"):
        list(clip.frames)


def test_other_formats_and_broken_files_are_refused_without_the_folder_they_lie_in(tmp_path: Path) -> None:
    (tmp_path / "a.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    (tmp_path / "a.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42")
    (tmp_path / "list.mp4").write_bytes(b"#EXTM3U\n/etc/passwd\n")
    for name in ("a.eps", "a.png", "gone.png"):
        with pytest.raises(ValueError, match=rf"^{name}: ") as refusal:
            read_upload(tmp_path / name, LIMITS)
        assert str(tmp_path) not in str(refusal.value)
    for name in ("a.mp4", "list.mp4", "gone.mp4", "a.eps"):
        with pytest.raises(ValueError, match=rf"^{name}: ") as refusal:
            list(open_clip(tmp_path / name, LIMITS).frames)
        assert str(tmp_path) not in str(refusal.value)


def test_limits_that_make_no_sense_are_refused() -> None:
    for name, value in (("num_jobs", 0), ("queue_size", -1), ("image_megapixels", 51), ("keep_seconds", float("nan"))):
        with pytest.raises(ValueError, match=name):
            replace(LIMITS, **{name: value})
