"""The diffusion process of stage 2: noise schedule, training targets and their weights, schedulers for sampling.

Legend: x0 (b, c, ...) clean motion, noise of the same shape, x_t their mixture at timestep t, alpha_t and sigma_t the
two factors of the mixture, abar = alpha_t^2 on the cosine schedule.

Three kinds of prediction:
    epsilon       the noise, on the cosine schedule (DDPM, 2006.11239; the paper's)
    v_prediction  alpha_t * noise - sigma_t * x0, on the cosine schedule (2202.00512)
    velocity      noise - x0, on the straight path sigma_t = t / 1000, alpha_t = 1 - sigma_t (flow matching, 2210.02747; ours)
"""

import inspect
import math
from collections.abc import Callable
from typing import Any, get_args

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from torch import Tensor

from lfdm.config.diffusion import NUM_TRAIN_TIMESTEPS, SCHEDULERS, PredictionType, SchedulerName
from lfdm.errors import UserError

COSINE_OFFSET = 0.008
MAX_BETA = 0.9999
MIN_LOG_SNR = -5.1
"""log(alpha/sigma), half of the logarithm of the signal-to-noise ratio, at which noise prediction starts to sample."""
PAPER_THRESHOLD = 0.9

Scheduler = DDPMScheduler | DDIMScheduler | DPMSolverMultistepScheduler | UniPCMultistepScheduler


# Noise schedule


def cosine_betas() -> Tensor:
    """(1000,) float64: the cosine schedule (improved DDPM, 2102.09672, eq. 17), clipped as its authors' text has it."""
    time = torch.linspace(0, 1, NUM_TRAIN_TIMESTEPS + 1, dtype=torch.float64)
    abar = torch.cos((time + COSINE_OFFSET) / (1 + COSINE_OFFSET) * (math.pi / 2)) ** 2
    return (1 - abar[1:] / abar[:-1]).clamp(max=MAX_BETA)


def alphas_cumprod() -> Tensor:
    """(1000,) float64: abar of the cosine schedule."""
    return (1 - cosine_betas()).cumprod(0)


def signal_and_noise_scale(timesteps: Tensor, prediction_type: PredictionType) -> tuple[Tensor, Tensor]:
    """alpha_t and sigma_t, both float64 in the shape of `timesteps`.

    Args:
        timesteps: whole numbers of 0 to 999 on the cosine schedule; any number of 0 to 1000 on the straight path.
        prediction_type: decides between the two.

    Raises:
        UserError: a timestep lies outside.
    """
    _check_prediction_type(prediction_type)
    largest = NUM_TRAIN_TIMESTEPS if prediction_type == "velocity" else NUM_TRAIN_TIMESTEPS - 1
    if timesteps.numel() and not (timesteps.min() >= 0 and timesteps.max() <= largest):
        raise UserError(f"timesteps span {timesteps.min()} to {timesteps.max()}; allowed: 0 to {largest}")
    if prediction_type == "velocity":
        sigma = timesteps.double() / NUM_TRAIN_TIMESTEPS
        return 1 - sigma, sigma
    abar = alphas_cumprod().to(timesteps.device)[timesteps.long()]
    return abar.sqrt(), (1 - abar).sqrt()


# Training


def sample_timesteps(batch_size: int, prediction_type: PredictionType, *, generator: torch.Generator) -> Tensor:
    """(b,) timesteps for training, uniform; int64 on the cosine schedule, float32 in [0, 1000) on the straight path."""
    _check_prediction_type(prediction_type)
    device = generator.device
    if prediction_type == "velocity":
        return NUM_TRAIN_TIMESTEPS * torch.rand(batch_size, generator=generator, device=device)
    return torch.randint(NUM_TRAIN_TIMESTEPS, (batch_size,), generator=generator, device=device)


def add_noise(x0: Tensor, noise: Tensor, timesteps: Tensor, prediction_type: PredictionType = "epsilon") -> Tensor:
    """x_t = alpha_t x0 + sigma_t noise, in the shape and type of x0. timesteps: (b,)."""
    alpha, sigma = _scales_like(x0, timesteps, prediction_type)
    return alpha * x0 + sigma * noise


def target(x0: Tensor, noise: Tensor, timesteps: Tensor, prediction_type: PredictionType) -> Tensor:
    """What the network should predict at `timesteps` (b,), in the shape and type of x0."""
    alpha, sigma = _scales_like(x0, timesteps, prediction_type)
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "velocity":
        return noise - x0
    return alpha * noise - sigma * x0


