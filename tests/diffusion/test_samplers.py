"""Samplers against the exact solution for Gaussian data, and with a denoiser that knows x0."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from lfdm.config.diffusion import PredictionType
from lfdm.diffusion.guidance import make_denoiser
from lfdm.diffusion.process import NoiseLevel, prediction_from_clean, sampling_levels
from lfdm.diffusion.samplers import SAMPLERS, Denoiser, ddim, sample_noise

TYPES: tuple[PredictionType, ...] = ("epsilon", "v_prediction", "velocity")


def gaussian_denoiser(prediction_type: PredictionType, *, error: float = 0.0) -> Denoiser:
    """The exact denoiser for data N(0, 1), E[x0 | x] = alpha x / (alpha^2 + sigma^2), with errors of its prediction."""
    generator = torch.Generator().manual_seed(1)

    def denoise(x: Tensor, t: NoiseLevel, until: NoiseLevel | None = None) -> Tensor:
        del until
        clean = t.alpha / (t.alpha**2 + t.sigma**2) * x

        def predict(sample: Tensor, timestep: Tensor) -> Tensor:
            del timestep
            exact = prediction_from_clean(clean, sample, t.alpha, t.sigma, prediction_type)
            return exact + error * torch.randn(x.shape, generator=generator)

        return make_denoiser(predict, prediction_type, lambda clean: clean)(x, t)

    return denoise


def run(name: str, denoise: Denoiser, levels: Sequence[NoiseLevel], shape: tuple[int, ...] = (3, 16, 32, 32)) -> Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    noise = sample_noise(shape, generators, torch.device("cpu"))
    return SAMPLERS[name](denoise, noise, levels, generators, lambda _, __, x: x)


@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_ten_steps_keep_the_spread_of_unit_variance_data(name: str, prediction_type: PredictionType) -> None:
    spread = float(run(name, gaussian_denoiser(prediction_type), sampling_levels(prediction_type, 10)).std())
    if name in ("euler", "ddim", "flow_map"):  # first order and deterministic: its own discretisation loses a tenth
        assert spread == pytest.approx(0.90, abs=0.03)
    else:
        assert spread == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_small_error_of_the_network_stays_small(name: str, prediction_type: PredictionType) -> None:
    denoise = gaussian_denoiser(prediction_type, error=0.02)
    spread = float(run(name, denoise, sampling_levels(prediction_type, 10)).std())
    assert spread == pytest.approx(0.95, abs=0.15)


def test_noise_prediction_from_the_last_timestep_would_explode() -> None:
    """The reason for starting at log-SNR -5.1."""
    denoise = gaussian_denoiser("epsilon", error=0.02)
    assert float(run("dpmpp_2m", denoise, sampling_levels("v_prediction", 10)).std()) > 5


@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("num_steps", [1, 4, 10, 25, 61])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_denoiser_that_knows_x0_is_believed(name: str, num_steps: int, prediction_type: PredictionType) -> None:
    x0 = torch.linspace(-2, 2, 24).view(2, 3, 4)  # any rank
    found = run(name, lambda *_: x0, sampling_levels(prediction_type, num_steps), shape=(3, 4))
    torch.testing.assert_close(found, x0, rtol=0, atol=1e-5)


@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_solvers_converge_at_their_order(name: str, order: int, prediction_type: PredictionType) -> None:
    """For data N(0, 1) the exact solution keeps the sample's distance in units of its spread."""
    shape, first = (64,), sampling_levels(prediction_type, 1)[0]
    start = sample_noise(shape, [torch.Generator().manual_seed(seed) for seed in (0, 1)], torch.device("cpu"))
    exact = start / math.hypot(first.alpha, first.sigma)
    errors = [
        float((run(name, gaussian_denoiser(prediction_type), sampling_levels(prediction_type, n), shape) - exact).abs().max())
        for n in (20, 80)
    ]
    assert errors[1] < errors[0] / 4 ** (order - 0.5)


def test_the_callback_may_replace_the_sample() -> None:
    seen: list[tuple[int, float]] = []

    def zero(index: int, level: NoiseLevel, x: Tensor) -> Tensor:
        seen.append((index, level.timestep))
        return torch.zeros_like(x)

    levels = sampling_levels("velocity", 3)
    for sampler in SAMPLERS.values():
        seen.clear()
        found = sampler(gaussian_denoiser("velocity"), torch.ones(1, 2), levels, [torch.Generator()], zero)
        assert torch.equal(found, torch.zeros(1, 2))
        assert seen == [(i, level.timestep) for i, level in enumerate(levels[:-1])]


def test_ddim_adds_noise_in_proportion_to_eta() -> None:
    levels, x = sampling_levels("v_prediction", 10), torch.randn(1, 3, 16, 32, 32)
    found = ddim(gaussian_denoiser("v_prediction"), x, levels, [torch.Generator().manual_seed(0)], lambda _, __, x: x, eta=1.0)
    assert float((found * x).mean().abs()) < 0.3  # the start is mostly forgotten
    assert 0.6 < float(found.std()) < 1.05


def test_noise_of_a_sample_does_not_depend_on_its_batch() -> None:
    levels = sampling_levels("velocity", 5)
    both = run("ddpm", gaussian_denoiser("velocity"), levels, (4,))
    generator = torch.Generator().manual_seed(1)
    start = sample_noise((4,), [generator], torch.device("cpu"))
    alone = SAMPLERS["ddpm"](gaussian_denoiser("velocity"), start, levels, [generator], lambda _, __, x: x)
    torch.testing.assert_close(both[1:], alone)
