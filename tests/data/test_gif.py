"""GIFs and other animations: frames composed as browsers show them, read at the rate they were written at."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from lfdm.data.gif_blocks import read_gif_layout
from lfdm.data.images import read_gray, read_image
from lfdm.data.timing import constant_rate
from lfdm.data.video import read_video, video_info, write_video
from lfdm.errors import UserError

RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)


def gif_frame(
    colour: int, box: tuple[int, int, int, int], *, disposal: int = 0, transparent: int | None = None, ticks: int = 10
) -> bytes:
    """A frame of one palette index in the rectangle (left, top, width, height)."""
    left, top, width, height = box
    buffer = io.BytesIO()
    Image.new("L", (width, height), colour).save(buffer, "GIF", optimize=False)  # a grey palette; only the indices are used
    buffer.seek(0)
    layout = read_gif_layout(buffer)
    assert layout is not None
    data = buffer.getvalue()[layout.frames[0].start : layout.frames[0].end]
    flags = disposal << 2 | (transparent is not None)
    control = b"!\xf9\x04" + struct.pack("<BHB", flags, ticks, transparent or 0) + b"\0"
    return control + b"," + struct.pack("<HHHHB", left, top, width, height, 0) + data


def write_gif(path: Path, *frames: bytes, screen: tuple[int, int] = (4, 4), background: int = 1) -> Path:
    """A GIF with the palette black, red, green, blue."""
    palette = bytes((0, 0, 0, *RED, *GREEN, 0, 0, 255))
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x81, background, 0)
    path.write_bytes(head + palette + b"".join(frames) + b";")
    return path


def pixels(frame: np.ndarray, *positions: tuple[int, int]) -> list[tuple[int, ...]]:
    return [tuple(frame[position].tolist()) for position in positions]


# ----------------------------------------------------------------------------------------------------------- composing


def test_clearing_leaves_a_transparent_rectangle_whatever_the_background_colour(tmp_path: Path) -> None:
    path = write_gif(tmp_path / "a.gif", gif_frame(2, (0, 0, 2, 4), disposal=2), gif_frame(1, (2, 0, 2, 2)))
    first, second = read_video(path)
    assert pixels(first, (0, 0), (0, 3)) == [GREEN, WHITE]
    assert pixels(second, (0, 0), (0, 3), (3, 3)) == [WHITE, RED, WHITE]


def test_restoring_brings_back_what_a_frame_covered(tmp_path: Path) -> None:
    for disposal in (3, 4):
        frames = gif_frame(1, (0, 0, 4, 4), disposal=1), gif_frame(2, (0, 0, 2, 2), disposal=disposal), gif_frame(2, (3, 3, 1, 1))
        _, second, third = read_video(write_gif(tmp_path / "a.gif", *frames))
        assert pixels(second, (0, 0), (3, 3)) == [GREEN, RED]
        assert pixels(third, (0, 0), (3, 3)) == [RED, GREEN]


def test_transparent_pixels_keep_what_is_below_and_disposal_does_not_carry_over(tmp_path: Path) -> None:
    frames = gif_frame(1, (0, 0, 4, 4), disposal=2), gif_frame(2, (0, 0, 2, 2)), gif_frame(3, (0, 0, 4, 4), transparent=3)
    _, second, third = read_video(write_gif(tmp_path / "a.gif", *frames))
    assert pixels(second, (0, 0), (3, 3)) == [GREEN, WHITE]
    assert np.array_equal(second, third)


def test_later_frames_are_clipped_to_the_screen(tmp_path: Path) -> None:
    frames = (
        gif_frame(1, (0, 0, 4, 4)),
        gif_frame(2, (2, 2, 30, 40)),
        gif_frame(3, (60_000, 60_000, 9, 9)),
        gif_frame(3, (4, 0, 1, 1)),
    )
    path = write_gif(tmp_path / "a.gif", *frames)
    read = read_video(path)
    assert read.shape == (4, 4, 4, 3)
    assert (video_info(path).width, video_info(path).height) == (4, 4)
    assert pixels(read[1], (1, 1), (2, 2), (3, 3)) == [RED, GREEN, GREEN]
    assert np.array_equal(read[1], read[2])
    assert np.array_equal(read[1], read[3])


def test_the_screen_grows_to_hold_the_first_frame(tmp_path: Path) -> None:
    path = write_gif(tmp_path / "a.gif", gif_frame(1, (1, 0, 5, 7)), gif_frame(2, (0, 0, 9, 9)), screen=(0, 0))
    assert read_video(path).shape == (2, 7, 6, 3)


def test_a_picture_is_the_first_frame_over_white(tmp_path: Path) -> None:
    path = write_gif(tmp_path / "a.gif", gif_frame(1, (0, 0, 2, 4)), gif_frame(2, (0, 0, 4, 4)))
    assert pixels(read_image(path), (0, 0), (0, 3)) == [RED, WHITE]
    assert read_gray(path)[0].tolist() == [76, 76, 0, 0]


def test_opaque_whole_frames_are_read_as_pillow_does(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = [Image.fromarray(rng.integers(0, 256, (9, 13, 3), dtype=np.uint8)) for _ in range(4)]
    for mode in ("RGB", "L", "P", "1"):
        for interlace in (0, 1):
            first, *rest = [frame.convert(mode) for frame in frames]
            first.save(tmp_path / "a.gif", save_all=True, append_images=rest, interlace=interlace)
            with Image.open(tmp_path / "a.gif") as image:
                expected = np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)])
            assert np.array_equal(read_video(tmp_path / "a.gif"), expected)


@pytest.mark.parametrize("cut", [10, 15, 29, 35, 50, 60])
def test_a_gif_that_ends_early_is_broken(tmp_path: Path, cut: int) -> None:
    path = write_gif(tmp_path / "a.gif", gif_frame(1, (0, 0, 40, 40)), screen=(40, 40))
    assert len(path.read_bytes()) > cut
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"a\.gif: broken"):
        read_video(path)
    with pytest.raises(UserError, match=r"a\.gif: broken"):
        read_image(path)


# -------------------------------------------------------------------------------------------------------------- timing


@pytest.mark.parametrize("fps", [8, 9, 12.5, 15, 24, 29.97, *range(30, 51)])
@pytest.mark.parametrize("share_of_equal_frames", [0.0, 0.7])
def test_our_own_gifs_keep_their_frames_and_rate(tmp_path: Path, fps: float, share_of_equal_frames: float) -> None:
    rng = np.random.default_rng(round(fps))
    frames = rng.integers(0, 2, (24, 4, 4, 3), dtype=np.uint8) * np.uint8(255)
    for k in range(1, 24):
        if rng.random() < share_of_equal_frames:
            frames[k] = frames[k - 1]
    path = write_video(tmp_path / "a.gif", frames, fps=fps)
    assert video_info(path).fps == fps
    assert np.array_equal(read_video(path), frames)
    without_comment = path.read_bytes().replace(b"lfdm fps=", b"some fps=")
    path.write_bytes(without_comment)
    if share_of_equal_frames == 0:
        assert np.array_equal(read_video(path), frames)
        assert video_info(path).fps == pytest.approx(fps, rel=0.03)


def test_a_rate_stated_for_other_frame_times_is_ignored(tmp_path: Path) -> None:
    frames = np.arange(4, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2).repeat(3, 3) * 60
    path = write_video(tmp_path / "a.gif", frames, fps=10)
    path.write_bytes(path.read_bytes().replace(b"lfdm fps=10.0", b"lfdm fps=17.0"))
    assert (video_info(path).frames, video_info(path).fps) == (4, 10)


@pytest.mark.parametrize(
    ("ticks", "repeats"),
    [
        ([2, 3, 2, 3], [1, 1, 1, 1]),  # 40 frames per second, rounded down
        ([3, 2, 3, 2], [1, 1, 1, 1]),  # rounded up
        ([3, 2, 2, 3, 3, 2, 3, 3, 2, 2], [1] * 10),  # a recorder that measured
        ([2, 3, 5, 8, 2], [1, 1, 2, 3, 1]),  # equal frames merged
        ([10, 10, 30], [1, 1, 3]),
        ([4, 8, 6], [1, 2, 2]),
        ([1, 2, 5], [1, 2, 5]),
        ([7], [1]),
    ],
)
def test_frames_that_last_differently_become_a_constant_rate(ticks: list[int], repeats: list[int]) -> None:
    timing = constant_rate(ticks, ticks_per_second=100, width=1, height=1)
    assert timing.repeats == repeats
    assert timing.fps == pytest.approx(100 * sum(repeats) / sum(ticks))


# ---------------------------------------------------------------------------------------------- animated WebP and PNG


@pytest.mark.parametrize("suffix", [".webp", ".apng"])
@pytest.mark.parametrize("fps", [8, 24, 29.97, 60])
def test_animations_keep_frames_and_rate(tmp_path: Path, suffix: str, fps: float) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (9, 8, 10, 3), dtype=np.uint8)
    frames[4] = frames[5] = frames[3]
    path = write_video(tmp_path / f"a{suffix}", frames, fps=fps, lossless=True)
    info = video_info(path)
    assert (info.frames, info.height, info.width) == (9, 8, 10)
    assert info.fps == pytest.approx(fps, rel=0.03)
    assert np.array_equal(read_video(path), frames)


def test_a_lossy_webp_stays_close(tmp_path: Path) -> None:
    frames = np.linspace(0, 200, 3 * 16 * 16 * 3).reshape(3, 16, 16, 3).astype(np.uint8)
    assert np.abs(read_video(write_video(tmp_path / "a.webp", frames, fps=8)).astype(int) - frames).mean() < 6


@pytest.mark.parametrize("name", ["a.webp", "a.png"])
def test_animations_lie_over_white_and_last_as_long_as_their_frames(tmp_path: Path, name: str) -> None:
    frames = [Image.new("RGBA", (8, 8), (*colour, alpha)) for colour, alpha in ((RED, 255), (GREEN, 0), (RED, 255))]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=[40, 120, 40], lossless=True, disposal=1)
    read = read_video(tmp_path / name)
    assert [tuple(frame[0, 0]) for frame in read] == [RED, WHITE, WHITE, WHITE, RED]
    assert video_info(tmp_path / name).fps == 25


def test_the_picture_shown_instead_of_an_animation_is_no_frame_of_it(tmp_path: Path) -> None:
    still, *frames = [Image.new("RGB", (8, 8), colour) for colour in (WHITE, RED, GREEN)]
    still.save(tmp_path / "a.png", save_all=True, append_images=frames, duration=50, default_image=True)
    assert [tuple(frame[0, 0]) for frame in read_video(tmp_path / "a.png")] == [RED, GREEN]


@pytest.mark.parametrize("suffix", [".webp", ".apng"])
def test_an_animation_that_ends_early_is_broken(tmp_path: Path, suffix: str) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    path = write_video(tmp_path / f"a{suffix}", frames, fps=8, lossless=True)
    whole = path.read_bytes()
    for share in (0.3, 0.6, 0.9):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(UserError, match=rf"a\{suffix}: broken"):
            read_video(path)


@pytest.mark.parametrize("suffix", [".webp", ".apng"])
@pytest.mark.parametrize("channels", [3, 4])
def test_a_clip_that_holds_still_is_an_animation_of_one_frame(tmp_path: Path, suffix: str, channels: int) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (9, 7, channels), dtype=np.uint8)
    for count in (1, 5):
        path = write_video(tmp_path / f"a{suffix}", np.repeat(picture[None], count, axis=0), fps=8, lossless=True)
        info = video_info(path)
        assert (info.frames, info.width, info.height) == (1, 7, 9)
        assert info.fps == pytest.approx(8 / count)
        (frame,) = read_video(path, keep_alpha=channels == 4)
        visible = picture[..., 3] > 0 if channels == 4 else np.ones((9, 7), bool)
        assert np.array_equal(frame[visible], picture[visible])
        with Image.open(path) as image:
            assert image.size == (7, 9)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_a_frame_too_short_for_browsers_lasts_100_ms(tmp_path: Path, name: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, RED)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=10)
    assert video_info(tmp_path / name).fps == pytest.approx(10)


@pytest.mark.parametrize("name", ["a.webp", "a.apng"])
def test_an_animation_is_not_written_faster_than_browsers_show_it(tmp_path: Path, name: str) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    assert video_info(write_video(tmp_path / name, frames, fps=90)).fps == pytest.approx(90, rel=0.03)
    with pytest.raises(UserError, match=r"fps must be a finite number, 0\.01 to 90; got 100"):
        write_video(tmp_path / name, frames, fps=100)


def test_a_still_picture_is_no_clip(tmp_path: Path) -> None:
    for name in ("a.webp", "a.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
        with pytest.raises(UserError, match="an image; a clip is"):
            read_video(tmp_path / name)


# ---------------------------------------------------------------------------------------------------------------- bombs


def test_a_gif_of_endless_zeros_is_given_up(tmp_path: Path) -> None:
    path = write_gif(tmp_path / "zeros.gif")
    with path.open("r+b") as file:
        file.truncate(2**36)
    with pytest.raises(UserError, match=r"zeros\.gif: broken"):
        video_info(path)


def test_long_pauses_are_not_repeated_for_hours(tmp_path: Path) -> None:
    long = gif_frame(1, (0, 0, 4, 4), ticks=65_535)
    path = write_gif(tmp_path / "pauses.gif", gif_frame(1, (0, 0, 4, 4), ticks=2), *[long] * 4)
    with pytest.raises(UserError, match=r"pauses\.gif: lasts as long as \d+ of its shortest frames; at most 100000"):
        video_info(path)


def test_more_pixels_than_can_be_composed_are_refused(tmp_path: Path) -> None:
    path = write_gif(tmp_path / "large.gif", *[gif_frame(1, (0, 0, 1, 1))] * 500, screen=(7000, 7000))
    for read in (video_info, read_video):
        with pytest.raises(UserError, match=r"large\.gif: 500 frames of 7000x7000"):
            read(path)


def test_frames_shorter_than_a_tick_are_kept() -> None:
    timing = constant_rate([0.0153, 0.0153, 0.02], ticks_per_second=1000, width=1, height=1)
    assert timing.repeats == [1, 1, 1]
    assert timing.fps > 0


def test_durations_that_too_many_steps_explain_are_timed_by_the_shortest() -> None:
    ticks = [2.0, *np.random.default_rng(0).uniform(5e5, 1e6, 2)]
    with pytest.raises(UserError, match="at most 100000"):
        constant_rate(ticks, ticks_per_second=1000, width=1, height=1)
    with pytest.raises(UserError, match="at most 100000"):
        constant_rate([2.0, 1e9, 1e9 + 1.3], ticks_per_second=1000, width=1, height=1)
