"""How true the motion of stage 1 is, against data whose motion is known exactly.

Score 1: end-point error of the model's flow over *moving* pixels (visible figure pixels whose exact displacement, camera drift
subtracted, is at least 1 pixel), divided by that of the flow that knows only the true drift. 0 is exact, 1 knows no limb.
Score 2: with copy = frame 0 itself and L1 over visible figure pixels, (copy - ours) / (copy - frame 0 warped by the exact flow).
1 is as good as the exact flow, 0 as good as a still image.
Both pool: sums over all pixels of all clips and frames 1..t-1 are divided once, so that every pixel counts the same. The ceiling
of a score is what the low-resolution flow reaches that fits the exact one best, in least squares (`ceilings`).

Shapes: video (b, 3, t, H, W) in [0, 1], frame 0 the source · flow (b, 2, t, H, W) in pixels, channel order (x, y) ·
masks (b, t, H, W) bool.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lfdm.data.puppets.truth import load_truth
from lfdm.errors import UserError
from lfdm.motion.motion import Motion
from lfdm.motion.warp import flow_to_grid, identity_grid, warp

MIN_DISPLACEMENT = 1.0
"""Pixels that a figure pixel moves, drift subtracted, before score 1 counts it."""


@dataclass(frozen=True)
class ExactMotion:
    """The true motion of a batch of clips: frame k at p shows what frame 0 shows at p + flow."""

    flow: Tensor
    """(b, 2, t, H, W) in pixels."""
    visible: Tensor
    """(b, t, H, W) bool: the surface point is inside frame 0 and front-most there."""
    figure: Tensor
    """(b, t, H, W) bool: on the figure."""
    drift: Tensor
    """(b, 2, t) in pixels: the flow of everything that stands still."""

    def __post_init__(self) -> None:
        b, channels, *rest = self.flow.shape if self.flow.ndim == 5 else (0, 0)
        shapes = (self.visible.shape, self.figure.shape)
        if channels != 2 or shapes != ((b, *rest), (b, *rest)) or self.drift.shape != (b, 2, rest[0]):
            raise UserError(
                "exact motion is flow (b, 2, t, H, W), visible and figure (b, t, H, W) and drift (b, 2, t); "
                f"got {[tuple(getattr(self, f.name).shape) for f in fields(self)]}"
            )

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.flow.shape[-2], self.flow.shape[-1]

    def on_figure(self) -> Tensor:
        """The pixels of score 2: visible figure pixels after frame 0, (b, t, H, W)."""
        mask = self.visible & self.figure
        mask[:, 0] = False
        return mask

    def moving(self) -> Tensor:
        """The pixels of score 1, (b, t, H, W)."""
        displacement = (self.flow - self.drift[..., None, None]).norm(dim=1)
        return self.on_figure() & (displacement >= MIN_DISPLACEMENT)

    def pick(self, clips: Sequence[int]) -> Self:
        """Some clips of the batch."""
        return type(self)(*(getattr(self, f.name)[list(clips)] for f in fields(self)))

    def to(self, device: torch.device | str) -> Self:
        return type(self)(*(getattr(self, f.name).to(device) for f in fields(self)))

    @classmethod
    def read(cls, paths: Sequence[Path], frames: Sequence[np.ndarray]) -> Self:
        """The truth files of a batch of clips, at the given frame indices of each clip (index 0 first).

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


@dataclass(frozen=True)
class PooledRatio:
    """Sums of every clip, (n,) each: a score is one ratio of their totals."""

    numerator: Tensor
    denominator: Tensor
    pixels: Tensor

    @property
    def value(self) -> float:
        """The pooled score; NaN where no pixel counts."""
        total = float(self.denominator.sum())
        return float(self.numerator.sum()) / total if total != 0 else float("nan")

    @property
    def num_pixels(self) -> int:
        return int(self.pixels.sum())


def displacement_px(motion: Motion, size: tuple[int, int]) -> Tensor:
    """Where a motion, used at `size` (H, W), reads the source relative to each pixel: (b, 2, t, H, W) in pixels."""
    resized = motion.resize(size)
    centres = identity_grid(*size, corners=False, device=motion.flow.device)
    height, width = size
    scale = torch.tensor((width / 2, height / 2), device=motion.flow.device)
    return ((resized.grid() - centres) * scale).permute(0, 4, 1, 2, 3)


