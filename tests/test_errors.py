"""Messages of errors of the user."""

import pickle

import pytest

from lfdm.config.checks import check, check_integer, check_number
from lfdm.errors import UserError


@pytest.mark.parametrize("quote", ["'", '"'])
def test_a_very_long_value_is_shown_with_its_beginning_and_its_end(quote: str) -> None:
    value = "a" * 5000 + "." + "b" * 200
    error = UserError(f"unknown label {quote}{value}{quote}; the model's labels are 'wave'")
    assert str(error) == f"unknown label {quote}{'a' * 60}...{'b' * 40}{quote}; the model's labels are 'wave'"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_prose_and_short_values_stay_as_they_are() -> None:
    text = f"the clip's frames don't have {'one size and ' * 30}the model's own; got '{'x' * 150}'"
    assert str(UserError(text)) == text


def test_checked_values_are_shortened() -> None:
    for raised in (
        lambda value: check(False, "size", value, "small"),
        lambda value: check_integer("size", value, 0, 9),
        lambda value: check_number("size", value, low=0),
    ):
        with pytest.raises(UserError, match=r"^size must be .{5,60}; got \[0, 1, 2, .*\.\.\.$") as refusal:
            raised(list(range(10_000)))
        assert len(str(refusal.value)) < 200
