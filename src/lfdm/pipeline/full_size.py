"""Frames in the picture's own size: its own pixels, moved by motion that was made at the model's size.

Only what the picture does not show is taken from the decoder's frames, enlarged. Time grows linearly with the pixels; memory is
that of the result and of two frames.

Shapes: picture (3, H, W) in [0, 1], or (4, H, W) with straight alpha · image and frames at the model's size (b, 3, S_h, S_w).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from lfdm.autoencoder.autoencoder import Features, LatentFlowAutoencoder
from lfdm.config.checks import check, check_number
from lfdm.config.video import Fit, OutputSize, Size
from lfdm.data.alpha import fill_invisible
from lfdm.data.fitting import shown_part
from lfdm.errors import UserError
from lfdm.motion.frame_box import FrameBox
from lfdm.motion.guided_upsampling import (
    LEARNED_NODES_PER_CELL,
    NODES_PER_CELL,
    MotionNodes,
    fit_nodes,
    sample_points,
    upsample_motion,
    visible_share,
    warp_points,
)
from lfdm.motion.motion import Motion
from lfdm.pipeline.decoding import frames_per_chunk
from lfdm.pipeline.inputs import Picture
from lfdm.pipeline.result import LatentFlowOutput, OutputType, VideoBuffer

MIN_MEGAPIXELS, MAX_MEGAPIXELS = 0.001, 16.0
"""Least and default limit of a picture: 16 frames of 16 megapixels take 1.5 GB as `uint8`, `frames` and `warped` together."""
EDGE_RAMP = 1 / 32
"""Width of the ramp at the edges of a crop, as a share of the frame; the motion itself ends over a wider one."""
TILE_POINTS = 2**16
"""Pixels that are computed at once; a pixel takes about 300 bytes."""


def check_output_size(output_size: OutputSize, pictures: Sequence[Size], max_megapixels: float) -> None:
    """Check the size of frames against the sizes of the pictures.

    Raises:
        UserError: neither `model` nor `native`; or with `native` a picture over the limit, or pictures of several sizes.
    """
    check(output_size in get_args(OutputSize), "output_size", output_size, "'model' or 'native'")
    limit = check_number("max_megapixels", max_megapixels, low=MIN_MEGAPIXELS)
    if output_size == "model":
        return
    if len(set(pictures)) > 1:
        sizes = ", ".join(str(size) for size in sorted(set(pictures)))
        raise UserError(f"image must have one size with output_size='native'; got {sizes}: one call for each")
    megapixels = math.prod(pictures[0]) / 1e6
    if megapixels > limit:
        raise UserError(
            f"image must have at most {limit:g} megapixels with output_size='native'; got {pictures[0]} ({megapixels:.1f} "
            "megapixels): shrink it, or raise max_megapixels (--max-megapixels)"
        )


def frame_box(picture: Size, size: Size, fit: Fit) -> FrameBox:
    """Return the part of a picture that a frame of `size` shows when fitted by `lfdm.data.fitting.fit_frames`."""
    return FrameBox(*shown_part(picture, size, fit))


@dataclass(frozen=True, eq=False)
class FullSizePicture:
    """A picture, and how it lies in the model's frame."""

    straight: Tensor
    """The picture (1, c, H, W) itself."""
    planes: Tensor
    """The planes to warp (1, c, H, W), colours premultiplied by alpha where there is one."""
    guide: Tensor
    """Opaque colours (1, 3, H, W)."""
    box: FrameBox

    @classmethod
    def prepare(cls, picture: Picture, size: Size, fit: Fit, device: torch.device) -> "FullSizePicture":
        """Prepare a picture that is fitted to `size` in the model."""
        if isinstance(picture, np.ndarray):
            picture = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
        straight = picture[None].to(device)
        box = frame_box(Size(*picture.shape[1:]), size, fit)
        if len(picture) == 3:
            return cls(straight, straight, straight, box)
        alpha = straight[:, 3:]
        rgba = np.rint(rearrange(picture, "c h w -> h w c").numpy() * 255).astype(np.uint8)
        filled = torch.from_numpy(fill_invisible(rgba)[..., :3].copy()).permute(2, 0, 1)[None].float() / 255
        return cls(straight, torch.cat((straight[:, :3] * alpha, alpha), dim=1), filled.to(device), box)

    @property
    def size(self) -> Size:
        """Height and width."""
        return Size(*self.straight.shape[-2:])

    @property
    def extends_beyond(self) -> tuple[bool, bool]:
        """Whether parts of the picture lie above or below the frame, and whether parts lie to its left or right."""
        (top, left, box_height, box_width), (height, width) = self.box, self.size
        return top > 0 or top + box_height < height, left > 0 or left + box_width < width

    def held_at_edges(self, motion: Motion) -> Motion:
        """Let motion end smoothly at those edges of the frame beyond which the picture continues, since nothing moves there."""
        mask = torch.ones(1, 1, *motion.size, device=motion.flow.device)
        vertically, horizontally = self.extends_beyond
        if vertically:
            mask[..., 0, :] = mask[..., -1, :] = 0
        if horizontally:
            mask[..., 0] = mask[..., -1] = 0
        return motion.masked(mask)

    def inside(self, x: Tensor, y: Tensor) -> Tensor:
        """Return 1 for points (m,) in the frame and 0 outside, with a ramp at those edges beyond which the picture continues."""
        share = torch.ones_like(x)
        for extends_beyond, at, start, extent in zip(self.extends_beyond, (y, x), self.box[:2], self.box[2:], strict=True):
            if extends_beyond:
                from_edge = torch.minimum(at + 0.5 - start, start + extent - at - 0.5) / (EDGE_RAMP * extent)
                share = torch.minimum(share, from_edge.clamp(0, 1))
        return share

    def inner(self, size: tuple[int, int]) -> tuple[slice, slice, FrameBox]:
        """Return the rows and columns of a grid of `size` over the frame that show only picture, no borders, and their box."""
        slices, starts, extents = [], [], []
        for n, start, extent, whole in zip(size, self.box[:2], self.box[2:], self.size, strict=True):
            step = extent / n
            first, last = max(0, math.ceil(-start / step - 1e-6)), min(n, math.floor((whole - start) / step + 1e-6))
            first, last = (first, last) if last > first else (min(first, n - 1), min(first, n - 1) + 1)
            slices.append(slice(first, last))
            starts.append(start + first * step)
            extents.append((last - first) * step)
        return slices[0], slices[1], FrameBox(*starts, *extents)


