"""Sizes of frames in all their forms."""

import numpy as np
import pytest

from lfdm.config.video import Size, is_one_number, training_size
from lfdm.errors import UserError


@pytest.mark.parametrize("value", [(96, 128), [96, 128], "96x128", " 96 X 128 ", Size(96, 128), np.array([96, 128]).tolist()])
def test_a_size_has_one_meaning_in_every_form(value: object) -> None:
    size = Size.parse(value)
    assert size == (size.height, size.width) == (96, 128)
    assert (str(size), size.setting, size.cells(2)) == ("96x128", (96, 128), (48, 64))
    assert Size.parse(size.setting) == size


@pytest.mark.parametrize("value", [64, "64", "64x64", (64, 64), np.int64(64)])
def test_a_square_is_one_number(value: object) -> None:
    assert (Size.parse(value), Size.parse(value).setting) == ((64, 64), 64)


@pytest.mark.parametrize(
    "value",
    [
        100,
        0,
        -16,
        8,
        4112,
        64.0,
        True,
        None,
        "",
        "text",
        "64x",
        "x64",
        "64x64x64",
        "64*64",
        "-64x64",
        (64,),
        (64, "64"),
        (64, 72),
    ],
)
def test_other_sizes_are_refused_with_the_field_and_the_value(value: object) -> None:
    with pytest.raises(UserError) as caught:
        training_size(value, "image_size")
    allowed = "a multiple of 16 from 16 to 4096, or HEIGHTxWIDTH of two such numbers"
    assert str(caught.value) == f"image_size must be {allowed}; got {value!r}"


def test_one_number_differs_from_a_pair() -> None:
    assert [is_one_number(value) for value in (128, "128", "128x128", (128, 128), "wide")] == [True, True, False, False, False]
