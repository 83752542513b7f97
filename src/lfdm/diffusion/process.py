"""The diffusion process of stage 2: noise schedules, training targets and their weights.

A noisy sample is x = alpha x0 + sigma noise, with clean motion x0 (b, c, ...) and noise of the same shape. Three prediction
types, each with the path of (alpha, sigma) that it is trained on:
    epsilon       the noise, on the cosine schedule (DDPM, 2006.11239; the paper's)
    v_prediction  alpha noise - sigma x0, on the cosine schedule (2202.00512)
    velocity      noise - x0, on the straight path sigma = t / 1000, alpha = 1 - sigma (flow matching, 2210.02747; ours)
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from lfdm.config.diffusion import NUM_TRAIN_TIMESTEPS, PredictionType
from lfdm.errors import UserError

COSINE_OFFSET = 0.008
MAX_BETA = 0.9999
MIN_LOG_SNR = -5.1
"""log(alpha / sigma) from which noise prediction starts to sample (DPM-Solver, 2206.00927, appendix D.3)."""
MAX_STRAIGHT_SIGMA = 0.999
"""Noise level from which velocity prediction starts to sample: multistep solvers need a signal-to-noise ratio above zero."""


# Noise schedules


@cache
def cosine_betas() -> Tensor:
    """Return the betas of the cosine schedule (improved DDPM, 2102.09672, eq. 17), clipped at 0.9999: (1000,) float64."""
    time = torch.linspace(0, 1, NUM_TRAIN_TIMESTEPS + 1, dtype=torch.float64)
    abar = torch.cos((time + COSINE_OFFSET) / (1 + COSINE_OFFSET) * (math.pi / 2)) ** 2
    return (1 - abar[1:] / abar[:-1]).clamp(max=MAX_BETA)


@cache
def alphas_cumprod() -> Tensor:
    """Return alpha^2 of the cosine schedule: (1000,) float64."""
    return (1 - cosine_betas()).cumprod(0)


@cache
def cosine_log_snr() -> np.ndarray:
    """Return log(alpha / sigma) of the cosine schedule: (1000,) float64, falling."""
    abar = alphas_cumprod().numpy()
    return np.log(abar / (1 - abar)) / 2


@dataclass(frozen=True)
class NoiseLevel:
    """A point of a path: x = alpha x0 + sigma noise, at the `timestep` (0 to 1000) that a network trained on it expects."""

    timestep: float
    alpha: float
    sigma: float

    @property
    def log_snr(self) -> float:
        """log(alpha / sigma)."""
        return math.log(self.alpha / self.sigma)


CLEAN = NoiseLevel(0.0, 1.0, 0.0)


def max_sampling_steps(prediction_type: PredictionType) -> int:
    """Return the largest number of steps that `sampling_levels` can plan."""
    return NUM_TRAIN_TIMESTEPS if prediction_type == "velocity" else _first_timestep(prediction_type)


def sampling_levels(prediction_type: PredictionType, num_steps: int) -> tuple[NoiseLevel, ...]:
    """Return the `num_steps` + 1 noise levels to sample through, from (nearly) pure noise to clean, evenly spaced in time.

    Noise prediction starts at log(alpha / sigma) = -5.1, timestep 995: the x0 that follows from a predicted noise has
    sigma / alpha times its error, 20,000 times at the last timestep of the cosine schedule.
    """
    if prediction_type == "velocity":
        sigmas = [MAX_STRAIGHT_SIGMA * (1 - i / num_steps) for i in range(num_steps)]
        return (*(NoiseLevel(NUM_TRAIN_TIMESTEPS * sigma, 1 - sigma, sigma) for sigma in sigmas), CLEAN)
    first, abar = _first_timestep(prediction_type), alphas_cumprod().tolist()
    timesteps = [round(first * (num_steps - i) / num_steps) for i in range(num_steps)]
    return (*(NoiseLevel(t, math.sqrt(abar[t]), math.sqrt(1 - abar[t])) for t in timesteps), CLEAN)


def level_of(alpha: float, sigma: float, prediction_type: PredictionType) -> NoiseLevel:
    """Return the level with the ratio alpha / sigma on the path of `prediction_type`.

    On the cosine schedule, whose timesteps are whole numbers in training, timesteps are interpolated and rounded to 0.01:
    float32 tables of the same schedule then give whole numbers.
    """
    if prediction_type == "velocity":
        sigma = sigma / (alpha + sigma)
        return NoiseLevel(NUM_TRAIN_TIMESTEPS * sigma, 1 - sigma, sigma)
    log_snr = math.log(max(alpha, 1e-30) / max(sigma, 1e-30))
    timestep = np.interp(-log_snr, -cosine_log_snr(), np.arange(NUM_TRAIN_TIMESTEPS))
    norm = math.hypot(alpha, sigma)
    return NoiseLevel(round(float(timestep), 2), alpha / norm, sigma / norm)


def check_prediction_type(prediction_type: object) -> None:
    """Raise UserError for an unknown prediction type."""
    if prediction_type not in get_args(PredictionType):
        raise UserError(f"prediction_type must be one of {', '.join(get_args(PredictionType))}; got {prediction_type!r}")


def _first_timestep(prediction_type: PredictionType) -> int:
    if prediction_type == "epsilon":
        return int((cosine_log_snr() >= MIN_LOG_SNR).sum()) - 1
    return NUM_TRAIN_TIMESTEPS - 1


# Training


def sample_timesteps(batch_size: int, prediction_type: PredictionType, *, generator: torch.Generator) -> Tensor:
    """Sample (b,) timesteps uniformly: int64 on the cosine schedule, float32 in [0, 1000) on the straight path."""
    device = generator.device
    if prediction_type == "velocity":
        return NUM_TRAIN_TIMESTEPS * torch.rand(batch_size, generator=generator, device=device)
    return torch.randint(NUM_TRAIN_TIMESTEPS, (batch_size,), generator=generator, device=device)


def signal_and_noise_scale(timesteps: Tensor, prediction_type: PredictionType) -> tuple[Tensor, Tensor]:
    """Return alpha and sigma, float32 in the shape of `timesteps`.

    `timesteps` are not checked, which would make the host wait for the device: whole numbers of 0 to 999 on the cosine
    schedule, any number of 0 to 1000 on the straight path.
    """
    if prediction_type == "velocity":
        sigma = timesteps.float() / NUM_TRAIN_TIMESTEPS
        return 1 - sigma, sigma
    alpha, sigma = _cosine_scales(timesteps.device)
    return alpha[timesteps.long()], sigma[timesteps.long()]


@cache
def _cosine_scales(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return alpha and sigma of the cosine schedule on a device: float32, since some devices have no float64."""
    with torch.inference_mode(False):
        abar = alphas_cumprod()
        return abar.sqrt().float().to(device), (1 - abar).sqrt().float().to(device)


