"""Conversion of a tree of labelled clips of every kind."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from lfdm.data.corpora.folder import write_folder
from lfdm.data.fitting import fit_frames
from lfdm.data.index import read_index
from lfdm.data.video import FOLDER_FPS, read_video, write_video
from lfdm.errors import UserError


def clip(t: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (t, height // 4, width // 4, 3), dtype=np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two labels with subjects, one without; all formats, sizes, rates and lengths; and files that are not clips."""
    root = tmp_path / "tree"
    write_video(root / "wave/ann/1.avi", clip(5, 24, 40), fps=12)
    write_video(root / "wave/ann/2.mp4", clip(9, 32, 32), fps=25)
    write_video(root / "wave/ann/10", clip(3, 16, 16), fps=8)  # a folder of frames
    write_video(root / "wave/bob/1.gif", clip(4, 40, 24) // 128 * 255, fps=10)
    write_video(root / "jump high/ann/1.webm", clip(6, 20, 20), fps=30)
    write_video(root / "jump high/cid/1.avi", clip(7, 20, 24), fps=12)
    write_video(root / "spin/a.avi", clip(5, 16, 24), fps=15)
    write_video(root / "spin/a", clip(5, 16, 24, seed=1), fps=15)
    write_video(root / "spin/c.mp4", clip(5, 16, 24), fps=15)
    (root / "wave/bob/broken.mp4").write_bytes(b"hello")
    truncated = write_video(root / "wave/ann/cut.avi", clip(20, 24, 40), fps=12)
    truncated.write_bytes(truncated.read_bytes()[:9000])
    write_video(root / "wave/ann/still.avi", clip(1, 16, 16), fps=8)
    (root / "wave/bob/notes.txt").write_text("hello")
    (root / "wave/bob/.hidden").write_text("hello")
    Image.new("RGB", (8, 8)).save(root / "spin/photo.png")
    (root / "readme.md").write_text("hello")
    (root / "wave/nobody").mkdir()
    (root / "wave/bob/deep/deeper").mkdir(parents=True)
    return root


CLIPS = {
    "clips/jump high/ann/1.webm.avi": ("jump high", "ann", 6, 30.0),
    "clips/jump high/cid/1.avi.avi": ("jump high", "cid", 7, 12.0),
    "clips/spin/a.avi": ("spin", "spin/a", 5, FOLDER_FPS),
    "clips/spin/a.avi.avi": ("spin", "spin/a.avi", 5, 15.0),
    "clips/spin/c.mp4.avi": ("spin", "spin/c.mp4", 5, 15.0),
    "clips/wave/ann/1.avi.avi": ("wave", "ann", 5, 12.0),
    "clips/wave/ann/2.mp4.avi": ("wave", "ann", 9, 25.0),
    "clips/wave/ann/10.avi": ("wave", "ann", 3, FOLDER_FPS),
    "clips/wave/bob/1.gif.avi": ("wave", "bob", 4, 10.0),
}
SKIPPED = {
    "readme.md": "not a label's folder",
    "spin/photo.png": "single image",
    "wave/nobody": "an empty folder",
    "wave/ann/cut.avi": "truncated",
    "wave/ann/still.avi": "single frame",
    "wave/bob/broken.mp4": "not a clip but text",
    "wave/bob/deep/deeper": "an empty folder",
    "wave/bob/notes.txt": "not a clip",
}


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_a_tree_of_all_kinds_becomes_a_data_set(tree: Path, tmp_path: Path, fit: str) -> None:
    out = tmp_path / "set"
    done: list[tuple[str, int, int]] = []
    report = write_folder(tree, out, size=16, fit=fit, test_fraction=0.4, progress=lambda *n: done.append(n))  # pyright: ignore[reportArgumentType]
    records = read_index(out)
    assert {r.path: (r.label, r.subject, r.frames, round(r.fps, 2)) for r in records} == CLIPS
    for record in records:
        source = tree / record.path.removeprefix("clips/").removesuffix(".avi")
        expected = fit_frames(read_video(source), 16, fit)  # pyright: ignore[reportArgumentType]
        assert np.array_equal(read_video(out / record.path), expected), record.path
        assert (record.width, record.height) == (16, 16)
    reasons = {skipped.path: skipped.reason for skipped in report.skipped}
    assert reasons.keys() == SKIPPED.keys()
    for path, reason in SKIPPED.items():
        assert reason in reasons[path]
        assert "\n" not in reasons[path]
        assert str(tree) not in reasons[path]
    assert sorted(report.records, key=lambda record: record.path) == sorted(records, key=lambda record: record.path)
    assert report.num_clips("train") + report.num_clips("test") == 9
    assert report.num_clips("test") == len([record for record in records if record.split == "test"]) > 0
    assert done == [("converting recordings", n, 12) for n in range(1, 13)]  # broken clips count until they are opened


def test_the_split_is_by_subject_over_all_labels_and_follows_the_seed(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for label in ("a", "b"):
        for n in range(10):
            write_video(tree / label / f"{n}.avi", clip(2, 8, 8), fps=8)

    def test_paths(name: str, seed: int) -> set[str]:
        write_folder(tree, tmp_path / name, size=16, test_fraction=0.3, seed=seed)
        return {record.path for record in read_index(tmp_path / name) if record.split == "test"}

    first = test_paths("one", 0)
    assert [sum(path.startswith(f"clips/{label}/") for path in first) for label in "ab"] == [3, 3]
    assert test_paths("two", 0) == first
    assert test_paths("three", 1) != first


def test_the_test_split_may_be_left_out_but_never_takes_all(tree: Path, tmp_path: Path) -> None:
    assert write_folder(tree, tmp_path / "none", size=16, test_fraction=0).num_clips("test") == 0
    few = write_folder(tree, tmp_path / "few", size=16, test_fraction=0.01)
    assert few.num_clips("test") >= 1
    most = write_folder(tree, tmp_path / "most", size=16, test_fraction=0.99)
    assert most.num_clips("train") >= 1
    write_video(tmp_path / "alone" / "wave" / "ann" / "1.avi", clip(2, 8, 8), fps=8)
    alone = write_folder(tmp_path / "alone", tmp_path / "one", size=16, test_fraction=0.99)
    assert (alone.num_clips("train"), alone.num_clips("test")) == (1, 0)


def test_clips_without_a_table_are_not_replaced(tree: Path, tmp_path: Path) -> None:
    own = tmp_path / "project" / "clips" / "holiday.mov"
    own.parent.mkdir(parents=True)
    own.write_text("keep me")
    with pytest.raises(UserError, match=r"project: .*clips\.csv"):
        write_folder(tree, tmp_path / "project", size=16)
    assert own.read_text() == "keep me"


def test_max_frames_keeps_the_first(tree: Path, tmp_path: Path) -> None:
    write_folder(tree, tmp_path / "set", size=16, max_frames=4)
    assert max(record.frames for record in read_index(tmp_path / "set")) == 4
    source = read_video(tree / "wave/ann/1.avi", max_frames=4)
    assert np.array_equal(read_video(tmp_path / "set/clips/wave/ann/1.avi.avi"), fit_frames(source, 16, "pad"))


def test_only_a_data_set_is_replaced(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    out.mkdir()
    write_folder(tree, out, size=16)
    (out / ".cache").mkdir()
    write_folder(tree, out, size=32)
    assert read_index(out)[0].width == 32
    assert sorted(entry.name for entry in out.iterdir()) == ["clips", "clips.csv"]
    (out / "thesis.txt").write_text("keep me")
    with pytest.raises(UserError, match=r"thesis\.txt"):
        write_folder(tree, out, size=32)
    assert read_index(out)[0].width == 32
    assert (out / "thesis.txt").read_text() == "keep me"


def test_a_tree_without_clips_is_an_error_and_leaves_nothing(tree: Path, tmp_path: Path) -> None:
    for bad in ("empty", "useless"):
        (tmp_path / bad / "wave").mkdir(parents=True)
    (tmp_path / "useless/wave/1.mp4").write_bytes(b"hello")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_folder(tmp_path / "nowhere", tmp_path / "set", size=16)
    with pytest.raises(UserError, match="expected <label>/<subject>/<clip>"):
        write_folder(tmp_path / "empty", tmp_path / "set", size=16)
    with pytest.raises(UserError, match=r"useless: .*wave/1\.mp4"):
        write_folder(tmp_path / "useless", tmp_path / "set", size=16)
    for out in (tree, tree / "set", tmp_path):
        with pytest.raises(UserError, match="tree"):
            write_folder(tree, out, size=16)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["empty", "tree", "useless"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("size", 0),
        ("size", 10**8),
        ("fit", "cover"),
        ("size", 24),
        ("size", "wide"),
        ("short_side", 64),
        ("test_fraction", 1.0),
        ("test_fraction", float("nan")),
        ("seed", -1),
        ("max_frames", 1),
        ("num_workers", -1),
    ],
)
def test_impossible_settings_are_named(tree: Path, tmp_path: Path, name: str, value: object) -> None:
    with pytest.raises(UserError, match=f"{name} must .* got"):
        write_folder(tree, tmp_path / "set", **{"size": 16, name: value})


def test_no_file_stops_the_run(tmp_path: Path) -> None:
    """Files that cannot be read, listed or stored are skipped, each with a reason on one printable line."""
    folder = tmp_path / "tree" / "wave" / "ann"
    clip_path = write_video(folder / "good.avi", clip(3, 8, 8), fps=8)
    data = clip_path.read_bytes()
    os.mkfifo(folder / "pipe.mp4")
    (folder / "link.mp4").symlink_to("nowhere.mp4")
    (folder / "codec.avi").write_bytes(data.replace(b"FFV1", b"QQQQ"))
    (folder / "two\nlines.avi").write_bytes(data)
    (folder / f"{'n' * 248}.avi").write_bytes(data)
    (folder / f"{'é' * 100}.avi").write_bytes(data)
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.avi")).write_bytes(data)
    write_video(folder / "frames", clip(3, 8, 8), fps=8)
    (folder / "frames" / "frame-00001.png").write_bytes(b"hello")
    (folder / "empty").mkdir()
    report = write_folder(tmp_path / "tree", tmp_path / "set", size=16)
    assert {record.path for record in read_index(tmp_path / "set")} == {
        "clips/wave/ann/good.avi.avi",
        f"clips/wave/ann/{'é' * 100}.avi.avi",
    }
    reasons = {skipped.path.removeprefix("wave/ann/"): skipped.reason for skipped in report.skipped}
    expected = {
        "pipe.mp4": "neither a file nor a folder",
        "link.mp4": "no such file",
        "codec.avi": "unknown codec",
        "two\\xalines.avi": "control characters",
        f"{'n' * 248}.avi": "a name of over 250 bytes",
        "\\xdcff.avi": "not UTF-8",
        "frames": "frame-00001.png: not an image",
        "empty": "an empty folder",
    }
    assert reasons.keys() == expected.keys()
    for name, reason in expected.items():
        assert reason in reasons[name]
        assert (name + reasons[name]).isprintable()
        assert str(tmp_path) not in reasons[name]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read_is_skipped(tree: Path, tmp_path: Path) -> None:
    (tree / "spin").chmod(0)
    try:
        report = write_folder(tree, tmp_path / "set", size=16)
    finally:
        (tree / "spin").chmod(0o755)
    assert {s.path: "cannot be read" in s.reason for s in report.skipped if s.path == "spin"} == {"spin": True}


def test_a_full_disk_ends_the_conversion(tree: Path, tmp_path: Path, on_full_disk: Callable[[str, int], str]) -> None:
    code = f"from lfdm.data.corpora.folder import write_folder\nwrite_folder({str(tree)!r}, {str(tmp_path / 'set')!r}, size=64)"
    assert "File too large" in on_full_disk(code, 8000)
    assert not (tmp_path / "set").exists()
    write_folder(tree, tmp_path / "set", size=64)
    assert {record.path for record in read_index(tmp_path / "set")} == CLIPS.keys()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["set", "tree"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_interrupted_conversion_continues_and_converts_only_what_is_left(tree: Path, tmp_path: Path) -> None:
    done: list[int] = []

    def interrupt(_work: str, number: int, _total: int) -> None:
        if number == 7:
            raise KeyboardInterrupt

    for index in range(2):  # the second call finds that all before has been done
        with pytest.raises(KeyboardInterrupt):
            write_folder(tree, tmp_path / "set", size=16, progress=interrupt if index == 0 else _interrupt_first)
    notes = next((tmp_path / ".set.unfinished/.finished").iterdir())
    notes.write_text(notes.read_text() + '\n["half')
    write_video(tree / "spin/a.avi", clip(6, 16, 24, seed=3), fps=15)
    (tree / "spin/c.mp4").unlink()
    report = write_folder(tree, tmp_path / "set", size=16, progress=lambda *n: done.append(n[2]))
    write_folder(tree, tmp_path / "whole", size=16)
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")
    assert 0 < report.num_reused < len(report.records)
    assert len(done) == done[0] == 11 - report.num_reused
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["set", "tree", "whole"]


def _interrupt_first(_work: str, _number: int, _total: int) -> None:
    raise KeyboardInterrupt


def test_another_size_begins_anew(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_folder(tree, tmp_path / "set", size=32, progress=_interrupt_first)
    report = write_folder(tree, tmp_path / "set", size=16)
    assert report.num_reused == 0
    assert {read_video(tmp_path / "set" / path).shape[1] for path in CLIPS} == {16}


@pytest.mark.slow
def test_killed_processes_lose_no_clip(tmp_path: Path) -> None:
    """All processes end with the first, and the same command converts what is left, to the same data set."""
    for index in range(40):
        write_video(tmp_path / "tree" / "ab"[index % 2] / f"{index}.avi", clip(60, 64, 64, seed=index), fps=12)

    def command(out: str) -> list[str]:
        return [sys.executable, "-m", "lfdm", "data", "folder", str(tmp_path / "tree"), "--out", str(tmp_path / out)]

    unfinished = tmp_path / ".set.unfinished"
    process = subprocess.Popen([*command("set"), "--num-workers", "2"])
    while len(list(unfinished.rglob("*.avi"))) < 5:
        assert process.poll() is None
        time.sleep(0.01)
    children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    process.kill()
    process.wait()
    assert len(children) >= 2
    until = time.monotonic() + 60
    while any(Path("/proc", str(pid)).exists() for pid in children):
        assert time.monotonic() < until
        time.sleep(0.01)
    times = {path.name: path.stat().st_mtime_ns for path in unfinished.rglob("[!.]*.avi")}
    assert len(times) < 40
    result = subprocess.run([*command("set"), "--num-workers", "2", "--json"], check=True, capture_output=True)
    assert 0 < json.loads(result.stdout)["reused"] <= len(times)
    assert [name for name, at in times.items() if next((tmp_path / "set").rglob(name)).stat().st_mtime_ns != at] == []
    subprocess.run([*command("whole"), "--num-workers", "1"], check=True)
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")


def test_an_internal_error_is_raised_and_skips_nothing(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def misfit(*_: object) -> np.ndarray:
        return np.zeros(2) + np.zeros(3)

    monkeypatch.setattr("lfdm.data.video.fit_frames", misfit)
    with pytest.raises(ValueError, match="broadcast") as caught:
        write_folder(tree, tmp_path / "set", size=16)
    assert not isinstance(caught.value, UserError)


def test_an_unusual_frame_rate_is_recorded_with_a_note(tmp_path: Path) -> None:
    for name, rate in (("fast", 5000), ("slow", Fraction(1, 20))):
        (tmp_path / "tree" / "wave").mkdir(parents=True, exist_ok=True)
        with av.open(tmp_path / "tree" / "wave" / f"{name}.MKV", "w", format="mp4") as file:
            stream = file.add_stream("mpeg4", rate=rate)
            stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
            for frame in clip(6, 16, 16):
                file.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
            file.mux(stream.encode())
    report = write_folder(tmp_path / "tree", tmp_path / "set", size=16, test_fraction=0)
    assert [record.fps for record in report.records] == [1000, 0.05]
    assert report.notes[0] == "wave/fast.MKV: recorded at 1000 frames per second; the file states 5000"
    assert not report.skipped


def test_a_damaged_picture_ends_no_conversion(tmp_path: Path) -> None:
    """The decoder of AVIF raises a RuntimeError."""
    write_video(tmp_path / "tree/wave/frames", clip(3, 8, 8), fps=8)
    Image.fromarray(clip(1, 8, 8)[0]).save(tmp_path / "tree/wave/frames/frame-00001.avif")
    data = (tmp_path / "tree/wave/frames/frame-00001.avif").read_bytes()
    (tmp_path / "tree/wave/frames/frame-00001.avif").write_bytes(data[: len(data) // 2])
    write_video(tmp_path / "tree/wave/good.avi", clip(3, 8, 8), fps=8)
    report = write_folder(tmp_path / "tree", tmp_path / "set", size=16)
    assert [record.path for record in report.records] == ["clips/wave/good.avi.avi"]
    assert [(s.path, "frame-00001.avif" in s.reason) for s in report.skipped] == [("wave/frames", True)]


def test_animated_pictures_are_clips(tmp_path: Path) -> None:
    for name in ("wave/ann/a.webp", "wave/ann/b.apng", "wave/c.webp"):
        write_video(tmp_path / "tree" / name, clip(3, 8, 8), fps=8)
    animation = (tmp_path / "tree/wave/ann/b.apng").rename(tmp_path / "tree/wave/ann/b.png")
    assert animation.exists()
    report = write_folder(tmp_path / "tree", tmp_path / "set", size=16)
    assert [record.path for record in report.records] == [
        f"clips/wave/{name}.avi" for name in ("ann/a.webp", "ann/b.png", "c.webp")
    ]


def test_links_between_folders_are_followed_once(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "tree", tmp_path / "elsewhere"
    write_video(root / "wave/ann/1.avi", clip(4, 16, 16), fps=8)
    write_video(elsewhere / "bob/1.avi", clip(4, 16, 16), fps=8)
    for label in ("wave", "jump"):
        (root / label).mkdir(exist_ok=True)
        for index in range(9):  # 9^8 paths
            (root / label / f"link{index}").symlink_to(root, target_is_directory=True)
            (root / label / f"out{index}").symlink_to(elsewhere / "bob", target_is_directory=True)
    report = write_folder(root, tmp_path / "out", size=16)
    assert sorted(record.label for record in report.records) == ["jump", "wave"]
    assert len(report.skipped) == 2 * 9 + 17


def test_no_line_of_a_table_reaches_the_terminal_as_it_is(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("path,label\nwave/ann/1.avi,wave\nwave/ann/2.mp4,a\x1b[31m\n\x1b[2J.mp4,jump\n")
    report = write_folder(tree, tmp_path / "out", size=16, labels=tmp_path / "table.csv")
    assert [record.label for record in report.records] == ["wave"]
    assert any(skipped.path == "\\x1b[2J.mp4" for skipped in report.skipped)
    assert not any("\x1b" in skipped.path + skipped.reason for skipped in report.skipped)
