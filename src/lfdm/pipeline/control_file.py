"""Controls as text: what the command line writes, and control.json."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from lfdm.config.control import Control, Drag, LabelSpan, PartStrength, Point
from lfdm.errors import UserError
from lfdm.folders.files import write_bytes
from lfdm.folders.model_folder import read_json

if TYPE_CHECKING:
    from PIL import Image

FORMAT, VERSION = "lfdm-control", 1

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+|nan|inf)"
_POINT = re.compile(rf"({_NUMBER}),({_NUMBER})", re.IGNORECASE)
_STEP = re.compile(rf"({_NUMBER}),({_NUMBER})(?:@({_NUMBER}))?", re.IGNORECASE)
_SPAN = re.compile(rf"(.+)@({_NUMBER})-({_NUMBER})")

_KEYS = {"format", "version", "size", "time", "drags", "pins", "strengths", "end_image", "labels", "correct"}
_DRAG_KEYS, _STRENGTH_KEYS, _LABEL_KEYS = (
    {"from", "path", "radius", "visible"},
    {"value", "at", "mask"},
    {"label", "start", "end"},
)


def parse_point(text: str, name: str) -> Point:
    """Parse X,Y.

    >>> parse_point("20,30.5", "pin")
    (20.0, 30.5)
    """
    match = _POINT.fullmatch(text.strip())
    if match is None:
        raise UserError(f"{name} must be X,Y in pixels, such as 20,30; got {text!r}")
    return float(match[1]), float(match[2])


def parse_drag(text: str, radius: float | None = None) -> Drag:
    """Parse X,Y:X,Y[@TIME]:...; the last position has the time 1 if it has none, the others must have one.

    >>> parse_drag("20,30:28,10@0.4:40,18").path
    ((0.4, 28.0, 10.0), (1.0, 40.0, 18.0))
    """
    start, *steps = text.strip().split(":")
    matches = [_STEP.fullmatch(step.strip()) for step in steps]
    if not matches or any(match is None or (match[3] is None and match is not matches[-1]) for match in matches):
        raise UserError(f"drag must be X,Y:X,Y or X,Y:X,Y@TIME:X,Y@TIME, such as 20,30:28,10@0.4:40,18@1; got {text!r}")
    path = tuple((float(match[3] or 1), float(match[1]), float(match[2])) for match in matches if match is not None)
    return Drag(source=parse_point(start, "drag"), path=path, radius=radius)


def parse_part_strength(text: str) -> PartStrength:
    """Parse X,Y=VALUE or MASK=VALUE.

    >>> parse_part_strength("arm.png=0.5").mask, parse_part_strength("20,30=1.5").at
    ('arm.png', (20.0, 30.0))
    """
    where, _, value = text.rpartition("=")
    if not where or re.fullmatch(_NUMBER, value.strip(), re.IGNORECASE) is None:
        raise UserError(f"part_strength must be X,Y=VALUE or MASK=VALUE, such as 20,30=1.5 or arm.png=0.5; got {text!r}")
    match = _POINT.fullmatch(where.strip())
    if match is None:
        return PartStrength(value=float(value), mask=where)
    return PartStrength(value=float(value), at=(float(match[1]), float(match[2])))


def parse_labels(text: str) -> tuple[LabelSpan, ...]:
    """Parse labels over time, LABEL@START-END, separated by commas; a text of another form gives none.

    >>> [span.label for span in parse_labels("wave@0-0.5, jump@0.5-1")], parse_labels("wave")
    (['wave', 'jump'], ())
    """
    matches = [_SPAN.fullmatch(part.strip()) for part in text.split(",")]
    if not matches or any(match is None for match in matches):
        return ()
    return tuple(LabelSpan(label=m[1].strip(), start=float(m[2]), end=float(m[3])) for m in matches if m is not None)


def read_control(path: Path) -> Control:
    """Read a control.json; pictures that it names lie in its folder.

    Raises:
        FileNotFoundError: no such file.
        UserError: not a control file, another version, an unknown key, a picture outside the folder, or a value that is not
            allowed.
    """
    content = read_json(path)
    try:
        return parse_control(content, lambda name: _inside(path.parent, name))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def parse_control(content: dict[str, Any], find_picture: Callable[[object], "Path | Image.Image"]) -> Control:
    """Return the control that the content of a control.json describes.

    Args:
        find_picture: returns the picture that a value of `mask` or `end_image` stands for.

    Raises:
        UserError: another format or version, an unknown key, or a value that is not allowed.
    """
    if content.get("format") != FORMAT or content.get("version") != VERSION:
        got = f"{content.get('format')!r}, {content.get('version')!r}"
        raise UserError(f"format and version must be {FORMAT!r}, {VERSION}; got {got}")
    _check_keys("the file", content, _KEYS)
    drags, strengths, labels = (_objects(content, name) for name in ("drags", "strengths", "labels"))
    for name, objects, keys in (("drags", drags, _DRAG_KEYS), ("strengths", strengths, _STRENGTH_KEYS)):
        for one in objects:
            _check_keys(name, one, keys)
    for one in labels:
        _check_keys("labels", one, _LABEL_KEYS)
    end_image = content.get("end_image")
    return Control(
        drags=tuple(
            Drag(
                source=_tuple("from", one.get("from"), 2),
                path=tuple(_tuple("path", step, 3) for step in _list("path", one.get("path"))),
                radius=one.get("radius"),
                visible=None
                if one.get("visible") is None
                else tuple(_tuple("visible", span, 2) for span in _list("visible", one["visible"])),
            )
            for one in drags
        ),
        pins=tuple(_tuple("pins", pin, 2) for pin in _list("pins", content.get("pins", []))),
        strengths=tuple(
            PartStrength(
                value=one.get("value", float("nan")),
                at=None if one.get("at") is None else _tuple("at", one["at"], 2),
                mask=None if one.get("mask") is None else find_picture(one["mask"]),
            )
            for one in strengths
        ),
        end_image=None if end_image is None else find_picture(end_image),
        labels=tuple(
            LabelSpan(label=str(one.get("label")), start=one.get("start", float("nan")), end=one.get("end", float("nan")))
            for one in labels
        ),
        size=None if content.get("size") is None else _tuple("size", content["size"], 2),
        time=content.get("time", "fraction"),
        correct=content.get("correct", True),
    )


def write_control(path: Path, control: Control) -> Path:
    """Write a control.json next to the pictures that it names; UserError for pictures that are no files."""
    drags = [_without_defaults(drag) for drag in control.drags]
    for drag in drags:
        drag["from"] = drag.pop("source")
    content = {"format": FORMAT, "version": VERSION, **_without_defaults(control), "time": control.time, "drags": drags}
    text = json.dumps(content, default=_file_name)
    write_bytes(path, (text + "\n").encode())
    return path


def _without_defaults(settings: Control | Drag) -> dict[str, Any]:
    defaults = {field.name: field.default for field in fields(settings)}
    return {name: value for name, value in asdict(settings).items() if value != defaults[name]}


def _file_name(picture: object) -> str:
    if not isinstance(picture, Path):
        raise UserError(f"pictures of a control must be paths of files to be written; got {type(picture).__name__}")
    return picture.name


def _check_keys(where: str, found: dict[str, Any], known: set[str]) -> None:
    unknown = sorted(set(found) - known)
    if unknown:
        raise UserError(f"unknown key {unknown[0]!r} in {where}; known: {', '.join(sorted(known))}")


def _objects(content: dict[str, Any], name: str) -> list[dict[str, Any]]:
    found = _list(name, content.get(name, []))
    for one in found:
        if not isinstance(one, dict):
            raise UserError(f"{name} must hold JSON objects; got {one!r}")
    return found


def _list(name: str, value: object) -> list[Any]:
    if not isinstance(value, list):
        raise UserError(f"{name} must be a list; got {value!r}")
    return value


def _tuple(name: str, value: object, length: int) -> Any:
    found = _list(name, value)
    if len(found) != length:
        raise UserError(f"{name} must hold {length} numbers; got {value!r}")
    return tuple(found)


def _inside(folder: Path, name: object) -> Path:
    path = PurePosixPath(str(name))
    if not isinstance(name, str) or path.is_absolute() or ".." in path.parts:
        raise UserError(f"pictures must lie in the file's folder; got {name!r}")
    return folder / name
