"""Correction of predicted clean samples towards observed values, with the exact denoiser of a Gaussian."""

import torch
from torch import Tensor

from lfdm.diffusion.guidance import Observation, make_denoiser
from lfdm.diffusion.process import NoiseLevel, prediction_from_clean

COVARIANCE = torch.tensor([[1.0, 0.8, 0.0], [0.8, 1.0, 0.0], [0.0, 0.0, 1.0]])
LEVEL = NoiseLevel(500.0, 0.6, 0.8)


def predict(x: Tensor, timestep: Tensor, until: Tensor | None = None) -> Tensor:
    """Return the velocity that stands for the mean of x0 given x, for x0 ~ N(0, COVARIANCE)."""
    del timestep, until
    gain = LEVEL.alpha * COVARIANCE @ torch.linalg.inv(LEVEL.alpha**2 * COVARIANCE + LEVEL.sigma**2 * torch.eye(3))
    return prediction_from_clean(x @ gain.T, x, LEVEL.alpha, LEVEL.sigma, "velocity")


def posterior_covariance() -> Tensor:
    return torch.linalg.inv(torch.linalg.inv(COVARIANCE) + LEVEL.alpha**2 / LEVEL.sigma**2 * torch.eye(3))


def test_values_that_vary_with_the_observed_one_are_corrected_too() -> None:
    x = torch.tensor([[0.3, -0.2, 0.5], [1.0, 0.0, -1.0]])
    free = make_denoiser(predict, "velocity", lambda clean: clean)(x, LEVEL)
    observation = Observation(read=lambda clean: 2 * clean[:, :1] + 1, values=torch.tensor([2.0]))
    found = make_denoiser(predict, "velocity", lambda clean: clean, observation)(x, LEVEL)
    covariance = posterior_covariance()
    rest = 0.5 - free[:, :1]  # 2 x + 1 = 2
    torch.testing.assert_close(found, free + rest * covariance[:, 0] / covariance[0, 0], atol=1e-5, rtol=1e-5)
    assert not found.requires_grad


def test_a_met_observation_changes_nothing_and_limits_come_last() -> None:
    x = torch.tensor([[0.3, -0.2, 0.5]])
    free = make_denoiser(predict, "velocity", lambda clean: clean)(x, LEVEL)
    met = Observation(read=lambda clean: clean[:, :2], values=free[0, :2])
    torch.testing.assert_close(make_denoiser(predict, "velocity", lambda clean: clean, met)(x, LEVEL), free)
    far = Observation(read=lambda clean: clean[:, :1], values=torch.tensor([50.0]))
    assert make_denoiser(predict, "velocity", lambda clean: clean.clamp(-3, 3), far)(x, LEVEL).max() == 3
