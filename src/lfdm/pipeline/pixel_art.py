"""Frames of pixel art: in the picture's own size, of its own pixels and colours, without blur.

The picture lies in the middle of a canvas whose size is a whole multiple or fraction of the model's, so that a pixel of one is a
square of the other. Motion comes from the model; each visible pixel of a frame is the source pixel that it points at; what is
inpainted takes the nearest colour of the picture.

Shapes: picture (H, W, c) uint8, canvas (h, w, c), c = 3, or 4 with straight alpha · video (b, c, t, H, W) in [0, 1].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from lfdm.autoencoder.autoencoder import Features, LatentFlowAutoencoder
from lfdm.config.video import Size
from lfdm.data.alpha import add_alpha
from lfdm.data.sprite_sheets import enlarge
from lfdm.errors import UserError
from lfdm.motion.frame_box import FrameBox
from lfdm.motion.motion import Motion
from lfdm.motion.warp import warp
from lfdm.pipeline.decoding import frames_per_chunk
from lfdm.pipeline.result import LatentFlowOutput, OutputType, VideoBuffer

MAX_COLOURS = 4096
"""Most colours of a picture: one with more is no pixel art, and matching its colours would take too long."""
_HALF = 0.5
"""Least alpha of a visible pixel, and least occlusion of one that is not inpainted."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PixelArt:
    """Pictures of one size, each on its canvas."""

    canvases: np.ndarray
    """(b, h, w, c) uint8."""
    palettes: tuple[np.ndarray, ...]
    """Colours (n, 3) uint8 of the visible pixels of each picture."""
    top: int
    left: int
    height: int
    width: int
    """Place of the pictures in their canvases."""
    factor: int
    """Pixels of the model's frame along a side of one canvas pixel; 1 where the canvas is as large or larger."""

    @classmethod
    def place(cls, pictures: Sequence[np.ndarray], size: tuple[int, int]) -> "PixelArt":
        """Place pictures (H, W, 3) or (H, W, 4) uint8 on canvases for a model with frames of `size` (height, width).

        Raises:
            UserError: pictures of several sizes, or one with more than 4,096 colours.
        """
        sizes = {picture.shape[:2] for picture in pictures}
        if len(sizes) > 1:
            raise UserError(f"image must have one size with pixel_art; got {sorted(sizes)}: one call for each")
        height, width = sizes.pop()
        canvas, factor = _canvas_size((height, width), size)
        top, left = (canvas[0] - height) // 2, (canvas[1] - width) // 2
        around = ((top, canvas[0] - height - top), (left, canvas[1] - width - left), (0, 0))
        has_alpha = any(picture.shape[-1] == 4 for picture in pictures)
        same = [add_alpha(picture) if has_alpha else picture for picture in pictures]
        padded = [np.pad(one, around, mode="constant" if has_alpha else "edge") for one in same]
        palettes = tuple(_palette(picture) for picture in pictures)
        place = {"top": top, "left": left, "height": height, "width": width}
        return cls(canvases=np.stack(padded), palettes=palettes, factor=factor, **place)

    def enlarged(self) -> list[np.ndarray]:
        """Return the canvases at the model's size or, where they are larger, a whole multiple of it."""
        return list(enlarge(self.canvases, self.factor))

    def repeat(self, count: int) -> "PixelArt":
        """Return these pictures, each `count` times in a row."""
        palettes = tuple(palette for palette in self.palettes for _ in range(count))
        place = {name: getattr(self, name) for name in ("top", "left", "height", "width", "factor")}
        return PixelArt(canvases=self.canvases.repeat(count, axis=0), palettes=palettes, **place)

    def cut(self, video: Tensor) -> Tensor:
        """Cut the picture's part out of a video (b, c, t, h, w) of the canvas."""
        return video[..., self.top : self.top + self.height, self.left : self.left + self.width]


