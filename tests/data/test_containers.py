"""Video files as phones, browsers, cameras and editors write them."""

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import pytest
from av.video.stream import VideoStream

from lfdm.data.sound import has_sound
from lfdm.data.video import VIDEO_SUFFIXES, read_video, video_info, write_video
from lfdm.errors import UserError


def write_file(
    path: Path,
    frames: np.ndarray,
    codec: str = "ffv1",
    pixel_format: str = "bgr0",
    *,
    times: Sequence[int] | None = None,
    rate: int | Fraction = 25,
    aspect: Fraction | None = None,
    matrix: Sequence[int] | None = None,
    container: str | None = None,
    options: dict[str, str] | None = None,
    title: str = "",
    **attributes: Any,
) -> Path:
    """Encode frames (t, H, W, 3) or RGBA (t, H, W, 4) uint8, at `times` in units of 1/rate s."""
    with av.open(path, "w", format=container) as file:
        file.metadata["title"] = title
        stream = cast(VideoStream, file.add_stream(codec, rate=rate, options=options or {}))
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixel_format
        for name, value in attributes.items():
            setattr(stream.codec_context, name, value)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if matrix is not None:
            stream.set_display_matrix(matrix)
        for index, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgba" if array.shape[-1] == 4 else "rgb24")
            frame = frame.reformat(format=pixel_format)
            frame.pts, frame.time_base = (index if times is None else times[index]), 1 / Fraction(rate)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def quarters(t: int = 3, height: int = 32, width: int = 64) -> np.ndarray:
    """Frames of four plain colours, which show how they are turned."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[: height // 2, width // 2 :] = (255, 0, 0)
    frame[height // 2 :, : width // 2] = (0, 255, 0)
    frame[height // 2 :, width // 2 :] = (0, 0, 255)
    return np.repeat(frame[None], t, axis=0)


ONE = 1 << 16
ORIENTATIONS = {
    "as stored": ((ONE, 0, 0, ONE), lambda f: f),
    "mirrored": ((-ONE, 0, 0, ONE), lambda f: f[:, ::-1]),
    "upside down": ((ONE, 0, 0, -ONE), lambda f: f[::-1]),
    "half a turn": ((-ONE, 0, 0, -ONE), lambda f: f[::-1, ::-1]),
    "clockwise": ((0, ONE, -ONE, 0), lambda f: np.rot90(f, -1)),
    "counterclockwise": ((0, -ONE, ONE, 0), lambda f: np.rot90(f)),
    "transposed": ((0, ONE, ONE, 0), lambda f: f.swapaxes(0, 1)),
    "transposed over the other diagonal": ((0, -ONE, -ONE, 0), lambda f: np.rot90(f, 2).swapaxes(0, 1)),
}


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_display_matrix_turns_and_mirrors(tmp_path: Path, name: str) -> None:
    (a, b, c, d), turn = ORIENTATIONS[name]
    path = write_file(tmp_path / "a.mp4", quarters(), "libx264rgb", "rgb24", matrix=(a, b, 0, c, d, 0, 0, 0, 1 << 30))
    expected = turn(quarters()[0])
    frames = read_video(path)
    assert np.abs(frames[1].astype(int) - expected).max() < 40
    info = video_info(path)
    assert (info.height, info.width) == frames.shape[1:3] == expected.shape[:2]


@pytest.mark.parametrize(("name", "codec", "pixel_format"), [("a.mp4", "libx264", "yuv420p"), ("a.mov", "qtrle", "rgb24")])
@pytest.mark.parametrize(("aspect", "width"), [(Fraction(16, 11), 93), (Fraction(15, 16), 60), (Fraction(1, 40), 64)])
def test_pixels_become_square(tmp_path: Path, name: str, codec: str, pixel_format: str, aspect: Fraction, width: int) -> None:
    path = write_file(tmp_path / name, quarters(), codec, pixel_format, aspect=aspect)
    frames = read_video(path)
    assert frames.shape == (3, 32, width, 3)
    assert (video_info(path).width, video_info(path).height) == (width, 32)
    assert np.abs(frames[0, 8, width - 9].astype(int) - (255, 0, 0)).max() < 10


def test_dv_has_the_pixels_of_television(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.avi", quarters(2, 576, 720), "dvvideo", "yuv420p", aspect=Fraction(16, 15))
    assert read_video(path).shape == (2, 576, 768, 3)


# ------------------------------------------------------------------------------------------------- rates and lengths


def webm(path: Path, times: Sequence[int], *, duration: float | None = None) -> Path:
    """Write WebM as browsers record it: no rate, no frame durations, sizes unknown. `times` and `duration` in ms."""

    def element(name: str, data: bytes) -> bytes:
        return bytes.fromhex(name) + struct.pack(">Q", len(data) | 1 << 56) + data

    encoder = cast(Any, av.CodecContext.create("libvpx", "w"))
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 32, 32, "yuv420p", Fraction(1, 1000)
    packets = []
    for index, time in enumerate([*times, None]):
        frame = None
        if time is not None:
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 5 * index, np.uint8)).reformat(format="yuv420p")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
        packets += [(bytes(packet), packet.is_keyframe) for packet in encoder.encode(frame)]
    blocks = (
        element("a3", b"\x81" + struct.pack(">hB", time, 128 * key) + data)
        for time, (data, key) in zip(times, packets, strict=True)
    )
    unknown = b"\x01" + b"\xff" * 7
    track = element("d7", b"\1") + element("73c5", b"\1") + element("83", b"\1") + element("86", b"V_VP8")
    track += element("e0", element("b0", b"\x20") + element("ba", b"\x20"))
    length = b"" if duration is None else element("4489", struct.pack(">d", duration))
    path.write_bytes(
        element("1a45dfa3", element("4282", b"webm"))
        + bytes.fromhex("18538067")
        + unknown
        + element("1549a966", element("2ad7b1", b"\x0f\x42\x40") + length)
        + element("1654ae6b", element("ae", track))
        + bytes.fromhex("1f43b675")
        + unknown
        + element("e7", b"\0")
        + b"".join(blocks)
    )
    return path


@pytest.mark.parametrize(
    ("times", "fps"),
    [
        ([round(i * 1000 / 30) for i in range(40)], 30.0),
        ([0, 66, 216, 316, 466, 616, 682, 748, 848, 864, 1014], 9.86),
        ([0, 40, 80, 120, 2000, 2040, 2080], 2.885),
        ([0, 1, 500], 4.0),
    ],
)
def test_rate_of_a_browser_recording_is_that_of_its_frame_times(tmp_path: Path, times: list[int], fps: float) -> None:
    info = video_info(webm(tmp_path / "a.webm", times))
    assert info.frames == len(times)
    assert info.fps == pytest.approx(fps, rel=0.01)


@pytest.mark.parametrize("times", [[0], [0, 200, 400, 600, 800], [0, 400]])
def test_last_frame_without_a_duration_lasts_to_the_end(tmp_path: Path, times: list[int]) -> None:
    assert len(read_video(webm(tmp_path / "a.webm", times, duration=1000.0 if len(times) > 2 else 700.0))) == len(times)


def test_a_screen_that_stands_still_at_the_end_is_a_whole_clip(tmp_path: Path) -> None:
    path = webm(tmp_path / "still.webm", [0, 40, 80, 120, 160], duration=5000)
    assert len(read_video(path)) == video_info(path).frames == 5
    for missing in (3, 20, 40):
        (tmp_path / "cut.webm").write_bytes(path.read_bytes()[:-missing])
        with pytest.raises(UserError, match="truncated"):
            read_video(tmp_path / "cut.webm")


def test_frames_of_another_size_in_a_stream_are_scaled_to_the_first(tmp_path: Path) -> None:
    """As a recorded video call has them."""
    path = tmp_path / "call.mkv"
    with av.open(path, "w") as file:
        stream = cast(VideoStream, file.add_stream("libvpx", rate=10))
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        packets: list[Any] = []
        for index, scale in enumerate((1, 2, 1)):
            encoder = cast(Any, av.CodecContext.create("libvpx", "w"))
            encoder.width, encoder.height, encoder.pix_fmt = 64 * scale, 32 * scale, "yuv420p"
            encoder.time_base = Fraction(1, 10)
            frame = av.VideoFrame.from_ndarray(quarters(1, 32 * scale, 64 * scale)[0]).reformat(format="yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, 10)
            packets += [*encoder.encode(frame), *encoder.encode(None)]
        for packet in packets:
            packet.stream = stream
            file.mux(packet)
    frames = read_video(path)
    assert frames.shape == (3, 32, 64, 3)
    assert np.abs(frames.astype(int) - quarters()).mean() < 6
    info = video_info(path)
    assert (info.width, info.height, info.frames) == (64, 32, 3)


def test_rate_of_a_single_frame_is_that_of_its_duration(tmp_path: Path) -> None:
    assert video_info(webm(tmp_path / "a.webm", [0], duration=500.0)).fps == pytest.approx(2)


@pytest.mark.parametrize("name", ["a.mp4", "fragmented.mp4", "a.webm", "a.mkv", "a.avi"])
def test_a_file_cut_off_after_its_header_is_truncated(tmp_path: Path, name: str) -> None:
    codec = "libvpx" if name == "a.webm" else "libx264"
    flags = {"a.mp4": "faststart", "fragmented.mp4": "empty_moov+frag_keyframe"}
    options = {"movflags": flags[name]} if name in flags else {}
    noise = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
    with av.open(tmp_path / name, "w", options=options) as file:
        stream = cast(VideoStream, file.add_stream(codec, rate=25))
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for array in noise:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(array).reformat(format="yuv420p")))
        file.mux(stream.encode())
    data = (tmp_path / name).read_bytes()
    assert len(read_video(tmp_path / name)) == 20
    (tmp_path / name).write_bytes(data[: len(data) * 6 // 10])
    with pytest.raises(UserError, match=rf"{name}: .*(truncated|broken)"):
        read_video(tmp_path / name)


def test_an_edit_list_may_last_longer_than_the_frames_after_its_cut(tmp_path: Path) -> None:
    """Phones write such clips where no key frame precedes the cut; all their frames are in the file."""
    path = write_file(tmp_path / "a.mp4", quarters(20), "libx264", "yuv420p", options={"bf": "0", "g": "1"})
    data = bytearray(path.read_bytes())
    struct.pack_into(">i", data, data.index(b"elst") + 16, 5 * 512)  # media time; a frame lasts 512 units
    path.write_bytes(data)
    assert len(read_video(path)) == video_info(path).frames == 15


@pytest.mark.parametrize(
    ("rate", "fps", "stated"), [(5000, 1000.0, 5000.0), (Fraction(1, 20), 0.05, None), (Fraction(1, 200), 0.01, 0.005)]
)
def test_an_unusual_rate_is_no_reason_to_refuse(tmp_path: Path, rate: int | Fraction, fps: float, stated: float | None) -> None:
    path = write_file(tmp_path / "a.mp4", quarters(50), "libx264", "yuv420p", rate=rate)
    info = video_info(path)
    assert (info.fps, info.stated_fps) == (pytest.approx(fps), stated)
    assert len(read_video(path)) == 50


# ------------------------------------------------------------------------------------------- colours, alpha, interlacing


def discs(t: int = 3) -> np.ndarray:
    """RGBA frames: green, of which a part is opaque, a part half transparent and the rest hidden."""
    frames = np.zeros((t, 32, 48, 4), np.uint8)
    frames[..., 1] = 255
    frames[:, :, :16, 3], frames[:, :, 16:32, 3] = 255, 128
    return frames


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format", "options"),
    [
        ("a.webm", "libvpx-vp9", "yuva420p", {"auto-alt-ref": "0", "crf": "5", "b": "0"}),
        ("a.webm", "libvpx", "yuva420p", {"auto-alt-ref": "0", "crf": "5", "b": "1M"}),
        ("a.mov", "qtrle", "argb", {}),
        ("a.mov", "png", "rgba", {}),
        ("a.mov", "prores_ks", "yuva444p10le", {"profile": "4444"}),
        ("a.mkv", "ffv1", "bgra", {}),
    ],
)
def test_transparent_videos_are_over_white(
    tmp_path: Path, name: str, codec: str, pixel_format: str, options: dict[str, str]
) -> None:
    frames = read_video(write_file(tmp_path / name, discs(), codec, pixel_format, options=options)).astype(int)
    for column, colour in ((8, (0, 255, 0)), (24, (127, 255, 127)), (40, (255, 255, 255))):
        assert np.abs(frames[:, 16, column] - colour).max() <= 6, column


@pytest.mark.parametrize(("mode", "colour"), [(256, (0, 128, 0)), (257, (0, 128, 0)), (258, (127, 255, 127))])
def test_premultiplied_alpha_of_quicktime_is_composed_as_stored(tmp_path: Path, mode: int, colour: tuple[int, ...]) -> None:
    """Green of 50 % opacity is stored as (0, 128, 0) over black."""
    frames = np.zeros((2, 32, 32, 4), np.uint8)
    frames[..., 1:] = (128, 0, 255 if mode == 256 else 128)
    path = write_file(tmp_path / "a.mov", frames, "qtrle", "argb")
    data = bytearray(path.read_bytes())
    struct.pack_into(">H", data, data.index(b"vmhd") + 8, mode)
    path.write_bytes(data)
    assert np.abs(read_video(path).astype(int) - colour).max() <= 1


def test_interlaced_frames_lose_their_combs(tmp_path: Path) -> None:
    """A bright square moves by 8 pixels from field to field."""
    frames = np.zeros((6, 64, 96, 3), np.uint8)
    for index in range(6):
        for field in range(2):
            left = 8 * (2 * index + field) % 60
            frames[index, 16 + field : 48 : 2, left : left + 24] = 255
    interlaced = {"flags": "+ildct+ilme", "x264-params": "tff=1"}
    files = {
        kind: write_file(tmp_path / f"{kind}.mp4", frames, "libx264", "yuv420p", options={"crf": "1", **options})
        for kind, options in {"progressive": {}, "interlaced": interlaced}.items()
    }
    combs = {kind: np.abs(np.diff(read_video(path)[1:5, 18:46].astype(int), axis=1)).mean() for kind, path in files.items()}
    assert len(read_video(files["interlaced"])) == 6
    assert combs["interlaced"] < 0.35 * combs["progressive"]


def test_a_pq_file_is_read_in_standard_range(tmp_path: Path) -> None:
    grey = np.full((3, 32, 32, 3), round(0.5807 * 255), np.uint8)
    path = write_file(tmp_path / "a.mkv", grey, "ffv1", "yuv420p10le", color_trc=16, color_primaries=9, colorspace=9)
    with av.open(path) as file:
        assert next(file.decode(video=0)).color_trc == 16
    frames = read_video(path).astype(int)
    assert 200 < frames.min() <= frames.max() < 235  # diffuse white


@pytest.mark.parametrize(("matrix", "stated_range", "red", "white"), [(5, 1, (255, 0, 0), 255), (1, 2, (255, 36, 11), 235)])
def test_vp8_has_the_colours_that_its_container_states(
    tmp_path: Path, matrix: int, stated_range: int, red: tuple[int, int, int], white: int
) -> None:
    """Chromium records full range, which VP8 cannot state; here the frames are BT.601 in limited range, whatever is stated."""
    frames = np.full((3, 32, 64, 3), 255, np.uint8)
    frames[:, :, :32, 1:] = 0
    options = {"crf": "4", "b": "2M"}
    path = write_file(
        tmp_path / "a.webm", frames, "libvpx", "yuv420p", options=options, colorspace=matrix, color_range=stated_range
    )
    shown = read_video(path).astype(int)
    np.testing.assert_allclose(shown[1, 16, 16], red, atol=4)
    np.testing.assert_allclose(shown[1, 16, 48], white, atol=4)


# ----------------------------------------------------------------------------------------------------------- endings


@pytest.mark.parametrize(
    ("name", "codec", "container"),
    [
        ("a.MP4", "libx264", None),
        ("a.mkv", "libx264", None),
        ("a.m4v", "libx264", "mp4"),
        ("a.3gp", "libx264", None),
        ("a.mpg", "mpeg2video", None),
        ("a.mpeg", "mpeg1video", None),
        ("a.wmv", "wmv2", "asf"),
        ("a.ts", "libx264", None),
        ("a.mts", "libx264", "mpegts"),
        ("a.flv", "flv", None),
        ("a.webm", "libx264", "matroska"),
        ("a.avi", "libx264", "mp4"),
        ("a.gif", "libx264", "mp4"),
        ("clip", "libx264", "mp4"),
    ],
)
def test_files_are_read_by_content_under_every_name(tmp_path: Path, name: str, codec: str, container: str | None) -> None:
    path = write_file(tmp_path / name, quarters(6), codec, "yuv420p", container=container)
    frames, info = read_video(path).astype(int), video_info(path)
    assert (info.frames, info.width, info.height) == (6, 64, 32)
    assert info.fps == pytest.approx(25, rel=0.05)
    assert frames.shape == (6, 32, 64, 3)
    assert np.abs(frames[0, 4, 60] - (255, 0, 0)).max() < 40
    assert not path.suffix or path.suffix.lower() in VIDEO_SUFFIXES


@pytest.mark.parametrize("name", ["a.avi", "a.mp4", "a.mkv"])
def test_a_title_may_be_in_any_encoding(tmp_path: Path, name: str) -> None:
    path = write_file(tmp_path / name, quarters(), "libx264", "yuv420p", title="a clip of me")
    path.write_bytes(path.read_bytes().replace(b"a clip of me", "ein Stück Öl".encode("latin-1")))
    assert len(read_video(path)) == 3
    assert not has_sound(path)


def test_a_gif_of_another_name_is_a_gif(tmp_path: Path) -> None:
    frames = np.stack([quarters(1)[0], quarters(1)[0, ::-1]])
    write_video(tmp_path / "a.gif", frames, fps=10).rename(tmp_path / "a.mp4")
    assert np.array_equal(read_video(tmp_path / "a.mp4"), frames)
    assert video_info(tmp_path / "a.mp4").fps == pytest.approx(10)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "not a clip but a PNG picture"),
        (b"<!DOCTYPE html><html></html>", "not a clip but a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"ID3\x04" + bytes(100), "not a clip but a sound file"),
        (b"", "not a clip but an empty file"),
        (b"\0\0\0\x18ftypisom" + bytes(100), "broken"),
        (bytes(100), "broken"),
    ],
)
def test_what_is_no_clip_is_named(tmp_path: Path, content: bytes, kind: str) -> None:
    (tmp_path / "clip.mp4").write_bytes(content)
    with pytest.raises(UserError, match=r"clip\.mp4: .*" + kind):
        read_video(tmp_path / "clip.mp4")


@pytest.mark.parametrize("name", ["OUT.MP4", "out.WebM", "OUT.GIF"])
def test_outputs_may_be_named_in_capitals(tmp_path: Path, name: str) -> None:
    frames = np.stack([quarters(1)[0], quarters(1)[0, ::-1]])
    assert len(read_video(write_video(tmp_path / name, frames, fps=8))) == 2