def decode_full_size(
    autoencoder: LatentFlowAutoencoder,
    features: Features,
    motion: Motion,
    pictures: Sequence[FullSizePicture],
    output_type: OutputType,
    *,
    after_chunk: Callable[[int], None] | None = None,
) -> LatentFlowOutput:
    """Make all frames of `motion` in the size of the pictures, one frame at a time.

    Args:
        features: of the pictures at the model's size, one per sample.
        pictures: one per sample, or fewer that go with as many successive samples each. All have one size.
        after_chunk: called with the number of frames made so far.
    """
    batch, length = len(motion.flow), motion.num_frames
    each = [pictures[k * len(pictures) // batch] for k in range(batch)]
    held = Motion.concatenate([one.held_at_edges(motion.samples(k, k + 1)) for k, one in enumerate(each)], dim=0)
    like = torch.cat([one.straight for one in each])
    frames, warped = (VideoBuffer(like, length, output_type, truncate=autoencoder.corners) for _ in range(2))
    chunk = frames_per_chunk(autoencoder, Size(*features.image.shape[-2:]), batch)
    for start in range(0, length, chunk):
        part = held.frames(start, start + chunk)
        decoded = autoencoder.decode(features, part).prediction.float()
        size = _grid_of_nodes(autoencoder, features, part)
        if autoencoder.upsampler is not None:
            part = autoencoder.upsample_motion(features.image, part)
        nodes = [
            fit_nodes(part.samples(k, k + 1), features.image[k : k + 1], decoded[k].movedim(1, 0), size) for k in range(batch)
        ]
        for n in range(part.num_frames):
            made = [make_frame(one, nodes[k][n], decoded[k : k + 1, :, n]) for k, one in enumerate(each)]
            frames.put(torch.stack([prediction for prediction, _ in made])[:, :, None], start + n)
            warped.put(torch.stack([visible for _, visible in made])[:, :, None], start + n)
            if after_chunk is not None:
                after_chunk(start + n + 1)
    return LatentFlowOutput(frames.video, warped.video, held, pictures[0].box)


def _grid_of_nodes(autoencoder: LatentFlowAutoencoder, features: Features, motion: Motion) -> tuple[int, int]:
    """Return the size of the grid of nodes, finer where the model upsamples motion by learned weights."""
    height, width = (NODES_PER_CELL * cells for cells in motion.size)
    if autoencoder.upsampler is None:
        return height, width
    learned = [LEARNED_NODES_PER_CELL * cells for cells in features.latent.shape[-2:]]
    return max(height, learned[0]), max(width, learned[1])


def make_frame(picture: FullSizePicture, nodes: MotionNodes, decoded: Tensor) -> tuple[Tensor, Tensor]:
    """Return a frame and the warped picture, both (c, H, W), of the motion and the decoded frame (1, 3, S_h, S_w)."""
    height, width = picture.size
    frame, warped = torch.empty_like(picture.straight[0]), torch.empty_like(picture.straight[0])
    rows, columns, nodes_box = picture.inner((nodes.boundary.shape[0], nodes.boundary.shape[1]))
    nodes = nodes.part(rows, columns)
    rows, columns, decoded_box = picture.inner((decoded.shape[-2], decoded.shape[-1]))
    decoded = decoded[..., rows, columns]
    step = max(1, TILE_POINTS // width)
    for top in range(0, height, step):
        bottom = min(height, top + step)
        y, x = torch.meshgrid(
            *(torch.arange(a, b, device=frame.device, dtype=torch.float32) for a, b in ((top, bottom), (0, width))), indexing="ij"
        )
        y, x = y.flatten(), x.flatten()
        made = _make_points(picture, nodes, nodes_box, decoded, decoded_box, x, y)
        frame[:, top:bottom], warped[:, top:bottom] = (one.view(-1, bottom - top, width) for one in made)
    return frame, warped


def _make_points(
    picture: FullSizePicture,
    nodes: MotionNodes,
    nodes_box: FrameBox,
    decoded: Tensor,
    decoded_box: FrameBox,
    x: Tensor,
    y: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return pixels of the frame and of the warped picture, both (c, m)."""
    u = (x + 0.5 - decoded_box.left) / decoded_box.width * decoded.shape[-1] - 0.5
    v = (y + 0.5 - decoded_box.top) / decoded_box.height * decoded.shape[-2] - 0.5
    blurred = sample_points(decoded, u, v, mode="bicubic").clamp(0, 1)
    motion = upsample_motion(nodes, picture.guide, blurred, x, y, nodes_box)
    inside = picture.inside(x, y)
    flow = motion[:2] * inside
    occlusion, least = torch.lerp(torch.ones_like(motion[2:]), motion[2:], inside)
    seen = warp_points(picture.guide, flow, x, y)
    colours_around = torch.cat((-F.max_pool2d(-decoded, 3, 1, 1), F.max_pool2d(decoded, 3, 1, 1)), dim=1)
    low, high = sample_points(colours_around, u, v).chunk(2)
    share = visible_share(occlusion, least, seen, low, high)
    if picture.straight.shape[1] == 3:
        return torch.lerp(blurred, seen, share), seen
    planes = warp_points(picture.planes, flow, x, y)
    alpha = planes[3:]
    colours = torch.lerp(blurred * alpha, planes[:3], share)
    still = ((flow == 0).all(dim=0) & (share == 1)).to(planes)
    made = (torch.cat((c / alpha.clamp(min=1e-4), alpha)).clamp(0, 1) for c in (colours, planes[:3]))
    straight = picture.straight[0, :, y.long(), x.long()]
    frame, warped = (torch.where(still.bool(), straight, one) for one in made)
    return frame, warped
