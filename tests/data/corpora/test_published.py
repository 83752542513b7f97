"""Conversion of miniature copies of MUG, UTD-MHAD and NATOPS, in the layouts of their downloads."""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lfdm.data.cache import open_cache
from lfdm.data.corpora import mhad, mug, natops
from lfdm.data.corpora.mhad import UTD_MHAD
from lfdm.data.corpora.mug import MUG
from lfdm.data.corpora.natops import NATOPS, read_segmentation
from lfdm.data.corpora.published import Corpus, Survey, absent, write_published
from lfdm.data.fitting import fit_frames
from lfdm.data.index import read_index
from lfdm.data.video import FOLDER_FPS, read_video, write_video
from lfdm.errors import UserError

MakeTree = Callable[[Path], Path]


def blocks(t: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Frames (t, H, W, 3) uint8 of random squares, 16 pixels wide, which compress well and tell frames apart."""
    coarse = np.random.default_rng(seed).integers(0, 256, (t, -(-height // 16), -(-width // 16), 3), dtype=np.uint8)
    return coarse.repeat(16, axis=1).repeat(16, axis=2)[:, :height, :width]


def mug_take(folder: Path, num_images: int, *, seed: int = 0, suffix: str = ".jpg", size: tuple[int, int] = (48, 48)) -> None:
    folder.mkdir(parents=True)
    for index, frame in enumerate(blocks(num_images, *size, seed=seed)):
        Image.fromarray(frame).save(folder / f"img_{index:04d}{suffix}")


def make_mug(root: Path) -> Path:
    mug_take(root / "008/anger/take000", 3)
    mug_take(root / "008/anger/take002", 11, seed=1, suffix=".png", size=(40, 48))
    mug_take(root / "017/surprise/take000", 4)
    mug_take(root / "001/neutral/take001", 2)
    mug_take(root / "002/session0/fear/take000", 3, seed=2)
    mug_take(root / "002/session1/fear/take000", 3, seed=3)
    mug_take(root / "003/session0/fear/take000", 3)
    mug_take(root / "049/session0/sadness/take000", 2)
    (root / "017/surprise/take000/notes.txt").write_text("hello")
    return root


def make_mhad(root: Path) -> Path:
    for index, name in enumerate(["a1_s1_t1", "a10_s1_t2", "a27_s5_t4", "a2_s2_t1", "a3_s8_t3", "a9_s4_t1"]):
        write_video(root / f"RGB/{name}_color.avi", blocks(3 + index % 2, 480, 640, seed=index), fps=15)
        if name != "a2_s2_t1":
            depth = root / f"Depth/{name}_depth.mat"
            depth.parent.mkdir(exist_ok=True)
            depth.write_bytes(b"")
    return root


SUBJECTS = {1: (1, 3), 2: (2, 5), 3: (4, 6)}
"""Of the miniature NATOPS: the frames of take 1 of every gesture, from 1, end included."""


def segmentation(more: Mapping[tuple[int, int], Sequence[str]]) -> str:
    """A segmentation.txt of subjects 1 to 3 with take 1 of all gestures and `more` lines, by (subject, gesture)."""
    lines = ["// Start and end of each take"]
    for subject, (start, end) in SUBJECTS.items():
        lines += ["", f"// Subject {subject}"]
        for gesture in range(1, 25):
            lines += [f"{subject},{gesture},1", f"1:{start},{end}", *more.get((subject, gesture), ())]
    return "\r\n".join(lines)


def make_natops(root: Path) -> Path:
    for gesture, subject, seed in [(1, 3, 0), (1, 2, 1), (24, 3, 2), (7, 1, 3), (8, 1, 3)]:
        write_video(root / f"gesture{gesture:02}/g{gesture:02}s{subject:02}.avi", blocks(12, 240, 320, seed=seed), fps=20)
    for companion in "md":
        (root / f"gesture01/g01s03{companion}.avi").write_bytes(b"a mask or depth map of the corpus")
    (root / "segmentation.txt").write_text(segmentation({(3, 1): ["2: 7, 12", "3:11,12"], (3, 24): ["2:8,9"]}))
    return root


CORPORA = {"mug": (MUG, make_mug), "mhad": (UTD_MHAD, make_mhad), "natops": (NATOPS, make_natops)}
EXPECTED = {
    "mug": {
        "clips/001/neutral/take001.avi": ("neutral", "001", "test", 2),
        "clips/002/session0/fear/take000.avi": ("fear", "002", "test", 3),
        "clips/008/anger/take000.avi": ("anger", "008", "train", 3),
        "clips/008/anger/take002.avi": ("anger", "008", "train", 11),
        "clips/017/surprise/take000.avi": ("surprise", "017", "train", 4),
        "clips/049/session0/sadness/take000.avi": ("sadness", "049", "test", 2),
    },
    "mhad": {
        "clips/a1_s1_t1.avi": ("right arm swipe to the left", "1", "train", 3),
        "clips/a3_s8_t3.avi": ("right hand wave", "8", "test", 3),
        "clips/a9_s4_t1.avi": ("draw circle clockwise", "4", "test", 4),
        "clips/a10_s1_t2.avi": ("draw circle counter clockwise", "1", "train", 4),
        "clips/a27_s5_t4.avi": ("squat", "5", "train", 3),
    },
    "natops": {
        "clips/gesture01/g01s02-01.avi": ("I Have Command", "2", "test", 4),
        "clips/gesture01/g01s03-01.avi": ("I Have Command", "3", "train", 3),
        "clips/gesture01/g01s03-02.avi": ("I Have Command", "3", "train", 6),
        "clips/gesture01/g01s03-03.avi": ("I Have Command", "3", "train", 2),
        "clips/gesture24/g24s03-01.avi": ("Cut Engine", "3", "train", 3),
        "clips/gesture24/g24s03-02.avi": ("Cut Engine", "3", "train", 2),
    },
}
SKIPPED = {
    "mug": {
        "002/session1": "only session0 is read, as published",
        "003": "a subject in neither of the published lists",
    },
    "mhad": {"RGB/a2_s2_t1_color.avi": "no Depth/a2_s2_t1_depth.mat; the paper takes only clips that have one"},
    "natops": {"gesture*/g*s01.avi": "2 recordings of a subject in neither of the published lists"},
}
each_corpus = pytest.mark.parametrize("name", list(CORPORA))


@each_corpus
def test_a_copy_becomes_a_data_set(name: str, tmp_path: Path) -> None:
    corpus, make = CORPORA[name]
    done: list[tuple[str, int, int]] = []
    report = write_published(corpus, make(tmp_path / "copy"), tmp_path / "set", progress=lambda *n: done.append(n))
    records = read_index(tmp_path / "set")
    assert {r.path: (r.label, r.subject, r.split, r.frames) for r in records} == EXPECTED[name]
    assert [r.path for r in records] == list(EXPECTED[name])
    assert {(r.width, r.height) for r in records} == {(128, 128)}
    assert {r.fps for r in records} == {{"mug": FOLDER_FPS, "mhad": 15, "natops": 20}[name]}
    assert {skipped.path: skipped.reason for skipped in report.skipped} == SKIPPED[name]
    splits = Counter(split for _, _, split, _ in EXPECTED[name].values())
    assert (report.num_clips("train"), report.num_clips("test")) == (splits["train"], splits["test"])
    assert corpus.num_train == {"mug": 465, "mhad": 431, "natops": 4800}[name]
    assert report.num_reused == 0
    assert done[-1] == ("converting recordings", len(done), len(done))
    assert sorted(entry.name for entry in (tmp_path / "set").iterdir()) == ["clips", "clips.csv"]


# ------------------------------------------------------------------------------------------------------------- pixels


def stored(root: Path, path: str) -> np.ndarray:
    """A clip as training reads it, after checking that the file holds the same bytes."""
    records = [record for record in read_index(root) if record.path == path]
    clip = np.array(open_cache(root, records, 128, "pad", num_workers=1).clip(0))
    assert np.array_equal(clip, read_video(root / path))
    return clip


def area_weights(n: int, num: int) -> np.ndarray:
    """(num, n): how much of each of n pixels lies under each of num equal intervals, as shares."""
    ends = np.arange(num + 1) * n / num
    pixels = np.arange(n)
    overlap = np.minimum(ends[1:, None], pixels + 1) - np.maximum(ends[:-1, None], pixels)
    return np.maximum(overlap, 0) * num / n


def area_means(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """The definition of area interpolation: frames (t, H, W, 3) -> (t, height, width, 3), not rounded."""
    rows, columns = area_weights(frames.shape[1], height), area_weights(frames.shape[2], width)
    return np.einsum("rh,cw,thwk->trck", rows, columns, frames, optimize=True)


def test_mhad_keeps_480_rows_and_columns_156_to_491(tmp_path: Path) -> None:
    write_published(UTD_MHAD, make_mhad(tmp_path / "copy"), tmp_path / "set")
    clip = stored(tmp_path / "set", "clips/a10_s1_t2.avi")
    assert not clip[:, :, :19].any()  # 39 = 19 + 20 black columns
    assert not clip[:, :, 108:].any()
    source = read_video(tmp_path / "copy/RGB/a10_s1_t2_color.avi")[:, :, 156:492].astype(float)
    assert source.shape == (4, 480, 336, 3)
    exact = area_means(source, 128, 89)
    assert np.abs(clip[:, :, 19:108] - exact).max() <= 0.5 + 1e-9


def test_natops_keeps_rows_10_to_238_and_columns_30_to_289_of_the_takes_own_frames(tmp_path: Path) -> None:
    write_published(NATOPS, make_natops(tmp_path / "copy"), tmp_path / "set")
    source = read_video(tmp_path / "copy/gesture01/g01s03.avi")[:, 10:239, 30:290].astype(float)
    assert source.shape == (12, 229, 260, 3)
    for take, (start, end) in {1: (4, 6), 2: (7, 12), 3: (11, 12)}.items():
        clip = stored(tmp_path / "set", f"clips/gesture01/g01s03-{take:02}.avi")
        assert not clip[:, :8].any()  # 16 = 8 + 8 black rows
        assert not clip[:, 120:].any()
        frames = source[start - 1 : end]
        exact = area_means(frames, 112, 128)
        assert clip.shape == (end - start + 1, 128, 128, 3)
        assert np.abs(clip[:, 8:120] - exact).max() <= 0.5 + 1e-9


def test_mug_is_not_cropped_and_only_session0_is_read(tmp_path: Path) -> None:
    copy = make_mug(tmp_path / "copy")
    mug_take(copy / "008/fear/take000", 3, size=(448, 896))
    write_published(MUG, copy, tmp_path / "set")
    clip = stored(tmp_path / "set", "clips/008/fear/take000.avi")
    means = read_video(copy / "008/fear/take000").reshape(3, 64, 7, 128, 7, 3).mean(axis=(2, 4))
    assert np.abs(clip[:, 32:96] - means).max() <= 0.5
    assert not clip[:, :32].any()
    assert not clip[:, 96:].any()
    session0 = read_video(copy / "002/session0/fear/take000")
    assert np.array_equal(stored(tmp_path / "set", "clips/002/session0/fear/take000.avi"), fit_frames(session0, 128, "pad"))


def test_another_size_keeps_the_crop(tmp_path: Path) -> None:
    report = write_published(UTD_MHAD, make_mhad(tmp_path / "copy"), tmp_path / "set", size=64)
    assert report.num_clips("train") == 3
    clip = read_video(tmp_path / "set/clips/a1_s1_t1.avi")
    source = read_video(tmp_path / "copy/RGB/a1_s1_t1_color.avi")[:, :, 156:492]
    assert np.array_equal(clip, fit_frames(source, 64, "pad"))


# ------------------------------------------------------------------------------------------------- the published lists


def test_the_lists_are_those_of_the_paper() -> None:
    assert (len(mug.LABELS), len(mhad.LABELS), len(natops.LABELS)) == (7, 27, 24)
    assert (mhad.LABELS[7], mhad.LABELS[26], natops.LABELS[14]) == ("draw x", "squat", "Next Marshaller")
    for labels in (mug.LABELS, mhad.LABELS, natops.LABELS):
        assert len(set(labels)) == len(labels)
    sizes = {corpus.name: (len(corpus.train_subjects), len(corpus.test_subjects)) for corpus, _ in CORPORA.values()}
    assert sizes == {"MUG": (26, 26), "UTD-MHAD": (4, 4), "NATOPS": (10, 9)}
    for corpus, _ in CORPORA.values():
        assert len({*corpus.train_subjects, *corpus.test_subjects}) == sum(sizes[corpus.name])
    assert NATOPS.split_of("1") is None
    assert (UTD_MHAD.split_of("5"), UTD_MHAD.split_of("4")) == ("train", "test")
    assert sum(map(int, MUG.train_subjects)) == 1260
    assert sum(map(int, MUG.test_subjects)) == 1123


def survey(corpus: Corpus, source: Path) -> Counter[str]:
    """How many clips of each split there are in a copy."""
    found = Survey(corpus=corpus, source=source)
    corpus.survey(found)
    assert found.skipped == [] or corpus is NATOPS
    assert not absent(corpus.train_keys, list(found.keys.values()))
    return Counter(segment.split for recording in found.recordings for segment in recording.segments)


def test_whole_copies_hold_the_papers_number_of_training_clips(tmp_path: Path) -> None:
    for folder in ("RGB", "Depth"):
        (tmp_path / "mhad" / folder).mkdir(parents=True)
    for ids in np.ndindex(27, 8, 4):
        name = "a{}_s{}_t{}".format(*(i + 1 for i in ids))
        if name not in ("a8_s1_t4", "a23_s6_t4", "a27_s8_t4"):  # corrupt, and so not released
            (tmp_path / f"mhad/RGB/{name}_color.avi").touch()
            (tmp_path / f"mhad/Depth/{name}_depth.mat").touch()
    assert survey(UTD_MHAD, tmp_path / "mhad") == {"train": UTD_MHAD.num_train, "test": 430}
    lines: list[str] = []
    for gesture in range(1, 25):
        (tmp_path / f"natops/gesture{gesture:02}").mkdir(parents=True)
    for subject in range(1, 21):
        lines.append("// Subject")
        for gesture in range(1, 25):
            (tmp_path / f"natops/gesture{gesture:02}/g{gesture:02}s{subject:02}.avi").touch()
            lines += [f"{gesture},{subject},20", *(f"{take}:{50 * take},{50 * take + 40}" for take in range(1, 21))]
    (tmp_path / "natops/segmentation.txt").write_text("\n".join(lines))
    assert survey(NATOPS, tmp_path / "natops") == {"train": NATOPS.num_train, "test": 9 * 24 * 20}


# ------------------------------------------------------------------------------------------------------ what is missing


def test_missing_training_clips_are_named_as_generally_as_possible(tmp_path: Path) -> None:
    report = write_published(UTD_MHAD, make_mhad(tmp_path / "mhad"), tmp_path / "set1")
    assert report.missing[:3] == ("subject 1, action 1, take 2", "subject 1, action 1, take 3", "subject 1, action 1, take 4")
    assert "subject 1, action 2" in report.missing
    assert not [gap for gap in report.missing if gap.startswith("subject 1, action 2,")]
    assert [gap for gap in report.missing if gap.count(",") == 0] == ["subject 2", "subject 3"]
    report = write_published(NATOPS, make_natops(tmp_path / "natops"), tmp_path / "set2")
    assert {"subject 3, gesture 1, take 4", "subject 3, gesture 1, take 20", "subject 3, gesture 2", "subject 20"} <= {
        *report.missing
    }
    assert "subject 3, gesture 1, take 3" not in report.missing
    report = write_published(MUG, make_mug(tmp_path / "mug"), tmp_path / "set3")
    assert report.missing[0] == "subject 008, disgust"
    assert len(report.missing) == 6 + 6 + 24
    assert not [gap for gap in report.missing if gap.startswith(("subject 001", "subject 008, anger"))]


def test_a_copy_that_is_whole_misses_nothing(tmp_path: Path) -> None:
    few = replace(UTD_MHAD, num_train=3)
    assert write_published(few, make_mhad(tmp_path / "copy"), tmp_path / "set").missing == ()
    unnumbered = replace(MUG, num_train=4, train_keys=(("subject 008", "anger"), ("subject 017", "surprise")))
    report = write_published(unnumbered, make_mug(tmp_path / "mug"), tmp_path / "set2")
    assert report.missing == ("takes of subjects and labels that have others: the corpus does not number them",)


# ----------------------------------------------------------------------------------------------------- broken recordings


def test_broken_and_strange_files_are_reported_and_stop_nothing(tmp_path: Path) -> None:
    copy = make_mhad(tmp_path / "mhad")
    (copy / "RGB/a1_s1_t1_color.avi").write_bytes(b"hello")
    write_video(copy / "RGB/a9_s4_t1_color.avi", blocks(3, 240, 320), fps=15)
    write_video(copy / "RGB/a3_s8_t3_color.avi", blocks(1, 480, 640), fps=15)
    for name in ("a28_s1_t1", "a0_s1_t1", "a1_s9_t1", "a1_s1_t5", "a01_s1_t1", "notes"):
        (copy / f"RGB/{name}_color.avi").touch()
    report = write_published(UTD_MHAD, copy, tmp_path / "set1")
    reasons = {skipped.path.removeprefix("RGB/"): skipped.reason for skipped in report.skipped}
    assert [r.path for r in read_index(tmp_path / "set1")] == ["clips/a10_s1_t2.avi", "clips/a27_s5_t4.avi"]
    assert "not a clip but text" in reasons["a1_s1_t1_color.avi"]
    assert reasons["a9_s4_t1_color.avi"] == "frames are 320x240; the crop is one of 640x480"
    assert reasons["a3_s8_t3_color.avi"] == "a single frame; motion needs two"
    assert sum(reason == "not one of a{1-27}_s{1-8}_t{1-4}_color.avi" for reason in reasons.values()) == 6
    assert "subject 1, action 1" in report.missing

    copy = make_mug(tmp_path / "mug")
    (copy / "008/anger/take000/img_0001.jpg").write_bytes(b"hello")
    (copy / "008/anger/take009").mkdir()
    (copy / "008/joy").mkdir()
    (copy / "readme").mkdir()
    reasons = {s.path: s.reason for s in write_published(MUG, copy, tmp_path / "set2").skipped}
    assert reasons.keys() == {"002/session1", "003", "008/anger/take000", "008/anger/take009", "008/joy", "readme"}
    assert "img_0001.jpg" in reasons["008/anger/take000"]


def test_natops_takes_that_cannot_be_cut_are_reported_by_line_or_take(tmp_path: Path) -> None:
    copy = make_natops(tmp_path / "copy")
    more = {(3, 1): ["2:10,14", "3:7", "1:2,3", "4:5,4", "5:0,3", "6:9,9", "7:8,9", "8:20,22"], (2, 1): ["2:12,12"]}
    (copy / "segmentation.txt").write_text(segmentation(more))
    for name in ("g02s03", "g01s21"):
        (copy / f"gesture01/{name}.avi").touch()
    report = write_published(NATOPS, copy, tmp_path / "set")
    paths = [r.path for r in read_index(tmp_path / "set") if r.subject == "3" and r.label == "I Have Command"]
    assert paths == ["clips/gesture01/g01s03-01.avi", "clips/gesture01/g01s03-07.avi"]
    assert np.array_equal(
        read_video(tmp_path / "set" / paths[1]),
        fit_frames(read_video(copy / "gesture01/g01s03.avi")[7:9, 10:239, 30:290], 128, "pad"),
    )
    reasons = [f"{s.path}: {s.reason}" for s in report.skipped]
    lines = (copy / "segmentation.txt").read_text().splitlines()
    for text in ("3:7", "1:2,3", "4:5,4", "5:0,3"):
        number = len(lines) - lines[::-1].index(text)
        assert f"segmentation.txt: line {number}: expected take:start,end of a new take, got {text!r}" in reasons
    assert "gesture01/g01s03.avi: take 2: frames 10 to 14 of a recording of 12" in reasons
    assert "gesture01/g01s03.avi: take 8: frames 20 to 22 of a recording of 12" in reasons
    assert "gesture01/g01s03.avi: take 6: a single frame; motion needs two" in reasons
    assert "gesture01/g01s02.avi: take 2: a single frame; motion needs two" in reasons
    assert "gesture01/g02s03.avi: not one of g01s{01-20}.avi" in reasons
    assert len(reasons) == 4 + 4 + 2 + 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("// Subject 2", "// Subject 1", r"line 53: expected a subject of 1 to 20 that has no block yet; got '// Subject 1'"),
        ("// Subject 2", "// Subject 21", "line 53: expected a subject of 1 to 20"),
        ("// Subject 2", "", "line 54: expected 24 headings of gestures below each '// Subject', no more; got '2,1,1'"),
        ("1,24,1\n", "", "line 52: subject 1 has 23 headings of gestures, expected 24"),
        ("3,24,1\n", "", "line 150: subject 3 has 23 headings"),
        (
            "1,5,1\n",
            "1,5\n",
            "line 12: expected '// Subject', below it headings a,b,c and below these lines take:start,end; got '1,5'",
        ),
        ("// Subject 1\n", "", "line 3: expected 24 headings"),
        ("// Subject 1\n", "1:2,3\n", "line 3: expected '// Subject'"),
    ],
)
def test_an_ambiguous_segmentation_names_the_line(old: str, new: str, message: str, tmp_path: Path) -> None:
    text = segmentation({}).replace("\r\n", "\n")
    assert text.count(old) == 1
    path = tmp_path / "segmentation.txt"
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=message):
        read_segmentation(path)


def test_segmentation_counts_subjects_and_gestures_by_position(tmp_path: Path) -> None:
    path = tmp_path / "segmentation.txt"
    path.write_text(
        "\ufeff" + segmentation({(2, 5): ["20 : 100 , 250"]}).replace("// Subject 2", "//  Subject"), encoding="utf-8"
    )
    segments, unusable = read_segmentation(path)
    assert unusable == []
    assert len(segments) == 3 * 24
    assert segments[1, 1] == {1: range(3)}
    assert segments[2, 5] == {1: range(1, 5), 20: range(99, 250)}
    path.write_text("")
    with pytest.raises(UserError, match="subject 0 has 0"):
        read_segmentation(path)


# -------------------------------------------------------------------------------------------------------- resuming


def stamps(root: Path) -> dict[str, tuple[int, int]]:
    return {p.relative_to(root).as_posix(): (p.stat().st_ino, p.stat().st_mtime_ns) for p in sorted(root.rglob("*.avi"))}


@each_corpus
def test_a_stopped_run_is_continued_without_redoing_its_clips(name: str, tmp_path: Path) -> None:
    corpus, make = CORPORA[name]
    copy, out = make(tmp_path / "copy"), tmp_path / "set"

    def stop(_: str, done: int, total: int) -> None:
        if done >= total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_published(corpus, copy, out, num_workers=1, progress=stop)
    before = stamps(out)
    assert before
    assert not (out / "clips.csv").exists()
    victim = next(iter(before))  # as if the machine had died before one of them was there, and in the middle of another
    (out / victim).unlink()
    (out / victim).with_name(f".{Path(victim).name}.12345678.tmp").write_bytes(b"half")
    report = write_published(corpus, copy, out)
    assert report.num_reused == len(before) - 1
    after = stamps(out)
    assert {path: after[path] for path in before if path != victim} == {p: s for p, s in before.items() if p != victim}
    assert after.keys() == EXPECTED[name].keys()
    assert not list(out.rglob("*.tmp"))
    write_published(corpus, copy, tmp_path / "straight")
    assert (out / "clips.csv").read_bytes() == (tmp_path / "straight/clips.csv").read_bytes()
    for path in after:
        assert (out / path).read_bytes() == (tmp_path / "straight" / path).read_bytes()


def test_a_second_run_adds_new_clips_and_remakes_those_of_another_length(tmp_path: Path) -> None:
    copy, out = make_mug(tmp_path / "copy"), tmp_path / "set"
    write_published(MUG, copy, out)
    before = stamps(out)
    mug_take(copy / "083/fear/take000", 3)
    Image.new("RGB", (48, 48)).save(copy / "008/anger/take000/img_0099.jpg")
    (out / "clips/017/surprise/take000.avi").write_bytes(b"damaged")
    report = write_published(MUG, copy, out)
    assert report.num_reused == len(before) - 2
    assert {r.path: r.frames for r in read_index(out)}["clips/008/anger/take000.avi"] == 4
    assert "clips/083/fear/take000.avi" in stamps(out)
    assert len(read_video(out / "clips/017/surprise/take000.avi")) == 4


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    copy, out = make_mug(tmp_path / "copy"), tmp_path / "set"
    write_published(MUG, copy, out, size=32)
    before = stamps(out)
    with pytest.raises(UserError, match=r"MUG at 32x32.*MUG at 64x64"):
        write_published(MUG, copy, out, size=64)
    with pytest.raises(UserError, match=r"MUG at 32x32.*UTD-MHAD at 32x32"):
        write_published(UTD_MHAD, make_mhad(tmp_path / "mhad"), out, size=32)
    shutil.copytree(out, tmp_path / "other")
    (tmp_path / "other/clips/.corpus").unlink()  # as the other data commands leave one
    with pytest.raises(UserError, match=r"other: .*MUG at 32x32"):
        write_published(MUG, copy, tmp_path / "other", size=32)
    (tmp_path / "own").mkdir()
    (tmp_path / "own/thesis.txt").touch()
    with pytest.raises(UserError, match=r"thesis\.txt"):
        write_published(MUG, copy, tmp_path / "own")
    assert stamps(out) == before


# ----------------------------------------------------------------------------------------------------------- refusals


def test_names_that_no_table_holds_and_empty_folders_are_skipped(tmp_path: Path) -> None:
    copy = make_mug(tmp_path / "copy")
    mug_take(copy / "008/anger/two\nlines", 3)
    mug_take(copy / f"008/anger/{'n' * 251}", 3)
    (copy / "008/fear").mkdir()
    report = write_published(MUG, copy, tmp_path / "set", size=16)
    assert [record.path for record in read_index(tmp_path / "set")] == list(EXPECTED["mug"])
    assert {skipped.path: skipped.reason for skipped in report.skipped} == SKIPPED["mug"] | {
        "008/fear": "an empty folder",
        "008/anger/two\\xalines": "a name with control characters, or that is not UTF-8",
        f"008/anger/{'n' * 251}": "a name of over 250 bytes",
    }


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
@pytest.mark.parametrize("locked", ["008", "008/anger", "008/anger/take000"])
def test_folders_that_may_not_be_read_are_skipped(locked: str, tmp_path: Path) -> None:
    copy = make_mug(tmp_path / "copy")
    (copy / locked).chmod(0)
    try:
        report = write_published(MUG, copy, tmp_path / "set", size=16)
    finally:
        (copy / locked).chmod(0o755)
    assert ["read" in skipped.reason for skipped in report.skipped if skipped.path == locked] == [True]


def test_wrong_trees_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    out = tmp_path / "set"
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_published(MUG, tmp_path / "nowhere", out)
    with pytest.raises(UserError, match=r"empty: .*MUG.*<subject>/<expression>/<take>"):
        write_published(MUG, empty, out)
    with pytest.raises(FileNotFoundError, match=r"empty/RGB"):
        write_published(UTD_MHAD, empty, out)
    with pytest.raises(FileNotFoundError, match=r"segmentation\.txt"):
        write_published(NATOPS, empty, out)
    with pytest.raises(UserError, match="empty/set"):
        write_published(MUG, empty, empty / "set")
    with pytest.raises(UserError, match=r"size .*16 to 4096.*; got 1"):
        write_published(MUG, empty, out, size=1)
    with pytest.raises(UserError, match=r"num_workers .*0 to 1000; got -1"):
        write_published(MUG, empty, out, num_workers=-1)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/set .*/file is a file"):
        write_published(MUG, make_mug(tmp_path / "copy"), tmp_path / "file" / "set")
    broken = tmp_path / "broken/008/anger/take000"
    broken.mkdir(parents=True)
    (broken / "1.jpg").write_bytes(b"hello")
    with pytest.raises(UserError, match=r"broken: .*008/anger/take000"):
        write_published(MUG, tmp_path / "broken", out)
    assert not out.exists()
