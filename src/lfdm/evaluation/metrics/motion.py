"""Accuracy of a motion where the exact motion is known (rendered puppets).

`flow_epe_ratio`: end-point error of the model's flow over *moving* pixels (visible figure pixels whose exact displacement minus
the camera's drift is at least 1 pixel), divided by the error of a flow that knows only the drift. 0 is exact; 1 ignores the
limbs.
`warp_recovery`: with copy = frame 0 and L1 over visible figure pixels, (copy - ours) / (copy - frame 0 warped by the exact flow).
1 is as good as the exact flow, 0 as bad as a still image.
Both divide sums over all pixels of all clips and frames 1..t-1, so every pixel has the same weight. `ceilings` gives the figures
of the least-squares approximation of the exact flow at the model's flow resolution.

Shapes: video (b, 3, t, H, W) in [0, 1], frame 0 is the source · flow (b, 2, t, H, W) in pixels, channel order (x, y) ·
masks (b, t, H, W) bool.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lfdm.data.truth import load_truth
from lfdm.errors import UserError
from lfdm.motion.motion import Motion
from lfdm.motion.warp import flow_to_grid, identity_grid, warp

MIN_DISPLACEMENT = 1.0
"""Displacement in pixels, drift subtracted, from which a figure pixel counts as moving."""
DAMPING = 1e-5
"""Added to the diagonal of the normal equations: coarse cells without any masked pixel would make them singular."""
NUM_ITERATIONS = 60
"""Steps of conjugate gradients, after which the residual is negligible."""
TINY = 1e-30
"""Smallest denominator of a conjugate-gradient step; reached only when the residual is zero."""


@dataclass(frozen=True, eq=False)
class ExactMotion:
    """Exact motion of a batch of clips: frame k at p shows what frame 0 shows at p + flow."""

    flow: Tensor
    """(b, 2, t, H, W) in pixels."""
    visible: Tensor
    """(b, t, H, W) bool: the surface point lies inside frame 0 and is not covered there."""
    figure: Tensor
    """(b, t, H, W) bool: pixels of the figure."""
    drift: Tensor
    """(b, 2, t) in pixels: flow of the background."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.flow.shape[-2], self.flow.shape[-1]

    def on_figure(self) -> Tensor:
        """Return the pixels of `warp_recovery`: visible figure pixels after frame 0, (b, t, H, W)."""
        mask = self.visible & self.figure
        mask[:, 0] = False
        return mask

    def moving(self) -> Tensor:
        """Return the pixels of `flow_epe_ratio`, (b, t, H, W)."""
        displacement = (self.flow - self.drift[..., None, None]).norm(dim=1)
        return self.on_figure() & (displacement >= MIN_DISPLACEMENT)

    def select(self, clips: Sequence[int]) -> Self:
        """Return the given clips of the batch."""
        return type(self)(*(getattr(self, f.name)[list(clips)] for f in fields(self)))

    def to(self, device: torch.device | str) -> Self:
        return type(self)(*(getattr(self, f.name).to(device) for f in fields(self)))

    @classmethod
    def read(cls, paths: Sequence[Path], frames: Sequence[np.ndarray]) -> Self:
        """Read the truth files of a batch of clips at the given frame indices of each clip (index 0 first).

        Raises:
            FileNotFoundError: no such file.
            UserError: a damaged file, too few frames, or clips of different sizes.
        """
        clips = [_read_clip(path, indices) for path, indices in zip(paths, frames, strict=True)]
        if len({clip["flow"].shape for clip in clips}) != 1:
            raise UserError(f"truth files of one batch differ in shape: {[clip['flow'].shape for clip in clips]}")
        flow, visible, figure, drift = (torch.from_numpy(np.stack([clip[name] for clip in clips])) for name in clips[0])
        return cls(flow.permute(0, 4, 1, 2, 3).contiguous(), visible, figure, drift.transpose(1, 2).contiguous())


def _read_clip(path: Path, indices: np.ndarray) -> dict[str, np.ndarray]:
    truth = load_truth(path)
    if len(truth.flow) <= int(indices.max()):
        raise UserError(f"{path} holds {len(truth.flow)} frames; frame {int(indices.max())} is needed")
    return {name: getattr(truth, name)[indices] for name in ("flow", "visible", "figure", "drift")}


def pool(sums: Tensor) -> dict[str, Any]:
    """Return the pooled ratio of sums (n, 3) over clips (NaN if no pixel counts), and the numbers of clips and pixels."""
    numerator, denominator, pixels = (float(column.sum()) for column in sums.unbind(dim=1))
    value = numerator / denominator if denominator else float("nan")
    return {"value": value, "num_clips": len(sums), "num_pixels": int(pixels)}


