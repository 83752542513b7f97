"""Images of motion: flow colours, arrows, warped grids, occlusion, regions, panels and contact sheets; numpy and PIL only.

Shapes: video (t, H, W, 3) uint8 · picture (H, W, 3) uint8 · flow (..., h, w, 2), last axis (x, y), in half images ·
occlusion (..., h, w) in [0, 1] · regions (t, K, h, w) in [0, 1].
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, get_args

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lfdm.config.video import PanelKind
from lfdm.data.alpha import compose
from lfdm.errors import UserError

if TYPE_CHECKING:
    from lfdm.motion.motion import Motion

GAP = 4
"""Pixels between tiles."""
CAPTION_HEIGHT = 16
"""Pixels above a tile."""
PANEL_SIDE, SHEET_SIDE = 192, 64
"""Largest side to which tiles of a panel and of a contact sheet are enlarged, by a whole factor."""
CAPTION_WIDTH = 84
"""Pixels that the longest caption of a tile takes; narrower tiles are doubled."""
LARGEST_TILE = 512
"""Side in pixels to which tiles of a panel are reduced, so that five of a photograph in its own size fit a screen and a GIF."""
ARROW_SPACING = 16
"""Pixels between arrows."""
MIN_ARROW, HEAD_LENGTH, HEAD_WIDTH = 2.0, 6.0, 3.0
"""Pixels: shortest motion that gets an arrow; most length and half width of an arrow's head."""
STILL, TYPICAL = 1 / 20, 0.98
"""`flow_scale` takes this quantile of the lengths above this part of the longest: one stray pixel does not fade the others."""
CHECKERS = 16
"""Fields of a checkerboard along a picture's longer side."""
PANEL_KINDS: tuple[PanelKind, ...] = ("source", "generated", "warped", "flow", "occlusion")
"""Default tiles of a panel."""
_CHECKER_GREYS = (204, 153)
_WHITE, _BLACK, _MAGENTA = (255, 255, 255), (0, 0, 0), np.array((255.0, 0.0, 255.0))


def flow_to_color(flow: np.ndarray, *, max_flow: float | None = None) -> np.ndarray:
    """Colour flow (..., 2) with direction as hue and length as saturation: (..., 3) uint8; no motion is white.

    `max_flow` is the length with full saturation (default: the longest).
    """
    length = np.linalg.norm(flow, axis=-1)
    scale = max(max_flow if max_flow is not None else float(length.max()), 1e-6)
    saturation = np.clip(length / scale, 0, 1)[..., None]
    turn = np.arctan2(flow[..., 1], flow[..., 0]) / (2 * np.pi)
    sixths = (6 * turn[..., None] + np.array([0.0, 4.0, 2.0])) % 6
    hue = np.clip(np.abs(sixths - 3) - 1, 0, 1)
    return np.round(255 * (1 - saturation * (1 - hue))).astype(np.uint8)


def flow_scale(flow: np.ndarray) -> float:
    """Return a robust largest length of flow (..., 2), for `max_flow` of `flow_to_color`; 0 without motion."""
    length = np.linalg.norm(flow, axis=-1)
    moving = length[length > length.max() * STILL]
    return float(np.quantile(moving, TYPICAL)) if moving.size else 0.0


