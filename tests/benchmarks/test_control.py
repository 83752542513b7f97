"""`python -m benchmarks.control` on motion with known figures."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.control import __main__ as control
from benchmarks.control.measures import count_pieces, folded_share, measure_drag, pin_leakage
from benchmarks.control.scenes import DragScene, Scene, drag_scenes
from lfdm.config.presets import FLOW64, Preset
from lfdm.data.puppets.actions import ACTIONS
from lfdm.data.truth import Truth
from lfdm.evaluation.networks.classifier import ActionClassifier
from lfdm.motion.motion import Motion
from lfdm.pipeline.pipeline import LatentFlowPipeline


@pytest.fixture(scope="module")
def pipe(tiny_preset: Preset) -> LatentFlowPipeline:
    preset = replace(tiny_preset, image_size=64, num_frames=16, unet=replace(tiny_preset.unet, track_inputs=True), fit=FLOW64.fit)
    pipe = LatentFlowPipeline.from_preset(preset, ("free", *ACTIONS))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def square_scene() -> DragScene:
    """A bright square of 12 pixels on a dark ground whose target is 20 pixels to the right."""
    figure = np.zeros((64, 64), bool)
    figure[24:36, 14:26] = True
    image = np.where(figure[..., None], 200, 20).astype(np.uint8) * np.ones(3, np.uint8)
    moved = np.roll(figure, 20, axis=1)
    flow = np.zeros((2, 64, 64, 2), np.float32)
    flow[1, moved] = (-20, 0)
    truth = Truth(
        flow, np.ones((2, 64, 64), bool), np.ones((2, 64, 64), bool), np.stack([figure, moved]), np.zeros((2, 2), np.float32)
    )
    real = Scene(0, np.stack([image, np.roll(image, 20, axis=1)]), truth, [])
    return DragScene(real, (20.0, 30.0), (40.0, 30.0), ())


def moved_square(shift: float) -> Motion:
    """The square, and nothing else, moves by `shift` pixels in the last of 4 frames; its old place is hidden."""
    motion = Motion.identity(1, 4, (64, 64), corners=False)
    motion.occlusion[:, :, 3, 24:36, 14:26] = 0
    motion.flow[:, 0, 3, 24:36, 34:46] = -shift / 32
    return motion


def sliding_square(shift: float) -> Motion:
    """The square moves by `shift` pixels, eased over 4 frames; its old place is hidden."""
    motion = Motion.identity(1, 4, (64, 64), corners=False)
    for k in range(4):
        u = k / 3
        moved = shift * (3 * u**2 - 2 * u**3)
        motion.occlusion[:, :, k, 24:36, 14:26] = 0
        motion.occlusion[:, :, k, 24:36, round(14 + moved) : round(26 + moved)] = 1
        motion.flow[:, 0, k, 24:36, round(14 + moved) : round(26 + moved)] = -moved / 32
    return motion


def test_a_limb_that_arrives_and_one_that_does_not(pipe: LatentFlowPipeline) -> None:
    scene = square_scene()
    frames = np.stack([scene.image] * 4)
    frames[3] = np.roll(scene.image, 20, axis=1)
    found = measure_drag(pipe, scene, moved_square(20), frames)
    assert found["patch_difference"] == 0
    assert found["limb_share"] == 1
    assert found["vacated"] == 1
    assert found["islands"] == 0
    assert found["marker_distance"] < 0.2
    assert measure_drag(pipe, scene, sliding_square(20), frames)["path_distance"] < 0.5
    assert measure_drag(pipe, scene, sliding_square(0), frames)["path_distance"] == pytest.approx(100 * 10 / 64, rel=0.1)
    still = measure_drag(pipe, scene, Motion.identity(1, 4, (64, 64), corners=False), np.stack([scene.image] * 4))
    assert still["limb_share"] == 0
    assert still["vacated"] == 0
    assert still["marker_distance"] == pytest.approx(20, abs=0.5)
    assert still["patch_difference"] > 100
    turned = moved_square(20)
    row, column = np.mgrid[24:36, 34:46] + 0.5  # turned by a right angle around the target
    turned.flow[:, 0, 3, 24:36, 34:46] = torch.from_numpy((20 + row - 30 - column) / 32).float()
    turned.flow[:, 1, 3, 24:36, 34:46] = torch.from_numpy((30 - column + 40 - row) / 32).float()
    found = measure_drag(pipe, scene, turned, frames)
    assert found["limb_share"] == 1
    assert found["marker_distance"] < 1.1  # the marker's centre is half a pixel off the point, and turns with the limb


def test_the_marker_is_where_most_of_it_is(pipe: LatentFlowPipeline) -> None:
    motion = moved_square(20)
    motion.occlusion[:, :, 3, 29, 19:22] = 1  # a row of the marker is left at its old place
    assert measure_drag(pipe, square_scene(), motion, np.stack([square_scene().image] * 4))["marker_distance"] < 0.2


def test_pieces_folding_and_leakage() -> None:
    mask = np.zeros((64, 64), bool)
    mask[2:10, 2:10] = mask[20:30, 20:30] = True
    mask[50, 50] = True  # too small to count
    assert count_pieces(mask) == 2
    assert folded_share(np.zeros((64, 64, 2))) == 0
    mirrored = np.zeros((64, 64, 2))
    mirrored[..., 0] = 64 - 2 * (np.arange(64) + 0.5)
    assert folded_share(mirrored) == 1
    motion = Motion(torch.full((1, 2, 3, 32, 32), 3 / 32), torch.ones(1, 1, 3, 32, 32))
    assert pin_leakage(motion, ((5.0, 5.0),)) == pytest.approx([3 * 2**0.5], abs=1e-4)


def test_scenes_have_the_tracks_of_their_motion() -> None:
    scene = Scene.render(3)
    given = scene.real_tracks(4)
    assert given is not None
    assert len(given.drags) == 4
    for drag in given.drags:
        _, x, y = drag.path[-1]
        flow = scene.truth.flow[-1, min(63, int(y)), min(63, int(x))]
        assert np.abs(flow - (np.array(drag.source) - (x, y))).max() < 1.5
    drag_scene = next(iter(drag_scenes(1)))
    parts = drag_scene.real.has_track(drag_scene.control)
    x, y = map(int, drag_scene.source)
    assert parts[0, y, x]
    assert 0 < parts.sum() < drag_scene.real.truth.figure.sum() / 4  # one end of a limb
    assert not drag_scene.real.has_track(None).any()
    assert np.linalg.norm(np.subtract(drag_scene.target, drag_scene.source)) >= 6
    assert drag_scene.figure[y, x]


@pytest.mark.slow
def test_the_script_writes_every_row(pipe: LatentFlowPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe.save_pretrained(tmp_path / "model")
    document = tmp_path / "control.md"
    document.write_text(f"before\n{control.START}\n{control.END}\nafter\n")
    monkeypatch.setattr(control, "RESULTS", tmp_path / "control.json")
    monkeypatch.setattr(control, "DOCUMENT", document)
    monkeypatch.setattr(control, "NUM_TRACKS", (0, 1))
    ActionClassifier(labels=ACTIONS).save_pretrained(tmp_path / "classifier")
    arguments = ["control", "--model", str(tmp_path / "model"), "--clips", "1", "--drags", "1", "--sheets", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*arguments, "--classifier", str(tmp_path / "classifier"), "--labelled", "1"])
    control.main()
    results = json.loads((tmp_path / "control.json").read_text())
    assert set(results["drags"]["ways"]) == {"ours", "touched", "kernel", "bent", "guided", "real"}
    assert document.read_text().startswith("before\n")
    assert document.read_text().endswith("after\n")
    assert "| 0 | 1 |" in document.read_text()
    assert results["labels"]["clips"] == 1
    assert "Label recognised by a classifier in 1 videos" in document.read_text()
    assert (tmp_path / "ours.png").is_file()
