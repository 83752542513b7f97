"""Distances between frames, per clip: videos (b, c, t, H, W) or images (b, c, H, W) in [0, 1] of one shape give (b,)."""

import torch
from einops import rearrange
from torch import Tensor

from lfdm.errors import UserError

MAX_PSNR = 100.0
"""PSNR of equal images in dB; the true value is infinite."""


def l1_per_clip(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean absolute difference, (b,)."""
    return (a - b).abs().flatten(1).mean(dim=1)


def psnr_per_clip(a: Tensor, b: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB (peak 1), at most `MAX_PSNR`, (b,)."""
    error = (a - b).square().flatten(1).mean(dim=1)
    return -10 * torch.log10(error.clamp_min(10 ** (-MAX_PSNR / 10)))


def ssim_per_clip(a: Tensor, b: Tensor) -> Tensor:
    """Return the structural similarity (Wang et al. 2004) of videos (b, c, t, H, W), averaged over channels and frames, (b,).

    Gaussian window 11x11 with sigma 1.5, K1 = 0.01, K2 = 0.03, only where the window fits.

    Raises:
        UserError: frames smaller than the window.
    """
    if min(a.shape[-2:]) < 11:
        raise UserError(f"SSIM needs frames of at least 11x11 pixels; got {tuple(a.shape[-2:])}")
    batch = a.shape[0]
    x, y = (rearrange(v.float(), "b c t h w -> (b c t) 1 h w") for v in (a, b))
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    ssim = (2 * mean_x * mean_y + c1) * (2 * covariance + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return ssim.reshape(batch, -1).mean(dim=1)


def _blur(x: Tensor) -> Tensor:
    """Smooth rows and columns by two products with band matrices, far faster than convolutions with one channel."""
    rows, columns = (_window_matrix(n).to(x) for n in x.shape[-2:])
    return rows @ (x @ columns.T)


def _window_matrix(n: int) -> Tensor:
    """Return (n - 10, n) with a normalised Gaussian of sigma 1.5 over 11 samples in every row."""
    offset = torch.arange(n) - torch.arange(n - 10)[:, None] - 5.0
    line = torch.exp(-(offset**2) / (2 * 1.5**2)) * (offset.abs() <= 5)
    return line / line.sum(dim=1, keepdim=True)
