"""Schedulers: which sampler a pipeline uses, as a component that is saved with it. Ours, and an adapter for diffusers'.

`MotionScheduler` names a function of `lfdm.diffusion.samplers`. `sample_with_diffusers` runs a diffusers scheduler over the
same `Denoiser`: at every step it is given the output that it expects, computed from the predicted x0. diffusers is imported
only to make one of its schedulers.
"""

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor

from lfdm.config.diffusion import PAPER_SAMPLERS, PredictionType, SamplerName
from lfdm.config.registration import argument_names, register_to_config
from lfdm.diffusion.process import (
    MIN_LOG_SNR,
    check_prediction_type,
    cosine_betas,
    level_of,
    max_sampling_steps,
    prediction_from_clean,
    sampling_levels,
)
from lfdm.diffusion.samplers import SAMPLERS, AfterStep, Denoiser
from lfdm.errors import UserError
from lfdm.folders.components import Component

SCHEDULER_CONFIG_NAME = "scheduler_config.json"
PAPER_QUANTILE = 0.9
"""The paper's dynamic threshold: x0 is clamped to this quantile of its absolute value."""
UNBOUNDED = 1e6
"""diffusers caps that quantile at `sample_max_value`, whose default of 1 would make it a plain clamp."""
MAX_TWO_STAGE_SIGMA = 200.0
"""Largest sigma / alpha at which Heun's method and KDPM2 may begin: they amplify errors of the first step by about as much."""


class MotionScheduler(Component):
    """Names the sampler of a pipeline and what its network predicts.

    Args:
        prediction_type: `epsilon`, `v_prediction` or `velocity`, see `lfdm.diffusion.process`.
        sampler: a function of `lfdm.diffusion.samplers`.

    Raises:
        UserError: an unknown name.
    """

    config_name = SCHEDULER_CONFIG_NAME

    @register_to_config
    def __init__(self, *, prediction_type: PredictionType = "velocity", sampler: SamplerName = "dpmpp_2m") -> None:
        check_prediction_type(prediction_type)
        if sampler not in SAMPLERS:
            raise UserError(f"sampler must be one of {', '.join(SAMPLERS)}; got {sampler!r}")
        self.prediction_type: PredictionType = prediction_type
        self.sampler: SamplerName = sampler

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **changes: Any) -> Self:
        """Construct a scheduler with the settings in `config`, which may be that of a scheduler of diffusers.

        Raises:
            UserError: a change that the class does not take, or another value that is not allowed.
        """
        own = {name: value for name, value in config.items() if name in argument_names(cls)}
        return super().from_config(own, **changes)


def make_scheduler(sampler: SamplerName, *, prediction_type: PredictionType, paper: bool = False) -> Any:
    """Return the scheduler of a sampler for networks that predict `prediction_type`.

    Args:
        paper: the paper's sampling, by diffusers: x0 clamped to the 0.9 quantile of its absolute value (at least 1) and
            divided by it (Imagen, 2205.11487, section 2.3), which shrinks motion of unit variance to about 0.6 of its
            spread; in DDPM the variance of the posterior of a single x0. Only for `PAPER_SAMPLERS`.

    Raises:
        UserError: an unknown name, or one that `paper` does not support.
    """
    scheduler = MotionScheduler(prediction_type=prediction_type, sampler=sampler)
    return _paper_scheduler(scheduler) if paper else scheduler


def _paper_scheduler(scheduler: MotionScheduler) -> Any:
    import diffusers

    if scheduler.sampler not in PAPER_SAMPLERS:
        allowed = ", ".join(PAPER_SAMPLERS)
        raise UserError(f"sampler must be one of {allowed} with dynamic_thresholding; got {scheduler.sampler!r}")
    classes = {"ddpm": "DDPMScheduler", "ddim": "DDIMScheduler", "dpmpp_2m": "DPMSolverMultistepScheduler"}
    if scheduler.prediction_type == "velocity":
        raise UserError("prediction_type must be epsilon or v_prediction with dynamic_thresholding; got 'velocity'")
    options: dict[str, Any] = {"clip_sample": False, "timestep_spacing": "trailing"}
    if scheduler.sampler == "dpmpp_2m":
        options = {"lambda_min_clipped": MIN_LOG_SNR if scheduler.prediction_type == "epsilon" else -math.inf}
    return getattr(diffusers, classes[scheduler.sampler])(
        trained_betas=cosine_betas().tolist(),
        prediction_type=scheduler.prediction_type,
        thresholding=True,
        dynamic_thresholding_ratio=PAPER_QUANTILE,
        sample_max_value=UNBOUNDED,
        **options,
    )


