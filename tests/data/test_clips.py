"""The clip table, the cache and the data sets."""

import csv
import gc
import multiprocessing
import multiprocessing.synchronize
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from lfdm.data.augmentation import ColorJitter, PairAugmentation
from lfdm.data.cache import open_cache
from lfdm.data.clips import ClipDataset, PairDataset
from lfdm.data.fitting import fit_frames
from lfdm.data.index import ClipRecord, labels, read_index, write_index
from lfdm.data.video import write_video
from lfdm.errors import UserError

NO_JITTER = ColorJitter(amounts=(0, 0, 0, 0))
RECORD = ClipRecord(path="a.avi", label="wave", subject="ann", split="train", frames=3, fps=8.0, width=16, height=12)


def numbered_clip(t: int, height: int = 12, width: int = 16) -> np.ndarray:
    """Frame k is 10 k + 5 all over, but for its left half, which is twice that: order and mirroring show."""
    frames = np.empty((t, height, width, 3), np.uint8)
    frames[:] = (10 * np.arange(t) + 5)[:, None, None, None]
    frames[:, :, : width // 2] *= 2
    return frames


@pytest.fixture
def data_set(tmp_path: Path) -> tuple[Path, list[ClipRecord]]:
    """Three clips of 3, 7 and 12 frames; the last label names a side."""
    records = []
    for t, label in ((3, "wave"), (7, "kick"), (12, "turn Left")):
        path = f"{label}/{t}.avi"
        write_video(tmp_path / path, numbered_clip(t), fps=8)
        records.append(replace(RECORD, path=path, label=label, subject=str(t), frames=t))
    write_index(tmp_path, records)
    return tmp_path, records


# ------------------------------------------------------------------------------------------------------------- index


def test_index_round_trip(tmp_path: Path) -> None:
    records = [
        RECORD,
        replace(RECORD, path='odd, "name"/é.mp4', label="jump, twice", subject="bob", split="test", fps=29.97),
    ]
    path = write_index(tmp_path, records)
    assert path == tmp_path / "clips.csv"
    assert read_index(tmp_path) == records
    assert [entry.name for entry in tmp_path.iterdir()] == ["clips.csv"]
    assert labels(records) == ["jump, twice", "wave"]


def test_columns_may_come_in_any_order_and_more_of_them(tmp_path: Path) -> None:
    (tmp_path / "clips.csv").write_text(
        "note,fps,width,height,frames,split,subject,label,path\nhi,8,16,12,3,train,ann,wave,a.avi\n"
    )
    assert read_index(tmp_path) == [RECORD]


@pytest.mark.parametrize(
    ("column", "value", "match"),
    [
        ("path", "../a.avi", "inside the data folder"),
        ("path", "/etc/a.avi", "inside the data folder"),
        ("path", "~/a.avi", "inside the data folder"),
        ("path", "", "inside the data folder"),
        ("label", " ", "label"),
        ("subject", "", "subject"),
        ("split", "val", "'train' or 'test', got 'val'"),
        ("frames", "many", "frames must be a whole number, got 'many'"),
        ("frames", "0", "frames must be at least 1"),
        ("frames", "2.5", "frames must be a whole number"),
        ("width", "-3", "width must be at least 1"),
        ("height", "", "height must be a whole number"),
        ("fps", "fast", "fps must be a number"),
        ("fps", "nan", "fps must be positive"),
        ("fps", "0", "fps must be positive"),
    ],
)
def test_a_bad_value_is_named_with_file_and_line(tmp_path: Path, column: str, value: str, match: str) -> None:
    write_index(tmp_path, [RECORD, replace(RECORD, path="b.avi")])
    with (tmp_path / "clips.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows[1][column] = value
    with (tmp_path / "clips.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(UserError, match=match) as caught:
        read_index(tmp_path)
    assert "clips.csv, line 3" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_data_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_index(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no clips\.csv"):
        read_index(tmp_path)
    table = tmp_path / "clips.csv"
    table.write_text("")
    with pytest.raises(UserError, match="column path, label"):
        read_index(tmp_path)
    table.write_text("path,label,subject,split,frames,fps,width\na.avi,wave,ann,train,3,8,16\n")
    with pytest.raises(UserError, match="column height"):
        read_index(tmp_path)
    table.write_text("path,label,subject,split,frames,fps,width,height\n")
    with pytest.raises(UserError, match="no clips"):
        read_index(tmp_path)
    table.write_text("path,label,subject,split,frames,fps,width,height\na.avi,wave,ann,train,3\n")
    with pytest.raises(UserError, match="line 2: no value for fps"):
        read_index(tmp_path)
    table.write_bytes(b"\xff\xfe\x00path")
    with pytest.raises(UserError, match=r"clips\.csv"):
        read_index(tmp_path)


def test_splits_are_by_subject_and_paths_are_unique(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'ann' is in both splits"):
        write_index(tmp_path, [RECORD, replace(RECORD, path="b.avi", split="test")])
    with pytest.raises(UserError, match="listed twice"):
        write_index(tmp_path, [RECORD, RECORD])
    with pytest.raises(UserError, match=r"'\./a\.avi' is listed twice"):
        write_index(tmp_path, [RECORD, replace(RECORD, path="./a.avi")])
    with pytest.raises(UserError, match="no clips"):
        write_index(tmp_path, [])
    with pytest.raises(UserError, match=r"one.*two"):
        write_index(tmp_path, [replace(RECORD, label="one\rtwo")])
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------------- cache


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_cache_holds_every_fitted_frame_and_is_built_once(data_set: tuple[Path, list[ClipRecord]], fit: str) -> None:
    root, records = data_set
    calls: list[tuple[str, int, int]] = []
    cache = open_cache(root, records, 8, fit, progress=lambda *done: calls.append(done))  # pyright: ignore[reportArgumentType]
    assert calls == [("decoding clips", n, 3) for n in (1, 2, 3)]
    for index, record in enumerate(records):
        assert cache.num_frames(index) == record.frames
        expected = fit_frames(numbered_clip(record.frames), 8, fit)  # pyright: ignore[reportArgumentType]
        assert np.array_equal(cache.clip(index), expected)
    calls.clear()
    again = open_cache(root, records, 8, fit, progress=lambda *done: calls.append(done))  # pyright: ignore[reportArgumentType]
    assert not calls
    assert np.array_equal(again.clip(2), cache.clip(2))
    assert [entry.name for entry in (root / ".cache").iterdir()] == [cache.folder.name]


def test_a_cache_may_be_a_rectangle(data_set: tuple[Path, list[ClipRecord]]) -> None:
    root, records = data_set
    cache = open_cache(root, records, (8, 16), "stretch")
    assert cache.size == (8, 16)
    assert np.array_equal(cache.clip(1), fit_frames(numbered_clip(records[1].frames), (8, 16), "stretch"))
    assert np.array_equal(pickle.loads(pickle.dumps(cache)).clip(0), open_cache(root, records, "8x16", "stretch").clip(0))


def test_cache_is_made_anew_for_other_settings_and_other_content(data_set: tuple[Path, list[ClipRecord]]) -> None:
    root, records = data_set
    folders = {open_cache(root, records, 8, "pad").folder, open_cache(root, records, 8, "crop").folder}
    folders |= {open_cache(root, records, 16, "pad").folder, open_cache(root, records[:2], 8, "pad").folder}
    write_video(root / records[0].path, 255 - numbered_clip(3), fps=8)
    changed = open_cache(root, records, 8, "crop")
    assert len(folders | {changed.folder}) == 5
    assert np.array_equal(changed.clip(0), fit_frames(255 - numbered_clip(3), 8, "crop"))


def test_cache_can_lie_elsewhere_and_be_sent_to_workers(data_set: tuple[Path, list[ClipRecord]], tmp_path: Path) -> None:
    root, records = data_set
    cache = open_cache(root, records, 8, "pad", tmp_path / "elsewhere")
    assert cache.folder.parent == tmp_path / "elsewhere"
    assert not (root / ".cache").exists()
    message = pickle.dumps(cache)
    assert len(message) < 5000
    assert np.array_equal(pickle.loads(message).clip(1), cache.clip(1))
    with pytest.raises(ValueError, match="read-only"):
        cache.clip(1)[0] = 0
    with pytest.raises(IndexError, match=r"0\.\.2"):
        cache.clip(3)


def test_where_the_data_may_not_be_written_to_the_cache_is_the_users_own(
    data_set: tuple[Path, list[ClipRecord]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, records = data_set
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != root)  # root may write anywhere  # noqa: ARG005
    cache = open_cache(root, records, 8, "pad")
    assert cache.folder.parent == tmp_path / "own" / "lfdm"
    assert not (root / ".cache").exists()
    monkeypatch.undo()
    shared = open_cache(root, records, 8, "pad")
    assert shared.folder.parent == root / ".cache"
    assert np.array_equal(shared.clip(0), cache.clip(0))


@pytest.mark.parametrize("damage", ["missing", "broken", "short", "folder"])
def test_a_bad_clip_is_one_error_and_leaves_no_cache(data_set: tuple[Path, list[ClipRecord]], damage: str) -> None:
    root, records = data_set
    _damage_clip(root / records[1].path, damage)
    with pytest.raises(UserError, match=r"kick/7\.avi") as caught:
        open_cache(root, records, 8, "pad")
    assert "\n" not in str(caught.value)
    assert not list(root.glob(".cache/*"))


def _damage_clip(path: Path, damage: str) -> None:
    if damage == "short":
        write_video(path, numbered_clip(6), fps=8)
    else:
        path.unlink()
    if damage == "broken":
        path.write_bytes(b"RIFF")
    if damage == "folder":
        path.mkdir()


@pytest.mark.parametrize("damage", ["missing", "broken", "short", "folder"])
def test_a_bad_clip_is_left_out_of_a_training_and_named_once(
    data_set: tuple[Path, list[ClipRecord]], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    root, records = data_set
    _damage_clip(root / records[1].path, damage)
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        cache = open_cache(root, records, 8, "pad", skip_broken=True)
        assert cache.records == [records[0], records[2]]
        assert [message.count("kick/7.avi") for message in caplog.messages] == [1]
        for index, record in enumerate(cache.records):
            assert np.array_equal(cache.clip(index), fit_frames(numbered_clip(record.frames), 8, "pad"))
    with pytest.raises(UserError, match=r"kick/7\.avi"):
        open_cache(root, records, 8, "pad")


def test_without_any_usable_clip_there_is_no_cache(data_set: tuple[Path, list[ClipRecord]]) -> None:
    root, records = data_set
    for record in records:
        (root / record.path).unlink()
    with pytest.raises(UserError, match=r"no clip is usable; the first of 3: .*the clip is missing"):
        open_cache(root, records, 8, "pad", skip_broken=True)
    assert not list(root.glob(".cache/*"))


@pytest.mark.parametrize("damage", ["page", "cut", "list"])
def test_a_cache_that_changed_on_the_disk_is_made_anew(
    data_set: tuple[Path, list[ClipRecord]], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    root, records = data_set
    folder = open_cache(root, records, 8, "pad").folder
    path = folder / ("clips.json" if damage == "list" else "frames.u8")
    content = bytearray(path.read_bytes())
    if damage == "page":
        content[cache_bytes(records[:1]) + 5] ^= 1  # in the second clip
    path.write_bytes(content if damage == "page" else content[:-1])
    cache = open_cache(root, records, 8, "pad")
    assert len(caplog.messages) == 1
    if damage == "page":
        assert records[1].path in caplog.text
        assert records[0].path not in caplog.text
    for index, record in enumerate(records):
        assert np.array_equal(cache.clip(index), fit_frames(numbered_clip(record.frames), 8, "pad"))
    assert [entry.name for entry in (root / ".cache").iterdir()] == [folder.name]


def cache_bytes(records: list[ClipRecord]) -> int:
    return sum(record.frames for record in records) * 8 * 8 * 3


def test_cache_refuses_impossible_settings(data_set: tuple[Path, list[ClipRecord]]) -> None:
    root, records = data_set
    with pytest.raises(UserError, match="size"):
        open_cache(root, records, 0, "pad")
    with pytest.raises(UserError, match="'cover'"):
        open_cache(root, records, 8, "cover")  # pyright: ignore[reportArgumentType] - what a command line could pass
    with pytest.raises(UserError, match="no clips"):
        open_cache(root, [], 8, "pad")


def _build(root: Path, barrier: "multiprocessing.synchronize.Barrier") -> None:
    barrier.wait()
    cache = open_cache(root, read_index(root), 8, "pad")
    assert np.array_equal(cache.clip(2), fit_frames(numbered_clip(12), 8, "pad"))


def test_two_processes_may_build_at_once(data_set: tuple[Path, list[ClipRecord]]) -> None:
    gc.collect()  # what earlier tests left of decoders and OpenGL waits for threads when a fork frees it, which has none
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    processes = [context.Process(target=_build, args=(data_set[0], barrier)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(list((data_set[0] / ".cache").iterdir())) == 1


def test_a_full_disk_is_an_error_and_leaves_no_cache(
    data_set: tuple[Path, list[ClipRecord]], on_full_disk: Callable[[str, int], str]
) -> None:
    root, _ = data_set
    imports = "from lfdm.data.cache import open_cache\nfrom lfdm.data.index import read_index\n"
    code = f"{imports}open_cache({str(root)!r}, read_index({str(root)!r}), 64, 'pad')"
    assert "File too large" in on_full_disk(code, 20_000)
    assert not list(root.glob(".cache/*"))


# --------------------------------------------------------------------------------------------------------- data sets


def test_pairs_are_two_frames_of_the_clip_in_time_order(data_set: tuple[Path, list[ClipRecord]]) -> None:
    root, records = data_set
    pairs = PairDataset(open_cache(root, records, 16, "pad"), seed=1)
    counts = np.zeros((3, 3))
    for position in range(900):
        item = pairs[position, 0]
        assert item["source"].shape == item["driving"].shape == (3, 16, 16)
        assert item["source"].dtype == torch.uint8
        first, second = (int((item[name][0, 8, 15] - 5) // 10) for name in ("source", "driving"))
        counts[first, second] += 1
    expected = np.triu(np.full((3, 3), 2 / 9)) - np.eye(3) / 9  # two draws with replacement, sorted
    assert np.abs(counts / 900 - expected).max() < 0.05


def test_distinct_and_first_frame_pairs(data_set: tuple[Path, list[ClipRecord]]) -> None:
    root, records = data_set
    cache = open_cache(root, records, 16, "pad")
    pairs = PairDataset(cache, PairAugmentation(jitter=NO_JITTER), seed=1, distinct=True, first_frame_probability=1.0)
    drivings = set()
    for position in range(200):
        item = pairs[position, 1]
        assert int(item["source"][0].max()) == 10  # frame 0, never swapped
        drivings.add(int(item["driving"][0].max()))
    assert drivings == {20 * k + 10 for k in range(1, 7)}
    single_frame = PairDataset(open_cache(root, [replace(records[0])], 16, "pad"), distinct=True)
    assert {int(single_frame[p, 0]["source"][0].max()) for p in range(50)} == {10, 30}


def test_pairs_carry_the_motion_of_their_driving_frame(data_set: tuple[Path, list[ClipRecord]]) -> None:
    root, records = data_set
    cache = open_cache(root, records, 16, "pad")
    motion = np.arange(2, dtype=np.float16) + np.arange(40, dtype=np.float16)[:, None, None, None] + np.zeros((1, 3, 1, 1), "e")

    def pairs(flip: float, first: float) -> PairDataset:
        augment = PairAugmentation(swap_probability=0.5, flip_probability=flip, jitter=NO_JITTER)
        return PairDataset(cache, augment, distinct=True, first_frame_probability=first, motion=lambda _: motion)

    for position in range(20):
        item, mirrored = pairs(0, 1)[position, 1], pairs(1, 1)[position, 1]
        k = (int(item["driving"][0].max()) - 10) // 20  # which frame it is
        assert item["has_flow"]
        assert item["flow"].dtype == torch.float32
        assert item["flow"].tolist() == [[[k, k + 1]]] * 2
        assert mirrored["flow"].tolist() == [[[-k - 1, -k]], [[k + 1, k]]]
    assert not any(pairs(0, 0)[position, 1]["has_flow"] for position in range(20))


@pytest.mark.parametrize("as_published", [False, True])
def test_labels_that_name_a_side_are_never_mirrored_except_in_published_pairs(
    data_set: tuple[Path, list[ClipRecord]], as_published: bool
) -> None:
    root, records = data_set
    cache = open_cache(root, records, 16, "pad")
    augment = PairAugmentation(swap_probability=0, flip_probability=1, mirror_sided_labels=as_published, jitter=NO_JITTER)
    pairs = PairDataset(cache, augment)
    clips = ClipDataset(cache, num_frames=2, flip_probability=1)
    for index, side in ((1, False), (2, True)):
        images = {
            "source": pairs[0, index]["source"],
            "driving": pairs[0, index]["driving"],
            "clip": clips[0, index]["video"][:, 1],
        }
        mirrored = {name: int(image[0, 8, 0]) < int(image[0, 8, 15]) for name, image in images.items()}
        pair = as_published or not side
        assert mirrored == {"source": pair, "driving": pair, "clip": not side}


def test_clips_are_sampled_and_mirrored_as_a_whole(data_set: tuple[Path, list[ClipRecord]]) -> None:
    root, records = data_set
    cache = open_cache(root, records, 16, "pad")
    item = ClipDataset(cache, num_frames=4, sampling="uniform")[0, 2]
    assert item["video"].shape == (3, 4, 16, 16)
    assert item["label"] == cache.labels.index(records[2].label)
    assert [int(v - 5) // 10 for v in item["video"][0, :, 8, 15]] == [0, 3, 7, 11]
    coloured = ClipDataset(cache, num_frames=4, jitter=ColorJitter(), flip_probability=0.5, sampling="very_random")
    assert len({coloured[position, 1]["video"].numpy().tobytes() for position in range(10)}) == 10


def test_every_draw_is_a_function_of_seed_and_position(data_set: tuple[Path, list[ClipRecord]]) -> None:
    """Loader workers, order and history change nothing: what exact resume rests on."""
    root, records = data_set
    pairs = PairDataset(open_cache(root, records, 16, "pad"), PairAugmentation(), seed=5)
    keys = [(position, position % 3) for position in range(12)]
    alone = [pairs[key] for key in keys]
    backwards = [pairs[key] for key in reversed(keys)][::-1]
    loader = DataLoader(pairs, batch_size=3, sampler=keys, num_workers=2)
    batches = torch.cat([batch["driving"] for batch in loader])
    assert torch.equal(torch.stack([item["driving"] for item in alone]), batches)
    assert all(torch.equal(a["source"], b["source"]) for a, b in zip(alone, backwards, strict=True))
    other = PairDataset(pairs.cache, PairAugmentation(), seed=6)
    assert not all(torch.equal(other[key]["driving"], item["driving"]) for key, item in zip(keys, alone, strict=True))
