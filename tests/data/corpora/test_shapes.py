"""Clips keep their shape: the common shape of a tree, phone videos, odd sizes, pixels that are not square."""

from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
import pytest
from av.video.stream import VideoStream

from lfdm.config.video import Size
from lfdm.data.corpora.folder import write_folder
from lfdm.data.corpora.shapes import find_common_shape
from lfdm.data.index import read_index
from lfdm.data.video import read_video
from lfdm.errors import UserError

TURNED = (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
"""Display matrix of a phone held upright: its sensor's rows are shown as columns."""


def film(path: Path, height: int, width: int, *, turned: bool = False, aspect: Fraction | None = None) -> Path:
    """Write a clip of five frames without any black pixel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = np.full((height, width, 3), 120, np.uint8)
    frame[: height // 2] = 200
    with av.open(path, "w") as file:
        stream = cast(VideoStream, file.add_stream("libx264", rate=10))
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv444p"
        if turned:
            stream.set_display_matrix(TURNED)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for _ in range(5):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("sizes", "short_side", "expected"),
    [
        ([(1080, 1920)] * 3, 128, (128, 224)),
        ([(1920, 1080), (1280, 720), (854, 480)], 64, (112, 64)),
        ([(480, 640)], 96, (96, 128)),
        ([(240, 240), (481, 479)], 64, (64, 64)),
        ([(1080, 1920)] * 2 + [(1920, 1080)], 64, (64, 112)),
        ([(100, 3000)], 16, (16, 480)),
    ],
)
def test_the_common_shape_is_stored_with_the_given_short_side(
    sizes: list[tuple[int, int]], short_side: int, expected: tuple[int, int]
) -> None:
    found = find_common_shape([Size(*size) for size in sizes], short_side, may_differ=True)
    assert found.size == expected
    assert (found.num_clips < found.total) == (len(sizes) == 3 and sizes[0] != sizes[-1] and len(set(sizes)) == 2)
    assert str(found.size) in found.describe("pad")


def test_clips_of_several_shapes_need_a_size(tmp_path: Path) -> None:
    for name, size in (("a", (90, 160)), ("b", (90, 160)), ("c", (160, 90))):
        film(tmp_path / f"tree/wave/{name}.mp4", *size)
    with pytest.raises(UserError, match=r"^size must be given .* got None for clips of 160x90 \(2 clips\), 90x160 \(1 clips\)$"):
        write_folder(tmp_path / "tree", tmp_path / "set")
    assert not (tmp_path / "set").exists()
    made = write_folder(tmp_path / "tree", tmp_path / "set", short_side=32)
    assert {(record.height, record.width) for record in made.records} == {(32, 64)}
    (note,) = [note for note in made.notes if note.startswith("size: 32x64 (height x width)")]
    assert note.endswith("most clips (160x90, width x height); 1 of other shapes are fitted (pad)")
    frames = {name: read_video(tmp_path / f"set/clips/wave/{name}.mp4.avi") for name in "abc"}
    assert frames["a"].min() > 90
    assert frames["c"].min() == 0  # bars


def test_a_phones_clips_stay_upright_and_without_bars(tmp_path: Path) -> None:
    """Turned by their flag, of odd sizes, with pixels that are not square: all are shown as 9:16."""
    film(tmp_path / "tree/wave/phone.mp4", 180, 320, turned=True)
    film(tmp_path / "tree/wave/odd.mp4", 321, 181)
    film(tmp_path / "tree/wave/anamorphic.mp4", 320, 120, aspect=Fraction(3, 2))
    made = write_folder(tmp_path / "tree", tmp_path / "set")
    assert next(note for note in made.notes if note.startswith("size")).startswith(
        "size: 112x64 (height x width), the shape of all"
    )
    for record in read_index(tmp_path / "set"):
        frames = read_video(tmp_path / "set" / record.path)
        assert frames.shape == (5, 112, 64, 3)
        assert (record.height, record.width) == (112, 64)
        assert frames.min() > 90
        light = frames[0, :, :, 0] > 160
        turned = record.path.endswith("phone.mp4.avi")
        assert (light[:, -30:] if turned else light[:50]).all()  # rows of the sensor are columns of the picture
        assert not (light[:, :30] if turned else light[-50:]).any()


def test_a_size_of_two_numbers_is_taken_as_it_is(tmp_path: Path) -> None:
    film(tmp_path / "tree/wave/a.mp4", 90, 160)
    for fit, dark in (("pad", True), ("crop", False), ("stretch", False)):
        made = write_folder(tmp_path / "tree", tmp_path / fit, size="48x32", fit=fit)  # pyright: ignore[reportArgumentType]
        assert [(record.height, record.width) for record in made.records] == [(48, 32)]
        assert (read_video(tmp_path / fit / made.records[0].path).min() == 0) == dark
