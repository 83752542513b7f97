"""`Motion`: for every pixel of a frame its position in the source image, and whether it is visible there.

Shapes: flow (b, 2, t, h, w), channel order (x, y), in units of half the image · occlusion (b, 1, t, h, w) in [0, 1], 1 = visible
in the source · grid (b, t, h, w, 2) · mask (1, 1, H, W) in [0, 1], 1 = moves.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lfdm.config.checks import check_number
from lfdm.errors import UserError
from lfdm.folders.files import check_parents, expand_home, write_bytes
from lfdm.motion.warp import flow_to_grid, grid_to_flow, identity_grid, resize

FEATHER = 1 / 16
"""Half the width of a mask's feathered edge, as a share of the motion's larger side."""
BILINEAR_REACH = 1.0
"""Distance in cells up to which a cell influences pixels when motion is resized bilinearly."""
MOTION_SUFFIX = ".safetensors"
MAX_VALUES = 2**28
"""Most values of a tensor in a motion file: 130,000 frames at 32x32, and 1 GB."""
FILE_FORMAT = "lfdm-motion-1"
"""Format and version in the metadata of a motion file."""


@dataclass(frozen=True, eq=False)
class Motion:
    """Backward displacement and occlusion of t frames against one source image (LFDM, arXiv 2303.13744, section 3.2).

    A frame at p shows the source at p + flow; the displacement in pixels is `flow * W / 2` in x and `flow * H / 2` in y.

    Raises:
        UserError: shapes that do not belong together.
    """

    flow: Tensor
    """Displacement (b, 2, t, h, w) in half images."""
    occlusion: Tensor
    """Visibility in the source (b, 1, t, h, w)."""
    corners: bool = False
    """Coordinate convention: end-point identity grid (True) or pixel centres (False), see `lfdm.motion.warp`."""
    offset: Tensor | None = None
    """Share (b, 1, t, h, w) of the end-point identity grid's deviation from the pixel centres; None = all of it, as published.

    With `corners`, zero flow does not reproduce the source unless the offset is zero, too. Scaled and masked motions have one.
    """

    def __post_init__(self) -> None:
        b, channels, *rest = self.flow.shape if self.flow.ndim == 5 else (0, 0)
        if channels != 2 or self.occlusion.shape != (b, 1, *rest):
            raise UserError(
                f"flow must be (b, 2, t, h, w) and occlusion (b, 1, t, h, w); "
                f"got {tuple(self.flow.shape)} and {tuple(self.occlusion.shape)}"
            )
        if self.offset is not None and (not self.corners or self.offset.shape != self.occlusion.shape):
            raise UserError(
                f"offset must have the shape of occlusion, {tuple(self.occlusion.shape)}, and needs corners=True; "
                f"got {tuple(self.offset.shape)} and corners={self.corners}"
            )

    @classmethod
    def from_grid(cls, grid: Tensor, occlusion: Tensor, *, corners: bool) -> Self:
        """Build a motion from an absolute sampling grid and occlusion.

        Args:
            grid: (b, t, h, w, 2) or (b, h, w, 2).
            occlusion: (b, 1, t, h, w) or (b, 1, h, w).

        Raises:
            UserError: other shapes.
        """
        if grid.ndim == 4:
            grid = grid.unsqueeze(1)
        if occlusion.ndim == 4:
            occlusion = occlusion.unsqueeze(2)
        if grid.ndim != 5 or grid.shape[-1] != 2:
            raise UserError(f"grid must be (b, t, h, w, 2) or (b, h, w, 2); got {tuple(grid.shape)}")
        return cls(grid_to_flow(grid, corners=corners), occlusion, corners)

    @classmethod
    def identity(
        cls, batch: int, frames: int, size: tuple[int, int], *, corners: bool, device: torch.device | str | None = None
    ) -> Self:
        """Build a motion of zero flow and full visibility for `size` (h, w)."""
        flow = torch.zeros(batch, 2, frames, *size, device=device)
        return cls(flow, torch.ones(batch, 1, frames, *size, device=device), corners)

    @classmethod
    def concatenate(cls, motions: Sequence[Self], dim: int) -> Self:
        """Concatenate motions along the batch (dim 0) or time (dim 2).

        Raises:
            UserError: motions of different coordinate conventions.
        """
        if len({motion.corners for motion in motions}) != 1:
            raise UserError(f"corners must be the same in all motions; got {[motion.corners for motion in motions]}")
        flow = torch.cat([motion.flow for motion in motions], dim)
        occlusion = torch.cat([motion.occlusion for motion in motions], dim)
        if all(motion.offset is None for motion in motions):
            return cls(flow, occlusion, motions[0].corners)
        return cls(flow, occlusion, True, torch.cat([motion._whole_offset() for motion in motions], dim))

    @property
    def num_frames(self) -> int:
        """Number of frames t."""
        return self.flow.shape[2]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width (h, w)."""
        return self.flow.shape[-2], self.flow.shape[-1]

    def grid(self) -> Tensor:
        """Return the absolute sampling grid (b, t, h, w, 2)."""
        if self.offset is None:
            return flow_to_grid(self.flow, corners=self.corners)
        centres, published = (identity_grid(*self.size, corners=corners, device=self.flow.device) for corners in (False, True))
        return centres + self.offset.permute(0, 2, 3, 4, 1) * (published - centres) + self.flow.permute(0, 2, 3, 4, 1)

    def frames(self, start: int, stop: int) -> Self:
        """Return the motion of frames `start` to `stop` - 1."""
        return self._each(lambda x: x[:, :, start:stop])

    def samples(self, start: int, stop: int) -> Self:
        """Return the motions `start` to `stop` - 1 of the batch."""
        return self._each(lambda x: x[start:stop])

    def resize(self, size: tuple[int, int]) -> Self:
        """Resize this motion to `size` (h, w).

        With `corners` the absolute grid is resized, as published; with pixel centres the flow is, so that zero flow stays
        exactly zero.
        """
        if size == self.size:
            return self
        if not self.corners:
            return self._each(lambda x: resize(x, size))
        occlusion = resize(self.occlusion, size)
        if self.offset is None:
            grid = resize(self.grid().permute(0, 4, 1, 2, 3), size).permute(0, 2, 3, 4, 1)
            return type(self).from_grid(grid, occlusion, corners=True)
        # Resizing is linear, so the published identity grid can be resized apart and weighted by the offset.
        published = Motion.identity(1, 1, self.size, corners=True, device=self.flow.device).resize(size).flow
        offset = resize(self.offset, size)
        return type(self)(resize(self.flow, size) + offset * published, occlusion, True, offset)

    def reduced(self, size: tuple[int, int]) -> Self:
        """Reduce a motion with pixel centres to `size` (h, w) by averaging cells."""
        b = len(self.flow)

        def average(x: Tensor) -> Tensor:
            return rearrange(
                F.interpolate(rearrange(x, "b c t h w -> (b t) c h w"), size=size, mode="area"), "(b t) c h w -> b c t h w", b=b
            )

        return self._each(average)

    def scaled(self, strength: float) -> Self:
        """Scale this motion: 1 returns it unchanged, 0 reproduces the source image exactly in every frame.

        Flow and hidden share (1 - occlusion, clamped to [0, 1]) are multiplied by `strength`, so that decoded frames depend
        continuously on it. With `corners` the offset is scaled, too, below a strength of 1.

        Raises:
            UserError: a negative strength, or one that is not finite.
        """
        strength = check_number("strength", strength, low=0)
        return self if strength == 1 else self._scaled_by(torch.tensor(strength))

    def masked(self, mask: Tensor, *, reach: float = BILINEAR_REACH) -> Self:
        """Restrict this motion to a soft mask (1, 1, H, W); where the mask is 0 the source image is reproduced exactly.

        The mask's edge is feathered inwards (`feather`): motion never exceeds the mask, and over an eighth of the image's side
        it grows linearly from none to all, so that a shift by less than that width does not fold. Thin masks have a narrower
        edge; a mask thinner than two cells of the motion has no effect.

        Args:
            reach: see `feather`.

        Raises:
            UserError: a mask of another shape, whose size is no multiple of the motion's, or with values outside [0, 1].
        """
        valid = mask.ndim == 4 and mask.shape[:2] == (1, 1) and mask.numel() > 0
        if not valid or any(m % n for m, n in zip(mask.shape[-2:], self.size, strict=True)):
            raise UserError(f"mask must be (1, 1, H, W), multiples of {self.size}; got {tuple(mask.shape)}")
        low, high = mask.min(), mask.max()
        if not (low >= 0 and high <= 1):  # also False for NaN
            raise UserError(f"mask must lie in [0, 1]; got values from {low:g} to {high:g}")
        if low == 1:
            return self
        return self._scaled_by(feather(mask.to(self.flow), self.size, reach=reach).unsqueeze(2))

    def from_rest(self) -> Self:
        """Replace the first frame's motion by zero flow and full visibility."""
        still = self.identity(len(self.flow), 1, self.size, corners=self.corners, device=self.flow.device).to(self.flow.dtype)
        return self.concatenate([still, self.frames(1, self.num_frames)], dim=2)

    def closed(self, count: int) -> Self:
        """Blend the last `count` frames into the first, so that the motion can be looped.

        The d-th frame from the end keeps (1 - cos(pi d / (count + 1))) / 2 of its difference to frame 0.

        Raises:
            UserError: `count` is below 1 or leaves no frame unchanged.
        """
        if not 1 <= count < self.num_frames:
            raise UserError(f"count must be from 1 to {self.num_frames - 1}, all frames but the first; got {count}")
        from_end = torch.arange(self.num_frames, 0, -1, device=self.flow.device).clamp(max=count + 1)
        weight = ((1 - torch.cos(math.pi * from_end / (count + 1))) / 2).to(self.flow).view(1, 1, -1, 1, 1)
        return self._each(lambda x: torch.lerp(x[:, :, :1], x, weight))

    def to(self, target: torch.device | str | torch.dtype) -> Self:
        """Move to a device, or convert to a dtype."""
        return self._each(lambda x: x.to(target))

    def save(self, path: str | Path) -> None:
        """Write a safetensors file atomically; parent folders are created.

        Raises:
            UserError: another suffix than `.safetensors`, no frames, or values that are not finite or out of range.
        """
        path = expand_home(path)
        check_motion_path(path)
        tensors = {name: value.detach().to("cpu", self.flow.dtype).contiguous() for name, value in self._tensors().items()}
        _check_stored(tensors)
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = " ".join(map(str, self.occlusion.shape[:1] + self.occlusion.shape[2:]))
        metadata = {"format": FILE_FORMAT, "corners": str(self.corners).lower(), "shape": shape}
        write_bytes(path, save(tensors, metadata))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a motion that `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            UserError: a file that holds no valid motion.
        """
        path = expand_home(path)
        if not path.is_file():
            raise FileNotFoundError(f"no motion file {path}")
        try:
            with safe_open(path, framework="pt") as file:
                metadata: dict[str, str] = file.metadata() or {}
                for name in file.keys():  # noqa: SIM118 - it is no dict
                    _check_size(name, file.get_slice(name).get_shape())
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
            return cls._from_file(tensors, metadata)
        except (SafetensorError, UserError, RuntimeError) as error:  # RuntimeError: a file larger than the memory
            raise UserError(f"{path} holds no valid motion: {error}") from None

    @classmethod
    def _from_file(cls, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Self:
        if metadata.get("format") != FILE_FORMAT:
            raise UserError(f"format must be {FILE_FORMAT!r}; got {metadata.get('format')!r}")
        if metadata.get("corners") not in ("true", "false"):
            raise UserError(f"corners must be true or false; got {metadata.get('corners')!r}")
        if set(tensors) - {"offset"} != {"flow", "occlusion"}:
            raise UserError(f"tensors must be flow, occlusion and optionally offset; got {sorted(tensors)}")
        _check_stored(tensors)
        motion = cls(tensors["flow"], tensors["occlusion"], metadata["corners"] == "true", tensors.get("offset"))
        shape = motion.occlusion.shape[:1] + motion.occlusion.shape[2:]
        if metadata.get("shape") != " ".join(map(str, shape)):
            raise UserError(f"shape b t h w must be {metadata.get('shape')!r}; got {tuple(shape)}")
        return motion

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {"flow": self.flow, "occlusion": self.occlusion}
        return tensors if self.offset is None else {**tensors, "offset": self.offset}

    def _scaled_by(self, amount: Tensor) -> Self:
        """Multiply flow and hidden share by `amount`, a scalar or (1, 1, 1, h, w)."""
        amount = amount.to(self.flow)
        hidden = (1 - amount).expand_as(self.occlusion)
        occlusion = torch.lerp(self.occlusion, torch.ones_like(self.occlusion), hidden).clamp(0, 1)
        offset = self._whole_offset() * amount.clamp(max=1) if self.corners else None
        return type(self)(self.flow * amount, occlusion, self.corners, offset)

    def _whole_offset(self) -> Tensor:
        return torch.ones_like(self.occlusion) if self.offset is None else self.offset

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        return replace(self, **{name: change(value) for name, value in self._tensors().items()})


def check_motion_path(path: Path) -> None:
    """Raise UserError if no motion can be written to `path`: another suffix than `.safetensors`, or an obstructed path."""
    if path.suffix != MOTION_SUFFIX:
        raise UserError(f"motion files must end in {MOTION_SUFFIX}; got {str(path)!r}")
    if path.is_dir():
        raise UserError(f"{path} is a folder; choose another name")
    check_parents(path)


def feather(mask: Tensor, size: tuple[int, int], *, reach: float = BILINEAR_REACH) -> Tensor:
    """Reduce a mask (1, 1, H, W) to motion of `size` (h, w) with a soft edge: (1, 1, h, w), nowhere above the mask.

    A cell has the minimum of the pixels that it influences, up to `reach` cells from its centre. The minimum over a window,
    then the mean over the same window, makes the edge: neighbouring cells differ by at most one over the window's side. The
    window shrinks until at least half of the mask's maximum is left.
    """
    steps = [m // n for m, n in zip(mask.shape[-2:], size, strict=True)]
    windows = [round(2 * reach * step) if step > 1 else 1 for step in steps]
    cells = -F.max_pool2d(-mask, windows, steps, [(window - step) // 2 for window, step in zip(windows, steps, strict=True)])
    for radius in range(max(1, round(max(size) * FEATHER)), 0, -1):
        side = 2 * radius + 1
        minimum = -F.max_pool2d(-cells, side, 1, radius)
        soft = F.avg_pool2d(minimum, side, 1, radius, count_include_pad=False)
        if soft.max() >= 0.5 * cells.max():
            return torch.minimum(soft, cells)  # rounding may lift a mean above the mask
    return cells


def _check_size(name: str, shape: Sequence[int]) -> None:
    """Raise UserError for a tensor that a motion file must not hold, since a file of zeros may take no space on the disk."""
    if math.prod(shape) > MAX_VALUES:
        raise UserError(f"{name} must have at most {MAX_VALUES} values; got {tuple(shape)}")


def _check_stored(tensors: dict[str, Tensor]) -> None:
    """Raise UserError if a motion file must not hold these tensors."""
    for name, value in tensors.items():
        _check_size(name, value.shape)
        if not value.is_floating_point() or value.dtype != tensors["flow"].dtype:
            raise UserError(f"{name} must have the floating point type of flow; got {value.dtype} and {tensors['flow'].dtype}")
        if 0 in value.shape:
            raise UserError(f"{name} must not be empty; got shape {tuple(value.shape)}")
        if not value.isfinite().all():
            raise UserError(f"{name} must be finite; got NaN or infinity")
        if name != "flow" and not (value.min() >= 0 and value.max() <= 1):
            raise UserError(f"{name} must lie in [0, 1]; got values from {value.min():g} to {value.max():g}")