def _canvas_size(picture: tuple[int, int], size: tuple[int, int]) -> tuple[tuple[int, int], int]:
    """Return height and width of the canvas, and the factor by which it is enlarged to the model's `size`."""
    larger = max(-(-a // b) for a, b in zip(picture, size, strict=True))  # rounded up
    if larger > 1:
        return (size[0] * larger, size[1] * larger), 1
    fitting = [k for k in range(1, min(size) + 1) if all(b % k == 0 and b // k >= a for a, b in zip(picture, size, strict=True))]
    return (size[0] // fitting[-1], size[1] // fitting[-1]), fitting[-1]


def _palette(picture: np.ndarray) -> np.ndarray:
    opaque = picture[picture[..., 3] > 0] if picture.shape[-1] == 4 else picture.reshape(-1, 3)
    colours = np.unique(opaque[:, :3], axis=0)
    if len(colours) > MAX_COLOURS:
        raise UserError(f"image must have at most {MAX_COLOURS} colours with pixel_art; got {len(colours)}")
    return colours if len(colours) else np.zeros((1, 3), np.uint8)


def decode_pixel_art(
    autoencoder: LatentFlowAutoencoder,
    features: Features,
    motion: Motion,
    art: PixelArt,
    output_type: OutputType,
    *,
    after_chunk: Callable[[int], None] | None = None,
) -> LatentFlowOutput:
    """Make all frames of `motion` in the size, pixels and colours of `art`; `features` are those of its canvases.

    Args:
        after_chunk: called with the number of frames made so far.
    """
    batch, length = len(motion.flow), motion.num_frames
    canvases = torch.from_numpy(art.canvases).to(features.image.device).permute(0, 3, 1, 2).float() / 255
    size = (canvases.shape[-2], canvases.shape[-1])
    palettes = [torch.from_numpy(palette).to(canvases.device).float() / 255 for palette in art.palettes]
    frames, warped = (VideoBuffer(art.cut(canvases), length, output_type, truncate=autoencoder.corners) for _ in range(2))
    chunk = frames_per_chunk(autoencoder, Size(*features.image.shape[-2:]), batch)
    for start in range(0, length, chunk):
        part = motion.frames(start, start + chunk)
        inpainted = art.cut(_resize(autoencoder.decode(features, part).inpainted.float(), size))
        part = autoencoder.upsample_motion(features.image, part).resize(size)
        visible = art.cut(warp(canvases, part.grid(), padding_mode=autoencoder.padding_mode, mode="nearest"))
        hidden = art.cut(part.occlusion) < _HALF
        if canvases.shape[1] == 4:
            hidden &= visible[:, 3:] >= _HALF
        made = visible.clone()
        made[:, :3] = torch.where(hidden, _snap(inpainted, palettes), visible[:, :3])
        frames.put(made, start)
        warped.put(visible, start)
        if after_chunk is not None:
            after_chunk(min(start + chunk, length))
    return LatentFlowOutput(frames.video, warped.video, motion, FrameBox(-art.top, -art.left, *size))


def _resize(video: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a video (b, 3, t, h, w) by a whole factor: the mean of squares, or pixels as squares."""
    if video.shape[-1] <= size[1]:
        return F.interpolate(video, (video.shape[2], *size), mode="nearest")
    return F.interpolate(video, (video.shape[2], *size), mode="area")


def _snap(video: Tensor, palettes: Sequence[Tensor]) -> Tensor:
    """Replace the colours of a video (b, 3, t, h, w) by the nearest of each sample's palette (n, 3)."""
    snapped = torch.empty_like(video)
    for sample, palette, result in zip(video, palettes, snapped, strict=True):
        for k in range(sample.shape[1]):  # one frame at a time: distances take n numbers per pixel
            colours = rearrange(sample[:, k], "c h w -> (h w) c")
            nearest = palette[torch.cdist(colours, palette).argmin(dim=1)]
            result[:, k] = rearrange(nearest, "(h w) c -> c h w", h=sample.shape[2])
    return snapped
