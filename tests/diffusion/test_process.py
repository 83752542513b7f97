"""Noise schedules, targets and weights against closed forms."""

import pytest
import torch
from torch import Tensor

from lfdm.config.diffusion import PredictionType
from lfdm.diffusion import process
from lfdm.diffusion.process import (
    NUM_TRAIN_TIMESTEPS,
    add_noise,
    alphas_cumprod,
    clean_from_prediction,
    diffusion_loss,
    level_of,
    max_sampling_steps,
    min_snr_weight,
    prediction_from_clean,
    sample_timesteps,
    sampling_levels,
    signal_and_noise_scale,
    target,
)

TYPES: tuple[PredictionType, ...] = ("epsilon", "v_prediction", "velocity")


def samples(count: int = 2, *, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(5, 3, 2, 4, 4, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("prediction_type", TYPES)
def test_targets_give_back_clean_data(prediction_type: PredictionType) -> None:
    x0, noise = samples()
    timesteps = torch.tensor([20, 100, 250, 637, 900])
    alpha, sigma = (scale.view(-1, 1, 1, 1, 1) for scale in signal_and_noise_scale(timesteps, prediction_type))
    x = add_noise(x0, noise, timesteps, prediction_type)
    wanted = target(x0, noise, timesteps, prediction_type)
    torch.testing.assert_close(clean_from_prediction(wanted, x, alpha, sigma, prediction_type), x0, rtol=0, atol=1e-4)
    torch.testing.assert_close(prediction_from_clean(x0, x, alpha, sigma, prediction_type), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("prediction_type", TYPES)
def test_min_snr_weighs_every_prediction_as_the_same_error_in_x0(prediction_type: PredictionType) -> None:
    timesteps, gamma = torch.tensor([3, 100, 400, 637, 900]), 5.0
    x0, noise, error = (one.double() for one in samples(3))
    alpha, sigma = (scale.double().view(-1, 1, 1, 1, 1) for scale in signal_and_noise_scale(timesteps, prediction_type))
    per_x0_error = {"epsilon": -alpha / sigma, "v_prediction": -1 / sigma, "velocity": -1 / sigma}[prediction_type]
    prediction = target(x0, noise, timesteps, prediction_type) + per_x0_error * error
    loss = diffusion_loss(prediction, x0, noise, timesteps, prediction_type, min_snr_gamma=gamma)
    snr = (alpha / sigma).square().flatten()
    torch.testing.assert_close(loss.double(), snr.clamp(max=gamma) * error.square().flatten(1).mean(1), rtol=1e-5, atol=0)


def test_loss_is_the_mean_squared_error_of_each_sample() -> None:
    x0 = noise = torch.zeros(2, 3, 2, 2)  # any rank
    prediction = torch.arange(3.0).view(1, 3, 1, 1).expand_as(x0)  # errors 0, 1, 4
    loss = diffusion_loss(prediction, x0, noise, torch.tensor([0, 999]), "epsilon")
    torch.testing.assert_close(loss, torch.full((2,), 5 / 3))


@pytest.mark.parametrize("prediction_type", TYPES)
def test_training_never_waits_for_the_device(prediction_type: PredictionType) -> None:
    """Tensors of the meta device have no values: whatever reads one, as a host synchronisation does, raises."""
    x0, noise, prediction = (torch.empty(2, 3, 4, 8, 8, device="meta") for _ in range(3))
    timesteps = torch.empty(2, device="meta", dtype=torch.float32 if prediction_type == "velocity" else torch.int64)
    assert add_noise(x0, noise, timesteps, prediction_type).shape == x0.shape
    loss = diffusion_loss(prediction, x0, noise, timesteps, prediction_type, min_snr_gamma=5.0)
    assert (loss.shape, loss.dtype) == ((2,), torch.float32)


def test_the_schedule_is_built_once_and_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    timesteps = torch.arange(1000)
    alpha, sigma = signal_and_noise_scale(timesteps, "epsilon")
    assert (alpha.dtype, sigma.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(alpha.double().square(), alphas_cumprod(), rtol=1e-6, atol=0)
    monkeypatch.setattr(process, "alphas_cumprod", lambda: pytest.fail("the schedule is built again"))
    assert torch.equal(signal_and_noise_scale(timesteps, "epsilon")[0], alpha)


def test_timesteps_are_sampled_over_the_whole_schedule() -> None:
    generator = torch.Generator().manual_seed(0)
    whole = sample_timesteps(20_000, "v_prediction", generator=generator)
    assert (whole.dtype, int(whole.min()), int(whole.max())) == (torch.int64, 0, 999)
    real = sample_timesteps(20_000, "velocity", generator=generator)
    assert real.dtype == torch.float32
    assert float(real.mean()) == pytest.approx(500, abs=10)
    assert 0 <= real.min() < real.max() < 1000


def test_straight_path_goes_from_data_to_noise() -> None:
    x0, noise = torch.full((3, 1), 2.0), torch.full((3, 1), -1.0)
    x = add_noise(x0, noise, torch.tensor([0, 250, 1000]), "velocity")
    torch.testing.assert_close(x.flatten(), torch.tensor([2.0, 1.25, -1.0]))


@pytest.mark.parametrize("prediction_type", TYPES)
def test_sampling_levels_fall_to_clean_at_every_number_of_steps(prediction_type: PredictionType) -> None:
    for num_steps in (1, 2, 27, 61, 103, max_sampling_steps(prediction_type)):
        levels = sampling_levels(prediction_type, num_steps)
        assert len(levels) == num_steps + 1
        assert (levels[-1].alpha, levels[-1].sigma) == (1, 0)
        times = [level.timestep for level in levels[:-1]]
        assert times == sorted(set(times), reverse=True)
        assert times[0] == pytest.approx({"epsilon": 995, "v_prediction": 999, "velocity": 999}[prediction_type])


@pytest.mark.parametrize("prediction_type", TYPES)
def test_levels_are_those_of_training(prediction_type: PredictionType) -> None:
    for level in sampling_levels(prediction_type, 25)[:-1]:
        alpha, sigma = signal_and_noise_scale(torch.tensor([level.timestep]), prediction_type)
        assert (level.alpha, level.sigma) == (pytest.approx(float(alpha), abs=1e-6), pytest.approx(float(sigma), abs=1e-6))


@pytest.mark.parametrize("prediction_type", TYPES)
def test_the_level_of_a_scaled_sample_has_its_ratio_of_noise_to_signal(prediction_type: PredictionType) -> None:
    for level in sampling_levels(prediction_type, 25)[:-1]:
        same = level_of(3 * level.alpha, 3 * level.sigma, prediction_type)
        assert same.timestep == pytest.approx(level.timestep, abs=1e-6)
        assert same.log_snr == pytest.approx(level.log_snr)
    ends = [level_of(0, 1, prediction_type).timestep, level_of(1, 0, prediction_type).timestep]
    assert ends == [NUM_TRAIN_TIMESTEPS - (prediction_type != "velocity"), 0]


def test_min_snr_weights_are_float32_and_at_most_one() -> None:
    weights = min_snr_weight(torch.arange(1000), "epsilon", 5.0)
    assert weights.dtype == torch.float32
    assert 0 < float(weights.min()) < float(weights.max()) == 1


def test_weights_apply_to_the_squares_of_single_entries() -> None:
    x0, noise, prediction = (torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(i)) for i in range(3))
    weights = torch.zeros(3, 1, 4, 4)
    weights[1] = 3
    loss = diffusion_loss(prediction, x0, noise, torch.tensor([100.0, 900.0]), "velocity", weights=weights)
    second = diffusion_loss(prediction[:, 1:2], x0[:, 1:2], noise[:, 1:2], torch.tensor([100.0, 900.0]), "velocity")
    torch.testing.assert_close(loss, second)
