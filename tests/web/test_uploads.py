"""Limits of uploads hold before anything is decoded."""

import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lfdm.data.containers import VideoInfo
from lfdm.data.video import read_video, write_video
from lfdm.errors import UserError
from lfdm.web.limits import ServeLimits
from lfdm.web.uploads import open_clip, read_upload

LIMITS = ServeLimits(upload_megabytes=0.5, image_megapixels=1, clip_megapixels=1, clip_frames=20, sound_seconds=5)


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
    with pytest.raises(UserError, match=r"bomb\.png: .*megapixels"):  # its data would be broken
        read_upload(tmp_path / "bomb.png", LIMITS)


@pytest.mark.parametrize(
    ("limits", "word"),
    [
        (replace(LIMITS, clip_megapixels=0.001), "0.001 megapixels"),
        (replace(LIMITS, upload_megabytes=0.0001), "0.0001 MB"),
    ],
)
@pytest.mark.parametrize("ending", ["mp4", "gif", "webm"])
def test_a_file_or_a_frame_beyond_a_limit_is_refused(tmp_path: Path, limits: ServeLimits, word: str, ending: str) -> None:
    path = write_video(tmp_path / f"long.{ending}", moving_square(10), fps=5)
    with pytest.raises(UserError, match=rf"^long\.{ending}: .*{word}"):
        open_clip(path, limits)


@pytest.mark.parametrize(
    ("limits", "used"), [(replace(LIMITS, clip_frames=5), 5), (replace(LIMITS, clip_megapixels=0.005), 4), (LIMITS, 10)]
)
@pytest.mark.parametrize("ending", ["mp4", "gif", "avi"])
def test_the_beginning_of_a_clip_that_is_too_long_is_used(tmp_path: Path, limits: ServeLimits, used: int, ending: str) -> None:
    path = write_video(tmp_path / f"long.{ending}", moving_square(10), fps=5)
    clip = open_clip(path, limits)
    assert np.array_equal(np.stack(list(clip.frames)), read_video(path)[:used])
    assert clip.num_frames == used
    assert clip.note == ("" if used == 10 else f"The first {used} of the clip's 10 frames were used ({used / 5:.1f} s).")


def test_a_time_lapse_is_used_but_its_sound_is_not(tmp_path: Path) -> None:
    clip = open_clip(write_video(tmp_path / "lapse.mp4", moving_square(10), fps=0.05), LIMITS)
    assert (clip.num_frames, clip.note, clip.may_sound) == (10, "", False)
    assert open_clip(write_video(tmp_path / "clip.mp4", moving_square(10), fps=5), LIMITS).may_sound


def test_decoding_stops_where_the_frames_hold_more_than_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a file says of itself, which is all that the checks before decoding can see."""
    path = write_video(tmp_path / "liar.avi", moving_square(10), fps=5)
    modest = VideoInfo(frames=10, fps=5, width=8, height=8)
    monkeypatch.setattr("lfdm.web.uploads.video_info", lambda _: modest)
    clip = open_clip(path, replace(LIMITS, clip_megapixels=0.005))
    with pytest.raises(UserError, match=r"liar\.avi: .*0\.005 megapixels"):
        list(clip.frames)


def test_other_formats_and_broken_files_are_refused_without_the_folder_they_lie_in(tmp_path: Path) -> None:
    (tmp_path / "a.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    (tmp_path / "a.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42")
    (tmp_path / "list.mp4").write_bytes(b"#EXTM3U\n/etc/passwd\n")
    for name in ("a.eps", "a.png", "gone.png"):
        with pytest.raises(UserError, match=rf"^{name}: ") as refusal:
            read_upload(tmp_path / name, LIMITS)
        assert str(tmp_path) not in str(refusal.value)
    for name in ("a.mp4", "list.mp4", "gone.mp4", "a.eps"):
        with pytest.raises(UserError, match=rf"^{name}: ") as refusal:
            list(open_clip(tmp_path / name, LIMITS).frames)
        assert str(tmp_path) not in str(refusal.value)


def gif_whose_second_frame_is_larger(side: int, flags: int = 0) -> bytes:
    """89 bytes: a screen of 8x8, a frame of one pixel, one of `side` x `side` to be cleared afterwards, and one of one pixel."""

    def frame(width: int, flags: int = 0) -> bytes:
        control = b"!\xf9\x04\x08\x0a\x00\x00\x00"
        return control + b"," + struct.pack("<HHHHB", 0, 0, width, width, flags) + b"\x02\x02\x44\x01\x00"

    screen = b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0x80, 0, 0) + b"\x00\x00\x00\xff\x00\x00"
    return screen + frame(1) + frame(side, flags) + frame(1) + b";"


@pytest.mark.parametrize("side", [13_000, 30_000])
def test_a_huge_later_frame_of_a_gif_is_not_allocated(tmp_path: Path, side: int) -> None:
    """Only the rows on the screen are decoded; an interlaced frame needs all of them."""
    path = tmp_path / "bomb.gif"
    path.write_bytes(gif_whose_second_frame_is_larger(side))
    with pytest.raises(UserError, match=r"bomb\.gif: broken"):  # its data ends early
        read_video(path)
    path.write_bytes(gif_whose_second_frame_is_larger(side, flags=0x40))
    with pytest.raises(UserError, match=rf"^bomb\.gif: .*25 megapixels.*{side**2 / 1e6:.1f}"):
        open_clip(path, ServeLimits())
    with pytest.raises(UserError, match=rf"{side}x{side} is over 50 megapixels"):
        read_video(path)


def test_frames_of_a_gif_are_counted_as_large_as_its_largest(tmp_path: Path) -> None:
    path = tmp_path / "grows.gif"
    path.write_bytes(gif_whose_second_frame_is_larger(600, flags=0x40))
    assert open_clip(path, LIMITS).num_frames == 2


def test_accepted_formats_are_named_where_another_one_is_refused(tmp_path: Path) -> None:
    for name in ("a.tiff", "a.jp2"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
        with pytest.raises(UserError, match=rf"^{name}: .*must be one of PNG, JPEG, WEBP, BMP, GIF, HEIF"):
            read_upload(tmp_path / name, LIMITS)


def test_a_phone_s_heic_is_read(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs pillow-heif: pip install 'lfdm[heif]'")
    pillow_heif.from_pillow(Image.new("RGB", (64, 48), (200, 90, 30))).save(tmp_path / "IMG_1.HEIC")
    picture = read_upload(tmp_path / "IMG_1.HEIC", LIMITS)
    assert picture.shape == (48, 64, 3)
    assert np.abs(picture.astype(int) - (200, 90, 30)).max() < 8


def test_limits_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UserError, match=r"upload_megabytes must be at most storage_megabytes, 0\.4; got 0\.5"):
        replace(LIMITS, storage_megabytes=0.4)
    for name, value in (("num_jobs", 0), ("queue_size", -1), ("image_megapixels", 51), ("keep_seconds", float("nan"))):
        with pytest.raises(UserError, match=name):
            replace(LIMITS, **{name: value})
