"""Flow maps and their training targets, towards the velocity v of a teacher.

On the straight path x_t = (1 - t) x0 + t noise, 0 <= r <= t <= 1, a flow map predicts the mean velocity u(x_t, t, r) over the
teacher's trajectory from t to r, so that x_r = x_t - (t - r) u. Two targets for it:
    composed    the teacher goes from t to s, at most `TEACHER_STEP` of time, by a step of the midpoint method; the flow map
                itself goes on from s to r (Shortcut Models, 2410.12557, and AlphaFlow, 2510.20771, with a teacher)
    derivative  v - (t - r) du/dt, from differentiating (t - r) u along the trajectory (MeanFlow, 2505.13447, eq. 6; Decoupled
                MeanFlow, 2510.24474)

Shapes: x (b, ...), times (b,).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lfdm.config.diffusion import NUM_TRAIN_TIMESTEPS, PredictionType
from lfdm.diffusion.process import path_level, straight_time, velocity_from_prediction

MeanVelocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""u as a function of x, t and r."""
Velocity = Callable[[Tensor, Tensor], Tensor]
"""v as a function of x and t."""
NetworkCall = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A network as a function of a sample on its own path, timesteps and until."""

TIME_STEP = 2e-2
"""Distance in time of the finite differences, 20 timesteps: networks trained at whole timesteps wave between them, which exact
derivatives, or differences over less time, mistake for motion (docs/decisions/0040-few-steps.md)."""
LATE_LOGIT, EARLY_LOGIT = (0.4, 1.0), (-1.2, 1.0)
"""Mean and standard deviation of the logits of the two ends of intervals (2510.24474)."""
TEACHER_STEP = 0.3
"""Longest time that one step of the teacher covers: it takes each of four sampling steps in one."""
STEP_COUNTS = (1, 2, 4, 4, 8)
"""Numbers of sampling steps whose intervals are learned, the default twice as often."""
CAUCHY_SCALE = 0.1
"""Mean squared error below which a sample's gradient falls with its error. Near pure noise, where guidance decides on the action,
errors are about 0.5 and must keep their weight."""


def mean_velocity(predict: NetworkCall, x: Tensor, time: Tensor, until: Tensor, prediction_type: PredictionType) -> Tensor:
    """Return u(x, time, until) of a flow map made from a network of `prediction_type`; with until = time, its velocity."""
    timestep, alpha, sigma = path_level(time, prediction_type)
    end, _, _ = path_level(until, prediction_type)
    alpha, sigma = expand_times(alpha, x), expand_times(sigma, x)
    sample = (alpha + sigma) * x
    return velocity_from_prediction(predict(sample, timestep, end), sample, alpha, sigma, prediction_type)


def total_derivative(
    u: MeanVelocity, x: Tensor, time: Tensor, until: Tensor, velocity: Tensor, *, step: float = TIME_STEP
) -> Tensor:
    """Return du/dt along dx/dt = velocity by central differences, one-sided at the ends of [0, 1]."""
    low, high = (time - step).clamp(min=0), (time + step).clamp(max=1)
    before = u(x + expand_times(low - time, x) * velocity, low, until)
    after = u(x + expand_times(high - time, x) * velocity, high, until)
    return (after - before) / expand_times(high - low, x)


def composed_velocity(velocity: Velocity, u: MeanVelocity, x: Tensor, time: Tensor, until: Tensor) -> Tensor:
    """Return the mean velocity from `time` to `until`: of the teacher's `velocity` first, then of the flow map `u`."""
    change = torch.maximum(until, time - TEACHER_STEP)
    middle = (time + change) / 2
    first = velocity(x - expand_times(time - middle, x) * velocity(x, time), middle)
    share = expand_times((time - change) / (time - until), x)
    rest = u(x - expand_times(time - change, x) * first, change, until)
    return torch.lerp(rest, first, share)


def sample_instants(batch_size: int, prediction_type: PredictionType, *, generator: torch.Generator) -> Tensor:
    """Sample t and r = t, (2, batch_size) float32 in [0, 1], at timesteps of uniform density."""
    timesteps = (NUM_TRAIN_TIMESTEPS - 1) * torch.rand(batch_size, generator=generator, device=generator.device)
    return straight_time(timesteps, prediction_type).repeat(2, 1)


def sample_intervals(batch_size: int, *, generator: torch.Generator) -> Tensor:
    """Sample t and r, (2, batch_size) float32 in (0, 1), of continuous densities that rarely come near 1, where derivatives are
    largest."""
    normal = torch.randn(2, batch_size, generator=generator, device=generator.device)
    late, early = (torch.sigmoid(mean + std * row) for (mean, std), row in zip((LATE_LOGIT, EARLY_LOGIT), normal, strict=True))
    return torch.stack((torch.maximum(late, early), torch.minimum(late, early)))


def sample_steps(batch_size: int, prediction_type: PredictionType, *, generator: torch.Generator) -> Tensor:
    """Sample t and r, (2, batch_size) float32 in [0, 1], among the steps of samplers with `STEP_COUNTS` steps."""
    device, first = generator.device, NUM_TRAIN_TIMESTEPS - 1
    count, place = torch.rand(2, batch_size, generator=generator, device=device)
    steps = torch.tensor(STEP_COUNTS, device=device)[(len(STEP_COUNTS) * count).long()]
    left = steps - (steps * place).long()  # steps from t to 0
    return torch.stack([straight_time(first * ends / steps, prediction_type) * (ends > 0) for ends in (left, left - 1)])


def cauchy_loss(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss log(e + CAUCHY_SCALE) and the mean squared error e of each sample, (b,) float32.

    Its gradient is that of e with MeanFlow's adaptive weight 1 / (e + c).
    """
    error = (prediction.float() - target.float()).square().flatten(1).mean(1)
    return torch.log(error + CAUCHY_SCALE), error


def expand_times(times: Tensor, like: Tensor) -> Tensor:
    """Return times (b,) as (b, 1, ...), which broadcast against `like` (b, ...)."""
    return times.view(-1, *(1,) * (like.ndim - 1))