def predicted_by(scheduler: Any) -> PredictionType:
    """Return what a scheduler says that its network predicts; flow-matching schedulers of diffusers know only velocity.

    Raises:
        UserError: something that no network here is trained to predict, such as x0.
    """
    known = "prediction_type" in argument_names(type(scheduler))
    kind = scheduler.config.get("prediction_type", "epsilon") if known else "velocity"
    kind = "velocity" if kind == "flow_prediction" else kind  # diffusers' name for it
    check_prediction_type(kind)
    return kind


def scheduler_name(scheduler: Any) -> str:
    """Return what to call a scheduler in reports: the sampler of ours, the class of diffusers'."""
    return scheduler.sampler if isinstance(scheduler, MotionScheduler) else type(scheduler).__name__


def max_inference_steps(scheduler: Any) -> int:
    """Return the largest number of steps that a scheduler can take."""
    if isinstance(scheduler, MotionScheduler):
        return max_sampling_steps(scheduler.prediction_type)
    return scheduler.config.num_train_timesteps


def run_sampler(
    scheduler: Any,
    denoise: Denoiser,
    noise: Tensor,
    num_steps: int,
    generators: Sequence[torch.Generator],
    callback: AfterStep,
) -> Tensor:
    """Return a clean sample from noise (b, ...) by any scheduler; the scheduler itself is left as it is.

    Raises:
        UserError: a scheduler that is not supported.
    """
    if isinstance(scheduler, MotionScheduler):
        levels = sampling_levels(scheduler.prediction_type, num_steps)
        return SAMPLERS[scheduler.sampler](denoise, noise, levels, generators, callback)
    return sample_with_diffusers(scheduler, denoise, noise, num_steps, generators, callback)


# ---------------------------------------------------------------------------------------------- diffusers' schedulers

Scales = tuple[float, float]


@dataclass(frozen=True)
class _Family:
    """How to run some of diffusers' schedulers."""

    scales: Callable[[Any, int, Tensor], Scales]
    """alpha and sigma of the sample, from scheduler, index of the step and timestep."""
    output: Literal["x0", "noise", "velocity"]
    """The prediction type that its `step` expects."""
    is_two_stage: bool = False


def _by_timestep(scheduler: Any, index: int, timestep: Tensor) -> Scales:
    del index
    abar = float(scheduler.alphas_cumprod[int(timestep)].double())
    return abar**0.5, (1 - abar) ** 0.5


def _by_solver(scheduler: Any, index: int, timestep: Tensor) -> Scales:
    del timestep
    alpha, sigma = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[index].double())
    return float(alpha), float(sigma)


def _added_noise(scheduler: Any, index: int, timestep: Tensor) -> Scales:
    del timestep
    in_between = hasattr(scheduler, "sigmas_interpol") and not scheduler.state_in_first_order
    return 1.0, float((scheduler.sigmas_interpol if in_between else scheduler.sigmas)[index])


def _straight_path(scheduler: Any, index: int, timestep: Tensor) -> Scales:
    del timestep
    sigma = float(scheduler.sigmas[index])
    return 1 - sigma, sigma


_BY_TIMESTEP = _Family(_by_timestep, "x0")
_BY_SOLVER = _Family(_by_solver, "x0")
_ADDED_NOISE = _Family(_added_noise, "noise")
_TWO_STAGE = _Family(_added_noise, "noise", is_two_stage=True)
_STRAIGHT_PATH = _Family(_straight_path, "velocity")

FAMILIES = {
    "DDPMScheduler": _BY_TIMESTEP,
    "DDIMScheduler": _BY_TIMESTEP,
    "DPMSolverMultistepScheduler": _BY_SOLVER,
    "DPMSolverSinglestepScheduler": _BY_SOLVER,
    "DEISMultistepScheduler": _BY_SOLVER,
    "UniPCMultistepScheduler": _BY_SOLVER,
    "SASolverScheduler": _BY_SOLVER,
    "EulerDiscreteScheduler": _ADDED_NOISE,
    "EulerAncestralDiscreteScheduler": _ADDED_NOISE,
    "LMSDiscreteScheduler": _ADDED_NOISE,
    "HeunDiscreteScheduler": _TWO_STAGE,
    "KDPM2DiscreteScheduler": _TWO_STAGE,
    "FlowMatchEulerDiscreteScheduler": _STRAIGHT_PATH,
    "FlowMatchHeunDiscreteScheduler": _STRAIGHT_PATH,
}
"""The schedulers of diffusers that are known to give right samples; see tests/diffusion/test_schedulers.py."""