def displacement_px(motion: Motion, size: tuple[int, int]) -> Tensor:
    """Return where a motion applied at `size` (H, W) reads the source, relative to each pixel: (b, 2, t, H, W) in pixels."""
    resized = motion.resize(size)
    centres = identity_grid(*size, corners=False, device=motion.flow.device)
    height, width = size
    scale = torch.tensor((width / 2, height / 2), device=motion.flow.device)
    return ((resized.grid() - centres) * scale).permute(0, 4, 1, 2, 3)


def warp_px(image: Tensor, flow: Tensor) -> Tensor:
    """Warp `image` (b, c, H, W) by `flow` (b, 2, t, H, W) in pixels with border padding: (b, c, t, H, W)."""
    height, width = flow.shape[-2:]
    scale = flow.new_tensor((2 / width, 2 / height)).view(1, 2, 1, 1, 1)
    return warp(image, flow_to_grid(flow * scale, corners=False), padding_mode="border")


def flow_epe_ratio(flow: Tensor, exact: ExactMotion) -> Tensor:
    """Sum the end-point errors of `flow` (b, 2, t, H, W) in pixels, those of the drift, and the pixels: (b, 3)."""
    mask = exact.moving()
    error = (flow - exact.flow).norm(dim=1)
    drift_error = (exact.drift[..., None, None] - exact.flow).norm(dim=1)
    return _masked_sums(mask, error, drift_error, torch.ones_like(error))


def warp_recovery(prediction: Tensor, video: Tensor, exact: ExactMotion) -> Tensor:
    """Sum (copy - ours), (copy - exactly warped), L1 of frames (b, 3, t, H, W), and the pixels: (b, 3)."""
    source = video[:, :, :1]
    guesses = (source, prediction, warp_px(source[:, :, 0], exact.flow))
    errors = [(frames - video).abs().mean(dim=1) for frames in guesses]
    copied, ours, warped, pixels = _masked_sums(exact.on_figure(), *errors, torch.ones_like(errors[0])).unbind(dim=1)
    return torch.stack((copied - ours, copied - warped, pixels), dim=1)


def ceilings(video: Tensor, exact: ExactMotion, size: tuple[int, int]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return (`flow_epe_ratio`, `warp_recovery`) of least-squares flows at the model's flow resolution `size` (h, w).

    `ceiling` solves for the pixels that each figure counts; `whole_frame_ceiling` for all pixels of the frame, hidden ones too,
    and so pays for the edges between figure and background. Frames are frame 0 warped by that flow.
    """

    def measure(moving: Tensor, on_figure: Tensor) -> tuple[Tensor, Tensor]:
        first = upsample(least_squares_flow(exact.flow, moving, size), exact.size)
        second = first if on_figure is moving else upsample(least_squares_flow(exact.flow, on_figure, size), exact.size)
        return flow_epe_ratio(first, exact), warp_recovery(warp_px(video[:, :, 0], second), video, exact)

    everywhere = torch.ones_like(exact.visible)
    return {
        "ceiling": measure(exact.moving(), exact.on_figure()),
        "whole_frame_ceiling": measure(everywhere, everywhere),
    }


def least_squares_flow(flow: Tensor, mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the flow at `size` (h, w) whose bilinear upsampling is nearest to `flow` on `mask`: (b, 2, t, h, w).

    Solves the damped normal equations of all fields at once by conjugate gradients.
    """
    rows, columns = (_interpolation(n, m).to(flow) for n, m in zip(flow.shape[-2:], size, strict=True))
    weight = mask.unsqueeze(1).to(flow.dtype)

    def normal(x: Tensor) -> Tensor:
        return rows.T @ (weight * (rows @ x @ columns.T)) @ columns + DAMPING * x

    residual = rows.T @ (weight * flow) @ columns
    x, direction, power = torch.zeros_like(residual), residual, _dot(residual, residual)
    for _ in range(NUM_ITERATIONS):
        image = normal(direction)
        step = power / _dot(direction, image).clamp_min(TINY)
        x = x + step * direction
        residual = residual - step * image
        previous, power = power, _dot(residual, residual)
        direction = residual + power / previous.clamp_min(TINY) * direction
    return x


def upsample(flow: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize every frame of (b, 2, t, h, w) bilinearly to `size` (H, W); values stay unchanged."""
    rows, columns = (_interpolation(n, m).to(flow) for n, m in zip(size, flow.shape[-2:], strict=True))
    return rows @ flow @ columns.T


def _interpolation(large: int, small: int) -> Tensor:
    """Return linear interpolation from `small` to `large` samples at pixel centres as a matrix (large, small)."""
    return F.interpolate(torch.eye(small)[None], size=large, mode="linear", align_corners=False)[0].T


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=(-2, -1), keepdim=True)


def _masked_sums(mask: Tensor, *values: Tensor) -> Tensor:
    """Sum every one of k values (b, t, H, W) over the mask, in float64: (b, k)."""
    return torch.stack([(value.double() * mask).sum(dim=(1, 2, 3)) for value in values], dim=1).cpu()
