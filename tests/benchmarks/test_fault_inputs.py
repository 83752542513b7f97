"""Wrong input and hostile files: the limits of a trial, and short campaigns."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.experiment.tables import ROOT
from benchmarks.faults import trial
from benchmarks.faults.commands import READERS
from benchmarks.faults.damage import apply
from benchmarks.faults.files import HOSTILE
from benchmarks.faults.inputs import make_cases
from lfdm.errors import UserError

NUM_HOSTILE = 80


def test_hostile_files_are_many_and_all_different() -> None:
    assert len(HOSTILE) >= NUM_HOSTILE
    assert len({(hostile.kind, hostile.name, hostile.words) for hostile in HOSTILE}) == len(HOSTILE)


@pytest.mark.parametrize(
    ("change", "result"),
    [
        ({"kind": "flip", "at": 3, "bit": 2}, b"abc`ef"),
        ({"kind": "number", "at": 1, "value": 258, "width": 2, "big": True}, b"a\1\2def"),
        ({"kind": "cut", "at": 8}, b"ab"),
        ({"kind": "remove", "at": 1, "length": 3}, b"aef"),
        ({"kind": "repeat", "at": 4, "length": 1, "times": 2}, b"abcdeeef"),
        ({"kind": "insert", "at": 0, "text": "ff"}, b"\xffabcdef"),
        ({"kind": "replace", "content": "00"}, b"\0"),
        ({"kind": "json", "index": 0, "value": 0}, b"null"),
        ({"kind": "json_depth", "depth": 2}, b'{"a":[[]],bcdef'),
        ({"kind": "cell", "row": 0, "column": 0, "text": "x"}, b"x"),
        ({"kind": "row", "row": 0, "times": 2}, b"abcdef\nabcdef"),
    ],
)
def test_damages_do_what_their_names_say(change: dict[str, Any], result: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"abcdef")
    apply(path, change)
    assert path.read_bytes() == result


def test_a_checksum_of_a_damaged_png_is_right_again(tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "image.png"
    Image.new("RGB", (8, 8)).save(path)
    apply(path, {"kind": "number", "at": 16, "value": 9, "width": 4, "big": True})  # the width
    with Image.open(path) as image:
        assert image.size == (9, 8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("action", "fault"),
    [
        (lambda: 0, ""),
        (lambda: 2, ""),
        (lambda: os.kill(os.getpid(), 11) or 0, "exit code -11"),
        (lambda: exec("while True: pass"), "no end after"),
        (lambda: len(bytearray(os.urandom(1)) * (300 << 20)) * 0, "MB of memory"),
        (lambda: 1 // 0, "ZeroDivisionError"),
    ],
)
def test_a_trial_sees_how_a_process_ends(action: object, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "MAX_SECONDS", 1)
    monkeypatch.setattr(trial, "MAX_MEGABYTES", 200)
    ending = trial.run_forked(action, tmp_path)  # type: ignore[arg-type]
    assert (fault in ending.fault()) if fault else ending.fault() == ""


@pytest.mark.slow
def test_a_process_that_ends_at_once_needs_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_process = trial._megabytes
    monkeypatch.setattr(trial, "_megabytes", lambda process: of_process(process) if process == os.getpid() else 0.0)
    monkeypatch.setattr(trial, "MAX_MEGABYTES", 200)
    assert of_process(os.getpid()) > 200
    assert trial.run_forked(lambda: 0, tmp_path).fault() == ""


@pytest.mark.slow
def test_user_errors_are_distinguished_from_tracebacks(tmp_path: Path) -> None:
    def refuse() -> None:
        raise UserError("size must be 3")

    def fail() -> None:
        raise KeyError("size")

    assert trial.run_call(refuse, tmp_path).refused
    assert "KeyError: 'size'" in trial.run_call(fail, tmp_path).fault()


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["inputs", "--num-cases", "40"], ["files", "--only", "code: pickle"]])
def test_a_short_campaign_finds_nothing(arguments: list[str], tmp_path: Path) -> None:
    """In a process of its own, since forks of one that has trained would hang."""
    name, *options = arguments
    call = f"run_campaign({name!r}, {options!r}, Path('.'))"
    code = f"from pathlib import Path; from benchmarks.faults.__main__ import run_campaign; {call}"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    stored = json.loads((tmp_path / f"{name}.json").read_text())
    assert stored["failures"] == []
    assert sum(stored["counts"].values()) >= 9


def test_the_same_seed_gives_the_same_cases() -> None:
    names = [name for name, _ in READERS]
    first, again, other = (json.dumps(make_cases(names, 30, seed)) for seed in (0, 0, 1))
    assert first == again != other
