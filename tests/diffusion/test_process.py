"""Targets, weights and schedulers against closed forms."""

from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from lfdm.config.diffusion import SCHEDULERS, PredictionType, SchedulerName
from lfdm.diffusion.process import (
    add_noise,
    alphas_cumprod,
    clamp_prediction,
    cosine_betas,
    diffusion_loss,
    follows_straight_path,
    make_scheduler,
    min_snr_weight,
    predicted_by,
    sample_timesteps,
    signal_and_noise_scale,
    target,
    v_by_velocity,
)
from lfdm.errors import UserError

TYPES: tuple[PredictionType, ...] = ("epsilon", "v_prediction", "velocity")
FLAT = torch.zeros(1, 3, 2)
OFFERED = [(prediction_type, name) for prediction_type, names in SCHEDULERS.items() for name in names]


def unit_gaussian_prediction(x: Tensor, timestep: Tensor, prediction_type: PredictionType) -> Tensor:
    """The exact prediction for data N(0, 1): E[x0 | x_t] = alpha x_t / (alpha^2 + sigma^2), of noise likewise."""
    alpha, sigma = signal_and_noise_scale(timestep.double(), prediction_type)
    x0, noise = (x.double() * scale / (alpha**2 + sigma**2) for scale in (alpha, sigma))
    exact = {"epsilon": noise, "v_prediction": alpha * noise - sigma * x0, "velocity": noise - x0}
    return exact[prediction_type].to(x.dtype)


def sample_spread(scheduler: Any, prediction_type: PredictionType, *, num_steps: int, error: float = 0.0) -> float:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, 16, 32, 32, generator=generator)
    scheduler.set_timesteps(num_steps)
    for timestep in scheduler.timesteps:
        prediction = unit_gaussian_prediction(x, timestep, prediction_type)
        prediction = prediction + error * torch.randn(x.shape, generator=generator)
        options = {"generator": generator} if "DDPM" in type(scheduler).__name__ else {}
        x = scheduler.step(prediction, timestep, x, **options).prev_sample
    return float(x.std())


@pytest.mark.parametrize(("prediction_type", "name"), OFFERED)
def test_ten_steps_keep_the_spread_of_unit_variance_data(prediction_type: PredictionType, name: SchedulerName):
    spread = sample_spread(make_scheduler(name, prediction_type=prediction_type), prediction_type, num_steps=10)
    if name == "ddim":  # first order and deterministic: its own discretisation loses a tenth
        assert spread == pytest.approx(0.90, abs=0.03)
    else:
        assert spread == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(("prediction_type", "name"), OFFERED)
def test_a_small_error_of_the_network_stays_small(prediction_type: PredictionType, name: SchedulerName):
    scheduler = make_scheduler(name, prediction_type=prediction_type)
    assert sample_spread(scheduler, prediction_type, num_steps=10, error=0.02) == pytest.approx(0.95, abs=0.15)


def test_noise_prediction_from_the_last_timestep_would_explode():
    """The reason for starting at log-SNR -5.1."""
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    naive = UniPCMultistepScheduler(trained_betas=cosine_betas().tolist())
    assert sample_spread(naive, "epsilon", num_steps=10, error=0.02) > 5


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpmsolver++", "unipc"])
def test_paper_sampling_thresholds_and_ours_does_not(name: SchedulerName):
    paper: Any = make_scheduler(name, prediction_type="epsilon", paper=True)
    ours: Any = make_scheduler(name, prediction_type="v_prediction")
    assert (paper.config.thresholding, paper.config.dynamic_thresholding_ratio) == (True, 0.9)
    assert not ours.config.thresholding
    assert not getattr(ours.config, "clip_sample", False)
    x0 = 3 * torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    limit = x0.abs().flatten(1).quantile(0.9, dim=1).view(2, 1, 1, 1, 1)
    expected = x0.clamp(-limit, limit) / limit
    torch.testing.assert_close(paper._threshold_sample(x0), expected)


