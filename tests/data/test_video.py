"""Video files in and out."""

from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import pytest
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream
from PIL import Image

from lfdm.data.video import FOLDER_FPS, Crop, read_fitted, read_video, video_info, write_video
from lfdm.errors import UserError

LOSSLESS = [("clip.avi", False), ("clip", False), ("clip.mp4", True), ("clip.webm", True)]


def noise(t: int = 4, height: int = 17, width: int = 33) -> np.ndarray:
    return np.random.default_rng(t + height + width).integers(0, 256, (t, height, width, 3), dtype=np.uint8)


def gradient(t: int = 6, height: int = 48, width: int = 64) -> np.ndarray:
    """Smooth frames of a moving ramp: lossy codecs keep them nearly exactly."""
    y, x, k = np.meshgrid(np.arange(height), np.arange(width), np.arange(t), indexing="ij")
    frames = np.stack([x * 3 + 10, y * 4 + 5 * k, 255 - x * 2 - y], axis=-1)
    return frames.transpose(2, 0, 1, 3).astype(np.uint8)


# ------------------------------------------------------------------------------------------------------ round trips


@pytest.mark.parametrize(("name", "lossless"), LOSSLESS)
@pytest.mark.parametrize("size", [(2, 2), (2, 3), (3, 2), (64, 64), (17, 33)])
def test_exact_formats_give_back_the_same_bytes(tmp_path: Path, name: str, lossless: bool, size: tuple[int, int]) -> None:
    frames = noise(3, *size)
    path = write_video(tmp_path / "new" / name, frames, fps=12.5, lossless=lossless)
    assert np.array_equal(read_video(path), frames)
    info = video_info(path)
    assert (info.frames, info.height, info.width) == (3, *size)
    assert info.fps == (FOLDER_FPS if path.is_dir() else 12.5)


@pytest.mark.parametrize(("name", "tolerance"), [("clip.mp4", 2.0), ("clip.webm", 2.5), ("clip.gif", 6.0)])
def test_lossy_formats_stay_close(tmp_path: Path, name: str, tolerance: float) -> None:
    frames = gradient()
    path = write_video(tmp_path / name, frames, fps=8)
    read = read_video(path)
    assert read.shape == frames.shape
    assert np.abs(read.astype(int) - frames).mean() < tolerance
    assert video_info(path).fps == pytest.approx(8, rel=0.02)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.webm"])
def test_plain_colours_survive_the_colour_space(tmp_path: Path, name: str) -> None:
    frames = np.broadcast_to(np.array([200, 30, 90], np.uint8), (3, 32, 32, 3)).copy()
    read = read_video(write_video(tmp_path / name, frames, fps=8)).astype(int)
    assert np.abs(read - frames).max() <= 3


def test_mp4_pads_odd_sizes_by_repeating_the_edge(tmp_path: Path) -> None:
    read = read_video(write_video(tmp_path / "clip.mp4", gradient(2, 31, 45), fps=8)).astype(int)
    assert read.shape == (2, 32, 46, 3)
    assert np.abs(read[:, -1] - read[:, -2]).mean() < 4


