"""Drags, pins, labels over time and end images in a call."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from lfdm.config.control import Control, Drag, LabelSpan, PartStrength
from lfdm.config.presets import Preset
from lfdm.config.video import Size
from lfdm.denoiser.unet3d import MotionUNet3D
from lfdm.errors import UserError
from lfdm.motion.codec import FrameCodec
from lfdm.motion.motion import Motion
from lfdm.pipeline.conditions import span_weights
from lfdm.pipeline.framing import Framing
from lfdm.pipeline.pipeline import LatentFlowPipeline
from lfdm.pipeline.track_control import TrackControl
from tests.denoiser.test_track_inputs import train_track_inputs

SQUARE = Framing(size=Size(64, 64), fit="pad")


def drag(text: str, **changes: Any) -> Drag:
    start, end = ([float(x) for x in part.split(",")] for part in text.split(":"))
    return Drag(source=(start[0], start[1]), path=((1.0, end[0], end[1]),), **changes)


def placed(control: Control, picture: Size = Size(64, 64), framing: Framing = SQUARE, num_frames: int = 5) -> TrackControl:  # noqa: B008
    return TrackControl.place(control, picture, framing, num_frames=num_frames, fps=8.0)


def still(num_frames: int = 5) -> Motion:
    return Motion.identity(2, num_frames, (32, 32), corners=False)


@pytest.mark.parametrize(
    ("picture", "framing", "expected"),
    [
        (Size(64, 64), SQUARE, (-0.5, 0.5)),
        (Size(128, 128), SQUARE, (-0.75, -0.25)),
        (Size(64, 128), SQUARE, (-0.75, 0.25)),  # bars above and below
        (Size(64, 128), Framing(size=Size(64, 64), fit="crop"), (-1.5, 0.5)),
        (Size(64, 128), Framing(size=Size(64, 64), fit="stretch"), (-0.75, 0.5)),
    ],
)
def test_positions_are_those_of_the_picture_before_fitting(
    picture: Size, framing: Framing, expected: tuple[float, float]
) -> None:
    control = Control(drags=(drag("16,48:20,40"),))
    if expected[0] < -1:
        with pytest.raises(UserError, match="16,48"):
            placed(control, picture, framing)
        return
    assert placed(control, picture, framing).tracks.source[0].tolist() == pytest.approx(expected)


def test_a_control_of_a_clip_is_scaled_to_the_picture() -> None:
    control = Control(drags=(drag("16,48:20,40"),), size=(64, 64))
    assert placed(control, Size(128, 128)).tracks.source[0].tolist() == pytest.approx((-0.5, 0.5))


def test_paths_go_smoothly_through_their_positions() -> None:
    path = ((0.5, 40.0, 10.0), (1.0, 50.0, 30.0))
    tracks = placed(Control(drags=(Drag(source=(20, 30), path=path),), pins=((5, 60),)), num_frames=33).tracks
    pixels = (tracks.position + 1) * 32
    for frame, expected in ((0, (20, 30)), (16, (40, 10)), (32, (50, 30))):
        assert pixels[0, frame].tolist() == pytest.approx(expected, abs=1e-3)
    assert pixels[0].diff(dim=0).norm(dim=-1).max() < 3
    assert pixels[0, :2].diff(dim=0).norm() < 0.3  # begins at rest
    assert torch.equal(pixels[1], torch.tensor([5.0, 60.0]).expand(33, 2))


def test_after_its_last_time_a_point_is_free() -> None:
    tracks = placed(Control(drags=(Drag(source=(20, 30), path=((0.5, 40, 10),)),))).tracks
    assert tracks.visible[0].tolist() == [True, True, True, False, False]


def test_a_radius_moves_the_points_around() -> None:
    alone, disk = (placed(Control(drags=(drag("20,30:40,18", radius=radius),))).maps((32, 32)) for radius in (None, 4.0))
    assert (alone[2, 4] == 1).sum() == 1
    assert 8 <= (disk[2, 4] == 1).sum() <= 40
    assert disk[:2, 4][:, disk[2, 4] == 1].std(dim=1).max() < 1e-3  # one displacement


def test_small_rests_are_corrected_exactly_and_large_ones_are_reported() -> None:
    near, far = Control(drags=(drag("20,30:20.6,30"),), pins=((50, 50),)), Control(drags=(drag("20,30:40,30"),))
    corrected, report = placed(near).correct_motion(still())
    assert report.distance[:, :, -1].max() < 1e-3
    assert report.messages(0) == []
    assert (corrected.flow[:, :, -1].norm(dim=1) * 32).max() < 0.8  # and nothing else moves more
    corrected, report = placed(far).correct_motion(still())
    assert report.distance[0, 0, -1].item() == pytest.approx(19, abs=1e-2)
    assert "19.0 pixels" in report.messages(1)[0]
    assert (corrected.flow[:, :, -1].norm(dim=1) * 32).max() < 1.1


def test_contradictions_name_both_points() -> None:
    crossing = Control(drags=(drag("20,30:40,30"), drag("60,30:40,30")))
    with pytest.raises(UserError, match=r"20,30 and 60,30 .* frame 4"):
        placed(crossing).maps((32, 32))


@pytest.mark.parametrize("kind", ["flow", "grid"])
def test_tracks_observe_the_flow_of_a_sample(kind: Literal["flow", "grid"]) -> None:
    codec = FrameCodec(kind=kind, mean=(0.1, -0.1, 0.0), std=(0.2, 0.3, 1.0))
    flow = torch.randn(2, 2, 5, 32, 32, generator=torch.Generator().manual_seed(0)) / 10
    motion = Motion(flow, torch.ones(2, 1, 5, 32, 32)).from_rest()
    control = Control(drags=(Drag(source=(20, 30), path=((0.5, 41, 11),)),), pins=((5, 61),))
    observation = placed(control).observation(codec, 5, device=torch.device("cpu"))
    found = observation.read(codec.encode(motion))
    assert found.shape == (2, 2 * (3 + 5))  # a drag that ends in the middle, and a pin
    torch.testing.assert_close(found[:, 8:10], motion.flow[:, :, 2, 5, 20])  # (41, 11) in the third frame
    torch.testing.assert_close(observation.values[8:10], torch.tensor([(20 - 41) / 32, (30 - 11) / 32]))


# ---------------------------------------------------------------------------------------------------------- whole calls


@pytest.fixture(scope="module")
def plain(tiny_preset: Preset) -> LatentFlowPipeline:
    pipe = LatentFlowPipeline.from_preset(tiny_preset, ("jump", "wave"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def following(tiny_preset: Preset) -> LatentFlowPipeline:
    preset = replace(tiny_preset, unet=replace(tiny_preset.unet, track_inputs=True))
    pipe = LatentFlowPipeline.from_preset(preset, ("free", "jump", "wave"))
    assert isinstance(pipe.unet, MotionUNet3D)
    train_track_inputs(pipe.unet)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def motion_of(pipe: LatentFlowPipeline, image: np.ndarray, condition: str | Tensor | None, **options: Any) -> Motion:
    return pipe(image, condition, output_type="pt", **{"num_inference_steps": 2, "generator": 0, **options}).motion


def test_a_call_follows_tracks_and_reports(following: LatentFlowPipeline, image: np.ndarray) -> None:
    control = Control(drags=(drag("10,10:20,20"),), pins=((3, 30),))
    free = motion_of(following, image, "wave")
    out = following(image, "wave", control=control, num_inference_steps=2, generator=0, num_videos=2, output_type="uint8")
    assert (out.motion.flow[0] - free.flow[0]).abs().max() > 1e-3
    assert out.control is not None
    assert out.control.distance.shape == (2, 2, 4)
    assert torch.equal(motion_of(following, image, "wave", control=Control()).flow, free.flow)
    without = motion_of(following, image, None, control=control)
    assert torch.equal(without.flow, motion_of(following, image, "free", control=control).flow)


def test_every_step_is_corrected_towards_the_tracks(following: LatentFlowPipeline, image: np.ndarray) -> None:
    control = Control(drags=(drag("10,10:20,20"),))
    corrected, plain = (
        motion_of(following, image, "wave", control=replace(control, correct=correct)).flow for correct in (True, False)
    )
    assert (corrected - plain).abs().max() > 1e-2
    with torch.inference_mode():
        assert torch.equal(motion_of(following, image, "wave", control=control).flow, corrected)


def test_a_pipeline_that_was_loaded_in_inference_mode_is_corrected_too(
    following: LatentFlowPipeline, image: np.ndarray, tmp_path: Path
) -> None:
    following.save_pretrained(tmp_path / "model")
    control = Control(drags=(drag("10,10:20,20"),))
    with torch.inference_mode():
        pipe = LatentFlowPipeline.from_pretrained(tmp_path / "model").to("cpu", torch.float32)
        found = motion_of(pipe, image, pipe.embed_condition("wave"), control=control)
    torch.testing.assert_close(found.flow, motion_of(following, image, "wave", control=control).flow, atol=1e-3, rtol=1e-3)


def test_tracks_in_windows(following: LatentFlowPipeline, image: np.ndarray) -> None:
    motion = motion_of(following, image, "wave", control=Control(drags=(drag("10,10:20,20"),)), num_frames=20)
    assert motion.num_frames == 20


def test_a_model_without_the_input_says_what_has_it(plain: LatentFlowPipeline, image: np.ndarray) -> None:
    with pytest.raises(UserError, match="track-inputs"):
        motion_of(plain, image, "wave", control=Control(pins=((1, 1),)))


def test_labels_over_time(plain: LatentFlowPipeline, image: np.ndarray) -> None:
    whole = Control(labels=(LabelSpan(label="wave", start=0, end=1),))
    both = Control(labels=(LabelSpan(label="wave", start=0, end=0.5), LabelSpan(label="jump", start=0.5, end=1)))
    for scale in (1.0, 2.0):
        wave = motion_of(plain, image, "wave", guidance_scale=scale).flow
        found = motion_of(plain, image, None, control=whole, guidance_scale=scale).flow
        torch.testing.assert_close(found, wave, atol=1e-5, rtol=1e-4)
    mixed = motion_of(plain, image, None, control=both).flow
    assert (mixed - motion_of(plain, image, "wave").flow)[:, :, -1].abs().max() > 1e-4
    with pytest.raises(UserError, match="condition"):
        motion_of(plain, image, "wave", control=both)


def test_labels_blend_at_their_seams() -> None:
    spans = (LabelSpan(label="a", start=0, end=0.5), LabelSpan(label="b", start=0.5, end=0.75))
    weights = span_weights(spans, 17, 1.0)
    assert weights[:, 8].tolist() == [0.5, 0.5]
    assert weights[:, 0].tolist() == [1, 0]
    assert weights[:, -1].tolist() == [0, 0]
    assert weights.sum(0).max() <= 1


def test_the_last_frame_takes_the_pose_of_the_end_image(plain: LatentFlowPipeline, image: np.ndarray) -> None:
    end = np.roll(image, 2, axis=1)
    motion = motion_of(plain, image, "wave", control=Control(end_image=end))  # type: ignore[arg-type]
    video = torch.from_numpy(np.stack([image, end])).permute(0, 3, 1, 2).float() / 255
    expected = plain.autoencoder.estimate_motion(video[:1], video[1:])
    torch.testing.assert_close(motion.flow[:, :, -1], expected.flow[:, :, 0], atol=1e-4, rtol=1e-3)
    with pytest.raises(UserError, match="end_image"):
        motion_of(plain, image, "wave", control=Control(end_image=image[:20]))  # type: ignore[arg-type]


def test_part_strengths_in_a_call(plain: LatentFlowPipeline, image: np.ndarray) -> None:
    free = motion_of(plain, image, "wave")
    mask = np.zeros((32, 32), np.uint8)
    same = motion_of(plain, image, "wave", control=Control(strengths=(PartStrength(value=0.2, mask=mask),)))  # type: ignore[arg-type]
    assert torch.equal(same.flow, free.flow)
    still = motion_of(plain, image, "wave", control=Control(strengths=(PartStrength(value=0, mask=mask + 255),)))  # type: ignore[arg-type]
    assert (still.flow * (still.occlusion > 0.5)).abs().max() < 0.05 * free.flow.abs().max()
    less = motion_of(plain, image, "wave", control=Control(strengths=(PartStrength(value=0, at=(16, 16)),)))
    assert less.flow.isfinite().all()
    assert not torch.equal(less.flow, free.flow)
    with pytest.raises(UserError, match="motion_mask"):
        motion_of(plain, image, "wave", control=Control(strengths=(PartStrength(value=0, mask=mask[:20]),)))  # type: ignore[arg-type]
