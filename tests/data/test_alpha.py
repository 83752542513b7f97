"""Transparency: arithmetic, and clips with alpha in every format, read by ourselves, Pillow and PyAV."""

import io
from pathlib import Path
from typing import cast

import av
import numpy as np
import pytest
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext
from PIL import Image, ImageSequence

from lfdm.data.alpha import add_alpha, compose, fill_invisible, premultiply, unpremultiply
from lfdm.data.encoding import FILE_SUFFIXES
from lfdm.data.images import read_image
from lfdm.data.video import read_video, write_video
from lfdm.errors import UserError

ORANGE = (255, 140, 0)


def moving_disc(t: int = 5, height: int = 34, width: int = 48) -> np.ndarray:
    """An orange disc with a soft edge and a half transparent bar; invisible pixels are black. (t, height, width, 4) uint8."""
    frames = np.zeros((t, height, width, 4), np.uint8)
    y, x = np.indices((height, width))
    for k, frame in enumerate(frames):
        distance = np.hypot(y - 16, x - 14 - 4 * k)
        frame[..., 3] = np.clip(255 * (10.5 - distance), 0, 255)
        frame[28:32, 4:44] = (*ORANGE, 128)
        frame[..., :3] = np.where(frame[..., 3:] > 0, ORANGE, 0)
    return frames