def min_snr_weight(timesteps: Tensor, prediction_type: PredictionType, gamma: float) -> Tensor:
    """Loss weight of each timestep (min-SNR, 2303.09556, section 3.4): min(snr, gamma) for an error in x0.

    The same error in x0 is sigma/alpha times an error in the noise, and sigma times one in v or in the velocity; the
    weights of their squares follow.

    Returns:
        float32 in the shape of `timesteps`.

    Raises:
        UserError: gamma is not a positive number, or a timestep lies outside of the schedule.
    """
    if not (math.isfinite(gamma) and gamma > 0):
        raise UserError(f"gamma is {gamma}; allowed: a positive number (5 in the paper)")
    alpha, sigma = signal_and_noise_scale(timesteps, prediction_type)
    if prediction_type == "epsilon":
        return (gamma * (sigma / alpha) ** 2).clamp(max=1).float()
    return torch.minimum(alpha**2, gamma * sigma**2).float()


def diffusion_loss(
    prediction: Tensor,
    x0: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    prediction_type: PredictionType,
    *,
    min_snr_gamma: float | None = None,
    channel_weights: Tensor | None = None,
) -> Tensor:
    """Weighted mean squared error of each sample.

    Args:
        prediction: (b, c, ...), the network's output for `add_noise(x0, noise, timesteps, prediction_type)`.
        x0: (b, c, ...).
        noise: (b, c, ...).
        timesteps: (b,).
        prediction_type: what was predicted.
        min_snr_gamma: gamma of `min_snr_weight`; None = every timestep weighs the same.
        channel_weights: (c,), factors of the channels' errors; None = ones.

    Returns:
        (b,) float32.

    Raises:
        UserError: shapes do not agree.
    """
    if not prediction.shape == x0.shape == noise.shape:
        raise UserError(
            f"prediction {tuple(prediction.shape)}, x0 {tuple(x0.shape)} and noise {tuple(noise.shape)}; "
            "allowed: one shape (b, c, ...)"
        )
    error = (prediction.float() - target(x0, noise, timesteps, prediction_type).float()).square()
    per_channel = error.flatten(2).mean(-1)  # (b, c)
    if channel_weights is not None:
        if channel_weights.shape != per_channel.shape[1:]:
            raise UserError(f"channel_weights {tuple(channel_weights.shape)}; allowed: {tuple(per_channel.shape[1:])}")
        per_channel = per_channel * channel_weights.to(per_channel)
    loss = per_channel.mean(-1)
    if min_snr_gamma is None:
        return loss
    return loss * min_snr_weight(timesteps, prediction_type, min_snr_gamma)


# Sampling


def clamp_prediction(
    prediction: Tensor,
    sample: Tensor,
    scales: tuple[Tensor, Tensor],
    prediction_type: PredictionType,
    clamp: Callable[[Tensor], Tensor],
) -> Tensor:
    """The prediction whose x0 is `clamp` of the x0 of `prediction`; unchanged where that changes nothing.

    Args:
        prediction: (b, c, ...), the network's output for `sample` of the same shape.
        scales: alpha and sigma of sample = alpha x0 + sigma noise, broadcast against it.
        clamp: takes x0 into its allowed range.
    """
    alpha, sigma = scales
    if prediction_type == "epsilon":
        clean = (sample - sigma * prediction) / alpha
        return prediction + alpha / sigma * (clean - clamp(clean))
    clean = alpha * sample - sigma * prediction if prediction_type == "v_prediction" else sample - sigma * prediction
    return prediction + (clean - clamp(clean)) / sigma


def v_by_velocity(velocity: Callable[[Tensor, Tensor], Tensor], sample: Tensor, scales: tuple[Tensor, Tensor]) -> Tensor:
    """v of a network that predicts velocity, for a sample off the straight path.

    sample / (alpha + sigma) lies on that path, at the timestep where the ratio of noise to signal is the same.

    Args:
        velocity: the network as a function of sample and timestep (0 to 1000).
        sample: (b, c, ...), alpha x0 + sigma noise.
        scales: alpha and sigma.
    """
    alpha, sigma = scales
    total = alpha + sigma
    predicted = velocity(sample / total, NUM_TRAIN_TIMESTEPS * sigma / total)
    clean = (sample - sigma * predicted) / total
    return alpha * (clean + predicted) - sigma * clean