def add_noise(x0: Tensor, noise: Tensor, timesteps: Tensor, prediction_type: PredictionType) -> Tensor:
    """Return alpha x0 + sigma noise, in the shape and type of x0. timesteps: (b,)."""
    alpha, sigma = _scales_like(x0, timesteps, prediction_type)
    return alpha * x0 + sigma * noise


def target(x0: Tensor, noise: Tensor, timesteps: Tensor, prediction_type: PredictionType) -> Tensor:
    """Return the training target at `timesteps` (b,), in the shape and type of x0."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "velocity":
        return noise - x0
    alpha, sigma = _scales_like(x0, timesteps, prediction_type)
    return alpha * noise - sigma * x0


def min_snr_weight(timesteps: Tensor, prediction_type: PredictionType, gamma: float) -> Tensor:
    """Return the loss weight of each timestep (min-SNR, 2303.09556, section 3.4), min(snr, gamma) for an error in x0.

    The same error in x0 is alpha / sigma times an error in the noise, and 1 / sigma times one in v or in the velocity.

    Returns:
        float32 in the shape of `timesteps`.
    """
    alpha, sigma = signal_and_noise_scale(timesteps, prediction_type)
    if prediction_type == "epsilon":
        return (gamma * (sigma / alpha) ** 2).clamp(max=1)
    return torch.minimum(alpha**2, gamma * sigma**2)


def diffusion_loss(
    prediction: Tensor,
    x0: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    prediction_type: PredictionType,
    *,
    min_snr_gamma: float | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Return the mean squared error of each sample, (b,) float32, weighted by `min_snr_weight` unless `min_snr_gamma` is None.

    Args:
        prediction: (b, c, ...), the network's output for `add_noise(x0, noise, timesteps, prediction_type)`.
        x0, noise: (b, c, ...).
        timesteps: (b,).
        weights: factors of the squared errors, broadcasting against them; None = all the same.
    """
    error = prediction.float() - target(x0, noise, timesteps, prediction_type).float()
    squares = error.square() if weights is None else weights * error.square()
    loss = squares.flatten(1).mean(1)
    return loss if min_snr_gamma is None else loss * min_snr_weight(timesteps, prediction_type, min_snr_gamma)