def premultiplied_error(read: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Absolute differences of the premultiplied colours and alpha, as they are seen over any background."""
    return np.abs(premultiply(read).astype(int) - premultiply(frames))


def test_premultiplying_and_back_keeps_visible_pixels() -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (40, 40, 4), np.uint8)
    rgba[..., 3] |= 128
    assert np.abs(unpremultiply(premultiply(rgba)).astype(int) - rgba).max() <= 1
    opaque = np.dstack([rgba[..., :3], np.full((40, 40), 255, np.uint8)])
    assert np.array_equal(unpremultiply(premultiply(opaque)), opaque)
    assert not unpremultiply(premultiply(rgba * np.array([1, 1, 1, 0], np.uint8))).any()


def test_composing_mixes_with_the_background() -> None:
    rgba = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 51]]], np.uint8)
    assert compose(rgba).tolist() == [[[200, 100, 0], [255, 255, 255], [244, 224, 204]]]
    assert compose(rgba, np.array([10, 20, 30])).tolist() == [[[200, 100, 0], [10, 20, 30], [48, 36, 24]]]
    assert np.array_equal(compose(add_alpha(rgba[..., :3])), rgba[..., :3])


@pytest.mark.parametrize("size", [(1, 1), (7, 13), (32, 32)])
def test_invisible_pixels_take_the_colours_around_them(size: tuple[int, int]) -> None:
    rgba = np.zeros((*size, 4), np.uint8)
    assert np.array_equal(fill_invisible(rgba), rgba)
    rgba[0, 0], rgba[-1, -1] = (*ORANGE, 255), (*ORANGE, 3)
    filled = fill_invisible(rgba)
    assert np.array_equal(filled[..., 3], rgba[..., 3])
    assert (filled[..., :3] == ORANGE).all()


# -------------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize(
    ("name", "lossless"), [("clip", False), ("clip.apng", False), ("clip.webp", True), ("clip.avi", False), ("clip.mov", True)]
)
def test_exact_formats_give_back_visible_pixels_and_alpha(tmp_path: Path, name: str, lossless: bool) -> None:
    frames = moving_disc()
    read = read_video(write_video(tmp_path / name, frames, fps=8, lossless=lossless), keep_alpha=True)
    assert read.shape == frames.shape
    assert np.array_equal(read[..., 3], frames[..., 3])
    assert premultiplied_error(read, frames).max() == 0
    assert np.array_equal(read_video(tmp_path / name), compose(frames))


@pytest.mark.parametrize(("name", "alpha_tolerance", "tolerance"), [("clip.webm", 0.6, 2.0), ("clip.mov", 0.6, 1.0)])
def test_lossy_formats_keep_alpha_and_draw_no_dark_edge(
    tmp_path: Path, name: str, alpha_tolerance: float, tolerance: float
) -> None:
    frames = moving_disc()
    read = read_video(write_video(tmp_path / name, frames, fps=8), keep_alpha=True)
    error = premultiplied_error(read, frames)
    assert error[..., 3].mean() < alpha_tolerance
    assert error[..., :3].mean() < tolerance
    edge = (frames[..., 3] > 64) & (frames[..., 3] < 255)
    assert np.abs(read[edge][:, :3].astype(int) - ORANGE).max() < 24  # the black of invisible pixels would give 100 and more


def test_lossy_webp_keeps_alpha(tmp_path: Path) -> None:
    frames = moving_disc()
    read = read_video(write_video(tmp_path / "clip.webp", frames, fps=8), keep_alpha=True)
    assert np.array_equal(read[..., 3], frames[..., 3])
    assert premultiplied_error(read, frames).mean() < 2


def test_gif_keeps_which_pixels_are_visible(tmp_path: Path) -> None:
    frames = moving_disc()
    frames[3] = frames[2]  # equal frames become one that lasts longer
    frames[4, ..., 3] = 0
    path = write_video(tmp_path / "clip.gif", frames, fps=10)
    visible = frames[..., 3] >= 128
    read = read_video(path, keep_alpha=True)
    assert np.array_equal(read[..., 3], np.where(visible, 255, 0))
    assert (read[visible][:, :3] == ORANGE).all()
    with Image.open(path) as image:
        alphas = [np.asarray(frame.convert("RGBA"))[..., 3] for frame in ImageSequence.Iterator(image)]
    assert np.array_equal(np.stack(alphas), read[[0, 1, 2, 4], ..., 3])


def test_gif_with_many_colours_keeps_one_for_invisible_pixels(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 24, 24, 4), np.uint8)
    read = read_video(write_video(tmp_path / "clip.gif", frames, fps=10), keep_alpha=True)
    assert np.array_equal(read[..., 3], np.where(frames[..., 3] >= 128, 255, 0))


@pytest.mark.parametrize("lossless", [False, True])
def test_mp4_is_composed_over_white(tmp_path: Path, lossless: bool) -> None:
    frames = moving_disc()
    read = read_video(write_video(tmp_path / "clip.mp4", frames, fps=8, lossless=lossless), keep_alpha=True)
    assert (read[..., 3] == 255).all()
    assert np.abs(read[..., :3].astype(int) - compose(frames)).mean() < 4  # yuv420p blurs the edge


def test_lossless_webm_with_alpha_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lossless.*webm"):
        write_video(tmp_path / "clip.webm", moving_disc(), fps=8, lossless=True)


@pytest.mark.parametrize("suffix", sorted({*FILE_SUFFIXES, ".gif", ".apng", ".webp", ""}))
def test_opaque_clips_stay_opaque(tmp_path: Path, suffix: str) -> None:
    frames = moving_disc()[..., :3]
    read = read_video(write_video(tmp_path / f"clip{suffix}", frames, fps=10), keep_alpha=True)
    assert read.shape == (*frames.shape[:3], 4)
    assert (read[..., 3] == 255).all()
    assert np.array_equal(read[..., :3], read_video(tmp_path / f"clip{suffix}"))


def test_pillow_reads_alpha_of_animations(tmp_path: Path) -> None:
    frames = moving_disc()
    for name in ("clip.apng", "clip.webp"):
        with Image.open(write_video(tmp_path / name, frames, fps=8, lossless=name.endswith("webp"))) as image:
            read = [np.asarray(frame.convert("RGBA")) for frame in ImageSequence.Iterator(image)]
        assert premultiplied_error(np.stack(read), frames).max() == 0, name


@pytest.mark.parametrize(
    ("name", "decoder", "pixel_format"),
    [("clip.webm", "libvpx-vp9", "yuva420p"), ("clip.mov", "prores", "yuva444p"), ("clip.avi", "ffv1", "bgra")],
)
def test_files_say_that_they_hold_alpha(tmp_path: Path, name: str, decoder: str, pixel_format: str) -> None:
    path = write_video(tmp_path / name, moving_disc(), fps=8)
    with cast(InputContainer, av.open(io.BytesIO(path.read_bytes()))) as file:
        stream = file.streams.video[0]
        assert stream.metadata.get("alpha_mode", stream.metadata.get("ALPHA_MODE", "1")) == "1"
        context = cast(VideoCodecContext, av.CodecContext.create(decoder, "r"))
        if stream.codec_context.extradata:
            context.extradata = stream.codec_context.extradata
        context.width, context.height = stream.width, stream.height
        frames = [frame for packet in file.demux(stream) for frame in context.decode(packet)]
    assert len(frames) == 5
    assert frames[0].format.name.startswith(pixel_format)


def test_pictures_keep_alpha_only_where_they_are_not_opaque(tmp_path: Path) -> None:
    rgba = moving_disc(1)[0]
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    Image.fromarray(add_alpha(rgba[..., :3])).save(tmp_path / "opaque.png")
    Image.fromarray(rgba).quantize(64).save(tmp_path / "palette.png")
    assert np.array_equal(read_image(tmp_path / "rgba.png", keep_alpha=True), rgba)
    assert np.array_equal(read_image(rgba, keep_alpha=True), rgba)
    assert np.array_equal(read_image(tmp_path / "rgba.png"), compose(rgba))
    assert np.array_equal(read_image(tmp_path / "opaque.png", keep_alpha=True), rgba[..., :3])
    assert read_image(tmp_path / "palette.png", keep_alpha=True).shape == rgba.shape
