"""Controls on the command line and in control.json."""

import json
from pathlib import Path
from typing import Any

import pytest

from lfdm.config.control import Control, Drag, LabelSpan, PartStrength
from lfdm.errors import UserError
from lfdm.pipeline.control_file import parse_drag, parse_labels, parse_part_strength, parse_point, read_control, write_control

HEAD = {"format": "lfdm-control", "version": 1}


def test_a_control_survives_its_file(tmp_path: Path) -> None:
    control = Control(
        drags=(Drag(source=(20.0, 30.0), path=((0.4, 28.0, 10.0), (1.0, 40.0, 18.0)), radius=3.0, visible=((0.0, 0.5),)),),
        pins=((5.0, 60.0),),
        strengths=(PartStrength(value=0.5, mask=tmp_path / "arm.png"), PartStrength(value=1.5, at=(20.0, 30.0))),
        end_image=tmp_path / "pose.png",
        labels=(LabelSpan(label="wave", start=0.0, end=0.5),),
        size=(64, 48),
        correct=False,
    )
    path = write_control(tmp_path / "control.json", control)
    assert read_control(path) == control
    path = write_control(tmp_path / "pin.json", Control(pins=((5.0, 60.0),)))
    assert read_control(path) == Control(pins=((5.0, 60.0),))
    assert "correct" not in json.loads(path.read_text())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"version": 2}, "version"),
        ({"format": "other"}, "format"),
        ({"trackz": []}, "trackz"),
        ({"drags": [{"from": [1, 2], "path": [[1, 3, 4]], "speed": 1}]}, "speed"),
        ({"drags": [{"from": [1, 2], "path": [[3, 4]]}]}, "path"),
        ({"drags": [{"from": [1, 2], "path": [[1, "a", 4]]}]}, "drag from 1,2"),
        ({"drags": [3]}, "drags"),
        ({"drags": {"from": 1}}, "drags"),
        ({"end_image": "../pose.png"}, "folder"),
        ({"strengths": [{"mask": "/etc/passwd", "value": 1}]}, "folder"),
        ({"size": [64]}, "size"),
        ({"pins": [[None, 1]]}, "pin"),
        ({"correct": "no"}, "correct"),
    ],
)
def test_wrong_files_are_one_error_with_the_path(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    path = tmp_path / "control.json"
    path.write_text(json.dumps({**HEAD, **changes}))
    with pytest.raises(UserError, match=named) as caught:
        read_control(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "20,30", "20,30:", "20,30:1,2:3,4", "20:30,4", "20,30:4,5@", "a,b:c,d"])
def test_drags_of_another_form(text: str) -> None:
    with pytest.raises(UserError, match=r"^drag must"):
        parse_drag(text)


def test_other_texts() -> None:
    with pytest.raises(UserError, match=r"^pin must"):
        parse_point("3;4", "pin")
    with pytest.raises(UserError, match=r"^part_strength must"):
        parse_part_strength("20,30")
    with pytest.raises(UserError, match="drag from 1,2"):
        parse_drag("1,2:nan,4")
    assert parse_labels("wave=0.5,jump=0.5") == ()