def make_scheduler(name: SchedulerName, *, prediction_type: PredictionType, paper: bool = False) -> Scheduler:
    """A diffusers scheduler for a network trained on this module's targets.

    Few steps go from (nearly) pure noise to x0, and no sample is clipped to [-1, 1]: motion normalised to unit variance
    reaches further. A predicted x0 carries 1/alpha_t times the error of the predicted noise it comes from, a factor of
    20,000 at the last timestep of the cosine schedule, so that noise prediction starts at log(alpha/sigma) = -5.1,
    timestep 995 (DPM-Solver, 2206.00927, appendix D.3).

    Args:
        name: one of `SCHEDULERS[prediction_type]`.
        prediction_type: what the network predicts.
        paper: the paper's sampling: x0 clamped to the 0.9 quantile of its absolute value (at least 1) and divided by it
            (Imagen, 2205.11487, section 2.3), which shrinks motion of unit variance to about 0.6 of its spread; in DDPM
            the posterior's variance, too small unless the data is a single point, and all 1000 timesteps, as in DDIM.
            Otherwise no thresholding, and in DDPM the variance beta_t, which is exact for data of unit variance.

    Raises:
        UserError: the combination is not offered.
    """
    _check_prediction_type(prediction_type)
    if name not in SCHEDULERS[prediction_type]:
        raise UserError(f"scheduler {name!r} with {prediction_type}; allowed: {', '.join(SCHEDULERS[prediction_type])}")
    if prediction_type == "velocity":
        return _flow_scheduler(name, paper=paper)
    betas = cosine_betas()
    if prediction_type == "epsilon" and (name == "unipc" or (not paper and name in ("ddpm", "ddim"))):
        betas = betas[_log_snr() >= MIN_LOG_SNR]
    options: dict[str, Any] = {
        "num_train_timesteps": len(betas),
        "trained_betas": betas.tolist(),
        "prediction_type": prediction_type,
    }
    if paper:  # diffusers caps the quantile at sample_max_value, whose default of 1 would make this a plain clamp
        options |= {"thresholding": True, "dynamic_thresholding_ratio": PAPER_THRESHOLD, "sample_max_value": 1e6}
    if name == "ddpm":
        variance = "fixed_small" if paper else "fixed_large"
        return DDPMScheduler(clip_sample=False, variance_type=variance, timestep_spacing="trailing", **options)
    if name == "ddim":
        return DDIMScheduler(clip_sample=False, timestep_spacing="trailing", **options)
    if name == "unipc":
        return UniPCMultistepScheduler(**options)
    least = MIN_LOG_SNR if prediction_type == "epsilon" else -math.inf
    return DPMSolverMultistepScheduler(lambda_min_clipped=least, **options)


def predicted_by(scheduler: Any) -> PredictionType:
    """What a diffusers scheduler takes its network to predict: its own words, but for `velocity`, its flow_prediction.

    Those that know nothing else, as FlowMatchEulerDiscreteScheduler, do not say; made by `from_config` they keep what the
    scheduler before them said. UserError for what no network here is trained to predict, such as x0.
    """
    kind = scheduler.config.get("prediction_type", "flow_prediction")
    kind = "velocity" if kind == "flow_prediction" else kind
    _check_prediction_type(kind)
    return kind


def follows_straight_path(scheduler: Any) -> bool:
    """Whether a diffusers scheduler steps along the path of `velocity`; settings left over from another one do not count."""
    settings = own_settings(scheduler)
    if "prediction_type" not in settings:  # it knows nothing else
        return True
    return "use_flow_sigmas" in settings and scheduler.config.use_flow_sigmas


def own_settings(scheduler: Any) -> set[str]:
    """Names of the settings that a diffusers scheduler takes; its `config` may hold others, left over from another scheduler."""
    return set(inspect.signature(type(scheduler).__init__).parameters)


def _flow_scheduler(name: SchedulerName, *, paper: bool) -> Scheduler:
    if paper:
        raise UserError("paper is True with velocity; allowed: False, as the paper predicts noise")
    solver = DPMSolverMultistepScheduler if name == "dpmsolver++" else UniPCMultistepScheduler
    return solver(num_train_timesteps=NUM_TRAIN_TIMESTEPS, prediction_type="flow_prediction", use_flow_sigmas=True)


def _log_snr() -> Tensor:
    """(1000,) log(alpha/sigma) of the cosine schedule."""
    abar = alphas_cumprod()
    return (abar / (1 - abar)).log() / 2


def _scales_like(x0: Tensor, timesteps: Tensor, prediction_type: PredictionType) -> tuple[Tensor, Tensor]:
    if timesteps.shape != x0.shape[:1]:
        raise UserError(f"timesteps have shape {tuple(timesteps.shape)}; allowed: ({len(x0)},), one per sample")
    alpha, sigma = signal_and_noise_scale(timesteps, prediction_type)
    shape = (-1, *(1,) * (x0.ndim - 1))
    return alpha.to(x0.dtype).view(shape), sigma.to(x0.dtype).view(shape)


def _check_prediction_type(prediction_type: PredictionType) -> None:
    if prediction_type not in get_args(PredictionType):
        raise UserError(f"prediction_type is {prediction_type!r}; allowed: {', '.join(get_args(PredictionType))}")