def test_gif_of_few_colours_is_exact_and_keeps_equal_frames(tmp_path: Path) -> None:
    frames = (noise(4, 24, 24) // 128 * 255).astype(np.uint8)
    frames[2] = frames[1]  # Pillow merges the two into one longer frame
    read = read_video(write_video(tmp_path / "clip.gif", frames, fps=12))
    assert np.array_equal(read, frames)


def test_max_frames_keeps_the_first(tmp_path: Path) -> None:
    frames = noise()
    for name in ("clip.avi", "clip"):
        assert np.array_equal(read_video(write_video(tmp_path / name, frames, fps=8), max_frames=2), frames[:2])


def test_folder_is_read_in_natural_order(tmp_path: Path) -> None:
    frames = noise(12, 8, 8)
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"f{index}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    assert np.array_equal(read_video(tmp_path), frames)


def test_a_folder_of_frames_of_two_sizes_is_one_answer(tmp_path: Path) -> None:
    for index, width in enumerate((8, 8, 4)):
        Image.fromarray(noise(1, 8, width)[0]).save(tmp_path / f"{index}.png")
    for read in (read_video, lambda path: read_fitted(path, 8, "pad")):
        with pytest.raises(UserError, match=r"one size; 0\.png is 8x8, 2\.png is 4x8"):
            read(tmp_path)
    assert len(read_fitted(tmp_path, 8, "pad", max_frames=2)) == 2


# ----------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("frames", "match"),
    [
        (noise().astype(np.float32), "uint8"),
        (noise()[0], "shape"),
        (noise()[..., :2], "shape"),
        (noise()[:0], "at least one"),
        (noise()[:, :0], "at least one"),
    ],
)
def test_writing_refuses_other_arrays(tmp_path: Path, frames: np.ndarray, match: str) -> None:
    with pytest.raises(UserError, match=match):
        write_video(tmp_path / "clip.avi", frames, fps=8)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["clip.avi", "clip.mp4", "clip.webm", "clip.gif", "clip"])
def test_frames_may_come_one_by_one(tmp_path: Path, name: str) -> None:
    frames = gradient(5)
    whole, streamed = (
        read_video(write_video(tmp_path / f"{kind}-{name}", given, fps=8)).astype(int)
        for kind, given in (("whole", frames), ("streamed", iter(frames)))
    )
    assert streamed.shape == frames.shape
    assert np.abs(streamed - whole).max() <= (16 if name in ("clip.mp4", "clip.webm") else 0)  # two runs of x264 differ


@pytest.mark.parametrize("name", ["clip.mp4", "clip"])
@pytest.mark.parametrize(
    ("frames", "match"),
    [
        ([], "at least one frame; got none"),
        ([np.zeros((8, 8), np.uint8)], "shape"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)], r"frames: change size from \(8, 8\) to \(8, 9\)"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3))], "uint8"),
    ],
)
def test_one_wrong_frame_leaves_nothing_written(tmp_path: Path, name: str, frames: list[np.ndarray], match: str) -> None:
    with pytest.raises(UserError, match=match):
        write_video(tmp_path / name, iter(frames), fps=8)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fps", [float("nan"), 0.0, -8.0, float("inf"), 1e6])
def test_writing_refuses_impossible_rates(tmp_path: Path, fps: float) -> None:
    with pytest.raises(UserError, match=rf"fps .*0\.01 to 1000; got {fps}"):
        write_video(tmp_path / "clip.avi", noise(), fps=fps)


@pytest.mark.parametrize("name", ["clip.mkv", "clip.png", "clip.v2"])
def test_writing_refuses_other_endings_and_names_its_own(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"{Path(name).suffix}.*\.mp4, \.webm, \.mov, \.avi, \.gif"):
        write_video(tmp_path / name, noise(), fps=8)


