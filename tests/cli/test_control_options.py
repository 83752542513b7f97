"""Options for drags, pins, parts and end images, and `lfdm track`."""

import json
from pathlib import Path

import numpy as np
import pytest

from lfdm.cli import COMMANDS
from lfdm.cli.console import run
from lfdm.cli.control_options import PointOptions
from lfdm.config.control import LabelSpan, PartStrength
from lfdm.data.puppets.data_set import render_clip
from lfdm.data.video import write_video
from lfdm.errors import UserError
from lfdm.pipeline.control_file import read_control


def test_options_become_a_control(tmp_path: Path) -> None:
    file = tmp_path / "control.json"
    file.write_text(json.dumps({"format": "lfdm-control", "version": 1, "pins": [[1, 2]]}))
    options = PointOptions(
        drag=("20,30:40,18",), pin=("5,60",), drag_radius=2, part_strength=("20,30=1.5",), end_image=Path("a.png"), control=file
    )
    control, condition = options.read("wave")
    assert control is not None
    assert condition == "wave"
    assert control.drags[0].radius == 2
    assert control.pins == ((1, 2), (5, 60))
    assert control.strengths == (PartStrength(value=1.5, at=(20, 30)),)
    assert control.end_image == Path("a.png")
    assert PointOptions().read("wave") == (None, "wave")
    spans, condition = PointOptions().read("wave@0-0.5, jump@0.5-1")
    assert spans is not None
    assert condition is None
    assert spans.labels[1] == LabelSpan(label="jump", start=0.5, end=1)


def test_options_without_effect() -> None:
    with pytest.raises(UserError, match="--drag-radius"):
        PointOptions(drag_radius=3).read("wave")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--drag", "20,30:40"], "drag must be X,Y"),
        (["--drag", "20,30:40,18@nan"], "drag from 20,30"),
        (["--drag", "20,30:40,18"], "--unet.track-inputs"),
        (["--pin", "90,3"], "pin 90,3"),
        (["--end-image", "missing.png"], "missing.png"),
        (["--part-strength", "3,4=9"], "part strength"),
    ],
)
def test_wrong_values_are_one_line(
    arguments: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_video("frames", render_clip(5, "wave", 0, num_frames=2, truth=False).frames, fps=8)
    image = sorted(Path("frames").iterdir())[0]
    assert run(COMMANDS, ["generate", str(image), "wave", *arguments], "") == 2
    message = capsys.readouterr().err.strip().splitlines()
    assert len(message) == 1
    assert named in message[0]


def test_track_writes_paths_of_a_clip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = render_clip(5, "wave", 0, num_frames=6)
    write_video(tmp_path / "clip.avi", clip.frames, fps=8)
    out = tmp_path / "control.json"
    assert run(COMMANDS, ["track", str(tmp_path / "clip.avi"), "--points", "32,8", "5,5", "--out", str(out)], "") == 0
    assert capsys.readouterr().out.strip() == str(out)
    head, corner = read_control(out).drags
    assert head.source == pytest.approx((32, 8), abs=1e-3)
    moved = np.array([step[1:] for step in corner.path]) - (5, 5)
    assert np.abs(moved + clip.truth.drift[1:] if clip.truth else moved).max() < 1
    assert run(COMMANDS, ["track", str(tmp_path / "clip.avi"), "--out", str(out)], "") == 2  # it exists
