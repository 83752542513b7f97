"""Frames of pixel art: the picture's own size, pixels and colours."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lfdm import LatentFlowPipeline, Motion
from lfdm.config.presets import Preset
from lfdm.errors import UserError
from lfdm.pipeline.pixel_art import PixelArt

SIZE = 32


@pytest.fixture(scope="module")
def pipe(tiny_preset: Preset) -> LatentFlowPipeline:
    return LatentFlowPipeline.from_preset(tiny_preset, ("wave",))


def sprite(height: int = SIZE, width: int = SIZE, channels: int = 4) -> np.ndarray:
    """Blocks of a few colours; with alpha, a margin of a quarter is transparent. (height, width, channels) uint8."""
    y, x = np.indices((height, width))
    colours = np.array([(200, 30, 40), (20, 90, 200), (250, 240, 10), (0, 0, 0), (90, 200, 90)], np.uint8)
    picture = np.dstack([colours[(x // 3 + 2 * (y // 2)) % 5], np.full((height, width), 255, np.uint8)])
    picture[: height // 4, :, 3] = picture[:, : width // 4, 3] = 0
    return picture[..., :channels]


def colours_of(frames: np.ndarray) -> set[tuple[int, ...]]:
    visible = frames[frames[..., 3] > 0] if frames.shape[-1] == 4 else frames.reshape(-1, 3)
    return {tuple(colour) for colour in np.unique(visible[:, :3], axis=0)}


def moved(num_frames: int, pixels: float, occlusion: float = 1.0) -> Motion:
    """Content that moves to the left by `pixels` of the model's frame."""
    cells = SIZE // 2
    flow = torch.zeros(1, 2, num_frames, cells, cells)
    flow[:, 0, 1:] = 2 * pixels / SIZE
    return Motion(flow, torch.full((1, 1, num_frames, cells, cells), occlusion), corners=False)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (16, 16), (15, 9), (7, 5), (24, 20), (40, 64), (50, 33)])
@pytest.mark.parametrize("channels", [3, 4])
def test_frames_have_the_size_and_colours_of_the_picture(
    pipe: LatentFlowPipeline, height: int, width: int, channels: int
) -> None:
    picture = sprite(height, width, channels)
    frames = pipe(picture, "wave", num_inference_steps=2, generator=0, output_type="uint8", pixel_art=True).frames
    assert isinstance(frames, np.ndarray)
    assert frames.shape == (1, 4, height, width, channels)
    assert colours_of(frames) <= colours_of(picture)
    if channels == 4:
        assert set(np.unique(frames[..., 3])) <= {0, 255}


@pytest.mark.parametrize(("side", "shift"), [(32, 3), (16, 3), (8, 1), (64, 6)])
def test_pixels_are_the_source_pixels_that_the_motion_points_at(pipe: LatentFlowPipeline, side: int, shift: int) -> None:
    picture = sprite(side, side)
    output = pipe.animate(picture, moved(3, shift * SIZE / side), output_type="uint8", pixel_art=True)
    for video in (output.frames, output.warped):
        frames = np.asarray(video)[0]
        assert np.array_equal(frames[0], picture)
        assert np.array_equal(frames[1, :, : side - shift], picture[:, shift:])


def test_drawings_get_the_motion_of_the_picture_in_its_canvas(pipe: LatentFlowPipeline) -> None:
    output = pipe.animate(sprite(40, 64), moved(3, 4), output_type="uint8", pixel_art=True)  # on a canvas of 64x64
    motion = output.motion_over_frames(0)
    assert motion.size == (SIZE // 2 * 40 // 64, SIZE // 2)
    assert float(motion.flow[0, 0, 1, 3, 3]) * 64 / 2 == pytest.approx(4 * 64 / SIZE)
    assert output.show(["flow"]).frames.shape[1:3] == (16 + 3 * 40, 3 * 64)


def test_inpainted_pixels_take_the_nearest_colour_and_alpha_stays(pipe: LatentFlowPipeline) -> None:
    picture = sprite()
    frames = np.asarray(pipe.animate(picture, moved(2, 0, occlusion=0.1), output_type="uint8", pixel_art=True).frames)[0]
    assert np.array_equal(frames[1, ..., 3], picture[..., 3])
    assert not np.array_equal(frames[1], picture)
    assert colours_of(frames) <= colours_of(picture)


def test_transfer_and_several_videos(pipe: LatentFlowPipeline) -> None:
    driving = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
    frames = pipe.transfer(sprite(20, 20), driving, pixel_art=True).frames
    assert isinstance(frames, list)
    assert (frames[0][2].mode, frames[0][2].size) == ("RGBA", (20, 20))
    pictures = [sprite(20, 20), np.flip(sprite(20, 20), axis=2).copy()]
    kwargs: dict[str, Any] = {"num_inference_steps": 1, "generator": [0, 1, 2, 3], "num_videos": 2, "output_type": "uint8"}
    many = np.asarray(pipe(pictures, "wave", pixel_art=True, **kwargs).frames)
    assert many.shape == (4, 4, 20, 20, 4)
    assert np.array_equal(many[:, 0][[0, 2]][..., 3], np.stack(pictures)[..., 3])
    assert colours_of(many[2:]) <= colours_of(pictures[1])


def test_a_canvas_is_a_whole_multiple_or_fraction_of_the_model() -> None:
    for picture, size, canvas, factor in (
        ((64, 64), (64, 64), (64, 64), 1),
        ((32, 20), (64, 64), (32, 32), 2),
        ((17, 9), (64, 64), (32, 32), 2),
        ((16, 16), (64, 64), (16, 16), 4),
        ((65, 10), (64, 64), (128, 128), 1),
        ((20, 30), (64, 96), (32, 48), 2),
        ((100, 300), (64, 96), (256, 384), 1),
    ):
        art = PixelArt.place([np.zeros((*picture, 3), np.uint8)], size)
        assert (art.canvases.shape[1:3], art.factor) == (canvas, factor)
        assert art.enlarged()[0].shape[0] % size[0] == 0


def test_what_is_no_pixel_art_is_refused(pipe: LatentFlowPipeline) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE * 8, 3), np.uint8)
    with pytest.raises(UserError, match=r"at most 4096 colours.*8\d\d\d"):
        pipe.animate(photo, moved(2, 0), pixel_art=True)
    with pytest.raises(UserError, match="one size"):
        pipe([sprite(), sprite(16, 16)], "wave", pixel_art=True)
    mask = Image.new("L", (20, 20), 255)
    with pytest.raises(UserError, match="motion_mask"):
        pipe.animate(sprite(20, 20), moved(2, 0), motion_mask=mask, pixel_art=True)
    still = np.zeros((SIZE, SIZE), np.uint8)
    frames = pipe.animate(sprite(), moved(2, 3), motion_mask=still, output_type="uint8", pixel_art=True).frames
    assert np.array_equal(np.asarray(frames)[0, 1], sprite())