def path_level(time: Tensor, prediction_type: PredictionType) -> tuple[Tensor, Tensor, Tensor]:
    """Return timestep, alpha and sigma of the level with the signal-to-noise ratio of the straight path at `time` in [0, 1].

    It is `level_of(1 - time, time, prediction_type)` for tensors, differentiable and without a table: in float32 the timesteps
    agree to 0.01.
    """
    if prediction_type == "velocity":
        return NUM_TRAIN_TIMESTEPS * time, 1 - time, time
    norm = torch.sqrt((1 - time).square() + time.square())
    alpha, sigma = (1 - time) / norm, time / norm
    offset = COSINE_OFFSET / (1 + COSINE_OFFSET) * (math.pi / 2)  # the angle at which the schedule begins
    angle = torch.atan2(torch.sqrt(sigma.square() + (alpha * math.sin(offset)).square()), alpha * math.cos(offset))
    timestep = NUM_TRAIN_TIMESTEPS * (angle / (math.pi / 2) * (1 + COSINE_OFFSET) - COSINE_OFFSET) - 1
    return timestep.clamp(0, NUM_TRAIN_TIMESTEPS - 1), alpha, sigma


def straight_time(timesteps: Tensor, prediction_type: PredictionType) -> Tensor:
    """Return the time on the straight path of the level at `timesteps`: the inverse of `path_level`."""
    if prediction_type == "velocity":
        return timesteps / NUM_TRAIN_TIMESTEPS
    offset = COSINE_OFFSET / (1 + COSINE_OFFSET) * (math.pi / 2)
    angle = ((timesteps + 1) / NUM_TRAIN_TIMESTEPS + COSINE_OFFSET) / (1 + COSINE_OFFSET) * (math.pi / 2)
    alpha = (angle.cos() / math.cos(offset)).clamp(0, 1)
    sigma = torch.sqrt(1 - alpha.square())
    return sigma / (alpha + sigma)


def _scales_like(x0: Tensor, timesteps: Tensor, prediction_type: PredictionType) -> tuple[Tensor, Tensor]:
    shape = (len(x0), *(1,) * (x0.ndim - 1))
    alpha, sigma = signal_and_noise_scale(timesteps, prediction_type)
    return alpha.to(x0.dtype).view(shape), sigma.to(x0.dtype).view(shape)


# Predictions. `alpha` and `sigma` of the noisy sample are numbers, or tensors that broadcast against it.


def clean_from_prediction(
    prediction: Tensor, sample: Tensor, alpha: float | Tensor, sigma: float | Tensor, prediction_type: PredictionType
) -> Tensor:
    """Return the x0 that a prediction for `sample` stands for."""
    if prediction_type == "epsilon":
        return (sample - sigma * prediction) / alpha
    if prediction_type == "velocity":
        return sample - sigma * prediction
    return alpha * sample - sigma * prediction


def prediction_from_clean(
    clean: Tensor, sample: Tensor, alpha: float | Tensor, sigma: float | Tensor, prediction_type: PredictionType
) -> Tensor:
    """Return the prediction for `sample` that stands for the x0 `clean`: the inverse of `clean_from_prediction`."""
    if prediction_type == "velocity":
        return (sample - clean) / sigma
    if prediction_type == "epsilon":
        return (sample - alpha * clean) / sigma
    return (alpha * sample - clean) / sigma


def velocity_from_prediction(
    prediction: Tensor, sample: Tensor, alpha: float | Tensor, sigma: float | Tensor, prediction_type: PredictionType
) -> Tensor:
    """Return noise - x0 for the x0 that a prediction stands for: like `clean_from_prediction`, but finite at every noise level.

    Raises:
        UserError: `epsilon`, with which it is not: in pure noise, a predicted noise says nothing about x0.
    """
    if prediction_type == "velocity":
        return prediction
    if prediction_type == "epsilon":
        raise UserError("prediction_type must be velocity or v_prediction; got 'epsilon'")
    return (sigma - alpha) * sample + (alpha + sigma) * prediction