def test_a_gif_cannot_be_lossless(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lossless"):
        write_video(tmp_path / "clip.gif", noise(), fps=8, lossless=True)


def test_a_folder_of_other_things_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "clip"
    write_video(target, noise(5), fps=8)
    write_video(target, noise(2), fps=8)
    assert len(read_video(target)) == 2
    (target / "thesis.txt").write_text("keep me")
    with pytest.raises(UserError, match=r"clip: .*frame"):
        write_video(target, noise(3), fps=8)
    assert (target / "thesis.txt").read_text() == "keep me"


@pytest.mark.parametrize("name", ["clip.avi", "clip.mp4", "clip.webm", "clip.gif", "clip"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, name: str, on_full_disk: Callable[[str, int], str]
) -> None:
    path = write_video(tmp_path / name, gradient(2), fps=8)
    before = read_video(path)
    code = (
        "import numpy as np\n"
        "from lfdm.data.video import write_video\n"
        "frames = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)\n"
        f"write_video({str(path)!r}, frames, fps=8)"
    )
    assert "File too large" in on_full_disk(code, 2000)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    assert np.array_equal(read_video(path), before)


@pytest.mark.parametrize(("name", "lossless"), [*LOSSLESS[:1], *LOSSLESS[2:], ("clip.mp4", False), ("clip.gif", False)])
@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.8])
def test_truncated_files_are_one_error_with_the_path(tmp_path: Path, name: str, lossless: bool, keep: float) -> None:
    path = write_video(tmp_path / name, noise(12, 32, 32), fps=8, lossless=lossless)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(UserError, match=name) as caught:
        read_video(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "codec", "times"),
    [
        ("dropped.avi", "mpeg4", range(0, 40, 2)),
        ("dropped.avi", "ffv1", range(0, 40, 2)),
        ("slower.webm", "libvpx-vp9", [*range(10), *range(10, 210, 20)]),
        ("slower.mp4", "libx264", [*range(10), *range(10, 210, 20)]),
    ],
)
def test_frames_at_uneven_times_are_a_whole_clip(tmp_path: Path, name: str, codec: str, times: Iterable[int]) -> None:
    write_at_times(tmp_path / name, codec, times)
    assert len(read_video(tmp_path / name)) == video_info(tmp_path / name).frames == 20


