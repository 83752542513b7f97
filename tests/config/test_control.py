"""What a user may ask of a video's motion."""

import math
from typing import Any

import pytest

from lfdm.config.control import MAX_TRACKS, Control, Drag, LabelSpan, PartStrength
from lfdm.config.video import Size
from lfdm.errors import UserError


def drag(*path: tuple[float, float, float], source: tuple[float, float] = (20, 30), **changes: Any) -> Drag:
    return Drag(source=source, path=path or ((1.0, 40.0, 18.0),), **changes)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: drag((0.5, 1, 1), (0.5, 2, 2)), "drag from 20,30: times"),
        (lambda: drag((0.8, 1, 1), (0.4, 2, 2)), "drag from 20,30: times"),
        (lambda: drag((0.0, 1, 1)), "drag from 20,30: times"),
        (lambda: Drag(source=(1, 1), path=()), "path"),
        (lambda: drag((1.0, math.nan, 1)), "drag from 20,30"),
        (lambda: drag(source=(math.inf, 0)), "drag from inf,0"),
        (lambda: drag(radius=-1), "radius"),
        (lambda: Control(drags=(drag((1.5, 1, 1)),)), "drag from 20,30: time"),
        (lambda: Control(drags=(drag(),) * (MAX_TRACKS + 1)), "drags and pins"),
        (lambda: Control(drags=(drag(),), pins=((20.5, 30),)), "pin 20.5,30 lies on the drag from 20,30"),
        (lambda: Control(pins=((1, math.nan),)), "pin"),
        (lambda: Control(time="minutes"), "time"),  # type: ignore[arg-type]
        (lambda: Control(labels=(LabelSpan(label="wave", start=0, end=1.2),)), "label 'wave'"),
        (lambda: LabelSpan(label="wave", start=0.6, end=0.5), "label 'wave'"),
        (lambda: PartStrength(value=3, at=(1, 1)), "part strength"),
        (lambda: PartStrength(value=1), "part strength"),
        (lambda: Control(drags=(drag(),)).for_picture(Size(20, 64)), "drag from 20,30: 20,30"),
        (lambda: Control(pins=((65, 3),)).for_picture(Size(64, 64)), "pin 65,3"),
        (lambda: Control(drags=(drag((9, 1, 1)),), time="frames").last_time(9, 8.0), "drag from 20,30: time"),
    ],
)
def test_wrong_values_are_named(build: Any, named: str) -> None:
    with pytest.raises(UserError, match=named):
        build()


def test_times_in_every_unit() -> None:
    assert Control().last_time(17, 8.0) == 1
    assert Control(time="seconds").last_time(17, 8.0) == 2
    assert Control(time="frames").last_time(17, 8.0) == 16


def test_positions_may_belong_to_another_picture() -> None:
    Control(drags=(drag(),), size=(64, 64)).for_picture(Size(8, 8))
