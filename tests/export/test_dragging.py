"""Drags and pins in NumPy are those of the pipeline."""

import numpy as np
import pytest
import torch

from lfdm.config.control import Control, Drag, PartStrength
from lfdm.config.video import Fit, Size
from lfdm.errors import UserError
from lfdm.export.dragging import PlacedPoints, observed
from lfdm.motion.motion import Motion
from lfdm.motion.tracks import track_maps
from lfdm.pipeline.framing import Framing
from lfdm.pipeline.track_control import (
    CORRECTION_RADIUS,
    MAX_CORRECTED_SHARE,
    MAX_CORRECTION,
    NUM_REFINEMENTS,
    RIDGE,
    TrackControl,
)

PICTURE, FRAME, FRAMES = Size(60, 90), Size(32, 32), 9
SETTINGS = {
    "max_correction": MAX_CORRECTION,
    "max_corrected_share": MAX_CORRECTED_SHARE,
    "correction_radius": CORRECTION_RADIUS,
    "ridge": RIDGE,
    "refinements": NUM_REFINEMENTS,
}
CONTROLS = {
    "paths": Control(
        drags=(
            Drag(source=(20.5, 31.3), path=((0.4, 28, 12), (1, 40, 18))),
            Drag(source=(60.4, 20.7), path=((0.5, 62.3, 31.2),), visible=((0.0, 0.2), (0.4, 0.5))),
        ),
        pins=((70, 50), (50.3, 8.3)),
    ),
    "radius and another size": Control(
        drags=(Drag(source=(20.5, 31.3), path=((1, 30, 40),), radius=4), Drag(source=(40.3, 41.2), path=((0.3, 30, 30),))),
        size=(50, 50),
    ),
    "seconds": Control(drags=(Drag(source=(20.5, 31.3), path=((0.4, 28, 12), (0.9, 40, 18))),), time="seconds"),
}


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
@pytest.mark.parametrize("name", CONTROLS)
def test_points_and_corrections_are_those_of_the_pipeline(name: str, fit: Fit) -> None:
    control = CONTROLS[name]
    framing = Framing(size=FRAME, fit=fit)
    theirs = TrackControl.place(control, PICTURE, framing, num_frames=FRAMES, fps=8)
    ours = PlacedPoints.place(control, PICTURE, FRAME, framing.fit, num_frames=FRAMES, fps=8)
    for mine, other in ((ours.tracks, theirs.tracks), (ours.guides, theirs.guides)):
        assert np.allclose(mine.source, other.source, atol=1e-5)
        assert np.allclose(mine.position, other.position, atol=1e-5)
        assert (mine.visible == other.visible.numpy()).all()
    observed = {key: torch.from_numpy(value) for key, value in ours.observed((8, 10)).items()}
    maps = track_maps(**observed, shape=(FRAMES, 8, 10))
    assert maps.any()
    torch.testing.assert_close(maps, theirs.maps((8, 10)), atol=1e-3, rtol=0)
    flow = 0.3 * torch.randn(1, 2, FRAMES, 8, 10, generator=torch.Generator().manual_seed(0))
    motion, _ = theirs.correct_motion(Motion(flow, torch.ones(1, 1, FRAMES, 8, 10), corners=False))
    corrected = ours.correct(flow.numpy(), FRAME, SETTINGS)
    assert np.abs(corrected - flow.numpy()).max() > 0.01
    assert np.allclose(corrected, motion.flow, atol=1e-4)


def test_without_points_maps_are_empty() -> None:
    inputs = {key: torch.from_numpy(value) for key, value in observed().items()}
    assert not track_maps(**inputs, shape=(2, 8, 8)).any()


def test_what_cannot_be_followed_is_named() -> None:
    def place(control: Control) -> None:
        PlacedPoints.place(control, PICTURE, FRAME, "crop", num_frames=FRAMES, fps=8)

    with pytest.raises(UserError, match="drags and pins only"):
        place(Control(strengths=(PartStrength(value=0.5, at=(1, 1)),)))
    with pytest.raises(UserError, match="1,30"):
        place(Control(pins=((1, 30),)))
    with pytest.raises(UserError, match="inside the picture"):
        place(Control(pins=((100, 30),)))


def test_contradictions_are_those_of_the_pipeline() -> None:
    drags = tuple(Drag(source=source, path=((1, 40, 30),)) for source in ((20, 30), (60, 30)))
    control, messages = Control(drags=drags), []
    with pytest.raises(UserError, match=r"20,30 and 60,30 .* frame 8") as error:
        PlacedPoints.place(control, PICTURE, FRAME, "crop", num_frames=FRAMES, fps=8).observed((32, 32))
    messages.append(str(error.value))
    with pytest.raises(UserError) as error:
        TrackControl.place(control, PICTURE, Framing(size=FRAME, fit="crop"), num_frames=FRAMES, fps=8).maps((32, 32))
    assert messages == [str(error.value)]