def test_a_trimmed_clip_gives_what_its_edit_list_leaves(tmp_path: Path) -> None:
    write_at_times(tmp_path / "whole.mp4", "libx264", range(20))
    with av.open(tmp_path / "whole.mp4") as whole, av.open(tmp_path / "trimmed.mp4", "w") as trimmed:
        stream = trimmed.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.dts is not None and packet.pts is not None and packet.time_base is not None:
                cut = int(12 / 30 / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - cut, packet.dts - cut, stream
                trimmed.mux(packet)
    assert len(read_video(tmp_path / "trimmed.mp4")) == video_info(tmp_path / "trimmed.mp4").frames == 8


def write_at_times(path: Path, codec: str, times: Iterable[int]) -> None:
    """Frames at these thirtieths of a second."""
    with av.open(path, "w") as file:
        stream = cast(VideoStream, file.add_stream(codec, rate=30))
        stream.width, stream.height, stream.pix_fmt = 32, 32, "bgr0" if codec == "ffv1" else "yuv420p"
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 10 * index, np.uint8)).reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = time, Fraction(1, 30)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def test_a_gif_that_holds_still_for_too_long_is_refused(tmp_path: Path) -> None:
    still = np.zeros((66, 8, 8, 3), np.uint8)
    write_video(tmp_path / "still.gif", still, fps=0.11)
    with pytest.raises(UserError, match="655 s"):
        write_video(tmp_path / "stiller.gif", still, fps=0.1)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("clip.mp4", b"hello"),
        ("clip.avi", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n"),
        ("clip.mp4", b"ffconcat version 1.0\nfile other.avi\n"),
        ("clip.txt", b"hello"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=name):
        read_video(tmp_path / name)


def test_read_fitted_crops_first_and_keeps_the_requested_frames(tmp_path: Path) -> None:
    frames = noise(6, 20, 30)
    path = write_video(tmp_path / "clip.avi", frames, fps=8)
    crop = Crop(top=2, bottom=18, left=5, right=21, width=30, height=20)
    kept = read_fitted(path, 16, "pad", crop=crop, only=[1, 4, 5, 90])
    assert np.array_equal(kept, frames[[1, 4, 5], 2:18, 5:21])
    with pytest.raises(UserError, match=r"clip\.avi: frames are 30x20; the crop is one of 20x30"):
        read_fitted(path, 16, "pad", crop=Crop(top=0, bottom=20, left=0, right=20, width=20, height=30))


def test_a_huge_gif_and_an_unknown_codec_are_refused(tmp_path: Path) -> None:
    screen = b"GIF89a" + (30_000).to_bytes(2, "little") * 2 + b"\x80\x00\x00" + bytes(3) + b"\xff" * 3
    (tmp_path / "huge.gif").write_bytes(screen + b",\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;")
    path = write_video(tmp_path / "clip.avi", noise(), fps=8)
    path.write_bytes(path.read_bytes().replace(b"FFV1", b"QQQQ"))
    for name, message in (("huge.gif", "over 50 megapixels"), ("clip.avi", "unknown codec")):
        for function in (read_video, video_info):
            with pytest.raises(UserError, match=message) as caught:
                function(tmp_path / name)
            assert str(caught.value).startswith(f"{tmp_path / name}: ")


@pytest.mark.parametrize(("name", "message"), [("clip", "not a folder of frame"), ("clip.mp4", "a folder has this name")])
def test_a_folder_in_the_way_is_named(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.txt").touch()
    with pytest.raises(UserError, match=message):
        write_video(tmp_path / name, noise(), fps=8)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="/file is a file"):
        write_video(tmp_path / "file" / name, noise(), fps=8)


def test_reading_what_is_missing_empty_uneven_or_too_big(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_video(tmp_path / "nowhere.mp4")
    with pytest.raises(UserError, match=str(tmp_path)):
        read_video(tmp_path)
    path = write_video(tmp_path / "clip.avi", noise(4, 10, 10), fps=8)
    with pytest.raises(UserError, match="max_frames"):
        read_video(path, max_frames=0)
    assert len(read_video(path, max_pixels=400)) == 4
    with pytest.raises(UserError, match="399"):
        read_video(path, max_pixels=399)
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    Image.new("RGB", (9, 8)).save(tmp_path / "1.png")
    with pytest.raises(UserError, match="one size"):
        read_video(tmp_path)
    for read in (read_video, video_info):
        with pytest.raises(UserError, match=r"0\.png: .*\.mp4"):
            read(tmp_path / "0.png")


def test_a_stream_that_becomes_huge_is_refused_by_the_decoder(tmp_path: Path) -> None:
    """A size that changes in the middle is not in the header; the picture must not be allocated first."""
    path = tmp_path / "grows.avi"
    with av.open(path, "w") as file:
        stream = cast(VideoStream, file.add_stream("libx264", rate=25))
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for packet in [*black_packets(64, 200, first=0), *black_packets(7200, 1, first=200)]:
            packet.stream = stream
            file.mux(packet)
    assert video_info(path).width == 64
    with pytest.raises(UserError, match=r"grows\.avi: .*Invalid data"):
        read_video(path)


def black_packets(size: int, num_frames: int, *, first: int) -> list[Any]:
    """H.264 of square black frames, which holds its size in its own headers."""
    encoder = cast(VideoCodecContext, av.CodecContext.create("libx264", "w"))
    encoder.width, encoder.height, encoder.pix_fmt = size, size, "yuv420p"
    encoder.time_base, encoder.framerate = Fraction(1, 25), Fraction(25)
    encoder.options = {"preset": "ultrafast", "x264-params": "repeat-headers=1:annexb=1"}
    packets: list[Any] = []
    for index in range(num_frames):
        frame = av.VideoFrame.from_ndarray(np.zeros((size * 3 // 2, size), np.uint8), format="yuv420p")
        frame.pts = first + index
        packets += encoder.encode(frame)
    return packets + encoder.encode()


@pytest.mark.parametrize("max_frames", [0, -1, 1.5, float("nan"), 2**63, [1], True])
def test_impossible_numbers_of_frames_are_named(max_frames: Any, tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.avi", np.zeros((2, 8, 8, 3), np.uint8), fps=8)
    with pytest.raises(UserError, match="max_frames must be a whole number"):
        read_video(path, max_frames=max_frames)
