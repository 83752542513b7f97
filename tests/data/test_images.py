"""Pictures of every kind, and fitting them to a square."""

import io
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image, ImageCms

from lfdm.data.corpora.folder import write_folder
from lfdm.data.fitting import fit_frames
from lfdm.data.images import decoding, open_image, read_gray, read_image
from lfdm.data.video import write_video
from lfdm.errors import UserError

MODES: tuple[Literal["pad", "crop"], ...] = ("pad", "crop")


def noise(t: int = 4, height: int = 17, width: int = 33) -> np.ndarray:
    return np.random.default_rng(t + height + width).integers(0, 256, (t, height, width, 3), dtype=np.uint8)


def fake_png(width: int, height: int) -> bytes:
    """The beginning of a PNG that promises this size."""
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\x00\x00\x00"
    return b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + header + zlib.crc32(header).to_bytes(4, "big")


def test_images_of_every_kind_become_rgb(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    rgb = noise(1, 16, 16)[0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(rgb).save(tmp_path / "rgb.png")
    Image.fromarray(grey).convert("P").save(tmp_path / "palette.png")
    Image.fromarray(rgb).convert("CMYK").save(tmp_path / "cmyk.tif")
    for name in ("grey.png", "deep.png", "palette.png"):
        assert np.array_equal(read_image(tmp_path / name), np.repeat(grey[..., None], 3, axis=-1)), name
    assert np.array_equal(read_image(str(tmp_path / "rgb.png")), rgb)
    assert np.abs(read_image(tmp_path / "cmyk.tif").astype(int) - rgb).max() <= 1
    assert np.array_equal(read_image(Image.fromarray(rgb)), rgb)


def test_arrays_of_every_kind_become_rgb() -> None:
    rgb = noise(1, 6, 5)[0]
    assert np.array_equal(read_image(rgb), rgb)
    assert np.array_equal(read_image(rgb / np.float32(255)), rgb)
    assert np.array_equal(read_image(rgb[..., :1]), np.repeat(rgb[..., :1], 3, axis=-1))
    assert np.array_equal(read_image(rgb[..., 0].astype(np.uint16) * 257), np.repeat(rgb[..., :1], 3, axis=-1))
    for wrong in (rgb[None], rgb.astype(np.int64), rgb.astype(np.float32), rgb * np.float32("nan"), rgb[:0]):
        with pytest.raises(UserError, match="image"):
            read_image(wrong)


def test_alpha_is_laid_over_white() -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = 0, 128, 255
    assert read_image(rgba)[0, :, 0].tolist() == [255, 127, 0]
    palette = Image.new("P", (1, 1), 0)
    palette.info["transparency"] = 0
    assert read_image(palette)[0, 0].tolist() == [255, 255, 255]


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    image = Image.fromarray(noise(1, 4, 6)[0])
    exif = image.getexif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    image.save(tmp_path / "phone.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "phone.png"), np.rot90(np.asarray(image), -1))


def test_large_images_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    for width, height in ((10_000, 5_001), (12_000, 12_000), (40_000, 40_000)):  # the file holds no pixels at all
        path = tmp_path / "big.png"
        path.write_bytes(fake_png(width, height) + b"\x00\x00\x00\x00IDAT\x35\xaf\x06\x1e")
        with pytest.raises(UserError, match=r"big\.png: .*50 megapixels"):
            read_image(path)


def test_what_is_not_an_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    Image.fromarray(noise(1, 64, 64)[0]).save(tmp_path / "half.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "half.png").read_bytes()[:3000])
    for name in ("text.png", "half.png"):
        with pytest.raises(UserError, match=name):
            read_image(tmp_path / name)
    with pytest.raises(UserError, match="folder"):
        read_image(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_image(tmp_path / "nowhere.png")


# ----------------------------------------------------------------------------------------------------------- fitting


def test_fit_keeps_frames_of_the_right_size() -> None:
    frames = noise(2, 16, 16)
    for mode in ("pad", "crop"):
        assert np.array_equal(fit_frames(frames, 16, mode), frames)


@pytest.mark.parametrize(
    ("source", "size", "inner"),
    [((480, 336), 128, (128, 89)), ((229, 260), 128, (112, 128)), ((10, 20), 64, (32, 64)), ((300, 2), 64, (64, 1))],
)
def test_pad_centres_the_whole_frame_on_black(source: tuple[int, int], size: int, inner: tuple[int, int]) -> None:
    """The first two are the sizes of the published recipe."""
    out = fit_frames(np.full((1, *source, 3), 200, np.uint8), size, "pad")[0, :, :, 0]
    assert out.shape == (size, size)
    rows, columns = np.flatnonzero(out.any(axis=1)), np.flatnonzero(out.any(axis=0))
    assert (len(rows), len(columns)) == inner
    assert (rows[0], columns[0]) == ((size - inner[0]) // 2, (size - inner[1]) // 2)
    assert set(np.unique(out)) <= {0, 200}


def test_crop_keeps_the_centre() -> None:
    frames = np.zeros((1, 20, 41, 3), np.uint8)
    frames[:, :, 10:30] = 90
    assert (fit_frames(frames, 10, "crop") == 90).all()


@pytest.mark.parametrize(
    ("source", "size"), [((30, 50), (16, 48)), ((50, 30), (16, 48)), ((27, 48), (96, 64)), ((9, 16), (18, 32))]
)
def test_rectangles_are_padded_cropped_and_stretched(source: tuple[int, int], size: tuple[int, int]) -> None:
    """A plain frame keeps its proportions with bars, keeps the centre, or fills the size."""
    plain = np.full((1, *source, 3), 200, np.uint8)
    padded = fit_frames(plain, size, "pad")[0, :, :, 0]
    rows, columns = int(padded.any(axis=1).sum()), int(padded.any(axis=0).sum())
    assert padded.shape == size
    assert rows == size[0] or columns == size[1]
    assert abs(rows * source[1] - columns * source[0]) < max(source)  # truncated by less than a pixel
    edges = plain.copy()
    middle = [slice(side // 4, side - side // 4) for side in source]
    edges[:, middle[0], middle[1]] = 90
    stretched, cropped = fit_frames(edges, size, "stretch")[0], fit_frames(edges, size, "crop")[0]
    assert stretched.shape == cropped.shape == (*size, 3)
    assert (stretched[[0, 0, -1, -1], [0, -1, 0, -1]] == 200).all()
    assert stretched[size[0] // 2, size[1] // 2, 0] == cropped[size[0] // 2, size[1] // 2, 0] == 90
    assert np.array_equal(fit_frames(plain, f"{size[0]}x{size[1]}", "crop"), np.full((1, *size, 3), 200))


def test_shrinking_averages_exact_areas() -> None:
    """Against the definition: each new pixel is the mean over its area, at 1/3 of a pixel's resolution."""
    frame = noise(1, 8, 10)[0]
    fine = frame.astype(np.float64).repeat(6, 0).repeat(6, 1)  # 48 x 60
    crop = fine[:, 6:54]  # the central square
    expected = crop.reshape(6, 8, 6, 8, 3).mean(axis=(1, 3))
    assert np.abs(fit_frames(frame[None], 6, "crop")[0] - expected).max() <= 0.5 + 1e-9


def test_shrinking_in_many_strips_is_shrinking_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [((37, 53), 16), ((64, 48), 16), ((91, 7), 11), ((5, 83), 31), ((30, 45), 15)]
    at_once = [fit_frames(noise(2, *shape), size, mode) for shape, size in shapes for mode in MODES]
    monkeypatch.setattr("lfdm.data.fitting._STRIP", 200)
    in_strips = [fit_frames(noise(2, *shape), size, mode) for shape, size in shapes for mode in MODES]
    for one, other in zip(at_once, in_strips, strict=True):
        np.testing.assert_array_equal(one, other)


def test_enlarging_keeps_a_plain_frame_and_the_range() -> None:
    assert (fit_frames(np.full((1, 5, 5, 3), 77, np.uint8), 32, "pad") == 77).all()


def test_fit_refuses_other_modes_and_sizes() -> None:
    with pytest.raises(UserError, match="'cover'"):
        fit_frames(noise(), 8, "cover")  # pyright: ignore[reportArgumentType] - what a command line could pass
    with pytest.raises(UserError, match="size"):
        fit_frames(noise(), 0, "pad")


@pytest.mark.parametrize(("value", "message"), [(70_000, "0..65535, got 70000"), (-1, "0..65535, got -1")])
def test_deep_greyscale_beyond_16_bits_is_refused(value: int, message: str) -> None:
    deep = Image.fromarray(np.full((4, 4), value, np.int32))
    with pytest.raises(UserError, match=message):
        read_image(deep)


def test_floating_point_pictures_are_taken_from_0_to_1(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "half.tif")
    assert (read_image(tmp_path / "half.tif") == 128).all()
    Image.fromarray(np.full((4, 4), 200.0, np.float32)).save(tmp_path / "byte.tif")
    with pytest.raises(UserError, match=r"byte\.tif.*must lie in \[0, 1\], got 200.*divide them by 255"):
        read_image(tmp_path / "byte.tif")


def test_palettes_with_transparency_and_grey_with_alpha_lie_over_white(tmp_path: Path) -> None:
    grey = np.zeros((1, 2, 2), np.uint8)
    grey[0, :, 1] = 0, 255
    Image.fromarray(grey, "LA").save(tmp_path / "grey.png")
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 0, 0, 0])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "palette.png", transparency=b"\x00\xff")
    for name in ("grey.png", "palette.png"):
        assert read_image(tmp_path / name)[0, :, 0].tolist() == [255, 0], name


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_shows_the_same_picture(tmp_path: Path, orientation: int) -> None:
    """Stored as the camera lay, shown upright: the definition of the eight values."""
    upright = noise(1, 4, 6)[0]
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    picture = Image.fromarray(np.ascontiguousarray(stored))
    exif = picture.getexif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "phone.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "phone.png"), upright)


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "tif", "bmp", "gif"])
def test_no_damage_escapes_as_another_error(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / f"picture.{kind}"
    Image.fromarray(noise(1, 24, 24)[0]).save(path)
    data = path.read_bytes()
    messages = []
    for _ in range(60):
        damaged = bytearray(data[: rng.integers(1, len(data) + 1)])
        for _ in range(4):
            damaged[rng.integers(min(len(damaged), 200))] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            read_image(path)
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 10
    assert all(message.startswith(f"{path}: ") and "\n" not in message for message in messages)


def test_only_errors_of_the_decoder_are_those_of_the_file(tmp_path: Path) -> None:
    Image.fromarray(noise(1, 4, 4)[0]).save(tmp_path / "whole.png")
    with pytest.raises(KeyError, match="ours"), open_image(tmp_path / "whole.png"):
        raise KeyError("ours")
    with pytest.raises(UserError, match=r"whole\.png: broken .*damaged"), decoding(tmp_path / "whole.png"):
        raise ValueError("damaged")


@pytest.mark.parametrize("error", [RuntimeError, NotImplementedError, MemoryError, AssertionError, RecursionError])
def test_whatever_a_decoder_raises_is_a_broken_file(error: type[Exception]) -> None:
    with pytest.raises(UserError, match=r"a\.png: broken .*" + error.__name__), decoding("a.png"):
        raise error
    with pytest.raises(UserError, match=r"^our own"), decoding("a.png"):
        raise UserError("our own")


def damaged_avif() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(buffer, "AVIF")
    return buffer.getvalue().replace(b"pitm", b"free")


def unknown_dds() -> bytes:
    return b"DDS " + struct.pack("<7I", 124, 0x1007, 4, 4, 0, 0, 0) + bytes(44) + struct.pack("<2I", 32, 4) + b"ABCD" + bytes(200)


@pytest.mark.parametrize("make", [damaged_avif, unknown_dds])
def test_a_damaged_picture_in_a_folder_of_frames_costs_its_clip_only(tmp_path: Path, make: Callable[[], bytes]) -> None:
    frames = tmp_path / "clips" / "wave" / "ann" / "frames"
    frames.mkdir(parents=True)
    Image.fromarray(noise(1, 8, 8)[0]).save(frames / "1.png")
    (frames / "2.png").write_bytes(make())
    write_video(tmp_path / "clips" / "wave" / "bob" / "whole.avi", noise(3, 8, 8), fps=8)
    with pytest.raises(UserError, match=r"2\.png: broken"):
        read_image(frames / "2.png")
    made = write_folder(tmp_path / "clips", tmp_path / "out", size=16)
    assert len(made.records) == 1
    assert [skipped.path for skipped in made.skipped] == ["wave/ann/frames"]
    assert "2.png: broken" in made.skipped[0].reason


def test_messages_say_what_a_file_really_is(tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mp4", noise(2, 16, 16), fps=8).read_bytes()
    files = {
        video: "not an image but a video",
        b"<!DOCTYPE html><html></html>": "web page",
        b"version https://git-lfs.github.com/spec/v1\n": "git lfs pull",
        b"hello": "text",
        b"": "empty",
        b"\x89PNG\r\n\x1a\n": "broken",
        bytes(100): "no known format",
    }
    for content, words in files.items():
        (tmp_path / "me.jpg").write_bytes(content)
        with pytest.raises(UserError, match=r"me\.jpg: .*" + words):
            read_image(tmp_path / "me.jpg")
    with pytest.raises(UserError, match="got bytes"):
        read_image(video)  # pyright: ignore[reportArgumentType] - what a script could pass


def test_heic_is_read_with_its_extra(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs pillow-heif: pip install 'lfdm[heif]'")
    colours = np.repeat(np.repeat(np.array([[[200, 30, 90], [20, 180, 60]]], np.uint8), 64, 0), 32, 1)
    pillow_heif.from_pillow(Image.fromarray(colours)).save(tmp_path / "phone.heic", quality=95)
    assert np.abs(read_image(tmp_path / "phone.heic").astype(int) - colours).mean() < 6
    (tmp_path / "phone.heic").write_bytes((tmp_path / "phone.heic").read_bytes()[:-200])
    with pytest.raises(UserError, match=r"phone\.heic: broken"):
        read_image(tmp_path / "phone.heic")


def test_a_heic_without_the_extra_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "phone.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    with pytest.raises(UserError, match=r"phone\.jpg: a HEIC picture.*pip install 'lfdm\[heif\]'"):
        read_image(tmp_path / "phone.jpg")


def test_avif_is_read(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), (200, 30, 90)).save(tmp_path / "a.avif", quality=95)
    assert np.abs(read_image(tmp_path / "a.avif").astype(int) - (200, 30, 90)).max() <= 6


# ------------------------------------------------------------------------------------------------------ colour profiles

PALETTE = np.array([[(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 160, 120), (7, 90, 33)]], np.uint8)
DISPLAY_P3 = {b"rXYZ": (0.5151, 0.2412, -0.0011), b"gXYZ": (0.2919, 0.6922, 0.0419), b"bXYZ": (0.1572, 0.0666, 0.7841)}


def p3_profile() -> bytes:
    """The profile of sRGB with the primaries of Display P3."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for tag, values in DISPLAY_P3.items():
        entry = profile.index(tag)
        offset = int.from_bytes(profile[entry + 4 : entry + 8], "big")
        profile[offset : offset + 20] = b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(v * 65536)) for v in values)
    return bytes(profile)


def in_display_p3() -> Image.Image:
    """The palette in the numbers of Display P3."""
    profile = ImageCms.ImageCmsProfile(io.BytesIO(p3_profile()))
    image = ImageCms.profileToProfile(Image.fromarray(PALETTE), ImageCms.createProfile("sRGB"), profile)
    assert image is not None
    return image


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_profiles_are_converted_to_srgb(tmp_path: Path, suffix: str, mode: str) -> None:
    image = in_display_p3().convert(mode)
    assert np.abs(np.asarray(image.convert("RGB")).astype(int) - PALETTE).max() > 30
    if mode == "RGBA":
        image.putpixel((4, 0), (7, 90, 33, 0))
    image.save(tmp_path / f"a.{suffix}", icc_profile=p3_profile(), lossless=True)
    read = read_image(tmp_path / f"a.{suffix}").astype(int)
    assert np.abs(read - PALETTE)[:, :4].max() <= 4
    assert np.abs(read - (255 if mode == "RGBA" else PALETTE))[:, 4].max() <= 4


def test_a_palette_with_a_profile_is_converted(tmp_path: Path) -> None:
    in_display_p3().quantize(8).save(tmp_path / "a.png", icc_profile=p3_profile())
    assert np.abs(read_image(tmp_path / "a.png").astype(int) - PALETTE).max() <= 4


def test_profiles_of_srgb_and_damaged_ones_change_nothing(tmp_path: Path) -> None:
    rgb = noise(1, 16, 16)[0]
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (srgb, b"", b"damaged", srgb[:200], p3_profile()[:300], bytes(128)):
        for mode in ("RGB", "L", "CMYK"):
            image = Image.fromarray(rgb).convert(mode)
            image.save(tmp_path / "plain.tif")
            image.save(tmp_path / "a.tif", icc_profile=profile)
            assert np.array_equal(read_image(tmp_path / "a.tif"), read_image(tmp_path / "plain.tif")), (mode, profile[:10])


def linear_grey_profile() -> bytes:
    """A grey profile of gamma 1: half the light at 128."""
    tags = [(b"wtpt", b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)), (b"kTRC", b"curv" + bytes(8))]
    table, data = struct.pack(">I", len(tags)), b""
    for tag, content in tags:
        table += tag + struct.pack(">2I", 132 + 12 * len(tags) + len(data), len(content))
        data += content
    size = 128 + len(table) + len(data)
    head = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02400000, b"mntr", b"GRAY", b"XYZ ") + bytes(12) + b"acsp" + bytes(28)
    head += struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + table + data


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_grey_profiles_are_converted(tmp_path: Path, mode: str) -> None:
    grey = np.full((2, 2), 128, np.uint8)
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    image.save(tmp_path / "a.tif", icc_profile=linear_grey_profile())
    assert np.abs(read_image(tmp_path / "a.tif").astype(int) - 188).max() <= 1


def test_large_jpegs_are_decoded_at_a_reduced_size(tmp_path: Path) -> None:
    image = Image.new("RGB", (10_000, 5_010), (200, 30, 90))
    image.paste((20, 180, 60), (0, 0, 5_000, 5_010))
    image.save(tmp_path / "a.jpg", quality=95)
    read = read_image(tmp_path / "a.jpg")
    assert read.shape == (2_505, 5_000, 3)
    assert np.abs(read[1000, [100, 4900]].astype(int) - [(20, 180, 60), (200, 30, 90)]).max() <= 3


@pytest.mark.parametrize("name", ["drawing.eps", "photo.png"])
def test_postscript_is_not_run(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(UserError, match=rf"{name}: EPS pictures are not read"):
        read_image(tmp_path / name)


@pytest.mark.parametrize("mode", ["La", "RGBa", "LAB", "HSV", "I;16B", "YCbCr"])
def test_rare_modes_are_read_as_pictures_and_masks(mode: str) -> None:
    image = Image.new(mode, (9, 5))
    assert read_image(image).shape == (5, 9, 3)
    assert read_gray(image).shape == (5, 9)
