"""Type and range checks whose errors name the field."""

import contextlib
import math
import numbers
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lfdm.errors import UserError

MAX_SEED = 2**63 - 1
MAX_SHOWN = 100
"""Longest value that an error message shows in full, in characters."""

_NOUNS: dict[object, str] = {
    int: "a whole number",
    float: "a finite number",
    bool: "True or False",
    str: "a string",
    types.NoneType: "None",
}


def check(valid: bool, name: str, got: object, allowed: str) -> None:
    """Raise UserError("`name` must be `allowed`; got `got`") unless `valid`."""
    if not valid:
        raise UserError(f"{name} must be {allowed}; got {shown(got)}")


def shown(value: object) -> str:
    """Return the repr of a value, shortened to fit into an error message."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


def check_positive(settings: object, *names: str) -> None:
    """Raise UserError naming the first of the fields `names` that holds a number not above zero."""
    for name in names:
        check(all(value > 0 for value in _numbers(settings, name)), name, getattr(settings, name), "positive")


def check_at_most(settings: object, largest: float, *names: str) -> None:
    """Raise UserError naming the first of the fields `names` that holds a number above `largest`."""
    for name in names:
        check(all(value <= largest for value in _numbers(settings, name)), name, getattr(settings, name), f"at most {largest:g}")


def check_not_negative(settings: object, *names: str) -> None:
    """Raise UserError naming the first of the fields `names` that is below zero."""
    for name in names:
        check(getattr(settings, name) >= 0, name, getattr(settings, name), "zero or more")


def check_probability(settings: object, *names: str) -> None:
    """Raise UserError naming the first of the fields `names` that holds a number outside [0, 1]."""
    for name in names:
        check(all(0 <= value <= 1 for value in _numbers(settings, name)), name, getattr(settings, name), "in [0, 1]")


def check_integer(name: str, value: object, low: int, high: int) -> int:
    """Return `value` as an integer from `low` to `high`; raise UserError naming `name` otherwise."""
    number = int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else None
    if number is None or not low <= number <= high:
        raise UserError(f"{name} must be a whole number from {low} to {high}; got {shown(value)}")
    return number


def check_number(name: str, value: object, *, low: float, high: float = math.inf) -> float:
    """Return `value` as a finite number from `low` to `high`; raise UserError naming `name` otherwise."""
    number = math.nan
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # an integer beyond the range of float
            number = float(value)
    if not (math.isfinite(number) and low <= number <= high):
        allowed = f"{low:g} or more" if high == math.inf else f"{low:g} to {high:g}"
        raise UserError(f"{name} must be a finite number, {allowed}; got {shown(value)}")
    return number


def _numbers(settings: object, name: str) -> tuple[float, ...]:
    value = getattr(settings, name)
    return value if isinstance(value, tuple) else (value,)


def check_types(settings: object) -> None:
    """Raise UserError naming the first field of a dataclass whose value does not have the annotated type."""
    for name, hint in typing.get_type_hints(type(settings)).items():
        check(_has_type(getattr(settings, name), hint), name, getattr(settings, name), _describe(hint))


def check_arguments(cls: type, arguments: Mapping[str, Any]) -> None:
    """Raise UserError naming the first of `arguments` that does not have the type annotated in the constructor of `cls`."""
    hints = typing.get_type_hints(cls.__init__)
    for name, value in arguments.items():
        if name in hints:
            check(_has_type(value, hints[name]), name, value, _describe(hints[name]))


def _has_type(value: object, hint: Any) -> bool:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return any(value == part and type(value) is type(part) for part in parts)
    if origin in (types.UnionType, typing.Union):
        return any(_has_type(value, part) for part in parts)
    if origin is Sequence:
        return isinstance(value, list | tuple) and all(_has_type(item, parts[0]) for item in value)
    if origin is Mapping:
        return isinstance(value, Mapping)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        expected = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        return len(value) == len(expected) and all(map(_has_type, value, expected))
    if hint in (int, float):
        numbers = int if hint is int else (int, float)
        return isinstance(value, numbers) and not isinstance(value, bool) and -math.inf < value < math.inf
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, parts))
    if origin in (types.UnionType, typing.Union):
        return " or ".join(map(_describe, parts))
    if origin is Sequence:
        return f"a list of: {_describe(parts[0])}"
    if origin is Mapping:
        return "a JSON object"
    if origin is tuple:
        count = "any number" if parts[-1] is Ellipsis else len(parts)
        return f"a tuple ({count}) of: {_describe(parts[0])}"
    return _NOUNS.get(hint, f"the settings of {getattr(hint, '__name__', hint)}")