def warp_px(image: Tensor, flow: Tensor) -> Tensor:
    """`image` (b, c, H, W) moved by `flow` (b, 2, t, H, W) in pixels: (b, c, t, H, W); the border is repeated outside."""
    height, width = flow.shape[-2:]
    scale = flow.new_tensor((2 / width, 2 / height)).view(1, 2, 1, 1, 1)
    return warp(image, flow_to_grid(flow * scale, corners=False), padding_mode="border")


def flow_score(flow: Tensor, exact: ExactMotion) -> PooledRatio:
    """Score 1 of a flow (b, 2, t, H, W) in pixels, clip by clip: summed end-point errors, its own and that of the drift."""
    mask = exact.moving()
    error = (flow - exact.flow).norm(dim=1)
    drift_error = (exact.drift[..., None, None] - exact.flow).norm(dim=1)
    return PooledRatio(_masked_sum(error, mask), _masked_sum(drift_error, mask), mask.sum(dim=(1, 2, 3)))


def frame_score(prediction: Tensor, video: Tensor, exact: ExactMotion) -> PooledRatio:
    """Score 2 of predicted frames (b, 3, t, H, W), clip by clip: summed L1, copy minus ours and copy minus exactly warped."""
    mask = exact.on_figure()
    source = video[:, :, :1]
    copied, ours, warped = (
        _masked_sum((frames - video).abs().mean(dim=1), mask)
        for frames in (source, prediction, warp_px(source[:, :, 0], exact.flow))
    )
    return PooledRatio(copied - ours, copied - warped, mask.sum(dim=(1, 2, 3)))


def ceilings(video: Tensor, exact: ExactMotion, size: tuple[int, int]) -> dict[str, tuple[PooledRatio, PooledRatio]]:
    """Scores 1 and 2 of least-squares fits of the exact flow at the model's resolution `size` (h, w), frame 0 only warped.

    `ceiling` fits the pixels of each score alone; `whole_frame_fit` every pixel of the frame, hidden ones too, and so
    pays for the edges between figure and background.
    """

    def score(mask_1: Tensor, mask_2: Tensor) -> tuple[PooledRatio, PooledRatio]:
        first = upsample(best_fit(exact.flow, mask_1, size), exact.size)
        second = first if mask_2 is mask_1 else upsample(best_fit(exact.flow, mask_2, size), exact.size)
        return flow_score(first, exact), frame_score(warp_px(video[:, :, 0], second), video, exact)

    everywhere = torch.ones_like(exact.visible)
    return {"ceiling": score(exact.moving(), exact.on_figure()), "whole_frame_fit": score(everywhere, everywhere)}


def best_fit(flow: Tensor, mask: Tensor, size: tuple[int, int], *, num_iterations: int = 60) -> Tensor:
    """The flow at `size` (h, w) whose bilinear upsampling is nearest to `flow` on `mask`, in least squares: (b, 2, t, h, w).

    Conjugate gradients on the normal equations of every field at once, with a little damping for cells that no pixel of
    the mask depends on.
    """
    damping = 1e-5
    rows, columns = (_interpolation(n, m).to(flow) for n, m in zip(flow.shape[-2:], size, strict=True))
    weight = mask.unsqueeze(1).to(flow.dtype)

    def normal(x: Tensor) -> Tensor:
        return rows.T @ (weight * (rows @ x @ columns.T)) @ columns + damping * x

    residual = rows.T @ (weight * flow) @ columns
    x, direction, power = torch.zeros_like(residual), residual, _dot(residual, residual)
    for _ in range(num_iterations):
        image = normal(direction)
        step = power / _dot(direction, image).clamp_min(1e-30)
        x = x + step * direction
        residual = residual - step * image
        previous, power = power, _dot(residual, residual)
        direction = residual + power / previous.clamp_min(1e-30) * direction
    return x


def upsample(flow: Tensor, size: tuple[int, int]) -> Tensor:
    """Every frame of (b, 2, t, h, w) bilinearly at `size` (H, W), values unchanged."""
    rows, columns = (_interpolation(n, m).to(flow) for n, m in zip(size, flow.shape[-2:], strict=True))
    return rows @ flow @ columns.T


def _interpolation(large: int, small: int) -> Tensor:
    """Linear interpolation of `small` samples to `large`, pixel centres, as a matrix (large, small)."""
    return F.interpolate(torch.eye(small)[None], size=large, mode="linear", align_corners=False)[0].T


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=(-2, -1), keepdim=True)


def _masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of (b, t, H, W) over the mask, float64, (b,)."""
    return (values.double() * mask).sum(dim=(1, 2, 3)).cpu()