def sample_with_diffusers(
    scheduler: Any,
    denoise: Denoiser,
    noise: Tensor,
    num_steps: int,
    generators: Sequence[torch.Generator],
    callback: AfterStep,
) -> Tensor:
    """Return a clean sample from noise (b, ...) by a scheduler of diffusers in `FAMILIES`.

    The noise levels are the scheduler's own. The network is evaluated at the level of its own path that has the same
    signal-to-noise ratio, so that neither the scheduler's betas nor its prediction type need be those of the training.

    Raises:
        UserError: another scheduler, or settings of it that are not supported.
    """
    check_supported(scheduler)
    family, kind = FAMILIES[type(scheduler).__name__], predicted_by(scheduler)
    scheduler = _started(scheduler, family, num_steps)
    options = {"generator": list(generators)} if "generator" in inspect.signature(scheduler.step).parameters else {}
    x = noise * float(getattr(scheduler, "init_noise_sigma", 1.0))
    for index, timestep in enumerate(scheduler.timesteps):
        alpha, sigma = family.scales(scheduler, index, timestep)
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, timestep)  # also keeps count of the steps
        level = level_of(alpha, sigma, kind)
        clean = denoise(x * ((level.alpha + level.sigma) / (alpha + sigma)), level)
        if family.output == "x0":
            output = clean
        else:
            output = prediction_from_clean(clean, x, alpha, sigma, "epsilon" if family.output == "noise" else "velocity")
        stepping = scheduler if index + 1 < len(scheduler.timesteps) else _without_noise(scheduler)
        x = callback(index, level, stepping.step(output, timestep, x, **options, return_dict=False)[0])
    return x


def check_supported(scheduler: Any) -> None:
    """Raise UserError for a scheduler that is not known to give right samples."""
    name = type(scheduler).__name__
    if isinstance(scheduler, MotionScheduler):
        return
    if not (type(scheduler).__module__.startswith("diffusers.") and name in FAMILIES):
        raise UserError(f"scheduler {name} is not supported; use MotionScheduler or one of diffusers' {', '.join(FAMILIES)}")
    if scheduler.config.get("variance_type") in ("learned", "learned_range"):
        raise UserError(f"variance_type of {name} must be fixed_small or fixed_large; got {scheduler.config.variance_type!r}")


def _started(scheduler: Any, family: _Family, num_steps: int) -> Any:
    """Return a copy of the scheduler at the first of `num_steps` steps, set to take what the adapter gives it."""
    scheduler = copy.deepcopy(scheduler)
    known = argument_names(type(scheduler))
    taken = {"x0": "sample", "noise": "epsilon", "velocity": "flow_prediction"}[family.output]
    changes = {"prediction_type": taken, "clip_sample": False}  # clipping to [-1, 1] is meant for pixels
    scheduler.register_to_config(**{name: value for name, value in changes.items() if name in known})
    scheduler.set_timesteps(num_steps)
    # rounding gives "trailing" spacing one timestep more at some counts (61 of 1000), -1, which reads as the noisiest of all
    scheduler.timesteps = scheduler.timesteps[scheduler.timesteps >= 0]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # looked up, the first would be the second of two equal timesteps
    if family.is_two_stage and float(scheduler.sigmas[0]) > MAX_TWO_STAGE_SIGMA:
        name, got = type(scheduler).__name__, float(scheduler.sigmas[0])
        raise UserError(f"{name} must begin at a sigma of at most {MAX_TWO_STAGE_SIGMA:g}, which its betas decide; got {got:g}")
    return scheduler


def _without_noise(scheduler: Any) -> Any:
    """Return the scheduler for its last step: if that is above timestep 0, DDPM's variance beta would leave noise."""
    if scheduler.config.get("variance_type") != "fixed_large":
        return scheduler
    last = copy.copy(scheduler)
    last.register_to_config(variance_type="fixed_small")  # that of a known x0: none
    return last
