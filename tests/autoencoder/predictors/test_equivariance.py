import pytest
import torch
from torch import Tensor

from lfdm.autoencoder.predictors.equivariance import RandomWarp, equivariance_losses, warp_noise
from lfdm.autoencoder.predictors.region_geometry import Regions, heatmap_regions, principal_axes
from lfdm.motion.warp import identity_grid


def sample(batch: int = 2, *, corners: bool = True, seed: int = 0) -> RandomWarp:
    return RandomWarp.from_noise(warp_noise(batch, torch.Generator().manual_seed(seed)), corners=corners)


def affine_warp(theta: Tensor, *, corners: bool = True) -> RandomWarp:
    centres = identity_grid(5, 5, corners=corners).flatten(0, 1)
    return RandomWarp(theta[None], torch.zeros(1, 25), centres, corners)


def test_points_move_as_the_formula_says() -> None:
    warp = sample(1)
    x, y = 0.3, -0.7
    theta, weights = warp.theta[0].double(), warp.weights[0].double()
    bend = 0.0
    for c, (cx, cy) in enumerate((cx, cy) for cy in (-1, -0.5, 0, 0.5, 1) for cx in (-1, -0.5, 0, 0.5, 1)):
        distance = torch.tensor(abs(x - cx) + abs(y - cy), dtype=torch.float64)
        bend += float(weights[c] * distance**2 * torch.log(distance + 1e-6))
    expected = theta @ torch.tensor([x, y, 1.0], dtype=torch.float64) + bend
    torch.testing.assert_close(warp(torch.tensor([[[x, y]]]))[0, 0].double(), expected, atol=1e-6, rtol=0)


def test_jacobian_agrees_with_autograd() -> None:
    warp = sample()
    points = torch.rand(2, 6, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1
    points[0, 0] = warp.centres[7]
    full = torch.autograd.functional.jacobian(warp, points)
    assert isinstance(full, Tensor)  # (2, 6, 2, 2, 6, 2)
    expected = torch.einsum("bnibnj->bnij", full)
    torch.testing.assert_close(warp.jacobian(points), expected)


def test_jacobian_is_itself_differentiable() -> None:
    points = torch.rand(1, 3, 2, requires_grad=True)
    sample(1).jacobian(points).square().sum().backward()
    assert points.grad is not None
    assert points.grad.isfinite().all()
    assert points.grad.any()


def test_samples_have_the_published_spread_and_depend_only_on_the_generator() -> None:
    warp = sample(4000)
    offset = warp.theta - torch.eye(2, 3)
    assert offset.std().item() == pytest.approx(0.05, rel=0.03)
    assert warp.weights.std().item() == pytest.approx(0.005, rel=0.03)
    assert abs(offset.mean().item()) < 0.002
    assert torch.equal(sample(3, seed=5).theta, sample(3, seed=5).theta)
    assert not torch.equal(sample(3, seed=5).theta, sample(3, seed=6).theta)


def test_the_identity_warp_gives_the_frame_back() -> None:
    frame = torch.rand(1, 3, 16, 16)
    assert torch.equal(affine_warp(torch.eye(2, 3), corners=False).transform(frame), frame)


def test_a_transformed_frame_shows_the_frame_at_t_reflected_at_the_edges() -> None:
    frame = torch.rand(1, 3, 8, 8)
    theta = torch.eye(2, 3)
    theta[0, 2] = 2 * 2 / 8  # T(z) lies 2 pixels to the right
    moved = affine_warp(theta, corners=False).transform(frame)
    torch.testing.assert_close(moved[..., :6], frame[..., 2:], atol=1e-6, rtol=0)
    torch.testing.assert_close(moved[..., 6:], frame[..., 6:].flip(-1), atol=1e-6, rtol=0)


def test_losses_vanish_for_regions_that_follow_an_affine_warp() -> None:
    """A transformed frame's region at z shows the frame's region at T(z): mu = T(mu'), S = J S' J^T."""
    theta = torch.tensor([[1.1, 0.2, 0.05], [-0.1, 0.9, -0.1]])
    warp = affine_warp(theta)
    shift = torch.tensor([[[0.2, 0.1], [-0.3, 0.4]]])
    covariance = torch.tensor([[[[0.04, 0.01], [0.01, 0.02]], [[0.03, -0.02], [-0.02, 0.05]]]])
    heatmap = torch.zeros(1, 2, 1, 1)
    jacobian = theta[:, :2]
    # axes are compared, not covariances: J A' has the axes of A only where J keeps them at right angles
    moved = jacobian @ covariance @ jacobian.mT
    driving = Regions(warp(shift), moved, jacobian @ principal_axes(covariance), heatmap)
    losses = equivariance_losses(warp, driving, Regions(shift, covariance, principal_axes(covariance), heatmap))
    assert losses.shift.item() == pytest.approx(0, abs=1e-6)
    assert losses.affine.item() == pytest.approx(0, abs=1e-5)


def test_losses_of_known_errors() -> None:
    warp = affine_warp(torch.eye(2, 3))
    shift, covariance = torch.zeros(1, 1, 2), torch.diag(torch.tensor([0.04, 0.01])).expand(1, 1, 2, 2)
    heatmap = torch.zeros(1, 1, 1, 1)
    driving = Regions(shift, covariance, principal_axes(covariance), heatmap)
    transformed = Regions(shift + 0.3, 4 * covariance, -2 * principal_axes(covariance), heatmap)
    losses = equivariance_losses(warp, driving, transformed)
    assert losses.shift.item() == pytest.approx(0.3)
    assert losses.affine.item() == pytest.approx(0.5)  # |I - diag(2, 2)| over four entries, sign corrected


def test_gradients_reach_both_heatmaps() -> None:
    warp = sample()
    logits = torch.randn(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    heatmaps = logits.flatten(3).softmax(-1).view_as(logits)
    driving, transformed = (heatmap_regions(heatmap, corners=True) for heatmap in heatmaps)
    losses = equivariance_losses(warp, driving, transformed)
    (losses.shift + losses.affine).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad.flatten(1).any(dim=1).all()
