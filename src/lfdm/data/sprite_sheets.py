"""Sprite sheets: all frames of a clip in one PNG, with or without JSON data, as game engines and sprite editors read them.

Shapes: a sheet is (H, W, 4) uint8 with straight alpha, frames are (t, h, w, 4).
"""

import io
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from lfdm.config.checks import check, check_number
from lfdm.config.video import MAX_FPS, MIN_FPS, SheetFormat, Size
from lfdm.data.alpha import add_alpha
from lfdm.data.fitting import check_frames
from lfdm.data.images import check_exists, read_image
from lfdm.data.timing import constant_rate
from lfdm.errors import UserError
from lfdm.folders.files import check_parents, expand_home, write_bytes

SHEET_SUFFIX = ".json"
MAX_SHEET_SIDE = 16_384
"""Largest side of a sheet in pixels: textures of most graphics cards end there, those of old telephones at 4,096."""
_DIRECTIONS: dict[str, Callable[[list[int]], list[int]]] = {
    "forward": lambda frames: frames,
    "reverse": lambda frames: frames[::-1],
    "pingpong": lambda frames: frames + frames[-2:0:-1],
    "pingpong_reverse": lambda frames: frames[::-1] + frames[1:-1],
}
"""Order in which Aseprite plays the frames of a tag."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SheetClip:
    """One animation of a sheet."""

    name: str
    frames: np.ndarray
    """(t, h, w, 4) uint8, at a constant rate."""
    fps: float | None
    """Frames per second; None where the sheet states no durations."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Equal cells, row by row.

    Raises:
        UserError: a size that is not allowed.
    """

    width: int
    height: int
    margin: int = 0
    """Pixels around the cells."""
    spacing: int = 0
    """Pixels between them."""

    def __post_init__(self) -> None:
        for name in ("width", "height"):
            check(1 <= getattr(self, name) <= MAX_SHEET_SIDE, name, getattr(self, name), f"1 to {MAX_SHEET_SIDE}")
        for name in ("margin", "spacing"):
            check(0 <= getattr(self, name) <= MAX_SHEET_SIDE, name, getattr(self, name), f"0 to {MAX_SHEET_SIDE}")

    @classmethod
    def parse(cls, text: str, *, margin: int = 0, spacing: int = 0) -> Self:
        """Return the grid of cells of a size such as "64x48" (height x width) or "64"; UserError for another text."""
        height, width = Size.parse(text, "grid", high=MAX_SHEET_SIDE)
        return cls(height=height, width=width, margin=margin, spacing=spacing)

    def count(self, sheet: np.ndarray) -> tuple[int, int]:
        """Return the number of whole rows and columns of a sheet."""
        rows, columns = (
            (side - 2 * self.margin + self.spacing) // (cell + self.spacing)
            for side, cell in zip(sheet.shape[:2], (self.height, self.width), strict=True)
        )
        return max(rows, 0), max(columns, 0)

    def cell(self, sheet: np.ndarray, row: int, column: int) -> np.ndarray:
        """Return the cell of a sheet, (height, width, c)."""
        top = self.margin + row * (self.height + self.spacing)
        left = self.margin + column * (self.width + self.spacing)
        return sheet[top : top + self.height, left : left + self.width]


def enlarge(frames: np.ndarray, factor: int) -> np.ndarray:
    """Enlarge frames (t, h, w, c) by a whole factor; pixels stay square and sharp."""
    return frames if factor == 1 else frames.repeat(factor, axis=1).repeat(factor, axis=2)


# --------------------------------------------------------------------------------------------------------------- writing


def write_sheet(path: str | Path, frames: np.ndarray, *, fps: float, form: SheetFormat = "aseprite") -> Path:
    """Write frames (t, h, w, 3) or (t, h, w, 4) uint8 as a sheet: `walk.json` and, next to it, `walk.png`; returns the former.

    - `aseprite`: the JSON (hash) of Aseprite, with a tag of the file's name and the duration of every frame;
    - `hash`, `array`: the two JSON forms of TexturePacker, with frames `walk-00000.png`, ... and no durations.

    Raises:
        UserError: frames of another shape, a path that does not end in .json, a rate that is not allowed, or frames that do not
            fit into one sheet.
    """
    path = expand_home(path)
    check(path.suffix.lower() == SHEET_SUFFIX, "path", str(path), f"a name that ends in {SHEET_SUFFIX}")
    check_frames(frames, may_have_alpha=True)
    check_parents(path)
    fps = check_number("fps", fps, low=MIN_FPS, high=MAX_FPS)
    columns = sheet_columns(len(frames), *frames.shape[1:3])
    buffer = io.BytesIO()
    sheet = tile(frames, columns)
    Image.fromarray(sheet).save(buffer, "PNG", optimize=True)
    image = sheet_image(path)
    data = _describe(frames.shape, columns, path.stem, fps, form)
    data["meta"]["image"] = image.name
    data["meta"]["size"] = {"w": sheet.shape[1], "h": sheet.shape[0]}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(image, buffer.getvalue())
    write_bytes(path, json.dumps(data, indent=1).encode())
    return path


def sheet_image(path: Path) -> Path:
    """Return the path of the picture that `write_sheet` writes next to `path`."""
    return path.with_suffix(".png")


def sheet_columns(num_frames: int, height: int, width: int, *, largest: int = MAX_SHEET_SIDE) -> int:
    """Return the columns of an almost square sheet with sides up to `largest`; UserError if it cannot hold the frames."""
    columns = max(1, min(math.ceil(math.sqrt(num_frames * height / width)), largest // width, num_frames))
    if max(columns * width, math.ceil(num_frames / columns) * height) > largest:
        raise UserError(
            f"num_frames: {num_frames} frames of {width}x{height} do not fit into a sheet of {largest} pixels; "
            "choose fewer frames or a smaller size"
        )
    return columns


def tile(frames: np.ndarray, columns: int) -> np.ndarray:
    """Arrange frames (t, h, w, c) in rows of `columns`: (H, W, c); what is left of the last row is zero."""
    t, height, width, channels = frames.shape
    rows = math.ceil(t / columns)
    cells = np.zeros((rows * columns, height, width, channels), np.uint8)
    cells[:t] = frames
    cells = cells.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return cells.reshape(rows * height, columns * width, channels)


def _describe(shape: tuple[int, ...], columns: int, name: str, fps: float, form: SheetFormat) -> dict[str, Any]:
    """Return the data of a sheet, except for the picture's name and size."""
    t, height, width, channels = shape
    ends = np.rint(np.arange(t + 1) * 1000 / fps)  # rounding errors must not add up over the clip
    entries: dict[str, dict[str, Any]] = {}
    for index in range(t):
        row, column = divmod(index, columns)
        entry: dict[str, Any] = {
            "frame": {"x": column * width, "y": row * height, "w": width, "h": height},
            "rotated": False,
            "trimmed": False,
            "spriteSourceSize": {"x": 0, "y": 0, "w": width, "h": height},
            "sourceSize": {"w": width, "h": height},
        }
        if form == "aseprite":
            entries[str(index)] = {**entry, "duration": int(ends[index + 1] - ends[index])}
        else:
            entries[f"{name}-{index:05d}.png"] = entry
    frames = [{"filename": key, **entry} for key, entry in entries.items()] if form == "array" else entries
    meta: dict[str, Any] = {
        "app": "lfdm",
        "version": "1.0",
        "format": "RGBA8888" if channels == 4 else "RGB888",
        "scale": "1",
    }
    if form == "aseprite":
        meta["frameTags"] = [{"name": name, "from": 0, "to": t - 1, "direction": "forward", "color": "#000000ff"}]
        meta |= {"layers": [], "slices": []}
    return {"frames": frames, "meta": meta}


