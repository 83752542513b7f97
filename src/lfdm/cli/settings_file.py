"""Options from a file: `--config run.yaml`, or the `config.json` of a run. Imports neither torch nor diffusers."""

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import yaml
from tyro.conf import Positional, Suppress

from lfdm.config.video import Size
from lfdm.errors import UserError
from lfdm.folders.texts import read_whole

PRESET_KEY = "preset"
"""The settings of a run in its config.json, next to its data and other paths."""
SIZE_KEY, SIZE_OPTION = "image-size", "size"
"""The size of frames in a preset, and its option."""
MAX_VALUES = 10_000
"""Most settings of a file; YAML's aliases could make a small file a huge one."""


def options_from_file(path: Path, command: Callable[..., object]) -> list[str]:
    """Return the settings of a YAML or JSON file as words of a command line.

    Keys are names of options, with `_` or `-`; options with a dot may be nested. Of a run's config.json, its settings count.

    Raises:
        FileNotFoundError: no such file.
        UserError: not a mapping, or keys that are no options of `command`, which are named.
    """
    try:
        content = yaml.safe_load(read_whole(path).decode())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not a YAML or JSON file: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold options and their values, such as `num_frames: 16`; got {type(content).__name__}")
    settings = content[PRESET_KEY] if isinstance(content.get(PRESET_KEY), dict) else content
    known, words, unknown = list(option_names(command)), [], []
    for key, value in _flat(settings):
        name = SIZE_OPTION if key == SIZE_KEY else key
        if name in known:
            words += _words(name, value)
        else:
            unknown.append(name)
        if len(words) + len(unknown) > MAX_VALUES:
            raise UserError(f"{path}: over {MAX_VALUES} values")
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"{path}: no options of this command: {', '.join(map(repr, unknown))}{hint}")
    return words


def _flat(settings: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        name = f"{prefix}{str(key).replace('_', '-')}"
        if isinstance(value, dict):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def _words(name: str, value: Any) -> list[str]:
    """Return an option with its value as tyro parses it."""
    if isinstance(value, bool):
        before, dot, last = name.rpartition(".")
        return [f"--{name}" if value else f"--{before}{dot}no-{last}"]
    if name == SIZE_OPTION and isinstance(value, list):
        return [f"--{name}", str(Size.parse(tuple(value)))]
    return [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]


def option_names(command: Callable[..., object]) -> Iterator[str]:
    """Yield the options of a command, as tyro names them."""
    hints = get_type_hints(command, include_extras=True)
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        extras = _extras(kind)
        if Positional not in extras:
            renamed = [extra.name for extra in extras if getattr(extra, "name", None) is not None]
            yield from _nested_names(renamed[0] if renamed else parameter.name, parameter.default)


def _extras(kind: Any) -> tuple[Any, ...]:
    return get_args(kind)[1:] if get_origin(kind) is Annotated else ()


def _nested_names(name: str, default: object) -> Iterator[str]:
    if not is_dataclass(default):
        yield name.replace("_", "-")
        return
    hints = get_type_hints(type(default), include_extras=True)
    for field in fields(default):
        if Suppress in _extras(hints[field.name]):
            continue
        yield from _nested_names(f"{name}.{field.name}" if name else field.name, getattr(default, field.name))
