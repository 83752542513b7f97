"""Image and flow losses of stage 1. All reduce to a float32 scalar.

Shapes: image (n, 3, H, W) in [0, 1] · flow (b, 2, t, h, w).
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

SSIM_WINDOW = 7
"""Side in pixels of the square windows, uniformly weighted, in which SSIM compares images."""


def multiscale_l1(prediction: Tensor, target: Tensor, *, num_scales: int = 3) -> Tensor:
    """Return the mean absolute error of images (n, 3, H, W) at scales 1, 1/2, 1/4, ..., averaged over the scales."""
    difference = prediction.float() - target.float()
    loss = difference.abs().mean()
    for _ in range(num_scales - 1):
        difference = F.avg_pool2d(difference, 2)
        loss = loss + difference.abs().mean()
    return loss / num_scales


def ssim_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Return 1 - mean structural similarity (Wang et al., 2004) of images (n, 3, H, W), data range 1."""
    x, y = prediction.float(), target.float()
    mean_x, mean_y = F.avg_pool2d(x, SSIM_WINDOW, 1), F.avg_pool2d(y, SSIM_WINDOW, 1)
    variance_x = F.avg_pool2d(x * x, SSIM_WINDOW, 1) - mean_x**2
    variance_y = F.avg_pool2d(y * y, SSIM_WINDOW, 1) - mean_y**2
    covariance = F.avg_pool2d(x * y, SSIM_WINDOW, 1) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2  # the constants of the paper
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return 1 - (similarity / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))).mean()


def edge_aware_smoothness(flow: Tensor, image: Tensor, *, edge_scale: float = 10.0) -> Tensor:
    """Return first differences of the flow in pixels, weighted by exp(-edge_scale * |image difference|).

    Args:
        flow: (b, 2, t, h, w) in half images.
        image: driving frames (b, 3, t, H, W), whose edges mark where motion may be discontinuous.
    """
    height, width = flow.shape[-2:]
    flow = rearrange(flow.float(), "b c t h w -> (b t) c h w")
    flow = torch.cat((flow[:, :1] * (width / 2), flow[:, 1:] * (height / 2)), dim=1)
    guide = F.adaptive_avg_pool2d(rearrange(image.float(), "b c t h w -> (b t) c h w"), (height, width))
    loss = flow.new_zeros(())
    for dim in (-2, -1):
        weight = torch.exp(-edge_scale * guide.diff(dim=dim).abs().mean(1, keepdim=True))
        loss = loss + (weight * flow.diff(dim=dim).abs()).mean()
    return loss
