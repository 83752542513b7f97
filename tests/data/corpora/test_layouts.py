"""Layouts of folders of clips, and labels and splits next to the clips."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from lfdm.data.corpora.folder import write_folder
from lfdm.data.corpora.layouts import split_of_name
from lfdm.data.corpora.recordings import Conversion
from lfdm.data.video import write_video
from lfdm.errors import UserError


@pytest.fixture(scope="module")
def clip_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_video(tmp_path_factory.mktemp("clip") / "a.avi", np.zeros((3, 8, 8, 3), np.uint8), fps=8).read_bytes()


class Tree:
    """A folder of clips of the same content, and its conversion."""

    def __init__(self, root: Path, clip: bytes) -> None:
        self.root, self.clip = root, clip

    def add(self, *paths: str) -> None:
        for path in paths:
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).write_bytes(self.clip)

    def write(self, texts: Mapping[str, str]) -> None:
        for path, text in texts.items():
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).write_text(text)

    def convert(self, **options: object) -> Conversion:
        return write_folder(self.root, self.root.parent / "set", **{"size": 16, **options})

    def rows(self, **options: object) -> dict[str, tuple[str, str, str]]:
        records = self.convert(**options).records
        return {r.path.removeprefix("clips/").removesuffix(".avi"): (r.label, r.subject, r.split) for r in records}


@pytest.fixture
def tree(tmp_path: Path, clip_bytes: bytes) -> Tree:
    return Tree(tmp_path / "tree", clip_bytes)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("train_256", "train"),
        ("videos_train", "train"),
        ("trainset", "train"),
        ("test", "test"),
        ("TEST", "test"),
        ("val", "test"),
        ("validation", "test"),
        ("testlist03", "test"),
        ("trainer", None),
        ("strain", None),
        ("test drive", None),
        ("wave", None),
        ("2", None),
    ],
)
def test_split_names(name: str, split: str | None) -> None:
    assert split_of_name(name) == split


@pytest.mark.parametrize(
    "pattern", ["{split}/{label}", "{label}/{split}", "videos/{split}/{label}", "My Set/all/{split}/{label}"]
)
@pytest.mark.parametrize("layout", ["auto", "split-label"])
def test_split_folders_give_the_split_and_not_the_label(tree: Tree, pattern: str, layout: str) -> None:
    for split in ("train", "test"):
        for label in ("wave", "jump"):
            tree.add(f"{pattern.format(split=split, label=label)}/a.avi", f"{pattern.format(split=split, label=label)}/b.avi")
    report = tree.convert(layout=layout)
    assert len(report.records) == 8
    for record in report.records:
        assert record.label in record.path.split("/")
        assert record.split in record.path.split("/")
        assert record.subject == record.path.removeprefix("clips/").removesuffix(".avi")
    (note,) = report.notes
    assert "training: train/; test: test/" in note


def test_subjects_of_both_splits_are_kept_apart_and_validation_is_held_out(tree: Tree) -> None:
    tree.add("train/wave/ann/1.avi", "train/wave/bob/1.avi", "test/wave/ann/2.avi", "val/wave/cid/1.avi")
    expected = {
        "train/wave/ann/1.avi": ("wave", "train/ann", "train"),
        "train/wave/bob/1.avi": ("wave", "bob", "train"),
        "test/wave/ann/2.avi": ("wave", "test/ann", "test"),
        "val/wave/cid/1.avi": ("wave", "cid", "test"),
    }
    assert tree.rows() == expected
    assert tree.rows(layout="split-label-subject") == expected


def test_split_folders_without_labels_are_refused_unless_they_are_labels(tree: Tree) -> None:
    tree.add("train/a.avi", "train/b.avi", "test/a.avi", "test/c.avi")
    with pytest.raises(UserError, match=r"no label; .* table.*expected <split>/<label>/<clip>"):
        tree.convert()
    assert {label for label, _, _ in tree.rows(layout="label").values()} == {"train", "test"}
    tree.write({"labels.csv": "path,label\ntrain/a.avi,wave\ntrain/b.avi,jump\ntest/a.avi,wave\ntest/c.avi,jump\n"})
    rows = tree.rows(labels=tree.root / "labels.csv")
    assert {path: (label, split) for path, (label, _, split) in rows.items()} == {
        "train/a.avi": ("wave", "train"),
        "train/b.avi": ("jump", "train"),
        "test/a.avi": ("wave", "test"),
        "test/c.avi": ("jump", "test"),
    }


def test_a_training_folder_without_a_test_folder_is_split_as_usual(tree: Tree) -> None:
    tree.add(*(f"train/{label}/{n}.avi" for label in ("wave", "jump") for n in range(5)))
    report = tree.convert()
    assert {record.label for record in report.records if record.split == "test"} == {"wave", "jump"}
    assert "test: sampled" in report.notes[0]


def test_clips_next_to_split_folders_are_named(tree: Tree) -> None:
    tree.add("train/wave/a.avi", "test/wave/a.avi", "extra/wave/a.avi")
    report = tree.convert()
    assert len(report.records) == 2
    assert [(s.path, "test/, train/" in s.reason) for s in report.skipped] == [("extra/wave/a.avi", True)]


def test_labels_named_like_one_split_stay_labels(tree: Tree) -> None:
    tree.add(*(f"{label}/{n}.avi" for label in ("test", "wave") for n in range(3)))
    assert {label for label, _, _ in tree.rows().values()} == {"test", "wave"}


@pytest.mark.parametrize("folder", ["", "UCF-101/{label}/"])
def test_ucf101_names_and_lists(tree: Tree, folder: str) -> None:
    names = {label: [f"v_{label}_g{group:02}_c01.avi" for group in (1, 8, 9)] for label in ("ApplyEyeMakeup", "Archery")}
    paths = {f"{label}/{name}": folder.format(label=label) + name for label, clips in names.items() for name in clips}
    tree.add(*paths.values())
    training = "".join(f"{path} 1\n" for path in paths if "_g01" not in path)
    test = "".join(f"{path}\n" for path in paths if "_g01" in path)
    texts = {"trainlist01": training, "testlist01": test, "testlist02": ""}
    tree.write({f"ucfTrainTestlist/{name}.txt": text for name, text in texts.items()})
    rows = tree.rows()
    assert len(rows) == 6
    for path, (label, subject, split) in rows.items():
        assert f"v_{label}_g" in path
        assert subject == f"{label} g{path.split('_g')[1][:2]}"
        assert split == ("test" if "_g01_" in path else "train")
    assert "trainlist01.txt" in tree.convert(layout="ucf101").notes[0]


def test_ucf101_groups_stay_together_without_lists(tree: Tree) -> None:
    tree.add(*(f"HandstandPushups/v_HandStandPushups_g{group:02}_c{clip:02}.avi" for group in range(1, 6) for clip in (1, 2)))
    rows = tree.rows()
    assert {label for label, _, _ in rows.values()} == {"HandstandPushups"}
    splits = {(subject, split) for _, subject, split in rows.values()}
    assert len(splits) == 5
    assert {split for _, split in splits} == {"train", "test"}


@pytest.mark.parametrize("folder", ["", "{label}/"])
def test_kth_names_give_label_and_person(tree: Tree, folder: str) -> None:
    for label in ("boxing", "running"):
        tree.add(*(f"{folder.format(label=label)}person{n:02}_{label}_d{d}_uncomp.avi" for n in (1, 2, 3) for d in (1, 2)))
    rows = tree.rows()
    assert {subject for _, subject, _ in rows.values()} == {"person01", "person02", "person03"}
    assert all(f"_{label}_" in path and subject in path for path, (label, subject, _) in rows.items())
    assert {split for _, _, split in rows.values()} == {"train", "test"}


def test_official_lists_may_lie_next_to_the_folder(tree: Tree) -> None:
    names = [f"Archery/v_Archery_g{group:02}_c01.avi" for group in (1, 8, 9)]
    tree.add(*names)
    tree.write({"../ucfTrainTestlist/trainlist01.txt": "".join(f"{name} 1\n" for name in names[1:])})
    tree.write({"../ucfTrainTestlist/testlist01.txt": f"{names[0]}\n", "../train.txt": "\n".join(names)})
    assert [split for _, _, split in tree.rows().values()] == ["test", "train", "train"]
    assert tree.convert().notes[0].endswith("splits by testlist01.txt and trainlist01.txt")


@pytest.mark.parametrize("folder", ["", "../"])
def test_hmdb51_lists_have_a_number_for_the_split_of_each_clip(tree: Tree, folder: str) -> None:
    tree.add(*(f"{label}/{label}_{n}.avi" for label in ("brush_hair", "wave", "run") for n in range(4)))
    for split in (1, 2):
        lists = {
            f"{folder}testTrainMulti_7030_splits/{label}_test_split{split}.txt": "".join(
                f"{label}_{n}.avi {number} \n" for n, number in enumerate((1, 2, 0, 1) if split == 1 else (2, 1, 1, 0))
            )
            for label in ("brush_hair", "wave", "run")
        }
        tree.write(lists)
    rows = tree.rows()
    assert {path.split("_")[-1]: split for path, (_, _, split) in rows.items()} == {
        "0.avi": "train",
        "1.avi": "test",
        "3.avi": "train",
    }
    assert len(rows) == 9
    report = tree.convert()
    assert report.notes[0].endswith("splits by brush_hair_test_split1.txt and 2 others")
    assert {skipped.path.split("_")[-1] for skipped in report.skipped if skipped.path.endswith("avi")} == {"2.avi"}


@pytest.mark.parametrize("folder", ["", "../"])
def test_kth_people_are_split_as_its_list_says(tree: Tree, folder: str) -> None:
    tree.add(*(f"boxing/person{n:02}_boxing_d1_uncomp.avi" for n in (1, 2, 11, 22)))
    text = (
        "Training:\tperson11, 12, 13\nValidation:  person19, 20, 01, 04\nTest:  person22, 02, 03\n\n"
        "person01_boxing_d1\tframes\t1-95, 96-185, 186-245, 246-360\n"
    )
    tree.write({f"{folder}00sequences.txt": text})
    assert {subject: split for _, subject, split in tree.rows().values()} == {
        "person01": "test",
        "person02": "test",
        "person11": "train",
        "person22": "test",
    }


def test_clips_without_labels(tree: Tree) -> None:
    tree.add("train/a.avi", "test/c.avi")
    with pytest.raises(UserError, match="layout unlabelled"):
        tree.convert()
    tree.add("train/deep/b.avi")
    assert tree.rows(layout="unlabelled") == {
        "train/a.avi": ("None", "train/a.avi", "train"),
        "train/deep/b.avi": ("None", "train/deep/b.avi", "train"),
        "test/c.avi": ("None", "test/c.avi", "test"),
    }


def test_clips_without_labels_or_folders(tree: Tree) -> None:
    tree.add(*(f"{n}.avi" for n in range(5)))
    rows = tree.rows(layout="unlabelled")
    assert {label for label, _, _ in rows.values()} == {"None"}
    assert {split for _, _, split in rows.values()} == {"train", "test"}


def test_a_forced_layout_names_clips_of_another_one(tree: Tree) -> None:
    tree.add("wave/a.avi", "wave/ann/1.avi", "wave/ann/2.avi")
    assert tree.rows(layout="label") == {"wave/a.avi": ("wave", "wave/a.avi", "train")}
    assert tree.rows(layout="label-subject").keys() == {"wave/ann/1.avi", "wave/ann/2.avi"}
    assert [s.path for s in tree.convert(layout="label").skipped] == ["wave/ann/1.avi", "wave/ann/2.avi"]
    with pytest.raises(UserError, match=r"layout must .* got 'split-label'"):
        tree.convert(layout="split-label")
    with pytest.raises(UserError, match=r"layout must .* got 'tree'"):
        tree.convert(layout="tree")


def test_labels_are_compared_composed_and_trimmed(tree: Tree) -> None:
    tree.add(
        "cafe\u0301/s1/a.avi",
        "caf\u00e9/s2/a.avi",
        "caf\u00e9 /s3/a.avi",
        "the/s1/b.avi",
        "the/s2/b.avi",
        "wave/ /a.avi",
        " /s1/a.avi",
    )
    report = tree.convert()
    assert {record.label for record in report.records} == {"caf\u00e9", "the"}
    assert {s.path: "spaces" in s.reason for s in report.skipped} == {"wave/ /a.avi": True, " /s1/a.avi": True}


def test_a_table_names_missing_and_unknown_entries(tree: Tree, tmp_path: Path) -> None:
    tree.add("a.avi", "b/1.avi", "c.avi", "d.avi")
    table = tmp_path / "table.csv"
    table.write_text("Path; Label; Subject\na.avi; wave; ann\nvideos\\b\\1.avi; jump; ann\nd; ;\ngone.avi; jump; ann\n")
    report = tree.convert(labels=table)
    assert [(r.path, r.label, r.subject) for r in report.records] == [
        ("clips/a.avi.avi", "wave", "ann"),
        ("clips/b/1.avi.avi", "jump", "ann"),
    ]
    reasons = {s.path: s.reason for s in report.skipped}
    assert reasons.keys() == {"c.avi", "d", "d.avi", "gone.avi"}
    assert "no label in table.csv" in reasons["c.avi"]
    assert "no such clip" in reasons["gone.avi"]
    table.write_text("path,label\na.avi,wave\n./a.avi,jump\n")
    with pytest.raises(UserError, match=r"line 3: .*'\./a\.avi' is listed twice"):
        tree.convert(labels=table)
    table.write_text("file,class\na.avi,wave\n")
    with pytest.raises(UserError, match="missing column path, label; it has 'file', 'class'"):
        tree.convert(labels=table)


def test_a_table_may_give_the_split(tree: Tree, tmp_path: Path) -> None:
    tree.add("a.avi", "b.avi")
    table = tmp_path / "table.csv"
    table.write_text("path,label,split\na.avi,wave,val\nb.avi,wave,train\n")
    assert {path: split for path, (_, _, split) in tree.rows(labels=table).items()} == {"a.avi": "test", "b.avi": "train"}
    table.write_text("path,label,split\na.avi,wave,7\n")
    with pytest.raises(UserError, match="split must be 'train' or 'test', got '7'"):
        tree.convert(labels=table)


@pytest.mark.parametrize("labels", [None, "txt"])
def test_texts_next_to_the_clips_are_labels(tree: Tree, labels: str | None) -> None:
    tree.add("a.avi", "b.avi", "c.avi")
    tree.write({"a.txt": "\ufeff\nwave \n", "b.avi.txt": "jump\nmore", "notes.txt": "mine"})
    report = tree.convert(labels=labels)
    assert {r.path: r.label for r in report.records} == {"clips/a.avi.avi": "wave", "clips/b.avi.avi": "jump"}
    assert {s.path for s in report.skipped} == {"c.avi", "notes.txt"}


def test_labels_that_cannot_be_in_both_splits_are_named(tree: Tree) -> None:
    tree.add("wave/s1/a.avi", "wave/s1/b.avi", "jump/s2/a.avi")
    report = tree.convert()
    assert {record.split for record in report.records} == {"train"}
    assert any("no test clips" in note for note in report.notes)
    tree.add("wave/s3/a.avi")
    report = tree.convert()
    assert {record.label for record in report.records if record.split == "train"} == {"wave", "jump"}
    assert any("without test clips" in note and note.endswith(": jump") for note in report.notes)
    assert len(tree.convert(test_fraction=0).notes) == 1


def test_labels_of_the_test_folder_only_are_named(tree: Tree) -> None:
    tree.add("train/wave/a.avi", "test/wave/a.avi", "test/jump/a.avi")
    assert any("without training clips" in note and note.endswith(": jump") for note in tree.convert().notes)


def test_texts_do_not_replace_the_labels_of_folders_by_default(tree: Tree) -> None:
    tree.add("wave/a.avi", "jump/b.avi")
    tree.write({"wave/a.txt": "a person waves", "jump/b.txt": "a person jumps"})
    assert {label for label, _, _ in tree.rows().values()} == {"wave", "jump"}
    assert {label for label, _, _ in tree.rows(labels="txt").values()} == {"a person waves", "a person jumps"}


def test_texts_label_the_clips_of_split_folders(tree: Tree) -> None:
    tree.add("train/a.avi", "test/b.avi")
    tree.write({"train/a.txt": "wave", "test/b.txt": "wave"})
    rows = {path: (label, split) for path, (label, _, split) in tree.rows().items()}
    assert rows == {"train/a.avi": ("wave", "train"), "test/b.avi": ("wave", "test")}


def test_links_to_folders_around_them_are_skipped(tree: Tree) -> None:
    tree.add("wave/ann/a.avi")
    (tree.root / "wave/ann/self").symlink_to(".")
    (tree.root / "wave/up").symlink_to("..")
    report = tree.convert()
    assert len(report.records) == 1
    assert [s.path for s in report.skipped] == ["wave/ann/self", "wave/up"]
