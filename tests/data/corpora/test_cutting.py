"""Cutting of long recordings."""

from pathlib import Path

import numpy as np
import pytest

from lfdm.data.corpora.cutting import Cutting, cut_frames, find_scenes
from lfdm.data.corpora.folder import write_folder
from lfdm.data.video import read_video, write_video
from lfdm.errors import UserError


def _film(*lengths: int) -> np.ndarray:
    """Return scenes of a bright square that moves 2 pixels a frame, on another background each."""
    scenes = []
    for scene, length in enumerate(lengths):
        frames = np.full((length, 32, 32, 3), 60 * (scene % 4), np.uint8)
        for index in range(length):
            left = 2 * index % 24
            frames[index, 8:16, left : left + 8] = 255
        scenes.append(frames)
    return np.concatenate(scenes)


def test_scene_cuts_are_found_and_motion_is_none() -> None:
    assert find_scenes(_film(20, 9, 14)) == [range(20), range(20, 29), range(29, 43)]
    noise = np.random.default_rng(0).integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
    assert find_scenes(noise) == [range(30)]
    assert find_scenes(np.zeros((10, 8, 8, 3), np.uint8)) == [range(10)]
    assert find_scenes([]) == []


def test_spans_by_length_and_stride() -> None:
    assert Cutting(clip_seconds=1).spans([range(25)], 10) == [range(10), range(10, 20)]
    assert Cutting(clip_seconds=1, stride_seconds=0.5).spans([range(25)], 10) == [
        range(10),
        range(5, 15),
        range(10, 20),
        range(15, 25),
    ]
    assert Cutting(clip_seconds=1).spans([range(7), range(7, 8), range(8, 20)], 10) == [range(7), range(8, 18)]
    assert Cutting(scene_cuts=True).spans([range(7), range(7, 8)], 10) == [range(7)]


def test_overlapping_spans_get_their_frames_and_end_with_the_video() -> None:
    frames = np.arange(10)[:, None, None, None].repeat(3, axis=3)
    cut = dict(cut_frames(frames, [range(4), range(2, 6), range(8, 12), range(9, 13), range(20, 24)]))
    found = {span: clip[:, 0, 0, 0].tolist() for span, clip in cut.items()}
    assert found == {range(4): [0, 1, 2, 3], range(2, 6): [2, 3, 4, 5], range(8, 12): [8, 9]}


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"clip_seconds": 0}, "clip_seconds must be positive; got 0"),
        ({"clip_seconds": float("nan")}, "clip_seconds must .* got nan"),
        ({"scene_cuts": True, "stride_seconds": 1}, "stride_seconds must be left out .* got 1"),
        ({}, "clip_seconds must .* got None"),
    ],
)
def test_impossible_settings_are_named(settings: dict[str, float], match: str) -> None:
    with pytest.raises(UserError, match=match):
        Cutting(**settings)  # pyright: ignore[reportArgumentType]


def test_a_long_recording_becomes_clips_of_one_subject(tmp_path: Path) -> None:
    film = _film(20, 9, 14)
    write_video(tmp_path / "tree/wave/long.avi", film, fps=10)
    write_video(tmp_path / "tree/wave/short.avi", film[:5], fps=10)
    cutting = Cutting(clip_seconds=0.8, scene_cuts=True)
    report = write_folder(tmp_path / "tree", tmp_path / "set", size=32, cutting=cutting, max_frames=6)
    spans = [range(6), range(8, 14), range(20, 26), range(29, 35)]
    expected = {f"clips/wave/long.avi-{n:04d}.avi": film[s.start : s.stop] for n, s in enumerate(spans, 1)}
    expected["clips/wave/short.avi.avi"] = film[:5]
    assert [record.path for record in report.records] == list(expected)
    for path, frames in expected.items():
        assert np.array_equal(read_video(tmp_path / "set" / path), frames)
    assert {record.subject for record in report.records} == {"wave/long.avi", "wave/short.avi"}


def test_a_broken_recording_keeps_the_clips_before_the_fault(tmp_path: Path) -> None:
    frames = _film(20)
    write_video(tmp_path / "tree/wave/frames", frames, fps=10)
    (tmp_path / "tree/wave/frames/frame-00012.png").write_bytes(b"broken")
    report = write_folder(tmp_path / "tree", tmp_path / "set", size=32, cutting=Cutting(clip_seconds=0.2))
    assert [record.frames for record in report.records] == [5, 5]
    assert [(s.path, "frame-00012" in s.reason) for s in report.skipped] == [("wave/frames", True)]
