"""Frames in the picture's own size: its own pixels, moved."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lfdm import LatentFlowPipeline, Motion
from lfdm.config.presets import Preset
from lfdm.config.video import Fit, Size
from lfdm.data.fitting import fit_frames
from lfdm.errors import UserError
from lfdm.motion.guided_upsampling import MotionNodes, fit_nodes
from lfdm.pipeline import full_size
from lfdm.pipeline.full_size import FullSizePicture, frame_box

PICTURES = (Size(50, 90), Size(90, 50), Size(64, 64), Size(33, 47), Size(20, 21))
FITS: tuple[Fit, ...] = ("pad", "crop", "stretch")


@pytest.fixture(scope="module", params=["bilinear", "convex"])
def pipe(tiny_preset: Preset, request: pytest.FixtureRequest) -> LatentFlowPipeline:
    preset = replace(tiny_preset, autoencoder=replace(tiny_preset.autoencoder, upsampling=request.param))
    made = LatentFlowPipeline.from_preset(preset, ("wave",))
    made.set_progress_bar_config(disable=True)
    return made


def random_picture(size: Size, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*size, channels), dtype=np.uint8)


def motion_of(pipe: LatentFlowPipeline, shift: float, frames: int = 2) -> Motion:
    """A shift to the left by `shift` half frames from frame 1 on, on the grid of the pipeline's motion."""
    cells = pipe.size.cells(pipe.autoencoder.stride)
    motion = Motion.identity(1, frames, cells, corners=pipe.autoencoder.corners)
    if pipe.autoencoder.corners:
        motion = replace(motion, offset=torch.zeros_like(motion.occlusion))
    flow = motion.flow.clone()
    flow[:, 0, 1:] = shift
    return replace(motion, flow=flow)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("picture", PICTURES)
def test_the_box_is_where_fitting_puts_the_picture(picture: Size, fit: Fit) -> None:
    size = Size(24, 32)
    ramp = np.stack(np.broadcast_arrays(np.arange(picture.height)[:, None], np.arange(picture.width)[None], 255), axis=-1)
    fitted = fit_frames(ramp[None].astype(np.uint8), size, fit)[0].astype(float)
    inside = fitted[..., 2] == 255
    box = frame_box(picture, size, fit)
    rows, columns = (box.top + (np.arange(24) + 0.5) * box.height / 24, box.left + (np.arange(32) + 0.5) * box.width / 32)
    shown = ((rows > 0) & (rows < picture.height))[:, None] & ((columns > 0) & (columns < picture.width))[None]
    assert np.array_equal(inside, shown)
    y, x = np.broadcast_arrays(rows[:, None] - 0.5, columns[None] - 0.5)
    inner = inside & (y > 1) & (y < picture.height - 2) & (x > 1) & (x < picture.width - 2)
    assert np.abs(fitted[..., 0] - y)[inner].max() < 1.01  # 0.5 of rounding, 0.5 of an uneven average
    assert np.abs(fitted[..., 1] - x)[inner].max() < 1.01


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("picture", PICTURES)
def test_no_motion_gives_the_picture_itself(pipe: LatentFlowPipeline, picture: Size, channels: int, fit: Fit) -> None:
    image = random_picture(picture, channels)
    output = pipe.animate(image, motion_of(pipe, 0.3), motion_strength=0, fit=fit, output_size="native", output_type="uint8")
    assert isinstance(output.frames, np.ndarray)
    for frame in output.frames[0]:
        assert np.array_equal(frame, image)


def test_a_call_at_strength_zero_returns_a_float_picture_bit_for_bit(pipe: LatentFlowPipeline) -> None:
    image = torch.rand(3, 37, 61)
    output = pipe(image, "wave", motion_strength=0, num_frames=3, output_size="native", output_type="pt", generator=0)
    assert isinstance(output.frames, torch.Tensor)
    assert output.frames.shape == (1, 3, 3, 37, 61)
    assert torch.equal(output.frames[0], image.expand(3, -1, -1, -1))


def smooth_picture(size: Size) -> np.ndarray:
    y, x = np.mgrid[: size.height, : size.width]
    wave = np.stack([np.sin(x / 9), np.cos(y / 11), np.sin((x + y) / 13)], axis=-1)
    return np.rint(127 + 100 * wave).astype(np.uint8)


@pytest.mark.parametrize(("fit", "pixels"), [("pad", 0.25 * 96 / 2), ("stretch", 0.25 * 96 / 2)])
def test_flow_is_in_units_of_the_frame_whatever_the_fit(pipe: LatentFlowPipeline, fit: Fit, pixels: float) -> None:
    image, shift = smooth_picture(Size(60, 96)), round(pixels)
    output = pipe.animate(image, motion_of(pipe, 0.25), fit=fit, output_size="native", output_type="uint8")
    assert isinstance(output.warped, np.ndarray)
    moved = output.warped[0, 1].astype(int)
    assert np.abs(moved[4:-4, 4 : -shift - 8] - image[4:-4, shift + 4 : -8]).max() <= 3


