"""`Motion`: where every pixel of a frame comes from in the source image, and whether it is there at all.

Shapes: flow (b, 2, t, h, w), channel order (x, y), in units of half the image · occlusion (b, 1, t, h, w) in [0, 1], 1 = visible
in the source · grid (b, t, h, w, 2).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from lfdm.models.warp import flow_to_grid, grid_to_flow, resize


@dataclass(frozen=True)
class Motion:
    """Backward displacement and occlusion of t frames against one source image (LFDM, arXiv 2303.13744, section 3.2).

    Frame k at p shows the source at p + flow; displacement in pixels is `flow * W / 2`. `corners` names the coordinate
    convention (see `lfdm.models.warp`).
    """

    flow: Tensor
    occlusion: Tensor
    corners: bool = False

    def __post_init__(self) -> None:
        b, channels, *rest = self.flow.shape if self.flow.ndim == 5 else (0, 0)
        if channels != 2 or self.occlusion.shape != (b, 1, *rest):
            raise ValueError(
                f"a motion is flow (b, 2, t, h, w) and occlusion (b, 1, t, h, w) of the same b, t, h, w; "
                f"got {tuple(self.flow.shape)} and {tuple(self.occlusion.shape)}"
            )

    @classmethod
    def from_grid(cls, grid: Tensor, occlusion: Tensor, *, corners: bool) -> Self:
        """From an absolute sampling grid (b, t, h, w, 2) or (b, h, w, 2) and occlusion (b, 1, t, h, w) or (b, 1, h, w).

        Raises:
            ValueError: the shapes are not these.
        """
        if grid.ndim == 4:
            grid = grid.unsqueeze(1)
        if occlusion.ndim == 4:
            occlusion = occlusion.unsqueeze(2)
        if grid.ndim != 5 or grid.shape[-1] != 2:
            raise ValueError(f"grid must be (b, t, h, w, 2) or (b, h, w, 2); got {tuple(grid.shape)}")
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
            raise ValueError("cannot join motions of different coordinate conventions (corners)")
        flow = torch.cat([motion.flow for motion in motions], dim)
        return cls(flow, torch.cat([motion.occlusion for motion in motions], dim), motions[0].corners)

    @property
    def num_frames(self) -> int:
        return self.flow.shape[2]

    @property
    def size(self) -> tuple[int, int]:
        """(h, w)."""
        return self.flow.shape[-2], self.flow.shape[-1]

    def grid(self) -> Tensor:
        """The absolute sampling grid, (b, t, h, w, 2)."""
        return flow_to_grid(self.flow, corners=self.corners)

    def frames(self, start: int, stop: int) -> Self:
        """The motion of frames start..stop-1."""
        return type(self)(self.flow[:, :, start:stop], self.occlusion[:, :, start:stop], self.corners)

    def resize(self, size: tuple[int, int]) -> Self:
        """This motion at another resolution.

        With `corners` the absolute grid is resized, as published; with pixel centres the displacement is, so
        that no motion stays no motion at every size.
        """
        if size == self.size:
            return self
        occlusion = resize(self.occlusion, size)
        if not self.corners:
            return type(self)(resize(self.flow, size), occlusion, self.corners)
        grid = resize(self.grid().permute(0, 4, 1, 2, 3), size).permute(0, 2, 3, 4, 1)
        return type(self).from_grid(grid, occlusion, corners=True)

    def to(self, target: torch.device | str | torch.dtype) -> Self:
        return type(self)(self.flow.to(target), self.occlusion.to(target), self.corners)

    def detach(self) -> Self:
        return type(self)(self.flow.detach(), self.occlusion.detach(), self.corners)
