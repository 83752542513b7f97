"""`Motion`: where every pixel of a frame comes from in the source image, and whether it is there at all.

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
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lfdm.errors import UserError
from lfdm.folders.files import check_parents, write_bytes
from lfdm.motion.warp import flow_to_grid, grid_to_flow, identity_grid, resize

FEATHER = 1 / 16
"""Half the width of a mask's seam, over the side of the motion."""
MOTION_SUFFIX = ".safetensors"
FILE_FORMAT = "lfdm-motion-1"


@dataclass(frozen=True)
class Motion:
    """Backward displacement and occlusion of t frames against one source image (LFDM, arXiv 2303.13744, section 3.2).

    Frame k at p shows the source at p + flow; displacement in pixels is `flow * W / 2`. `corners` names the coordinate
    convention (see `lfdm.motion.warp`).

    With `corners` no displacement does not give the source back: the published identity grid is up to half a pixel off at
    every size. `offset` (b, 1, t, h, w) says how much of that a motion has: None = all, as published; 0 = none, so that no
    displacement is no motion. It is there only in motions that were scaled or masked.
    """

    flow: Tensor
    occlusion: Tensor
    corners: bool = False
    offset: Tensor | None = None

    def __post_init__(self) -> None:
        b, channels, *rest = self.flow.shape if self.flow.ndim == 5 else (0, 0)
        if channels != 2 or self.occlusion.shape != (b, 1, *rest):
            raise UserError(
                f"a motion is flow (b, 2, t, h, w) and occlusion (b, 1, t, h, w) of the same b, t, h, w; "
                f"got {tuple(self.flow.shape)} and {tuple(self.occlusion.shape)}"
            )
        if self.offset is not None and (not self.corners or self.offset.shape != self.occlusion.shape):
            raise UserError(
                f"an offset belongs to corners=True and has the shape of the occlusion, {tuple(self.occlusion.shape)}; "
                f"got corners={self.corners} and {tuple(self.offset.shape)}"
            )

    @classmethod
    def from_grid(cls, grid: Tensor, occlusion: Tensor, *, corners: bool) -> Self:
        """From an absolute sampling grid (b, t, h, w, 2) or (b, h, w, 2) and occlusion (b, 1, t, h, w) or (b, 1, h, w).

        Raises:
            UserError: the shapes are not these.
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
        """No displacement, everything visible."""
        flow = torch.zeros(batch, 2, frames, *size, device=device)
        return cls(flow, torch.ones(batch, 1, frames, *size, device=device), corners)

    @classmethod
    def concatenate(cls, motions: Sequence[Self], dim: int) -> Self:
        """Join motions of one convention along the batch (dim 0) or time (dim 2)."""
        if len({motion.corners for motion in motions}) != 1:
            raise UserError("cannot join motions of different coordinate conventions (corners)")
        flow = torch.cat([motion.flow for motion in motions], dim)
        occlusion = torch.cat([motion.occlusion for motion in motions], dim)
        if all(motion.offset is None for motion in motions):
            return cls(flow, occlusion, motions[0].corners)
        return cls(flow, occlusion, True, torch.cat([motion._whole_offset() for motion in motions], dim))

    @property
    def num_frames(self) -> int:
        return self.flow.shape[2]

    @property
    def size(self) -> tuple[int, int]:
        """(h, w)."""
        return self.flow.shape[-2], self.flow.shape[-1]

    def grid(self) -> Tensor:
        """The absolute sampling grid, (b, t, h, w, 2)."""
        if self.offset is None:
            return flow_to_grid(self.flow, corners=self.corners)
        centres, published = (identity_grid(*self.size, corners=corners, device=self.flow.device) for corners in (False, True))
        return centres + self.offset.permute(0, 2, 3, 4, 1) * (published - centres) + self.flow.permute(0, 2, 3, 4, 1)

    def frames(self, start: int, stop: int) -> Self:
        """The motion of frames start..stop-1."""
        return self._each(lambda x: x[:, :, start:stop])

    def samples(self, start: int, stop: int) -> Self:
        """The motions start..stop-1 of the batch."""
        return self._each(lambda x: x[start:stop])

    def resize(self, size: tuple[int, int]) -> Self:
        """This motion at another resolution.

        With `corners` the absolute grid is resized, as published; with pixel centres the displacement is, so
        that no motion stays no motion at every size.
        """
        if size == self.size:
            return self
        if not self.corners:
            return self._each(lambda x: resize(x, size))
        occlusion = resize(self.occlusion, size)
        if self.offset is None:
            grid = resize(self.grid().permute(0, 4, 1, 2, 3), size).permute(0, 2, 3, 4, 1)
            return type(self).from_grid(grid, occlusion, corners=True)
        # Resizing is linear: of the published identity grid and of the displacement, each with its share.
        published = Motion.identity(1, 1, self.size, corners=True, device=self.flow.device).resize(size).flow
        offset = resize(self.offset, size)
        return type(self)(resize(self.flow, size) + offset * published, occlusion, True, offset)

    def scaled(self, strength: float) -> Self:
        """This motion, `strength` times as strong: 1 = itself bit for bit, 0 = the source image in every frame, exactly.

        Displacement is multiplied and what is hidden, 1 - occlusion, too, clamped to [0, 1]: that much more of the source
        is moved away. Decoded frames depend continuously on `strength`. With `corners` the published offset of the
        identity grid fades with it below 1.

        Raises:
            UserError: a negative strength, or one that is not finite.
        """
        if not 0 <= strength < float("inf"):
            raise UserError(f"strength must be a finite number, 0 or more; got {strength}")
        return self if strength == 1 else self._times(torch.tensor(float(strength)))

    def masked(self, mask: Tensor) -> Self:
        """This motion inside a soft mask (1, 1, H, W) alone; outside, where it is 0, the source image exactly.

        The seam lies within the mask: nothing moves more than the mask says, and from the seam's outer to its inner end, over
        an eighth of the side, displacement and hidden share grow in equal steps from nothing to all, so that a shift by less
        than the seam's width does not fold. A mask too thin for that has a narrower seam, and one below two cells of the
        motion does nothing.

        Raises:
            UserError: a mask of another shape, whose size is no multiple of the motion's, or with values outside [0, 1].
        """
        whole = mask.ndim == 4 and mask.shape[:2] == (1, 1) and mask.numel() > 0
        if not whole or any(m % n for m, n in zip(mask.shape[-2:], self.size, strict=True)):
            raise UserError(f"mask must be (1, 1, H, W), multiples of {self.size}; got {tuple(mask.shape)}")
        if not (mask.min() >= 0 and mask.max() <= 1):  # also False for NaN
            raise UserError("mask must lie in [0, 1]; got values outside or NaN")
        if mask.min() == 1:
            return self
        return self._times(feather(mask.to(self.flow), self.size).unsqueeze(2))

    def from_rest(self) -> Self:
        """This motion with a first frame of no motion at all, everything visible."""
        still = self.identity(len(self.flow), 1, self.size, corners=self.corners, device=self.flow.device).to(self.flow.dtype)
        return self.concatenate([still, self.frames(1, self.num_frames)], dim=2)

    def closed(self, count: int) -> Self:
        """This motion with its last `count` frames easing into its first, so that it can be repeated.

        A frame d before the end keeps (1 - cos(pi d / (count + 1))) / 2 of its own difference to frame 0.

        Raises:
            UserError: `count` is not from 1 to all frames but the first.
        """
        if not 1 <= count < self.num_frames:
            raise UserError(f"count must be from 1 to {self.num_frames - 1}, all frames but the first; got {count}")
        left = torch.arange(self.num_frames, 0, -1, device=self.flow.device).clamp(max=count + 1)
        own = ((1 - torch.cos(math.pi * left / (count + 1))) / 2).to(self.flow).view(1, 1, -1, 1, 1)
        return self._each(lambda x: torch.lerp(x[:, :, :1], x, own))

    def to(self, target: torch.device | str | torch.dtype) -> Self:
        return self._each(lambda x: x.to(target))

    def detach(self) -> Self:
        return self._each(Tensor.detach)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all; parent folders are made.

        Raises:
            UserError: another ending than `.safetensors`, a motion of no frames, or values that are not finite or out of range.
        """
        path = Path(path)
        check_motion_path(path)
        tensors = {name: value.detach().to("cpu", self.flow.dtype).contiguous() for name, value in self._tensors().items()}
        try:
            _check_stored(tensors)
        except ValueError as error:
            raise UserError(f"this motion cannot be saved: {error}") from None
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = " ".join(map(str, self.occlusion.shape[:1] + self.occlusion.shape[2:]))
        metadata = {"format": FILE_FORMAT, "corners": str(self.corners).lower(), "shape": shape}
        write_bytes(path, save(tensors, metadata))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """A motion that `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            UserError: anything else, with the path and what is wrong.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no motion file {path}")
        try:
            with safe_open(path, framework="pt") as file:
                metadata: dict[str, str] = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
            return cls._from_file(tensors, metadata)
        except (SafetensorError, ValueError) as error:
            raise UserError(f"{path} holds no motion: {error}") from None

    @classmethod
    def _from_file(cls, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Self:
        if metadata.get("format") != FILE_FORMAT:
            raise UserError(f"its format must be {FILE_FORMAT!r}; got {metadata.get('format')!r}")
        if metadata.get("corners") not in ("true", "false"):
            raise UserError(f"its convention, corners, must be true or false; got {metadata.get('corners')!r}")
        if set(tensors) - {"offset"} != {"flow", "occlusion"}:
            raise UserError(f"flow, occlusion and perhaps offset are needed; got {sorted(tensors)}")
        _check_stored(tensors)
        motion = cls(tensors["flow"], tensors["occlusion"], metadata["corners"] == "true", tensors.get("offset"))
        shape = motion.occlusion.shape[:1] + motion.occlusion.shape[2:]
        if metadata.get("shape") != " ".join(map(str, shape)):
            raise UserError(f"its shape b t h w must be {metadata.get('shape')!r}; got {tuple(shape)}")
        return motion

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {"flow": self.flow, "occlusion": self.occlusion}
        return tensors if self.offset is None else {**tensors, "offset": self.offset}

    def _times(self, amount: Tensor) -> Self:
        """Displacement and hidden share times `amount`, a number or (1, 1, 1, h, w)."""
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
    """UserError where no motion can be written to `path`: another ending than `.safetensors`, something in the way."""
    if path.suffix != MOTION_SUFFIX:
        raise UserError(f"a motion is written to a {MOTION_SUFFIX} file; got {str(path)!r}")
    if path.is_dir():
        raise UserError(f"{path}: a folder has this name; choose another one")
    check_parents(path)


def feather(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask (1, 1, H, W) for motion of `size` (h, w), with a seam: (1, 1, h, w), nowhere above the mask.

    A cell is as much as the least pixel that bilinear resizing shares it out to. Least values over a window, then means over
    the same window, make the seam: neighbouring cells differ by one over the window's side at most.
    """
    steps = [m // n for m, n in zip(mask.shape[-2:], size, strict=True)]
    windows = [2 * step if step > 1 else 1 for step in steps]
    cells = -F.max_pool2d(-mask, windows, steps, [step // 2 if step > 1 else 0 for step in steps])
    for radius in range(max(1, round(max(size) * FEATHER)), 0, -1):
        side = 2 * radius + 1
        least = -F.max_pool2d(-cells, side, 1, radius)
        soft = F.avg_pool2d(least, side, 1, radius, count_include_pad=False)
        if soft.max() >= 0.5 * cells.max():
            return torch.minimum(soft, cells)  # means are rounded
    return cells


def _check_stored(tensors: dict[str, Tensor]) -> None:
    """UserError for what no file of a motion may hold."""
    for name, value in tensors.items():
        if not value.is_floating_point() or value.dtype != tensors["flow"].dtype:
            raise UserError(f"its tensors must be of one floating point type; {name} is {value.dtype}")
        if 0 in value.shape:
            raise UserError(f"{name} is empty, of shape {tuple(value.shape)}")
        if not value.isfinite().all():
            raise UserError(f"{name} has values that are not finite")
        if name != "flow" and not (value.min() >= 0 and value.max() <= 1):
            raise UserError(f"{name} must lie in [0, 1]; got values outside")