def in_half_widths(flow: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return flow (..., 2) for an image of `size` (height, width) with both axes in units of half the width.

    Length and direction are then those in the image, as flow colours need them.
    """
    height, width = size
    return flow * np.array((1.0, height / width), flow.dtype)


def draw_warped_grid(picture: np.ndarray, flow: np.ndarray, *, num_lines: int = 16, opacity: float = 0.6) -> np.ndarray:
    """Draw a square grid of the source image, warped by `flow` (H, W, 2), in black over a picture (H, W, 3).

    `num_lines` is the number of lines across the picture's short side.
    """
    coverage = np.zeros(picture.shape[:2])
    spacing = min(picture.shape[:2]) / num_lines
    for axis, size in ((0, picture.shape[1]), (1, picture.shape[0])):
        centres = np.arange(size) + 0.5
        pixel = centres[None, :] if axis == 0 else centres[:, None]
        source = pixel + flow[..., axis] * size / 2  # the position that each pixel reads in the source image
        distance = np.abs((source / spacing - 0.5) % 1 - 0.5) * spacing
        coverage = np.maximum(coverage, np.clip(1 - distance, 0, 1))
    return np.round(picture * (1 - opacity * coverage[..., None])).astype(np.uint8)


def draw_flow_legend(picture: np.ndarray, *, side: int = 48) -> np.ndarray:
    """Draw a wheel of flow colours in the lower right corner of a picture (H, W, 3); its rim is the length `max_flow`."""
    side = min(side, *picture.shape[:2])
    axis = (2 * np.arange(side) + 1) / side - 1
    flow = np.stack(np.meshgrid(axis, axis), axis=-1)
    radius = np.linalg.norm(flow, axis=-1)[..., None]
    wheel = np.where(radius > 1 - 3 / side, 0, flow_to_color(flow, max_flow=1.0))
    drawn = picture.copy()
    drawn[-side:, -side:] = np.where(radius <= 1, wheel, drawn[-side:, -side:])
    return drawn


def draw_arrows(picture: np.ndarray, flow: np.ndarray, *, spacing: int = ARROW_SPACING) -> np.ndarray:
    """Draw arrows over a picture (H, W, 3) from positions in the source image to those now, against `flow` (H, W, 2).

    Motion shorter than `MIN_ARROW` gets no arrow.
    """
    height, width = picture.shape[:2]
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    for y in range(spacing // 2, height, spacing):
        for x in range(spacing // 2, width, spacing):
            head = np.array((x, y), np.float64)
            shift = flow[y, x] * (width / 2, height / 2)  # from here to the position in the source image
            length = float(np.linalg.norm(shift))
            if length < MIN_ARROW:
                continue
            along, across = shift / length, np.array((-shift[1], shift[0])) / length
            back, aside = along * min(HEAD_LENGTH, length), across * min(HEAD_WIDTH, length / 2)
            for colour, stroke in ((_WHITE, 3), (_BLACK, 1)):  # light around dark: visible on every picture
                draw.line([tuple(head + shift), tuple(head)], fill=colour, width=stroke)
                draw.polygon([tuple(head), tuple(head + back + aside), tuple(head + back - aside)], _BLACK, colour)
    return np.asarray(image)


def overlay_occlusion(picture: np.ndarray, occlusion: np.ndarray, *, opacity: float = 0.6) -> np.ndarray:
    """Tint a picture (H, W, 3) magenta where `occlusion` (H, W) is low: there it is inpainted rather than warped."""
    hidden = opacity * (1 - np.clip(occlusion, 0, 1))[..., None]
    return np.round(picture * (1 - hidden) + _MAGENTA * hidden).astype(np.uint8)


def overlay_regions(picture: np.ndarray, heat: np.ndarray, *, opacity: float = 0.7) -> np.ndarray:
    """Overlay a picture (H, W, 3) with the heat maps (K, H, W) of regions, each in its own hue."""
    turns = 2 * np.pi * np.arange(len(heat)) / len(heat)
    hues = flow_to_color(np.stack((np.cos(turns), np.sin(turns)), axis=-1), max_flow=1.0).astype(np.float64)  # (K, 3)
    heat = np.clip(heat, 0, 1)
    colour = np.einsum("khw,kc->hwc", heat, hues) / np.maximum(heat.sum(0), 1e-6)[..., None]
    share = opacity * heat.max(axis=0)[..., None]
    return np.round(picture * (1 - share) + colour * share).astype(np.uint8)


def over_checkerboard(pictures: np.ndarray) -> np.ndarray:
    """Compose pictures (..., H, W, 4) uint8 with straight alpha over a checkerboard: (..., H, W, 3); others stay as they are."""
    if pictures.shape[-1] == 3:
        return pictures
    y, x = np.indices(pictures.shape[-3:-1]) // max(1, max(pictures.shape[-3:-1]) // CHECKERS)
    return compose(pictures, np.where((x + y) % 2, *_CHECKER_GREYS)[..., None])


def draw_panel(
    source: np.ndarray | None,
    frames: np.ndarray,
    warped: np.ndarray,
    motion: "Motion",
    *,
    kinds: Sequence[PanelKind] = PANEL_KINDS,
    regions: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """Draw captioned tiles side by side; returns an iterator over t pictures (H', W', 3) uint8.

    Tiles: `source`, `generated`, `warped` (the source image warped, without inpainting), `flow` (colours with legend and warped
    grid), `grid` and `arrows` (over the generated frame), `occlusion` (white = visible), `overlay` (occlusion over the generated
    frame, magenta = inpainted), `regions` (of stage 1, over the generated frame). Flow colours share one scale over the
    video, the rim of the legend, which the caption gives in pixels of the frame.

    Args:
        source: (H, W, 3) uint8; needed only for its tile.
        frames, warped: (t, H, W, 3) uint8. All three may have alpha (4 channels) and are then drawn over a checkerboard.
        motion: motion of one sample, with the same t.
        kinds: the tiles, in order.
        regions: heat maps (t, K, h, w) of the generated frames; needed only for their tile.

    Raises:
        UserError: shapes that do not agree, no tiles, an unknown tile, or one whose input is missing.
    """
    source = None if source is None else over_checkerboard(source)
    frames, warped = over_checkerboard(frames), over_checkerboard(warped)
    _check_panel(source, frames, warped, motion, kinds, regions)
    height, width = frames.shape[1:3]
    size = _tile_size(width, height)
    flow = motion.flow[0].permute(1, 2, 3, 0).float().cpu().numpy()  # (t, h, w, 2)
    occlusion = motion.occlusion[0, 0].float().cpu().numpy()
    colour_flow = in_half_widths(flow, (height, width))
    scale = flow_scale(colour_flow)
    captions = [f"flow, rim {scale * width / 2:.1f} px" if kind == "flow" else kind for kind in kinds]

    def tile(kind: PanelKind, k: int) -> np.ndarray:
        if kind in ("source", "generated", "warped"):
            picture = source if kind == "source" else (frames if kind == "generated" else warped)[k]
            assert picture is not None
            return _to_tile(picture, size)
        frame = _to_tile(frames[k], size)
        if kind == "regions":
            assert regions is not None
            return overlay_regions(frame, np.stack([_resize(heat, size) for heat in regions[k]]))
        if kind in ("occlusion", "overlay"):
            visible = _resize(occlusion[k], size)
            return occlusion_to_gray(visible) if kind == "occlusion" else overlay_occlusion(frame, visible)
        large = np.stack([_resize(flow[k, ..., axis], size) for axis in range(2)], axis=-1)
        if kind == "flow":
            colours = flow_to_color(in_half_widths(large, (height, width)), max_flow=scale)
            return draw_flow_legend(draw_warped_grid(colours, large))
        return draw_arrows(frame, large) if kind == "arrows" else draw_warped_grid(frame, large)

    return (_row([tile(kind, k) for kind in kinds], captions) for k in range(len(frames)))


def _check_panel(
    source: np.ndarray | None,
    frames: np.ndarray,
    warped: np.ndarray,
    motion: "Motion",
    kinds: Sequence[str],
    regions: np.ndarray | None,
) -> None:
    t = len(frames)
    agree = len(motion.flow) == 1 and motion.num_frames == t and warped.shape == frames.shape
    if not agree or (source is not None and source.shape != frames.shape[1:]):
        raise UserError(
            f"a panel needs one sample's source (H, W, 3), frames and warped (t, H, W, 3) and motion of t frames; got "
            f"{None if source is None else source.shape}, {frames.shape}, {warped.shape} and motion {tuple(motion.flow.shape)}"
        )
    unknown = [kind for kind in kinds if kind not in get_args(PanelKind)]
    if unknown or not kinds:
        got = repr(unknown[0]) if unknown else "none"
        raise UserError(f"the tiles of a panel are some of {', '.join(get_args(PanelKind))}; got {got}")
    if "source" in kinds and source is None:
        raise UserError("the tile 'source' needs the source image; got None")
    if "regions" in kinds and (regions is None or regions.ndim != 4 or len(regions) != t):
        got = None if regions is None else regions.shape
        raise UserError(f"the tile 'regions' needs heat maps ({t}, K, h, w) of stage 1; got {got}")


def occlusion_to_gray(occlusion: np.ndarray) -> np.ndarray:
    """Convert occlusion (..., h, w) to grey (..., h, w, 3) uint8: white = visible in the source, black = inpainted."""
    gray = np.round(255 * np.clip(occlusion, 0, 1)).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=-1)


def contact_sheet(rows: Sequence[np.ndarray], captions: Sequence[str], *, num_frames: int = 8) -> np.ndarray:
    """Draw `num_frames` evenly spread frames of each video (t, H, W, 3) in a row, below its caption: (H, W, 3) uint8.

    Raises UserError for no videos, or another number of captions.
    """
    if not rows or len(rows) != len(captions):
        raise UserError(f"a contact sheet needs one caption per video; got {len(rows)} videos and {len(captions)} captions")
    strips = []
    for video, caption in zip(rows, captions, strict=True):
        chosen = np.unique(np.linspace(0, len(video) - 1, num_frames).round().astype(int))
        factor = max(1, SHEET_SIDE // max(video.shape[1:3]))
        tiles = [_enlarge(video[k], factor) for k in chosen]
        strips.append(_row(tiles, [caption] + [""] * (len(tiles) - 1)))
    width = max(strip.shape[1] for strip in strips)
    return np.concatenate([_pad(strip, right=width - strip.shape[1], bottom=GAP) for strip in strips])


def _row(tiles: Sequence[np.ndarray], captions: Sequence[str]) -> np.ndarray:
    """Draw tiles side by side with captions above; a caption may extend over the next tile if that has none."""
    padded = [_pad(tile, right=GAP if tile is not tiles[-1] else 0, top=CAPTION_HEIGHT) for tile in tiles]
    image = Image.fromarray(np.concatenate(padded, axis=1))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default()
    left = 0
    for tile, caption in zip(padded, captions, strict=True):
        draw.text((left + 2, 2), caption, fill=_BLACK, font=font)
        left += tile.shape[1]
    return np.asarray(image)


def _pad(picture: np.ndarray, *, top: int = 0, right: int = 0, bottom: int = 0) -> np.ndarray:
    return np.pad(picture, ((top, bottom), (0, right), (0, 0)), constant_values=_WHITE[0])


def _tile_size(width: int, height: int) -> tuple[int, int]:
    """Return width and height of a panel's tiles: a whole multiple of small or narrow frames, a reduction of very large ones."""
    largest = max(width, height)
    if largest <= LARGEST_TILE:
        factor = max(PANEL_SIDE // largest, 2 if width < CAPTION_WIDTH else 1)
        return width * factor, height * factor
    return max(1, round(width * LARGEST_TILE / largest)), max(1, round(height * LARGEST_TILE / largest))


def _to_tile(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bring a picture (H, W, 3) uint8 to a tile's `size` (width, height)."""
    if size[0] >= picture.shape[1]:
        return _enlarge(picture, size[0] // picture.shape[1])
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))


def _enlarge(picture: np.ndarray, factor: int) -> np.ndarray:
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def _resize(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize floats (h, w) bilinearly to `size` = (width, height)."""
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