# --------------------------------------------------------------------------------------------------------------- reading


def read_sheet(path: str | Path) -> list[SheetClip]:
    """Read the animations of a sheet from its JSON data, of Aseprite (hash or array) or TexturePacker.

    They are Aseprite's frame tags; without tags, frames whose names differ only in their last number belong together. The picture
    is the file of the stated name next to the data.

    Raises:
        FileNotFoundError: no such file.
        UserError: a file that is no such data, or that does not fit its picture.
    """
    path = expand_home(path)
    check_exists(path)
    try:
        data = json.loads(path.read_bytes())
        meta, listed = data["meta"], data["frames"]
        entries = {entry["filename"]: entry for entry in listed} if isinstance(listed, list) else dict(listed)
        sheet = add_alpha(read_image(path.parent / Path(meta["image"]).name, keep_alpha=True))
        cells = [_cut(path, sheet, name, entry) for name, entry in entries.items()]
        durations = [entry.get("duration") for entry in entries.values()]
        tags = meta.get("frameTags") or []
        groups = [(str(tag["name"]), _tag_frames(tag, len(cells))) for tag in tags] or _groups_by_name(list(entries))
        return [_clip(path, name, [cells[i] for i in chosen], [durations[i] for i in chosen]) for name, chosen in groups]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not the data of a sprite sheet, Aseprite's or TexturePacker's JSON ({error!r})") from error


