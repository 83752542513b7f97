"""Pictures animated in their own shape, and models of rectangles."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lfdm.config.presets import Preset
from lfdm.config.video import Size
from lfdm.data.fitting import fit_frames
from lfdm.errors import UserError
from lfdm.pipeline.framing import native_framing
from lfdm.pipeline.pipeline import LatentFlowPipeline
from lfdm.pipeline.transfer import Stage1Pipeline


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def native(*size: int, training: tuple[int, int] = (64, 64), multiple: int = 16, least: int = 16) -> Size:
    framing = native_framing([Size(*size)], training=Size(*training), fit="pad", multiple=multiple, least=least)
    assert framing.fit_of(Size(*size)) == "stretch"
    return framing.size


@pytest.mark.parametrize(
    ("picture", "training", "expected"),
    [
        ((1080, 1920), (64, 64), (48, 80)),
        ((1920, 1080), (64, 64), (80, 48)),
        ((480, 640), (64, 64), (48, 64)),
        ((500, 510), (64, 64), (64, 64)),
        ((1080, 1920), (128, 224), (128, 224)),
        ((1920, 1080), (128, 224), (224, 128)),
        ((100, 2000), (64, 64), (16, 320)),
    ],
)
def test_a_pictures_own_size_has_its_proportions_and_about_the_pixels_of_training(
    picture: tuple[int, int], training: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert native(*picture, training=training) == expected
    assert native(*expected, training=training) == expected  # a picture that was fitted stays as it is


@pytest.mark.parametrize("proportions", np.linspace(1, 4, 31).tolist())
def test_no_common_shape_is_stretched_by_much(proportions: float) -> None:
    for training in ((64, 64), (96, 128), (256, 256)):
        size = native(1000, round(1000 * proportions), training=training)
        assert max(size.width / size.height / proportions, proportions * size.height / size.width) < 1.16
        assert 1 / 1.51 < np.prod(size) / np.prod(training) < 1.51


def test_shapes_that_the_networks_cannot_take_are_refused() -> None:
    for size, options in {(1000, 90_000): {}, (480, 640): {"training": (128, 128), "multiple": 128, "least": 128}}.items():
        with pytest.raises(UserError, match=rf"image must .*multiples of .*8 or more cells of motion.*got {Size(*size)}"):
            native(*size, **options)


@pytest.fixture(scope="module")
def pipe(tiny_preset: Preset) -> LatentFlowPipeline:
    return LatentFlowPipeline.from_preset(tiny_preset, ("wave",))


def test_a_video_has_the_shape_of_the_picture_that_it_is_given(pipe: LatentFlowPipeline) -> None:
    picture = noise(90, 160)
    out = pipe(picture, "wave", fit="native", generator=0, num_inference_steps=2, output_type="uint8")
    assert np.asarray(out.frames).shape == (1, 4, 32, 48, 3)
    assert out.motion.size == (16, 24)
    still = pipe(picture, "wave", fit="native", motion_strength=0, generator=0, num_inference_steps=2, output_type="uint8")
    fitted = fit_frames(picture[None], (32, 48), "stretch")[0]
    assert np.abs(np.asarray(still.frames)[0].astype(int) - fitted).max() <= 1
    square = pipe(picture, "wave", generator=0, num_inference_steps=2, output_type="uint8")
    assert np.asarray(square.frames).shape == (1, 4, 32, 32, 3)


def test_a_mask_a_motion_and_a_driving_clip_follow_the_pictures_shape(pipe: LatentFlowPipeline) -> None:
    picture, mask = noise(90, 160), np.zeros((90, 160), np.uint8)
    mask[:, 80:] = 255
    stage1 = Stage1Pipeline(pipe.autoencoder, image_size=32)
    driving = np.stack([noise(45, 80, seed) for seed in range(3)])
    moved = stage1.transfer(picture, driving, fit="native", motion_mask=mask, output_type="uint8")
    frames = np.asarray(moved.frames)[0]
    assert frames.shape == (3, 32, 48, 3)
    assert np.abs(frames[:, :, :22].astype(int) - frames[0, :, :22]).max() <= 1  # black in the mask stays still
    again = stage1.animate(noise(160, 90), moved.motion, fit="native", output_type="uint8")
    assert np.asarray(again.frames).shape == (1, 3, 48, 32, 3)  # motion is relative to the frame


def test_pictures_that_cannot_be_animated_are_refused(pipe: LatentFlowPipeline) -> None:
    with pytest.raises(UserError, match="image must be at least 16 pixels high and wide, to be animated; got '15x300'"):
        pipe(noise(15, 300), "wave")
    with pytest.raises(UserError, match="image must have one shape with fit='native'; got 90x160 and 160x90"):
        pipe([noise(90, 160), noise(160, 90)], "wave", fit="native")
    with pytest.raises(UserError, match="fit must be one of 'pad', 'crop', 'stretch', 'native'; got 'cover'"):
        pipe(noise(32, 32), "wave", fit="cover")  # pyright: ignore[reportArgumentType]


def test_a_model_of_rectangles_keeps_its_size(tiny_preset: Preset, tmp_path: Path) -> None:
    made = LatentFlowPipeline.from_preset(replace(tiny_preset, image_size="32x48"), ("wave",))
    made.save_pretrained(tmp_path / "model")
    assert json.loads((tmp_path / "model/model_index.json").read_text())["image_size"] == [32, 48]
    loaded = LatentFlowPipeline.from_pretrained(tmp_path / "model")
    assert (loaded.size, loaded.config["image_size"]) == ((32, 48), (32, 48))
    for fit in ("pad", "crop", "stretch"):
        out = loaded(noise(64, 64), "wave", fit=fit, generator=0, num_inference_steps=2, output_type="pt")
        assert isinstance(out.frames, torch.Tensor)
        assert out.frames.shape == (1, 4, 3, 32, 48)
    assert LatentFlowPipeline.from_preset(tiny_preset).config["image_size"] == 32


@pytest.mark.parametrize("size", ["32x40x8", (32, 36), 8, 0, -32, 33, "wide", 5000])
def test_sizes_that_a_model_cannot_have_are_refused(tiny_preset: Preset, pipe: LatentFlowPipeline, size: object) -> None:
    with pytest.raises(UserError, match=r"^image_size must be .*got "):
        replace(tiny_preset, image_size=size)
    with pytest.raises(UserError, match=r"^image_size must be .*got "):
        LatentFlowPipeline(**{**pipe.components, "image_size": size})


def test_a_size_whose_motion_has_less_than_8_cells_is_refused(tiny_paper_preset: Preset) -> None:
    """Its motion has stride 4, and its networks take multiples of 16."""
    with pytest.raises(UserError, match=r"image_size must be a multiple of 16 .* at least 32, .*got 16"):
        replace(tiny_paper_preset, image_size=16)
