"""Flow maps: times, the conversion from v prediction, and the derivative in their target, against exact answers."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lfdm.config.diffusion import PredictionType
from lfdm.denoiser.unet3d import MotionUNet3D
from lfdm.diffusion.mean_flow import (
    CAUCHY_SCALE,
    STEP_COUNTS,
    cauchy_loss,
    composed_velocity,
    expand_times,
    mean_velocity,
    sample_instants,
    sample_intervals,
    sample_steps,
    total_derivative,
)
from lfdm.diffusion.process import (
    NoiseLevel,
    add_noise,
    alphas_cumprod,
    level_of,
    path_level,
    prediction_from_clean,
    sampling_levels,
    straight_time,
    target,
    velocity_from_prediction,
)
from lfdm.diffusion.samplers import euler, flow_map
from lfdm.errors import UserError

TYPES: tuple[PredictionType, ...] = ("v_prediction", "velocity")


@pytest.mark.parametrize("kind", TYPES)
def test_times_of_the_straight_path_have_the_levels_that_samplers_use(kind: PredictionType) -> None:
    times = torch.linspace(0.02, 0.99, 400)  # at the very ends, level_of interpolates between timesteps far apart in noise
    timesteps, alphas, sigmas = path_level(times, kind)
    for time, timestep, alpha, sigma in zip(times.tolist(), timesteps.tolist(), alphas.tolist(), sigmas.tolist(), strict=True):
        level = level_of(1 - time, time, kind)
        assert timestep == pytest.approx(level.timestep, abs=0.05)
        assert (alpha, sigma) == pytest.approx((level.alpha, level.sigma), abs=1e-5)


def test_whole_timesteps_of_the_cosine_schedule_are_found_again() -> None:
    abar = alphas_cumprod()[:-1]  # the last beta is clipped
    alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
    timesteps, _, _ = path_level((sigma / (alpha + sigma)).float(), "v_prediction")
    torch.testing.assert_close(timesteps, torch.arange(999.0), rtol=0, atol=0.01)


@pytest.mark.parametrize("kind", TYPES)
def test_a_prediction_is_converted_to_the_velocity_exactly(kind: PredictionType) -> None:
    x0, noise = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    timesteps = torch.tensor([0, 200, 500, 800, 998])
    alpha, sigma = (expand_times(values, x0) for values in path_level_of(timesteps, kind))
    sample, prediction = add_noise(x0, noise, timesteps, kind), target(x0, noise, timesteps, kind)
    found = velocity_from_prediction(prediction, sample, alpha, sigma, kind)
    torch.testing.assert_close(found, noise - x0, rtol=0, atol=1e-6)


def path_level_of(timesteps: Tensor, kind: PredictionType) -> tuple[Tensor, Tensor]:
    if kind == "velocity":
        return 1 - timesteps.double() / 1000, timesteps.double() / 1000
    abar = alphas_cumprod()[timesteps]
    return abar.sqrt(), (1 - abar).sqrt()


def test_noise_prediction_has_no_velocity_in_pure_noise() -> None:
    with pytest.raises(UserError, match="prediction_type"):
        velocity_from_prediction(torch.zeros(1), torch.zeros(1), 0.0, 1.0, "epsilon")


# Data N(0, 1): the trajectory from x_t keeps x / norm(t), norm(t) = sqrt((1 - t)^2 + t^2).


def norm(time: Tensor) -> Tensor:
    return torch.sqrt((1 - time).square() + time.square())


def exact_mean_velocity(x: Tensor, time: Tensor, until: Tensor) -> Tensor:
    time, until = expand_times(time, x), expand_times(until, x)
    return x * (1 - norm(until) / norm(time)) / (time - until)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_the_exact_flow_map_needs_one_step(kind: PredictionType, num_steps: int) -> None:
    noise = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def denoise(x: Tensor, t: NoiseLevel, until: NoiseLevel | None = None) -> Tensor:
        assert until is not None
        now, then = (torch.tensor(level.sigma / (level.alpha + level.sigma), dtype=x.dtype) for level in (t, until))
        straight = x / (t.alpha + t.sigma)
        return straight - now * exact_mean_velocity(straight, now[None], then[None])

    found = flow_map(denoise, noise, sampling_levels(kind, num_steps), [], lambda _, __, x: x)
    torch.testing.assert_close(found, noise, rtol=0, atol=4e-3)  # it begins just below pure noise
    by_euler = euler(
        lambda x, t, _=None: t.alpha / (t.alpha**2 + t.sigma**2) * x, noise, sampling_levels(kind, 4), [], lambda *a: a[2]
    )
    assert float((by_euler - noise).abs().max()) > 0.1


@pytest.mark.parametrize("kind", TYPES)
def test_a_network_that_knows_x0_has_the_straight_line_as_mean_velocity(kind: PredictionType) -> None:
    x0, noise = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    time, until = torch.tensor([0.9, 0.4], dtype=torch.float64), torch.tensor([0.1, 0.4], dtype=torch.float64)
    _, alpha, sigma = path_level(time, kind)

    def predict(sample: Tensor, timesteps: Tensor, end: Tensor) -> Tensor:
        assert (end <= timesteps).all()
        return prediction_from_clean(x0, sample, expand_times(alpha, x0), expand_times(sigma, x0), kind)

    x = torch.lerp(x0, noise, expand_times(time, x0))
    torch.testing.assert_close(mean_velocity(predict, x, time, until, kind), noise - x0)


def test_the_mean_flow_target_holds_for_the_exact_flow_map() -> None:
    """u = v - (t - r) du/dt, with the derivative by finite differences."""
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    time, until = torch.tensor([0.9, 0.6, 0.3]).double(), torch.tensor([0.2, 0.5, 0.0]).double()
    velocity = x * expand_times((2 * time - 1) / norm(time).square(), x)
    change = total_derivative(exact_mean_velocity, x, time, until, velocity)
    expected = velocity - expand_times(time - until, x) * change
    torch.testing.assert_close(expected, exact_mean_velocity(x, time, until), rtol=0, atol=5e-3)


def test_finite_differences_agree_with_forward_mode_differentiation() -> None:
    """With small steps: over the step of training, high frequencies of the time embedding are smoothed on purpose."""
    torch.manual_seed(0)
    network = MotionUNet3D(
        latent_channels=5,
        condition_dim=6,
        dim=8,
        channel_multipliers=(1, 2),
        num_heads=2,
        head_dim=4,
        num_groups=4,
        flow_map=True,
    ).double()
    x, velocity = torch.randn(2, 2, 3, 2, 8, 8, dtype=torch.float64)
    condition, latent = torch.randn(2, 6, dtype=torch.float64), torch.randn(2, 5, 8, 8, dtype=torch.float64)
    time, until = torch.tensor([0.9, 0.4]).double(), torch.tensor([0.5, 0.0]).double()

    def u(x: Tensor, time: Tensor, until: Tensor) -> Tensor:
        return mean_velocity(lambda sample, t, r: network(sample, t, condition, latent, until=r), x, time, until, "v_prediction")

    with torch.no_grad():
        exact = torch.func.jvp(lambda x, time: u(x, time, until), (x, time), (velocity, torch.ones_like(time)))[1]
        found = total_derivative(u, x, time, until, velocity, step=1e-5)
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-3 * float(exact.abs().max()))


@pytest.mark.parametrize("time", [0.0, 1.0])
def test_differences_are_one_sided_at_the_ends(time: float) -> None:
    x, at = torch.ones(1, 2), torch.tensor([time])

    def u(x: Tensor, time: Tensor, until: Tensor) -> Tensor:
        assert ((time >= 0) & (time <= 1)).all()
        return 3 * x + expand_times(time - until, x)

    torch.testing.assert_close(total_derivative(u, x, at, at, torch.full_like(x, 2.0)), torch.full_like(x, 7.0))


@pytest.mark.parametrize("kind", TYPES)
def test_steps_are_those_of_samplers(kind: PredictionType) -> None:
    found = sample_steps(2000, kind, generator=torch.Generator().manual_seed(0))
    times = [[level.sigma / (level.alpha + level.sigma) for level in sampling_levels(kind, count)] for count in STEP_COUNTS]
    allowed = torch.tensor([pair for steps in times for pair in pairwise(steps)])
    distances = (found.T[:, None] - allowed).abs().amax(-1)  # (2000, steps)
    assert float(distances.amin(1).max()) < 2e-3
    assert float(distances.amin(0).max()) < 2e-3  # each of them is met


def test_intervals_begin_later_than_they_end() -> None:
    time, until = sample_intervals(4000, generator=torch.Generator().manual_seed(0))
    assert (time >= until).all()
    assert float(until.min()) > 0
    assert float(time.max()) < 1
    assert float((time + until).mean()) == pytest.approx(0.59 + 0.26, abs=0.03)


@pytest.mark.parametrize("kind", TYPES)
def test_instants_reach_from_clean_to_pure_noise(kind: PredictionType) -> None:
    time, until = sample_instants(2000, kind, generator=torch.Generator().manual_seed(0))
    assert torch.equal(time, until)
    assert float(time.min()) < 0.01
    assert 0.99 < float(time.max()) <= 1


@pytest.mark.parametrize("kind", TYPES)
def test_times_of_timesteps_are_the_inverse_of_levels(kind: PredictionType) -> None:
    times = torch.linspace(0.02, 0.99, 50)
    timesteps, _, _ = path_level(times, kind)
    torch.testing.assert_close(straight_time(timesteps, kind), times, rtol=0, atol=1e-4)


@pytest.mark.parametrize("until", [0.0, 0.3, 0.65, 0.85])
def test_teacher_and_exact_flow_map_compose_to_the_exact_mean_velocity(until: float) -> None:
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    time, end = torch.full((2,), 0.9).double(), torch.full((2,), until).double()

    def velocity(x: Tensor, time: Tensor) -> Tensor:
        return x * expand_times((2 * time - 1) / norm(time).square(), x)

    def u(x: Tensor, time: Tensor, until: Tensor) -> Tensor:
        return torch.where(expand_times(time == until, x), velocity(x, time), exact_mean_velocity(x, time, until))

    found = composed_velocity(velocity, u, x, time, end)
    torch.testing.assert_close(found, exact_mean_velocity(x, time, end), rtol=0.03, atol=0)


def test_the_gradient_of_the_loss_falls_with_large_errors() -> None:
    prediction = torch.tensor([[0.0, 0.0], [3.0, 3.0]], requires_grad=True)
    loss, error = cauchy_loss(prediction, torch.zeros(2, 2))
    assert loss.tolist() == pytest.approx([math.log(CAUCHY_SCALE), math.log(9 + CAUCHY_SCALE)])
    assert error.tolist() == [0, 9]
    loss.sum().backward()
    assert prediction.grad is not None
    assert prediction.grad[1].tolist() == pytest.approx([3 / (9 + CAUCHY_SCALE)] * 2)
