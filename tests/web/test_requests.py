"""Fields of requests: masks mean what they mean in Python, and messages show what was got."""

import base64
import io
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.serving.server import GENERATE
from lfdm.errors import UserError
from lfdm.pipeline.inputs import prepare_mask
from lfdm.web.limits import ServeLimits
from lfdm.web.requests import Choices, RequestReader, resize_mask, with_masks_of_size
from lfdm.web.storage import Storage

FIELDS: dict[str, Any] = {**GENERATE, "image": "a", "label": None}


@pytest.fixture
def storage() -> Iterator[Storage]:
    made = Storage(100)
    yield made
    made.close()


@pytest.fixture
def reader(storage: Storage) -> RequestReader:
    choices = Choices(
        labels=(),
        examples=(Path("a.png"),),
        max_frames=16,
        max_steps=100,
        num_frames=4,
        num_inference_steps=2,
        guidance_scale=1.0,
        guidance_range=(0.0, 100.0),
        fit="pad",
    )
    return RequestReader(choices, ServeLimits(), storage)


def test_a_picture_is_fitted_as_in_training_unless_fit_is_given(reader: RequestReader) -> None:
    assert [reader.generate(**{**FIELDS, "fit": fit}).fit for fit in (None, "native", "crop")] == ["pad", "native", "crop"]
    for wrong in ("cover", 1, ["native"]):
        with pytest.raises(UserError, match="fit must be one of pad, crop, stretch, native; got "):
            reader.generate(**{**FIELDS, "fit": wrong})


def read_mask(reader: RequestReader, mask: object) -> np.ndarray:
    read = reader.generate(**{**FIELDS, "mask": mask}).mask
    assert read is not None
    return read


def upload(storage: Storage, name: str) -> Path:
    folder = storage.root / ("0" * 64)
    folder.mkdir(exist_ok=True)
    return folder / name


def masks() -> dict[str, Image.Image]:
    """Of 20x12 pixels, by the names of files."""
    rng = np.random.default_rng(0)
    gray = rng.integers(0, 256, (12, 20), dtype=np.uint8)
    rgba = rng.integers(0, 256, (12, 20, 4), dtype=np.uint8)
    turned = Image.fromarray(gray)
    turned.getexif()[0x0112] = 6
    return {
        "gray.png": Image.fromarray(gray),
        "deep.png": Image.fromarray(rng.integers(0, 65536, (12, 20), dtype=np.uint16)),
        "alpha.png": Image.fromarray(rgba),
        "gray-alpha.png": Image.fromarray(rgba[..., :2], "LA"),
        "colour.jpg": Image.fromarray(rgba[..., :3]),
        "turned.jpg": turned,
        "colour.webp": Image.fromarray(rgba[..., :3]),
    }


