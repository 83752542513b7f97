"""From network to denoiser: guidance, prediction type and constraints on x0, so that samplers need to know of none of them."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lfdm.config.diffusion import PredictionType
from lfdm.denoiser.network import DenoiserContext, DenoiserNetwork
from lfdm.diffusion.process import NoiseLevel, clean_from_prediction
from lfdm.diffusion.samplers import Denoiser

Prediction = Callable[[Tensor, Tensor], Tensor]
"""A network as a function of noisy sample and timestep."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Guidance:
    """Guided predictions are negative + scale * (condition - negative).

    With the null condition as `negative` this is classifier-free guidance (2207.12598, eq. 6 with w + 1).
    """

    negative: Tensor
    """(b, D): the null condition, or one to move away from."""
    scale: float = 1.0
    """1 = the condition's prediction, 0 = that of `negative`."""


def guided_prediction(network: DenoiserNetwork, context: DenoiserContext, guidance: Guidance) -> Prediction:
    """Return the network's guided prediction, float32, as a function; both predictions are made in one batched pass."""
    condition, negative = context.condition.to(network.dtype), guidance.negative.to(network.dtype)
    known = network.prepare(replace(context, latent=context.latent.to(network.dtype)))
    scale = guidance.scale
    if scale in (0, 1):
        chosen = condition if scale == 1 else negative
        return lambda sample, timestep: network(sample.to(network.dtype), timestep, chosen, **known).float()
    both = torch.cat((negative, condition))

    def predict(sample: Tensor, timestep: Tensor) -> Tensor:
        without, with_condition = network(sample.to(network.dtype), timestep, both, **known).float().chunk(2)
        return without + scale * (with_condition - without)

    return predict


def make_denoiser(predict: Prediction, prediction_type: PredictionType, constrain: Callable[[Tensor], Tensor]) -> Denoiser:
    """Return the denoiser of a network.

    Args:
        predict: the network, for samples on the path of `prediction_type`.
        constrain: maps a predicted x0 to the nearest one allowed.
    """

    def denoise(x: Tensor, t: NoiseLevel) -> Tensor:
        timestep = torch.full((), t.timestep, device=x.device)
        return constrain(clean_from_prediction(predict(x, timestep), x, t.alpha, t.sigma, prediction_type))

    return denoise
