"""Pictures as users name them: frames of clips by time and by number."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
import pytest
from av.video.stream import VideoStream
from PIL import Image

from lfdm.data.pictures import picture_file, read_picture
from lfdm.data.video import read_video, video_info, write_video
from lfdm.errors import UserError

FRAMES = np.repeat(np.arange(8, dtype=np.uint8)[:, None, None, None] * 30, 3, axis=-1) + np.zeros((8, 32, 48, 3), np.uint8)


def number_of(picture: np.ndarray) -> int:
    """Return which of FRAMES a picture shows."""
    return round(float(picture.mean()) / 30)


def write_at(path: Path, times_ms: Sequence[int], codec: str = "libx264", matrix: Sequence[int] | None = None) -> Path:
    """Write the first of FRAMES at given times, B-frames and all."""
    with av.open(path, "w") as file:
        stream = cast(VideoStream, file.add_stream(codec, rate=1000))
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.time_base = Fraction(1, 1000)
        if matrix is not None:
            stream.set_display_matrix(matrix)
        for time, array in zip(times_ms, FRAMES, strict=False):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


@pytest.mark.parametrize("name", ["clip.mp4", "clip.webm", "clip.mov", "clip.avi", "clip.gif", "clip.webp", "clip.apng", "clip"])
def test_a_frame_has_its_number_in_every_format(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, FRAMES, fps=10) if name != "clip.mov" else write_at(tmp_path / name, range(0, 800, 100))
    for index in (0, 3, 7):
        assert np.array_equal(read_picture(f"{path}@{index}"), read_video(path)[index])
        assert number_of(read_picture(f"{path}@{index}")) == index
    with pytest.raises(UserError, match=r"has no frame 8; the frames are 0 to 7"):
        read_picture(f"{path}@8")


@pytest.mark.parametrize("name", ["clip.mp4", "clip.webm", "clip.avi", "clip.gif", "clip.webp", "clip.apng"])
def test_a_frame_is_shown_from_its_start_to_that_of_the_next(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, FRAMES, fps=10)
    for text, index in (("0", 0), ("0.099", 0), ("0.1", 1), (".25", 2), ("0.7", 7), ("0.79", 7), ("0.8", 7)):
        assert number_of(read_picture(f"{path}@{text}s")) == index
    with pytest.raises(UserError, match=r"has no frame at 0\.9 s; it lasts 0\.80 s"):
        read_picture(Path(f"{path}@0.9s"))


@pytest.mark.parametrize(("name", "codec"), [("clip.mp4", "libx264"), ("clip.mkv", "libx264"), ("clip.webm", "libvpx-vp9")])
def test_frames_at_uneven_times(tmp_path: Path, name: str, codec: str) -> None:
    path = write_at(tmp_path / name, [0, 40, 80, 1000, 1040, 2000], codec)
    for text, index in (("0.05", 1), ("0.5", 2), ("0.999", 2), ("1", 3), ("1.5", 4), ("2", 5)):
        assert number_of(read_picture(f"{path}@{text}s")) == index
    assert number_of(read_picture(f"{path}@4")) == 4


def test_time_counts_from_the_start_of_the_file(tmp_path: Path) -> None:
    """A transport stream starts its clock at 1.4 s, and here the pictures start late."""
    path = write_at(tmp_path / "clip.ts", [0, 500, 1000])
    assert [number_of(read_picture(f"{path}@{text}s")) for text in ("0", "0.4", "0.6", "1.01")] == [0, 0, 1, 2]
    path = write_at(tmp_path / "clip.mkv", [200, 700])
    assert number_of(read_picture(f"{path}@0s")) == 0


def test_uneven_frames_of_a_gif_keep_their_own_times(tmp_path: Path) -> None:
    """At 40 frames per second they last 20 and 30 ms in turn."""
    path = tmp_path / "clip.gif"
    images = [Image.fromarray(frame) for frame in FRAMES[:4]]
    images[0].save(path, save_all=True, append_images=images[1:], duration=[20, 30, 200, 50])
    for text, index in (("0.019", 0), ("0.02", 1), ("0.049", 1), ("0.05", 2), ("0.249", 2), ("0.26", 3)):
        assert number_of(read_picture(f"{path}@{text}s")) == index


def test_a_frame_is_upright_as_in_the_clip(tmp_path: Path) -> None:
    quarter_turn = [0, -65536, 0, 65536, 0, 0, 0, 0, 1 << 30]
    path = write_at(tmp_path / "phone.mov", [0, 40, 80], matrix=quarter_turn)
    assert np.array_equal(read_picture(f"{path}@0.05s"), read_video(path)[1])
    assert read_picture(f"{path}@1").shape == (48, 32, 3)


def test_a_file_of_that_name_is_that_file(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", FRAMES, fps=10)
    for name in ("clip.mp4@1.5s", "photo@2"):
        Image.new("RGB", (4, 4), (9, 9, 9)).save(tmp_path / name, "PNG")
        assert (read_picture(tmp_path / name) == 9).all()
        assert picture_file(tmp_path / name) == tmp_path / name
    assert picture_file(tmp_path / "clip.mp4@2") == tmp_path / "clip.mp4"
    assert picture_file(tmp_path / "photo@2x.png") == tmp_path / "photo@2x.png"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("clip.mp4@1.5", r"a frame must be a whole number, or a time in seconds as in clip\.mp4@1\.5s"),
        ("me.png@0", r"me\.png: an image; a clip is"),
        ("notes.txt@1s", r"notes\.txt: not a clip but text"),
    ],
)
def test_other_names_are_refused(tmp_path: Path, name: str, message: str) -> None:
    write_video(tmp_path / "clip.mp4", FRAMES, fps=10)
    Image.new("RGB", (4, 4)).save(tmp_path / "me.png")
    (tmp_path / "notes.txt").write_text("no clip")
    with pytest.raises(UserError, match=message):
        read_picture(tmp_path / name)
    for missing in ("nothing.mp4@1s", "me.png@-1", "clip.mp4@", "clip.mp4@1m"):
        with pytest.raises(FileNotFoundError, match="no such file"):
            read_picture(tmp_path / missing)


@pytest.mark.parametrize("address", ["https://example.org/a.png", "http://example.org/a.mp4", "HTTPS://example.org/clip.mp4@1s"])
def test_an_address_is_to_be_downloaded_first(address: str) -> None:
    for read in (read_picture, read_video, video_info):
        with pytest.raises(UserError, match=r"(?i:https?)://example\.org/.*download the file first"):
            read(address)


def test_a_video_as_a_picture_gets_a_hint(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", FRAMES, fps=10)
    with pytest.raises(UserError, match=r"not an image but a video \(MP4 or QuickTime\); .* clip\.mp4@1\.5s"):
        read_picture(tmp_path / "clip.mp4")


@pytest.mark.parametrize("name", ["clip.mov", "clip.apng", "clip"])
def test_alpha_is_kept_where_requested(tmp_path: Path, name: str) -> None:
    alpha = np.full((8, 32, 48, 1), 255, np.uint8)
    alpha[1:, :, 24:] = 0
    path = write_video(tmp_path / name, np.concatenate([FRAMES, alpha], axis=-1), fps=10)
    for key in ("@3", "@0.3s"):
        assert np.array_equal(read_picture(f"{path}{key}", keep_alpha=True)[..., 3], alpha[3, ..., 0])
        assert (read_picture(f"{path}{key}")[:, 24:] == 255).all()
    assert read_picture(f"{path}@0", keep_alpha=True).shape == (32, 48, 3)
