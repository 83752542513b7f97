"""Settings as JSON and back."""

import dataclasses
import difflib
import typing
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from lfdm.config.checks import check
from lfdm.errors import UserError

SettingsT = TypeVar("SettingsT")


def to_json(settings: object) -> dict[str, Any]:
    """Return settings as a JSON-typed dict, the inverse of `from_json`."""
    return dataclasses.asdict(settings)  # type: ignore[call-overload]


def from_json(cls: type[SettingsT], values: dict[str, Any], *, where: str = "") -> SettingsT:
    """Return settings of type `cls` from a JSON object; missing fields have their defaults. `where` precedes names in errors.

    Raises:
        UserError: an unknown key (the message suggests a similar one), a missing one, or a value that is not allowed.
    """
    cls = _variant(cls, values, where)
    hints = typing.get_type_hints(cls)
    arguments = {}
    for key, value in values.items():
        if key not in hints:
            raise UserError(f"unknown setting {where + key!r}; {_suggest(key, list(hints), where)}")
        if is_dataclass(hints[key]) and isinstance(value, dict):
            value = from_json(typing.cast("type[Any]", hints[key]), value, where=f"{where}{key}.")
        arguments[key] = tuple(value) if isinstance(value, list) else value
    missing = [f"{where}{name}" for name in _required(cls) if name not in arguments]
    if missing:
        raise UserError(f"missing settings: {', '.join(missing)}")
    try:
        return cls(**arguments)
    except UserError as error:
        raise UserError(f"{where}{error}") from None


def _variant(cls: type[SettingsT], values: dict[str, Any], where: str) -> type[SettingsT]:
    """Return the subclass of `cls` that the field `type` names, or `cls` itself if no subclass has a `type`."""
    variants = {variant.type: variant for variant in cls.__subclasses__() if hasattr(variant, "type")}  # type: ignore[attr-defined]
    if not variants:
        return cls
    kind = values.get("type")
    check(isinstance(kind, str) and kind in variants, f"{where}type", kind, f"one of {', '.join(map(repr, variants))}")
    return variants[str(kind)]


def _suggest(key: str, names: list[str], where: str) -> str:
    near = difflib.get_close_matches(key, names, n=1)
    return f"did you mean {where + near[0]!r}?" if near else f"known: {', '.join(names)}"


def _required(cls: type) -> list[str]:
    missing = dataclasses.MISSING
    return [f.name for f in fields(cls) if f.default is missing and f.default_factory is missing]
