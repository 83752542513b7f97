import math

import pytest
import torch
from torch import Tensor

from lfdm.errors import UserError
from lfdm.motion.time_basis import NUM_KNOTS, TimeBasis, instants, interpolation


def smooth_curves(num_frames: int, cells: int = 6, seed: int = 0) -> Tensor:
    """Return curves (2, 2, t, 1, cells) that are mixtures of three smooth functions, 0 at the start."""
    tau = instants(num_frames)
    functions = torch.stack([tau, tau**2, 1 - torch.cos(math.pi * tau)])
    mixture = torch.randn(2, 2, cells, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (mixture @ functions).permute(0, 1, 3, 2).unsqueeze(3)


def ones(curves: Tensor) -> Tensor:
    return torch.ones_like(curves[:, :1])


@pytest.fixture
def basis() -> TimeBasis:
    curves = smooth_curves(NUM_KNOTS)
    return TimeBasis.from_curves([(curves, ones(curves))], 3)


def test_instants_go_from_first_to_last_frame() -> None:
    assert instants(5).tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert instants(1).tolist() == [0]


def test_interpolation_passes_through_the_knots_and_reproduces_parabolas() -> None:
    torch.testing.assert_close(interpolation(instants(7), 7), torch.eye(7).double(), atol=1e-12, rtol=0)
    knots, tau = instants(9), torch.rand(50, dtype=torch.float64)
    parabola = 1 - 2 * knots + 3 * knots**2
    torch.testing.assert_close(interpolation(tau, 9) @ parabola, 1 - 2 * tau + 3 * tau**2)


def test_functions_begin_at_exactly_zero_and_are_orthonormal_in_time(basis: TimeBasis) -> None:
    assert not basis.at(instants(16))[0].any()
    torch.testing.assert_close(basis.knots @ basis.knots.T / NUM_KNOTS, torch.eye(3).double(), atol=1e-10, rtol=0)
    assert (basis.variance.diff() <= 0).all()


def test_frame_0_stands_still_exactly_whatever_the_coefficients(basis: TimeBasis) -> None:
    curves = basis.evaluate(1e6 * torch.randn(1, 6, 4, 4), instants(40))
    assert not curves[:, :, 0].any()


def test_lengths_agree_at_shared_instants(basis: TimeBasis) -> None:
    coefficients = torch.randn(2, 6, 4, 4)
    short, long = (basis.evaluate(coefficients, instants(n)) for n in (16, 31))
    torch.testing.assert_close(short, long[:, :, ::2], atol=1e-5, rtol=0)


def test_curves_of_any_length_are_fitted_and_found_again(basis: TimeBasis) -> None:
    """The functions are parabolas and a cosine: between knots they are cubic, so other lengths are right to 1e-3."""
    for num_frames, tolerance in ((16, 1e-6), (31, 1e-3), (100, 1e-3)):
        curves = smooth_curves(num_frames, seed=5)
        coefficients = basis.fit(curves, ones(curves), ridge=1e-12)
        assert coefficients.shape == (2, 6, 1, 6)
        torch.testing.assert_close(basis.evaluate(coefficients, instants(num_frames)), curves, atol=tolerance, rtol=0)


def test_a_basis_can_be_made_of_clips_of_other_lengths(basis: TimeBasis) -> None:
    curves = smooth_curves(48)
    other = TimeBasis.from_curves([(curves, ones(curves))], 3)
    torch.testing.assert_close(other.knots, basis.knots, atol=2e-3, rtol=0)


def test_observations_are_linear_in_the_coefficients(basis: TimeBasis) -> None:
    """A point at a time is a row of `at` times the coefficients, which is what constraints on paths and overlaps need."""
    a, b = torch.randn(2, 1, 6, 3, 3, dtype=torch.float64)
    tau = torch.tensor([0.1, 0.77])
    sums = basis.evaluate(2 * a - b, tau)
    torch.testing.assert_close(sums, 2 * basis.evaluate(a, tau) - basis.evaluate(b, tau))
    torch.testing.assert_close(sums[0, 1, :, 2, 1], basis.at(tau) @ (2 * a - b)[0, 3:, 2, 1])


def test_frames_without_weight_do_not_count(basis: TimeBasis) -> None:
    curves = smooth_curves(NUM_KNOTS, seed=3)
    broken, weight = curves.clone(), ones(curves)
    broken[:, :, 5:8], weight[:, :, 5:8] = 100.0, 0.0
    found = basis.evaluate(basis.fit(broken, weight, ridge=1e-12), instants(NUM_KNOTS))
    torch.testing.assert_close(found, curves, atol=1e-5, rtol=0)


def test_a_large_ridge_leaves_no_motion(basis: TimeBasis) -> None:
    curves = smooth_curves(NUM_KNOTS)
    assert basis.fit(curves, ones(curves), ridge=1e9).abs().max() < 1e-6


@pytest.mark.parametrize("count", [0, NUM_KNOTS])
def test_the_number_of_functions_is_checked(count: int) -> None:
    with pytest.raises(UserError, match=f"count .*{count}"):
        TimeBasis.from_moments(torch.eye(NUM_KNOTS), count)


def test_values_of_a_basis_are_checked(basis: TimeBasis) -> None:
    for knots, variance in ((basis.knots + 1, basis.variance), (basis.knots, -basis.variance), (basis.knots[0], basis.variance)):
        with pytest.raises(UserError, match="knots"):
            TimeBasis(knots, variance)
    with pytest.raises(UserError, match="frames"):
        TimeBasis.from_curves([(torch.zeros(1, 2, 2, 1, 1), torch.ones(1, 1, 2, 1, 1))], 1)
