"""The page's own gradio HTML components: a picker for pictures and clips, and a player."""

import base64
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gradio as gr

from lfdm.web.limits import ServeLimits
from lfdm.web.results import VideoResult

STATIC = Path(__file__).parent / "static"
PICTURE_TYPES = "image/png,image/jpeg,image/webp,image/gif,image/bmp,image/heic,image/heif,.heic,.heif"
"""Pictures that the browser's file dialog offers; many browsers know HEIC only by its ending."""
FILE_ROUTE = "gradio_api/file="


def picture_picker(
    examples: Sequence[Path], limits: ServeLimits, *, controls: bool = False, follows_tracks: bool = False
) -> gr.HTML:
    """Return a picker of a picture with a brush for its mask. Value: `{"image": name | {"path"}, "mask": data URL | None}`.

    With `controls` it also has tools for drags and pins, which work if the model `follows_tracks`, the strength of a part and an
    end pose; the value then has `control`, the text of a control.json with data URLs as masks, and `end_image`, or None.
    """
    named = [{"name": path.stem, "url": _data_url(path)} for path in examples]
    hint = f"png, jpg, heic, webp, gif, bmp; up to {limits.upload_megabytes:g} MB"
    options = {"controls": controls, "follows": follows_tracks}
    return _picker("image", named, "Drop a picture here", hint, PICTURE_TYPES, limits, **options)


def clip_picker(limits: ServeLimits) -> gr.HTML:
    """Return a picker of a driving clip. Value: `{"path"}`."""
    hint = f"mp4, webm, mov, avi, gif; up to {limits.upload_megabytes:g} MB; the first {limits.clip_frames} frames are used"
    return _picker("clip", [], "Drop a driving clip here", hint, "video/*,image/gif", limits)


def player(empty: str) -> gr.HTML:
    """Return a player of videos with their flow and occlusion on one timeline. Value: `player_value`."""
    return gr.HTML(html_template=_static("player.html"), js_on_load=_static("player.js"), apply_default_css=False, empty=empty)


def player_value(results: Sequence[VideoResult]) -> dict[str, Any]:
    """Return the value that static/player.js reads."""
    first = results[0]
    videos = [
        {
            "title": result.title,
            "path": str(result.file),
            "file": FILE_ROUTE + str(result.file),
            "name": result.file.name,
            "max_flow": result.max_flow,
            "has_sound": result.has_sound,
            "points": [asdict(point) for point in result.points],
            "sheets": {kind: FILE_ROUTE + str(path) for kind, path in result.sheets.items()},
        }
        for result in results
    ]
    return {"num_frames": first.num_frames, "columns": first.columns, "fps": first.fps, "videos": videos}


def stylesheet() -> str:
    """Return the page's CSS, for light and dark mode."""
    return _static("page.css")


def _picker(
    kind: str,
    examples: list[dict[str, str]],
    empty: str,
    hint: str,
    accept: str,
    limits: ServeLimits,
    *,
    controls: bool = False,
    follows: bool = False,
) -> gr.HTML:
    return gr.HTML(
        html_template=_static("picker.html"),
        js_on_load=_static("picker.js") + _static("controls.js"),
        apply_default_css=False,
        kind=kind,
        clip=kind == "clip",
        controls=controls,
        follows=follows,
        examples=examples,
        empty=empty,
        hint=hint,
        accept=accept,
        max_bytes=limits.upload_bytes,
    )


def _static(name: str) -> str:
    return (STATIC / name).read_text()


def _data_url(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
