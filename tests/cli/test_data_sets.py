"""Commands that make data sets."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lfdm.data.video import read_video, write_video
from tests.command_line import Lfdm


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "puppets --out d --size 100000000",
            "size must be a multiple of 16 from 16 to 4096, or HEIGHTxWIDTH of two such numbers; got '100000000'",
        ),
        ("puppets --out d --size 96x100", "got '96x100'"),
        (
            "puppets --out d --size 16",
            "size must be a multiple of 16 from 32 to 4096, or HEIGHTxWIDTH of two such numbers; got 16",
        ),
        (
            "folder empty --out d --size 0",
            "size must be a multiple of 16 from 16 to 4096, or HEIGHTxWIDTH of two such numbers; got 0",
        ),
        ("folder empty --out d --size -16", "got '-16'"),
        ("folder empty --out d --size 64x4112", "got '64x4112'"),
        ("folder empty --out d --size wide", "got 'wide'"),
        ("puppets --out d --num-frames 1", "num_frames must be a whole number from 2 to 1000; got 1"),
        ("puppets --out d --fps nan", "fps must be a finite number, 0.01 to 1000; got nan"),
        ("puppets --out d --num-subjects 1000000000000", "num_subjects must be a whole number from 1 to 100000"),
        ("puppets --out d --test-fraction inf", "test_fraction must be a finite number, 0 to 1; got inf"),
        ("puppets --out notes.txt", "notes.txt is a file, not a data set"),
        ("lpc --sheets . --out d", "no body/female/*.png; is it a folder of Universal LPC sprite sheets?"),
        ("lpc --sheets . --out d --num-workers -1", "num_workers must be a whole number from 0 to 1000; got -1"),
        ("folder nowhere --out d", "nowhere: no such folder of clips"),
        ("folder empty --out d --seed -1", "seed must be a whole number from 0"),
        ("folder empty --out d", "empty: holds nothing; expected <label>/<subject>/<clip> or <label>/<clip>"),
        ("folder empty --out empty/d", "the data set must not lie in the tree of clips"),
        (
            "puppet --out d",
            "unknown 'puppet' after 'lfdm data'; did you mean 'puppets'? allowed: puppets, characters, sprites, lpc, ",
        ),
    ],
)
def test_a_wrong_value_of_a_data_command_is_one_line_and_writes_no_file(lfdm: Lfdm, arguments: str, message: str) -> None:
    Path("notes.txt").write_text("precious")
    Path("empty").mkdir()
    code, out, err = lfdm("data", *arguments.split())
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert sorted(path.name for path in Path.cwd().rglob("*")) == ["empty", "notes.txt"]


def test_data_commands_write_clip_data_sets(lfdm: Lfdm) -> None:
    options = "--num-subjects 2 --num-takes 1 --size 32 --num-frames 3 --truth none --num-workers 1"
    code, printed, _ = lfdm("data", "puppets", "--out", "puppets", *options.split())
    assert (code, printed) == (0, "puppets/clips.csv\n")
    for record in csv.DictReader(Path("puppets/clips.csv").read_text().splitlines()):
        target = Path("tree", record["label"], record["subject"], Path(record["path"]).name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(Path("puppets", record["path"]).read_bytes())
    Path("tree/wave/broken.mp4").write_text("not a video")
    code, printed, _ = lfdm("data", "folder", "tree", "--out", "own", "--size", 32)
    assert code == 0
    assert "skipped wave/broken.mp4" in printed
    assert "8 training and 8 test clips of 2 subjects in own" in printed
    code, _, err = lfdm("data", "lpc", "--sheets", "nothing", "--out", "lpc")
    assert code == 2
    assert err.count("\n") == 1
    assert "nothing" in err


def test_a_published_corpus_becomes_a_data_set_with_a_short_report(lfdm: Lfdm) -> None:
    for subject in ("008", "001", "999"):
        take = Path("mug", subject, "fear", "take000")
        take.mkdir(parents=True)
        for index in range(3):
            Image.new("RGB", (16, 16), (40 * index, 0, 0)).save(take / f"{index}.jpg")
    expected = ["fear: 2 clips", "1 training and 1 test clips of 2 subjects in set", "training clips: 1 of the paper's 465"]
    code, printed, err = lfdm("data", "mug", "mug", "--out", "set", "--size", 16)
    assert code == 0, err
    lines = printed.splitlines()
    assert lines[:4] == ["skipped 999: a subject in neither of the published lists", *expected]
    assert lines[4] == "missing subject 008, anger"
    assert len(lines) == 4 + 20 + 1
    assert lines[-1] == "... and 11 more lines of 'missing'"  # 6 labels of subject 008, 25 subjects
    code, printed, _ = lfdm("data", "mug", "mug", "--out", "set", "--size", 16)
    assert code == 0
    assert "2 of them were converted before" in printed
    for corpus, message in {"mug": "no clip of MUG", "mhad": "RGB: no such folder", "natops": "segmentation.txt"}.items():
        code, printed, err = lfdm("data", corpus, "set", "--out", "other")
        assert (code, printed, err.count("\n")) == (2, "", 1)
        assert message in err
        assert not Path("other").exists()


def test_a_tilde_is_the_home_folder_in_every_path(lfdm: Lfdm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path.cwd() / "home"))
    options = "--num-subjects 2 --num-takes 1 --size 32 --num-frames 3 --truth none --num-workers 1"
    code, _, err = lfdm("data", "puppets", "--out=~/puppets", *options.split())
    assert code == 0, err
    code, printed, err = lfdm("data", "folder", "~/puppets/clips", "--out=~/own", "--size", 32, "--layout", "label")
    assert code == 0, err
    assert "note layout: <label>/<clip>" in printed
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["home"]
    assert sorted(path.name for path in Path("home").iterdir()) == ["own", "puppets"]


def test_long_videos_are_cut_and_the_layout_and_the_split_are_reported(lfdm: Lfdm) -> None:
    for path in ("train/wave/a.avi", "test/jump/a.avi"):
        write_video(Path("tree", path), np.zeros((12, 8, 8, 3), np.uint8), fps=4)
    Path("tree/train/wave/b.mp4").write_bytes(b"broken")
    code, printed, err = lfdm("data", "folder", "tree", "--out", "set", "--size", 16, "--clip-seconds", 1, "--stride-seconds", 2)
    assert code == 0, err
    assert "2 training and 2 test clips of 2 subjects in set" in printed
    assert "1 files or folders skipped" in printed
    assert "note layout: <split>/<label>/<clip>" in printed
    assert "note labels without training clips, which a model cannot learn: jump" in printed
    code, _, err = lfdm("data", "folder", "tree", "--out", "other", "--stride-seconds", 2)
    assert (code, err.count("\n")) == (2, 1)
    assert "clip_seconds must" in err


def test_sprite_sheets_become_a_data_set(lfdm: Lfdm) -> None:
    sheet = np.random.default_rng(0).integers(1, 256, (40, 60, 4), np.uint8)
    for name in ("hero.png", "orc.png"):
        Image.fromarray(sheet).save(name)
    options = ["--grid", "20x15", "--rows", "walk,-", "--scale", 2, "--out", "set"]
    code, printed, err = lfdm("data", "sprites", "hero.png", "orc.png", *options)
    assert code == 0, err
    assert "walk: 2 clips" in printed
    assert "1 training and 1 test clips of 2 subjects in set" in printed
    assert "note hero.png: 1 rows have no name and are left out" in printed
    assert read_video("set/clips/hero/00-walk.avi").shape == (4, 40, 30, 3)
    for wrong in (["--grid", "20by15", "--rows", "walk"], ["--rows", "walk"], ["--margin", 2], ["--grid", "0x4", "--rows", "a"]):
        code, _, err = lfdm("data", "sprites", "hero.png", "--out", "other", *wrong)
        assert (code, err.count("\n")) == (2, 1), wrong


def test_a_data_set_is_checked_in_text_and_for_programs(lfdm: Lfdm, puppets_dir: Path, model: Path) -> None:
    code, printed, err = lfdm("data", "check", puppets_dir, "--num-workers", 1, "--model", model)
    assert code == 0, err
    lines = printed.splitlines()
    assert lines[0] == f"{puppets_dir}: 12 clips of 6 subjects, 2 labels"
    assert any(line.split()[:4] == ["warning", "clips", "per", "label"] and "jump (4), wave (4)" in line for line in lines)
    code, printed, err = lfdm("data", "check", puppets_dir, "--num-workers", 1, "--json")
    assert code == 0, err
    found = json.loads(printed)
    assert [check["name"] for check in found["checks"] if check["verdict"] == "warning"] == ["clips per label"]
    assert found["visible"].keys() == {"jump", "wave"}
    for wrong in (["nowhere"], [puppets_dir, "--device", "cpu"], [puppets_dir, "--num-workers", -1]):
        code, printed, err = lfdm("data", "check", *wrong)
        assert (code, printed, err.count("\n")) == (2, "", 1), wrong