def _cut(path: Path, sheet: np.ndarray, name: str, entry: dict[str, Any]) -> np.ndarray:
    """Return one frame (h, w, 4) at its untrimmed size."""
    place, whole = entry["frame"], entry.get("sourceSize") or entry["frame"]
    offset = entry.get("spriteSourceSize") or {"x": 0, "y": 0}
    if entry.get("rotated"):
        raise UserError(f"{path}: the frame {name!r} is rotated; export the sheet without rotation")
    x, y, width, height = (int(place[key]) for key in "xywh")
    left, top = int(offset["x"]), int(offset["y"])
    frame = np.zeros((int(whole["h"]), int(whole["w"]), 4), np.uint8)
    inside = min(x, y, left, top) >= 0 and min(width, height, *frame.shape) >= 1
    inside = inside and x + width <= sheet.shape[1] and y + height <= sheet.shape[0]
    if not (inside and left + width <= frame.shape[1] and top + height <= frame.shape[0]):
        raise UserError(f"{path}: the frame {name!r} lies outside of the picture or of its own size")
    frame[top : top + height, left : left + width] = sheet[y : y + height, x : x + width]
    return frame


def _tag_frames(tag: dict[str, Any], num_frames: int) -> list[int]:
    first, last, direction = int(tag["from"]), int(tag["to"]), tag.get("direction", "forward")
    if not 0 <= first <= last < num_frames or direction not in _DIRECTIONS:
        raise ValueError(f"frame tag {tag['name']!r}: {direction} from {first} to {last} of {num_frames} frames")
    return _DIRECTIONS[direction](list(range(first, last + 1)))


def _groups_by_name(names: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Group frames such as `walk-00.png` and `walk-01.png` under `walk`, in the order of their numbers."""
    groups: dict[str, list[tuple[int, int]]] = {}
    for index, name in enumerate(names):
        match = re.fullmatch(r"(.*?)[\s_/.(-]*(\d*)\)?", name.rsplit(".", 1)[0] if "." in name else name, re.DOTALL)
        assert match is not None  # every part may be empty
        groups.setdefault(match[1], []).append((int(match[2] or 0), index))
    return [(name, [index for _, index in sorted(members)]) for name, members in groups.items()]


def _clip(path: Path, name: str, cells: Sequence[np.ndarray], durations: Sequence[Any]) -> SheetClip:
    if len({cell.shape for cell in cells}) > 1:
        raise UserError(f"{path}: the frames of {name!r} have different sizes; export the sheet without trimming")
    if any(duration is None for duration in durations):
        return SheetClip(name=name, frames=np.stack(cells), fps=None)
    height, width = cells[0].shape[:2]
    timing = constant_rate([max(1.0, float(one)) for one in durations], ticks_per_second=1000, width=width, height=height)
    return SheetClip(name=name, frames=np.stack(cells).repeat(timing.repeats, axis=0), fps=timing.fps)


def read_grid(path: str | Path, grid: Grid, rows: Sequence[str | None]) -> tuple[list[SheetClip], int]:
    """Read a sheet of equal cells whose rows are animations named `rows`; also return the number of rows without a name.

    A row ends at its first empty cell: one that is transparent or, in a picture without alpha, of a single colour. Rows whose
    name is None and rows beyond the names are left out.

    Raises:
        FileNotFoundError: no such file.
        UserError: not a picture, one with fewer rows than names, or a named row without frames.
    """
    path = expand_home(path)
    picture = read_image(path, keep_alpha=True)
    num_rows, num_columns = grid.count(picture)
    if num_rows < len(rows) or num_columns < 1:
        size = f"{picture.shape[1]}x{picture.shape[0]}"
        raise UserError(f"{path}: rows must be at most {num_rows}, those of the picture ({size}); got {len(rows)} names")
    clips = []
    for row, name in enumerate(rows):
        cells = [grid.cell(picture, row, column) for column in range(num_columns)]
        length = next((k for k, cell in enumerate(cells) if _is_empty(cell)), num_columns)
        if name is not None and length == 0:
            raise UserError(f"{path}: row {row + 1}, {name!r}, begins with an empty cell")
        if name is not None:
            clips.append(SheetClip(name=name, frames=add_alpha(np.stack(cells[:length])), fps=None))
    return clips, num_rows - len(clips)


def _is_empty(cell: np.ndarray) -> bool:
    return not cell[..., 3].any() if cell.shape[-1] == 4 else bool((cell == cell[0, 0]).all())