def test_paper_ddpm_step_has_the_posterior_mean_and_variance():
    t = 400
    scheduler: Any = make_scheduler("ddpm", prediction_type="epsilon", paper=True)
    scheduler.set_timesteps(1000)
    assert scheduler.timesteps[0] == 999
    betas, abar = cosine_betas(), alphas_cumprod()
    generator = torch.Generator().manual_seed(0)
    x0 = 2 * torch.rand(4, 3, 16, 32, 32, generator=generator) - 1  # inside [-1, 1]: thresholding changes nothing
    noise = torch.randn(x0.shape, generator=generator)
    x = add_noise(x0, noise, torch.full((4,), t))
    stepped = scheduler.step(noise, t, x, generator=generator).prev_sample
    mean = (abar[t - 1].sqrt() * betas[t] * x0 + (1 - betas[t]).sqrt() * (1 - abar[t - 1]) * x) / (1 - abar[t])
    variance = betas[t] * (1 - abar[t - 1]) / (1 - abar[t])
    standard = (stepped - mean) / variance.sqrt()
    assert float(standard.mean()) == pytest.approx(0, abs=0.01)
    assert float(standard.std()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("prediction_type", TYPES)
def test_targets_give_back_clean_data(prediction_type: PredictionType):
    """x0 = (x_t - sigma noise) / alpha and its counterparts for v and velocity."""
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(5, 3, 2, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    timesteps = torch.tensor([0, 1, 250, 637, 990])
    alpha, sigma = (scale.view(-1, 1, 1, 1, 1) for scale in signal_and_noise_scale(timesteps, prediction_type))
    x, wanted = add_noise(x0, noise, timesteps, prediction_type), target(x0, noise, timesteps, prediction_type)
    recovered = {
        "epsilon": lambda: (x - sigma * wanted) / alpha,
        "v_prediction": lambda: alpha * x - sigma * wanted,
        "velocity": lambda: x - sigma * wanted,
    }[prediction_type]()
    torch.testing.assert_close(recovered, x0)


@pytest.mark.parametrize("prediction_type", TYPES)
def test_min_snr_weighs_every_prediction_as_the_same_error_in_x0(prediction_type: PredictionType):
    timesteps, gamma = torch.tensor([3, 100, 400, 637, 900]), 5.0
    generator = torch.Generator().manual_seed(0)
    x0, noise, error = (torch.randn(5, 3, 2, 4, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    alpha, sigma = (scale.view(-1, 1, 1, 1, 1) for scale in signal_and_noise_scale(timesteps, prediction_type))
    per_x0_error = {"epsilon": -alpha / sigma, "v_prediction": -1 / sigma, "velocity": -1 / sigma}[prediction_type]
    prediction = target(x0, noise, timesteps, prediction_type) + per_x0_error * error
    loss = diffusion_loss(prediction, x0, noise, timesteps, prediction_type, min_snr_gamma=gamma)
    snr = (alpha / sigma).square().flatten()
    torch.testing.assert_close(loss.double(), snr.clamp(max=gamma) * error.square().flatten(1).mean(1), rtol=1e-5, atol=0)


def test_loss_is_the_weighted_mean_of_channels():
    x0 = noise = torch.zeros(2, 3, 1, 2, 2)
    prediction = torch.arange(3.0).view(1, 3, 1, 1, 1).expand_as(x0)  # errors 0, 1, 4
    timesteps = torch.tensor([0, 999])
    plain = diffusion_loss(prediction, x0, noise, timesteps, "epsilon")
    torch.testing.assert_close(plain, torch.full((2,), 5 / 3))
    weighted = diffusion_loss(prediction, x0, noise, timesteps, "epsilon", channel_weights=torch.tensor([7.0, 1.0, 0.5]))
    torch.testing.assert_close(weighted, torch.full((2,), 1.0))


def test_timesteps_are_drawn_over_the_whole_schedule():
    generator = torch.Generator().manual_seed(0)
    whole = sample_timesteps(20_000, "v_prediction", generator=generator)
    assert (whole.dtype, int(whole.min()), int(whole.max())) == (torch.int64, 0, 999)
    real = sample_timesteps(20_000, "velocity", generator=generator)
    assert real.dtype == torch.float32
    assert float(real.mean()) == pytest.approx(500, abs=10)
    assert 0 <= real.min() < real.max() < 1000


def test_straight_path_goes_from_data_to_noise():
    x0, noise = torch.full((3, 1), 2.0), torch.full((3, 1), -1.0)
    x = add_noise(x0, noise, torch.tensor([0, 250, 1000]), "velocity")
    torch.testing.assert_close(x.flatten(), torch.tensor([2.0, 1.25, -1.0]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_scheduler("ddpm", prediction_type="velocity"), r"'ddpm' with velocity; allowed: dpmsolver\+\+"),
        (lambda: make_scheduler("heun", prediction_type="epsilon"), "'heun' with epsilon; allowed: ddpm"),  # pyright: ignore[reportArgumentType]
        (lambda: make_scheduler("unipc", prediction_type="velocity", paper=True), "paper is True with velocity"),
        (lambda: make_scheduler("ddpm", prediction_type="sample"), "prediction_type is 'sample'; allowed: epsilon"),  # pyright: ignore[reportArgumentType]
        (lambda: min_snr_weight(torch.tensor([0]), "epsilon", 0.0), "gamma is 0.0; allowed"),
        (lambda: min_snr_weight(torch.tensor([0]), "epsilon", float("nan")), "gamma is nan; allowed"),
        (lambda: signal_and_noise_scale(torch.tensor([1000]), "epsilon"), "timesteps span 1000 to 1000; allowed: 0 to 999"),
        (lambda: add_noise(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([1])), r"timesteps have shape \(1,\)"),
        (
            lambda: diffusion_loss(torch.zeros(1, 2), torch.zeros(1, 3), torch.zeros(1, 3), torch.zeros(1), "epsilon"),
            r"prediction \(1, 2\)",
        ),
        (
            lambda: diffusion_loss(FLAT, FLAT, FLAT, torch.zeros(1), "epsilon", channel_weights=torch.ones(2)),
            r"channel_weights \(2,\); allowed: \(3,\)",
        ),
    ],
)
def test_errors_name_what_was_got_and_what_is_allowed(call: Any, message: str):
    with pytest.raises(UserError, match=message):
        call()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "velocity"])
def test_clamp_prediction_moves_x0_into_its_range_and_nothing_else(kind: PredictionType) -> None:
    x0, noise = torch.tensor([[[-3.0, 0.5, 2.0]]]), torch.tensor([[[0.3, -1.0, 0.2]]])
    timesteps = torch.tensor([400])
    sample = add_noise(x0, noise, timesteps, kind)
    wanted = x0.clamp(-1, 1)
    alpha, sigma = (scale.float() for scale in signal_and_noise_scale(timesteps, kind))
    prediction = target(x0, noise, timesteps, kind)
    clamped = clamp_prediction(prediction, sample, (alpha, sigma), kind, lambda clean: clean.clamp(-1, 1))
    implied_noise = (sample - alpha * wanted) / sigma
    torch.testing.assert_close(clamped, target(wanted, implied_noise, timesteps, kind), atol=1e-5, rtol=1e-5)


def test_velocity_says_what_v_is_at_the_same_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 1, 3, 4, generator=generator)
    timesteps = torch.tensor([400])
    asked: list[Tensor] = []

    def velocity(sample: Tensor, timestep: Tensor) -> Tensor:
        asked.append(timestep)
        torch.testing.assert_close(sample, add_noise(x0, noise, timestep[None], "velocity"))
        return target(x0, noise, timestep[None], "velocity")

    alpha, sigma = (scale[0].float() for scale in signal_and_noise_scale(timesteps, "v_prediction"))
    v = v_by_velocity(velocity, add_noise(x0, noise, timesteps, "v_prediction"), (alpha, sigma))
    torch.testing.assert_close(v, target(x0, noise, timesteps, "v_prediction"))
    assert float(asked[0]) == pytest.approx(1000 * float(sigma / (alpha + sigma)))


@pytest.mark.parametrize(
    ("scheduler", "predicts", "straight"),
    [
        (make_scheduler("unipc", prediction_type="velocity"), "velocity", True),
        (FlowMatchEulerDiscreteScheduler(), "velocity", True),
        (DDIMScheduler.from_config(make_scheduler("unipc", prediction_type="velocity").config), "velocity", False),
        (make_scheduler("dpmsolver++", prediction_type="v_prediction"), "v_prediction", False),
        (make_scheduler("ddim", prediction_type="epsilon"), "epsilon", False),
    ],
)
def test_what_a_scheduler_asks_of_its_network(scheduler: Any, predicts: PredictionType, straight: bool) -> None:
    assert predicted_by(scheduler) == predicts
    assert follows_straight_path(scheduler) == straight
