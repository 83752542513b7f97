"""Samplers: functions that turn noise into a clean sample by evaluating a denoiser at a sequence of noise levels.

Every sampler has the signature of `Sampler` and works for samples of any shape on any path of (alpha, sigma). A new one is
one function, a line in `SAMPLERS`, and its name in `lfdm.config.diffusion.SamplerName`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from lfdm.diffusion.process import NoiseLevel


class Denoiser(Protocol):
    """Predicts the clean sample."""

    def __call__(self, x: Tensor, t: NoiseLevel, until: NoiseLevel | None = None, /) -> Tensor:
        """Return the predicted x0 (b, ...) of a noisy sample x (b, ...) at noise level t.

        With `until`, which only flow maps take: the x0 for which the straight line from x arrives at the right sample there.
        """
        ...


AfterStep = Callable[[int, NoiseLevel, Tensor], Tensor]
"""Called after every step with its index, its first noise level and the new sample; returns the sample to go on with."""


class Sampler(Protocol):
    """Samples with a denoiser."""

    def __call__(
        self,
        denoise: Denoiser,
        x: Tensor,
        levels: Sequence[NoiseLevel],
        generators: Sequence[torch.Generator],
        callback: AfterStep,
        /,
    ) -> Tensor:
        """Return a clean sample.

        Args:
            x: (b, ...), noise of unit variance.
            levels: noise levels from pure noise to clean, one more than steps; the last has sigma 0.
            generators: b sources of the noise that is added on the way, one for each sample.
        """
        ...


def euler(
    denoise: Denoiser, x: Tensor, levels: Sequence[NoiseLevel], generators: Sequence[torch.Generator], callback: AfterStep
) -> Tensor:
    """Sample by Euler's method on the probability-flow ODE."""
    del generators
    for i, (now, then) in enumerate(pairwise(levels)):
        x = callback(i, now, _advance(x, denoise(x, now), now, then))
    return x


def heun(
    denoise: Denoiser, x: Tensor, levels: Sequence[NoiseLevel], generators: Sequence[torch.Generator], callback: AfterStep
) -> Tensor:
    """Sample by Heun's method: Euler's steps, corrected by a second evaluation at their end (EDM, 2206.00364, algorithm 1).

    The correction is that of x / (alpha + sigma), which lies on the straight path whatever the path: in EDM's x / alpha, the
    first step of the cosine schedule, from sigma / alpha = 20,000, would amplify the second evaluation's error by as much.
    """
    del generators
    for i, (now, then) in enumerate(pairwise(levels)):
        clean = denoise(x, now)
        x = _advance(x, clean, now, then)
        if then.sigma > 0:
            ratio = now.sigma / (now.alpha + now.sigma) * (then.alpha + then.sigma) / then.sigma
            x = x + (then.alpha + then.sigma) * (ratio - 1) / 2 * (denoise(x, then) - clean)
        x = callback(i, now, x)
    return x


def dpmpp_2m(
    denoise: Denoiser, x: Tensor, levels: Sequence[NoiseLevel], generators: Sequence[torch.Generator], callback: AfterStep
) -> Tensor:
    """Sample by DPM-Solver++(2M) (2211.01095, algorithm 2), with first and last steps of first order."""
    del generators
    before = None
    for i, (now, then) in enumerate(pairwise(levels)):
        clean = extrapolated = denoise(x, now)
        if before is not None and then.sigma > 0:
            ratio = (then.log_snr - now.log_snr) / (now.log_snr - levels[i - 1].log_snr)
            extrapolated = clean + ratio / 2 * (clean - before)
        x = callback(i, now, _advance(x, extrapolated, now, then))
        before = clean
    return x


def ddim(
    denoise: Denoiser,
    x: Tensor,
    levels: Sequence[NoiseLevel],
    generators: Sequence[torch.Generator],
    callback: AfterStep,
    *,
    eta: float = 0.0,
) -> Tensor:
    """Sample by DDIM (2010.02502, eq. 12); at the default `eta` of 0, which adds no noise, it is Euler's method."""
    for i, (now, then) in enumerate(pairwise(levels)):
        clean = denoise(x, now)
        added = eta * math.sqrt(_forward_variance(now, then)) * then.sigma / now.sigma
        kept = math.sqrt(then.sigma**2 - added**2)
        x = then.alpha * clean + kept / now.sigma * (x - now.alpha * clean)
        x = callback(i, now, x + added * _noise_like(x, generators) if added else x)
    return x


def ddpm(
    denoise: Denoiser, x: Tensor, levels: Sequence[NoiseLevel], generators: Sequence[torch.Generator], callback: AfterStep
) -> Tensor:
    """Sample by DDPM's ancestral steps (2006.11239, algorithm 2), with the variance that is exact for x0 of unit variance.

    On the cosine schedule that is beta. The last step adds no noise.
    """
    for i, (now, then) in enumerate(pairwise(levels)):
        variance = _forward_variance(now, then)
        x = (now.alpha / then.alpha * then.sigma**2 * x + then.alpha * variance * denoise(x, now)) / now.sigma**2
        if then.sigma > 0:
            norm = (then.alpha**2 + then.sigma**2) / (now.alpha**2 + now.sigma**2)
            x = x + math.sqrt(variance * norm) * _noise_like(x, generators)
        x = callback(i, now, x)
    return x


def flow_map(
    denoise: Denoiser, x: Tensor, levels: Sequence[NoiseLevel], generators: Sequence[torch.Generator], callback: AfterStep
) -> Tensor:
    """Sample by a flow map (MeanFlow, 2505.13447): x_r = x_t - (t - r) u(x_t, t, r), in any number of steps."""
    del generators
    for i, (now, then) in enumerate(pairwise(levels)):
        x = callback(i, now, _advance(x, denoise(x, now, then), now, then))
    return x


SAMPLERS: Mapping[str, Sampler] = {
    "euler": euler,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "ddim": ddim,
    "ddpm": ddpm,
    "flow_map": flow_map,
}
"""The samplers that settings may name."""


def _advance(x: Tensor, clean: Tensor, now: NoiseLevel, then: NoiseLevel) -> Tensor:
    """Return the solution of the probability-flow ODE at `then` if x0 is `clean` all the way."""
    shrink = then.sigma / now.sigma
    return shrink * x + (then.alpha - now.alpha * shrink) * clean


def _forward_variance(now: NoiseLevel, then: NoiseLevel) -> float:
    """Return the variance of the noise that the forward process adds from `then` to `now`: DDPM's beta."""
    return now.sigma**2 - (now.alpha / then.alpha * then.sigma) ** 2


def _noise_like(x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    return sample_noise(x.shape[1:], generators, x.device).to(x.dtype)


def sample_noise(shape: Sequence[int], generators: Sequence[torch.Generator], device: torch.device) -> Tensor:
    """Return noise (b, *shape) on `device`; each sample's is drawn from its own generator, on that one's device."""
    noise = [torch.randn(tuple(shape), generator=one, device=one.device).to(device) for one in generators]
    return torch.stack(noise)
