"""From network to denoiser: guidance, prediction type and constraints on x0, so that samplers need to know of none of them."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lfdm.config.diffusion import PredictionType
from lfdm.denoiser.network import DenoiserContext, DenoiserNetwork
from lfdm.diffusion.process import NoiseLevel, clean_from_prediction
from lfdm.diffusion.samplers import Denoiser

Prediction = Callable[..., Tensor]
"""A network as a function of noisy sample and timestep, and of `until` if it is a flow map."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Guidance:
    """Guided predictions are negative + scale * (condition - negative).

    With the null condition as `negative` this is classifier-free guidance (2207.12598, eq. 6 with w + 1).
    """

    negative: Tensor
    """(b, D): the null condition, or one to move away from."""
    scale: float = 1.0
    """1 = the condition's prediction, 0 = that of `negative`."""
    is_null: bool = True
    """`negative` is the null condition, from which networks that take the scale as an input are guided away."""
    spans: Tensor | None = None
    """(n, D): conditions that are blended over time, instead of one."""
    weights: Tensor | None = None
    """(n, t): weight of each of `spans` in each frame, together 1."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Observation:
    """Values of a clean sample that are known."""

    read: Callable[[Tensor], Tensor]
    """Returns the observed values (b, m) of a clean sample: an affine function."""
    values: Tensor
    """(m,)."""


def guided_prediction(network: DenoiserNetwork, context: DenoiserContext, guidance: Guidance) -> Prediction:
    """Return the network's guided prediction, float32, as a function.

    Both predictions are made in one batched pass. Of a network that takes the scale as an input, one prediction is enough.
    Guidance also moves away from the motion without tracks, where there are any.
    """
    condition, negative = _conditions(context, guidance).to(network.dtype), guidance.negative.to(network.dtype)
    blend = _blend(context, guidance)
    scale = guidance.scale
    single = condition if scale != 0 else negative
    scaled = network.max_guidance is not None and guidance.is_null
    if not scaled and scale not in (0, 1):
        single = None
    chosen = torch.cat((negative, condition)) if single is None else single
    copies = 1
    if single is None and context.tracks is not None:
        copies = len(chosen) // len(context.latent)
        tracks = (torch.zeros_like(context.tracks), *[context.tracks] * (copies - 1))
        context = replace(context, latent=context.latent.repeat(copies, 1, 1, 1), tracks=torch.cat(tracks))
    known = network.prepare(replace(context, latent=context.latent.to(network.dtype)))
    if scaled:
        known["guidance"] = max(scale, 1.0)  # 0 = the null condition, which guidance does not change

    def predict(sample: Tensor, timestep: Tensor, until: Tensor | None = None) -> Tensor:
        interval = {} if until is None else {"until": until}
        inputs = sample.to(network.dtype).repeat(copies, *[1] * (sample.ndim - 1))
        prediction = network(inputs, timestep, chosen, **known, **interval).float()
        if single is not None:
            return blend(prediction) if scale != 0 else prediction
        without, with_condition = prediction[: len(sample)], blend(prediction[len(sample) :])
        return without + scale * (with_condition - without)

    return predict


def _conditions(context: DenoiserContext, guidance: Guidance) -> Tensor:
    """Return the condition (b, D), or all conditions over time, (n b, D)."""
    return context.condition if guidance.spans is None else guidance.spans.repeat_interleave(len(context.condition), dim=0)


def _blend(context: DenoiserContext, guidance: Guidance) -> Callable[[Tensor], Tensor]:
    """Return the function that blends the predictions of conditions over time frame by frame."""
    if guidance.weights is None:
        return lambda prediction: prediction
    weights = guidance.weights.to(context.latent.device)
    weights = weights if context.frames is None else weights[:, context.frames]
    batch = len(context.condition)
    return lambda prediction: torch.einsum("nt,nbcthw->bcthw", weights, prediction.unflatten(0, (-1, batch)))


def make_denoiser(
    predict: Prediction,
    prediction_type: PredictionType,
    constrain: Callable[[Tensor], Tensor],
    observation: Observation | None = None,
) -> Denoiser:
    """Return the denoiser of a network.

    Args:
        predict: the network, for samples on the path of `prediction_type`.
        constrain: maps a predicted x0 to the nearest one allowed.
        observation: what every predicted x0 is corrected towards, see `_corrected`; takes a backward pass through the network.
    """

    def predict_clean(x: Tensor, t: NoiseLevel, until: NoiseLevel | None) -> Tensor:
        timestep = torch.full((), t.timestep, device=x.device)
        end = () if until is None else (torch.full((), until.timestep, device=x.device),)
        return clean_from_prediction(predict(x, timestep, *end), x, t.alpha, t.sigma, prediction_type)

    def denoise(x: Tensor, t: NoiseLevel, until: NoiseLevel | None = None) -> Tensor:
        if observation is None:
            return constrain(predict_clean(x, t, until))
        with torch.enable_grad():
            noisy = x.detach().clone().requires_grad_()
            clean = predict_clean(noisy, t, until)
            return constrain(_corrected(clean, noisy, observation))

    return denoise


def _corrected(clean: Tensor, noisy: Tensor, observation: Observation) -> Tensor:
    """Return a predicted x0, moved towards an observation along the covariance of x0 given the noisy sample.

    That covariance is proportional to the derivative of the predicted x0 by the noisy sample (Tweedie's formula), so that
    everything that the network expects to move with the observed values moves along (TMPD, 2310.06721, section 3). The linear
    system in the observed values is solved by one step of the minimal residual method: three steps followed tracks no better.
    """
    seen = observation.read(clean)
    rest = (observation.values - seen).detach()
    (direction,) = torch.autograd.grad((seen * rest).sum(), noisy)
    clean, seen = clean.detach(), seen.detach()
    change = observation.read(clean + direction) - seen
    step = (change * rest).sum(1) / change.square().sum(1).clamp(min=torch.finfo(change.dtype).tiny)
    return clean + step.view(-1, *[1] * (clean.ndim - 1)) * direction
