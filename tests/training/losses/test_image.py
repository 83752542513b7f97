"""Losses against values worked out by hand, and against another way to compute them."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from lfdm.training.losses.image import edge_aware_smoothness, multiscale_l1, ssim_loss


def test_multiscale_l1_of_a_constant_difference_is_that_difference() -> None:
    image = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(multiscale_l1(image + 0.25, image), torch.tensor(0.25))


def test_multiscale_l1_of_a_checkerboard_is_seen_at_full_size_only() -> None:
    board = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(4, 4).expand(1, 3, 8, 8)
    flat = torch.full_like(board, 0.5)
    torch.testing.assert_close(multiscale_l1(board, flat), torch.tensor(0.5 / 3))
    torch.testing.assert_close(multiscale_l1(board, flat, num_scales=1), torch.tensor(0.5))


def test_ssim_loss_of_flat_images_follows_the_luminance_term() -> None:
    a, b = torch.full((1, 3, 9, 9), 0.2), torch.full((1, 3, 9, 9), 0.6)
    expected = 1 - (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    torch.testing.assert_close(ssim_loss(a, b), torch.tensor(expected), atol=4e-4, rtol=0)


def test_ssim_loss_is_the_definition_window_by_window() -> None:
    a, b = torch.rand(2, 1, 1, 9, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    x, y = a.double().numpy()[0, 0], b.double().numpy()[0, 0]
    similarities = []
    for row in range(3):
        for column in range(2):
            u, v = x[row : row + 7, column : column + 7], y[row : row + 7, column : column + 7]
            covariance = np.mean((u - u.mean()) * (v - v.mean()))
            luminance = (2 * u.mean() * v.mean() + 1e-4) / (u.mean() ** 2 + v.mean() ** 2 + 1e-4)
            similarities.append(luminance * (2 * covariance + 9e-4) / (u.var() + v.var() + 9e-4))
    assert float(ssim_loss(a, b)) == pytest.approx(1 - np.mean(similarities), abs=1e-5)
    assert float(ssim_loss(a, a)) == pytest.approx(0, abs=1e-5)


def ramp(height: int, width: int, *, x_by_column: float = 0.0, y_by_row: float = 0.0) -> Tensor:
    """Flow (1, 2, 1, h, w) whose x grows along columns and whose y grows along rows, in half images."""
    flow = torch.zeros(1, 2, 1, height, width)
    flow[:, 0] = x_by_column * torch.arange(width)
    flow[:, 1] = y_by_row * torch.arange(height)[:, None]
    return flow


def test_smoothness_is_the_mean_difference_in_pixels_of_the_flow() -> None:
    flat = torch.full((1, 3, 1, 16, 32), 0.5)
    # 0.25 half images of a width of 16 are 2 pixels, in one of two channels; the same of a height of 8 are 1 pixel
    torch.testing.assert_close(edge_aware_smoothness(ramp(8, 16, x_by_column=0.25), flat), torch.tensor(1.0))
    torch.testing.assert_close(edge_aware_smoothness(ramp(8, 16, y_by_row=0.25), flat), torch.tensor(0.5))
    assert edge_aware_smoothness(ramp(8, 16) + 0.7, flat) == 0


def test_motion_may_break_where_the_image_does() -> None:
    flow = torch.zeros(1, 2, 1, 4, 4)
    flow[..., 2:] = 0.5  # one pixel, both channels, between columns 1 and 2
    flat, edge = torch.zeros(2, 1, 3, 1, 8, 8).unbind(0)
    edge[..., 4:] = 0.3
    at_flat, at_edge = edge_aware_smoothness(flow, flat), edge_aware_smoothness(flow, edge)
    torch.testing.assert_close(at_flat, torch.tensor(1 / 3))
    torch.testing.assert_close(at_edge, at_flat * math.exp(-3.0))
    torch.testing.assert_close(edge_aware_smoothness(flow, edge, edge_scale=0.0), at_flat)


@pytest.mark.parametrize("loss", [multiscale_l1, ssim_loss])
def test_image_losses_are_float32_and_differentiable_from_bfloat16(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    prediction = torch.rand(1, 3, 8, 8).bfloat16().requires_grad_()
    value = loss(prediction, torch.rand(1, 3, 8, 8))
    value.backward()
    assert value.dtype == torch.float32
    assert prediction.grad is not None
    assert prediction.grad.abs().sum() > 0
