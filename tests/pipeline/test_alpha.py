"""Pictures with alpha: their frames have alpha, from Python and from the command line's writers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lfdm import LatentFlowPipeline, Motion
from lfdm.config.presets import Preset
from lfdm.data.alpha import add_alpha, compose, premultiply
from lfdm.data.images import read_image
from lfdm.errors import UserError
from lfdm.pipeline.inputs import fit_images, read_images

SIZE = 32
RED = (230, 20, 40)


@pytest.fixture(scope="module")
def pipe(tiny_preset: Preset) -> LatentFlowPipeline:
    return LatentFlowPipeline.from_preset(tiny_preset, ("wave",))


def sprite(height: int = SIZE, width: int = SIZE) -> np.ndarray:
    """A red disc with a soft edge; invisible pixels are green, a colour that must never show. (height, width, 4) uint8."""
    y, x = np.indices((height, width)) + 0.5
    alpha = np.clip(255 * (0.3 * min(height, width) - np.hypot(y - height / 2, x - width / 2)), 0, 255)
    rgba = np.dstack([np.where(alpha[..., None] > 0, RED, (0, 255, 0)), alpha])
    return rgba.astype(np.uint8)


def still(num_frames: int, *, shift: float = 0.0, occlusion: float = 1.0) -> Motion:
    flow = torch.zeros(1, 2, num_frames, SIZE // 2, SIZE // 2)
    flow[:, 0, 1:] = shift
    return Motion(flow, torch.full((1, 1, num_frames, SIZE // 2, SIZE // 2), occlusion), corners=False)


def test_forms_of_output_have_four_channels(pipe: LatentFlowPipeline) -> None:
    kwargs: dict[str, Any] = {"num_inference_steps": 2, "num_frames": 3, "generator": 0}
    images = pipe(sprite(), "wave", num_videos=2, **kwargs).frames
    assert isinstance(images, list)
    assert {image.mode for sample in images for image in sample} == {"RGBA"}
    array = pipe(Image.fromarray(sprite()), "wave", output_type="np", **kwargs).frames
    assert isinstance(array, np.ndarray)
    assert array.shape == (1, 3, SIZE, SIZE, 4)
    bytes_ = pipe(sprite().astype(np.float32) / 255, "wave", output_type="uint8", **kwargs).frames
    assert np.array_equal(np.rint(array * 255).astype(np.uint8), np.asarray(bytes_))
    tensor = pipe(torch.from_numpy(sprite()).permute(2, 0, 1), "wave", output_type="pt", **kwargs).frames
    assert isinstance(tensor, torch.Tensor)
    assert tensor.shape == (1, 3, 4, SIZE, SIZE)
    assert torch.equal(tensor, torch.from_numpy(array).permute(0, 1, 4, 2, 3))


@pytest.mark.parametrize("opaque", [sprite()[..., :3], add_alpha(sprite()[..., :3])])
def test_opaque_pictures_give_three_channels(pipe: LatentFlowPipeline, opaque: np.ndarray) -> None:
    output = pipe.animate(opaque, still(2), output_type="uint8")
    for video in (output.frames, output.warped):
        assert isinstance(video, np.ndarray)
        assert video.shape == (1, 2, SIZE, SIZE, 3)
        assert np.array_equal(video[0, 1], opaque[..., :3])


def test_without_keep_alpha_frames_are_those_of_the_picture_over_white(pipe: LatentFlowPipeline) -> None:
    motion = still(3, shift=0.1, occlusion=0.7)
    floats = torch.from_numpy(sprite().astype(np.float32) / 255).permute(2, 0, 1)
    plain = np.asarray(pipe.animate(compose(sprite()), motion, output_type="uint8").frames)
    for picture, tolerance in ((sprite(), 0), (floats, 1)):
        frames = np.asarray(pipe.animate(picture, motion, output_type="uint8", keep_alpha=False).frames)
        assert np.abs(frames.astype(int) - plain).max() <= tolerance


def test_alpha_does_not_change_the_motion(pipe: LatentFlowPipeline) -> None:
    """The networks see the picture over white, whether alpha is kept or not."""
    first, second = (pipe(sprite(), "wave", generator=3, num_inference_steps=2, keep_alpha=keep) for keep in (True, False))
    assert torch.allclose(first.motion.flow, second.motion.flow, atol=1e-3)  # one of them passes through 8 bits over white
    driving = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
    moved = [pipe.transfer(sprite(), driving, relative=False, keep_alpha=keep) for keep in (True, False)]
    assert torch.allclose(moved[0].motion.flow, moved[1].motion.flow, atol=1e-3)
    assert isinstance(moved[0].frames, list)
    assert moved[0].frames[0][0].mode == "RGBA"


def test_no_motion_returns_the_picture_with_its_alpha(pipe: LatentFlowPipeline) -> None:
    rgba = sprite()
    rgba[4:6, 4:20] = (10, 200, 30, 3)  # hardly visible pixels keep their colours, too
    output = pipe.animate(rgba, still(2), output_type="uint8")
    for video in (output.frames, output.warped):
        assert isinstance(video, np.ndarray)
        assert np.array_equal(video[0, 1, ..., 3], rgba[..., 3])
        visible = rgba[..., 3] > 0
        assert np.array_equal(video[0, 1][visible], rgba[visible])


@pytest.mark.parametrize("occlusion", [1.0, 0.6])
def test_no_colour_of_invisible_pixels_shows_at_moved_edges(pipe: LatentFlowPipeline, occlusion: float) -> None:
    frame = np.asarray(pipe.animate(sprite(), still(2, shift=1.5 / SIZE), output_type="uint8").warped)[0, 1]
    visible = frame[..., 3] > 0
    assert 0 < visible.sum() < visible.size
    assert np.abs(frame[visible][:, :3].astype(int) - RED).max() <= 1
    frames = pipe.animate(sprite(), still(2, shift=1.5 / SIZE, occlusion=occlusion), output_type="uint8").frames
    assert np.array_equal(np.asarray(frames)[0, 1, ..., 3], frame[..., 3])


def test_fitting_is_premultiplied_and_borders_are_transparent() -> None:
    images = fit_images(read_images(sprite(60, 100), keep_alpha=True), size=SIZE, fit="pad")
    assert images.premultiplied is not None
    premultiplied = images.premultiplied[0]
    assert not premultiplied[:, :5].any()
    assert premultiplied[1].max() < premultiplied[0].max() / 5  # none of the invisible green
    assert torch.allclose(images.over_white[0], premultiplied[:3] + 1 - premultiplied[3:])
    assert images.over_white[0, :, 0].min() == 1
    assert images.filled is not None
    assert images.filled[0, 1].max() < 0.5


def test_one_transparent_picture_of_several_gives_alpha_to_all(pipe: LatentFlowPipeline) -> None:
    frames = np.asarray(pipe.animate([sprite(), sprite()[..., :3]], still(2), output_type="uint8").frames)
    assert frames.shape == (2, 2, SIZE, SIZE, 4)
    assert np.array_equal(frames[1, 1], add_alpha(sprite()[..., :3]))


def test_outside_of_the_picture_frames_are_transparent(tiny_preset: Preset) -> None:
    preset = replace(tiny_preset, autoencoder=replace(tiny_preset.autoencoder, padding_mode="zeros"))
    pipe = LatentFlowPipeline.from_preset(preset, ("wave",))
    opaque_edge = sprite()
    opaque_edge[:, -8:, 3] = 255
    frames = np.asarray(pipe.animate(opaque_edge, still(2, shift=0.5), output_type="uint8").frames)
    assert not frames[0, 1, :, -4:, 3].any()


def test_tensors_of_other_channels_are_refused() -> None:
    for channels in (1, 2, 5):
        with pytest.raises(UserError, match=rf"\(4, H, W\).*{channels}"):
            read_images(torch.zeros(channels, 8, 8))


def test_a_preview_is_drawn_over_a_checkerboard(pipe: LatentFlowPipeline) -> None:
    preview = pipe.animate(sprite(), still(2)).show(("generated",))
    assert preview.frames.shape[-1] == 3
    assert (preview.frames[0, 30:, 10:] == 204).all(axis=-1).any()
    assert (preview.frames[0, 30:, 10:] == 153).all(axis=-1).any()


def test_files_are_written_with_alpha(pipe: LatentFlowPipeline, tmp_path: Path) -> None:
    from lfdm.pipeline.outputs import VideoFiles

    source = sprite()
    result = pipe.animate(source, still(2, shift=0.1), output_type="uint8")
    files = VideoFiles(out=tmp_path / "wave", panel=("source", "generated", "warped"), scale=2)
    assert not files.loses_alpha()
    paths = list(files.write(pipe, source, [result]))
    assert [path.name for path in paths] == ["wave", "wave-panel.gif"]
    frame = read_image(tmp_path / "wave" / "frame-00001.png", keep_alpha=True)
    expected = np.asarray(result.frames)[0, 1].repeat(2, axis=0).repeat(2, axis=1)
    assert np.array_equal(premultiply(frame), premultiply(expected))