@pytest.mark.parametrize("fit", FITS)
def test_drawings_get_the_motion_over_the_whole_picture(pipe: LatentFlowPipeline, fit: Fit) -> None:
    image = smooth_picture(Size(60, 96))
    output = pipe.animate(image, motion_of(pipe, 0.25), fit=fit, output_size="native", output_type="uint8")
    drawn = output.motion_over_frames(0)
    assert drawn.size[1] / drawn.size[0] == pytest.approx(60 / 60 if fit == "stretch" else 96 / 60, rel=0.2)
    middle = drawn.size[0] // 2, drawn.size[1] // 2
    assert float(drawn.flow[0, 0, 1][middle]) * 96 / 2 == pytest.approx(0.25 * (60 if fit == "crop" else 96) / 2)
    preview = output.show(["flow", "generated"])
    assert preview.frames.shape[1:3] == (16 + 2 * 60, 2 * 2 * 96 + 4)


def test_outside_a_crop_nothing_moves_and_the_motion_ends_smoothly(pipe: LatentFlowPipeline) -> None:
    image = smooth_picture(Size(60, 150))
    output = pipe.animate(image, motion_of(pipe, 0.2), fit="crop", output_size="native", output_type="uint8")
    assert isinstance(output.frames, np.ndarray)
    frame = output.frames[0, 1]
    assert np.array_equal(frame[:, :45], image[:, :45])
    assert np.array_equal(frame[:, 105:], image[:, 105:])
    picture = FullSizePicture.prepare(image, pipe.size, "crop", torch.device("cpu"))
    flow = picture.held_at_edges(motion_of(pipe, 0.2)).flow[0, 0, 1]
    assert flow[:, 0].abs().max() == 0
    assert flow[:, -1].abs().max() == 0
    assert flow[0, flow.shape[1] // 2] > 0  # the picture does not go on above


def test_learned_upsampling_makes_motion_finer_for_full_size_frames(
    pipe: LatentFlowPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def spy(motion: Motion, image: torch.Tensor, frames: torch.Tensor, size: tuple[int, int]) -> list[MotionNodes]:
        seen.append((motion.size, size))
        return fit_nodes(motion, image, frames, size)

    monkeypatch.setattr(full_size, "fit_nodes", spy)
    pipe.animate(smooth_picture(Size(48, 80)), motion_of(pipe, 0.2), output_size="native", output_type="uint8")
    cells = pipe.size.cells(pipe.autoencoder.stride)
    coarse = (cells, (2 * cells.height, 2 * cells.width))
    learned = (pipe.size, (4 * cells.height, 4 * cells.width))
    assert seen == [learned if pipe.autoencoder.upsampler is not None else coarse]


def test_transfer_makes_frames_of_the_pictures_size(pipe: LatentFlowPipeline) -> None:
    driving = np.random.default_rng(1).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
    done: list[int] = []
    output = pipe.transfer(
        random_picture(Size(45, 70)), driving, output_size="native", output_type="uint8", callback_on_decode=done.append
    )
    assert isinstance(output.frames, np.ndarray)
    assert output.frames.shape == (1, 3, 45, 70, 3)
    assert np.array_equal(output.frames[0, 0], random_picture(Size(45, 70)))
    assert done == [1, 2, 3]


def test_frames_do_not_depend_on_tiles_and_batches(pipe: LatentFlowPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    image = smooth_picture(Size(48, 80))

    def frames(**settings: object) -> np.ndarray:
        made = pipe(image, "wave", num_frames=3, output_size="native", output_type="np", **settings).frames  # pyright: ignore[reportArgumentType]
        assert isinstance(made, np.ndarray)
        return made

    one, two = frames(generator=5), frames(generator=[5, 6], num_videos=2)
    assert two.shape == (2, 3, 48, 80, 3)
    assert np.abs(two[0] - one[0]).max() < 2e-3
    monkeypatch.setattr("lfdm.pipeline.full_size.TILE_POINTS", 500)
    assert np.abs(frames(generator=5) - one).max() < 1e-5


def test_wrong_values_name_their_field(pipe: LatentFlowPipeline) -> None:
    image = random_picture(Size(40, 60))
    with pytest.raises(UserError, match=r"output_size.*'huge'"):
        pipe(image, "wave", output_size="huge")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=r"0\.002 megapixels.*40x60.*max_megapixels"):
        pipe(image, "wave", output_size="native", max_megapixels=0.002)
    with pytest.raises(UserError, match=r"max_megapixels.*-1"):
        pipe(image, "wave", output_size="native", max_megapixels=-1)
    with pytest.raises(UserError, match=r"output_size.*pixel_art"):
        pipe(image, "wave", output_size="native", pixel_art=True)
    with pytest.raises(UserError, match=r"one size.*20x30, 40x60"):
        pipe([image, random_picture(Size(20, 30))], "wave", output_size="native")