@pytest.mark.parametrize("name", masks())
def test_a_mask_means_the_same_as_in_python(reader: RequestReader, storage: Storage, name: str) -> None:
    picture, path = masks()[name], upload(storage, name)
    picture.save(path, exif=picture.getexif())
    got = [read_mask(reader, {"path": str(path)})]
    if path.suffix == ".png":
        got.append(read_mask(reader, "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()))
    expected = prepare_mask(path, size=20, fit="pad")
    for mask in got:
        np.testing.assert_array_equal(prepare_mask(mask, size=20, fit="pad"), expected)


def test_a_mask_is_resized_to_its_picture_if_it_has_its_proportions() -> None:
    mask = np.zeros((85, 256), np.float32)  # as the page's brush paints a picture of 900x300
    mask[:, :128] = 1
    resized = resize_mask(mask, (300, 900))
    assert resized.shape == (300, 900)
    assert resized[:, :440].min() > 0.999
    assert resized[:, 460:].max() < 0.001
    np.testing.assert_array_equal(resize_mask(mask, (85, 256)), mask)
    with pytest.raises(UserError, match=r"^mask .*256x256; got 256x85"):
        resize_mask(mask, (256, 256))


@pytest.mark.parametrize("kind", [b"gAMA", b"cHRM", b"pHYs", b"tRNS", b"iCCP", b"acTL"])
@pytest.mark.parametrize("uploaded", [False, True])
def test_a_damaged_chunk_is_a_broken_mask(reader: RequestReader, storage: Storage, kind: bytes, uploaded: bool) -> None:
    path = upload(storage, "a.png")
    Image.new("L", (8, 8), 255).save(path)
    data = path.read_bytes()
    chunk = struct.pack(">I", 1) + kind + b"\x01" + struct.pack(">I", zlib.crc32(kind + b"\x01"))
    path.write_bytes(data[:33] + chunk + data[33:])
    mask = {"path": str(path)} if uploaded else "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    with pytest.raises(UserError, match=r"^mask: broken or not a readable"):
        read_mask(reader, mask)


def test_a_mask_of_another_format_is_an_error_that_lists_the_formats(reader: RequestReader, storage: Storage) -> None:
    path = upload(storage, "a.tiff")
    Image.new("L", (8, 8)).save(path)
    with pytest.raises(UserError, match=r"^mask: .*must be one of PNG, JPEG, WEBP, BMP, GIF, HEIF"):
        read_mask(reader, {"path": str(path)})


@pytest.fixture
def labelled(reader: RequestReader, storage: Storage) -> RequestReader:
    return RequestReader(replace(reader.choices, labels=("wave", "raise arms")), ServeLimits(), storage)


@pytest.mark.parametrize(
    ("label", "condition"),
    [
        ("raise arms", "raise arms"),
        ("wave=0.7, raise arms=.3", {"wave": 0.7, "raise arms": 0.3}),
        ({"wave": 1, "raise arms": 0}, {"wave": 1.0, "raise arms": 0.0}),
    ],
)
def test_a_label_or_a_mix_is_a_condition(labelled: RequestReader, label: object, condition: object) -> None:
    assert labelled.generate(**{**FIELDS, "label": label}).condition == condition


def test_without_a_condition_there_is_no_label(labelled: RequestReader) -> None:
    assert labelled.generate(**{**FIELDS, "unconditional": True}).condition is None
    with pytest.raises(UserError, match=r"^label must be left out with unconditional; got 'wave'"):
        labelled.generate(**{**FIELDS, "label": "wave", "unconditional": True})


@pytest.mark.parametrize(
    "label", [None, "", "fly", "wave=1,fly=1", {"fly": 1}, {}, {"wave": 0}, {"wave": -1}, {"wave": "1"}, ["wave"], "wave=1e9"]
)
def test_other_labels_are_refused(labelled: RequestReader, label: object) -> None:
    with pytest.raises(UserError, match=r"^label(: the weight of wave)? must be"):
        labelled.generate(**{**FIELDS, "label": label})


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("seed", "abc", "'abc'"),
        ("num_frames", [1, "x"], "[1, 'x']"),
        ("guidance_scale", "2", "'2'"),
        ("motion_strength", {"a": "b"}, "{'a': 'b'}"),
        ("motion_strength", 1e301, "1e+301"),
        ("motion_strength", "x" * 1000, "'" + "x" * 96 + "..."),
    ],
)
def test_messages_show_a_wrong_value_as_it_is(reader: RequestReader, field: str, value: object, shown: str) -> None:
    with pytest.raises(UserError, match=f"^{field} must be") as refusal:
        reader.generate(**{**FIELDS, field: value})
    assert str(refusal.value).endswith(f"; got {shown}")


def test_a_control_is_the_text_of_a_control_json(reader: RequestReader, storage: Storage) -> None:
    mask = io.BytesIO()
    Image.fromarray(np.full((16, 16), 255, np.uint8)).save(mask, "PNG")
    url = "data:image/png;base64," + base64.b64encode(mask.getvalue()).decode()
    content = {"drags": [{"from": [1, 2], "path": [[1, 3, 4]]}], "pins": [[5, 6]], "strengths": [{"mask": url, "value": 0.5}]}
    end = upload(storage, "end.png")
    Image.fromarray(np.zeros((20, 10, 3), np.uint8)).save(end)
    read = reader.generate(**{**FIELDS, "control": json.dumps(content), "end_image": {"path": str(end)}}).control
    assert read is not None
    assert read.drags[0].path == ((1, 3, 4),)
    assert read.pins == ((5, 6),)
    assert isinstance(read.end_image, Image.Image)
    fitted = with_masks_of_size(read, (64, 64)).strengths[0].mask
    assert isinstance(fitted, Image.Image)
    assert fitted.size == (64, 64)
    assert reader.generate(**FIELDS).control is None
    spans = reader.generate(**{**FIELDS, "label": "wave@0-0.5, jump@0.5-1"}).control
    assert spans is not None
    assert [span.label for span in spans.labels] == ["wave", "jump"]


@pytest.mark.parametrize(
    ("control", "message"),
    [
        ({"drags": []}, "control must be the text"),
        ("{", "no JSON"),
        ("[1]", "JSON object"),
        ("[" * 100_000, "no JSON"),
        (" " * 2_000_000, "at most"),
        (json.dumps({"end_image": "/etc/passwd"}), "end_image"),
        (json.dumps({"strengths": [{"mask": "/etc/passwd", "value": 1}]}), "mask"),
        (json.dumps({"drag": []}), "unknown key"),
        (json.dumps({"pins": [[float("nan"), 1]]}), "finite"),
        (json.dumps({"pins": [[1, 1]] * 10_000}), "at most 1024"),
        (json.dumps({"version": 2}), "version"),
    ],
)
def test_bad_controls_are_one_line(reader: RequestReader, control: object, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        reader.generate(**{**FIELDS, "control": control})
    assert "\n" not in str(caught.value)
