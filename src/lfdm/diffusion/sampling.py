"""Drawing motion by diffusion: noise, guidance, the loop over the scheduler's steps (LFDM, arXiv 2303.13744, section 3.3).

Shapes: motion sample (b, 3, t, h, w) · image latent (b, C, h, w) · condition embedding (b, D).
"""

import copy
import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lfdm.denoiser.unet3d import MotionUNet3D
from lfdm.diffusion.process import clamp_prediction, follows_straight_path, own_settings, predicted_by, v_by_velocity
from lfdm.diffusion.windows import Window, predict_in_windows
from lfdm.errors import UserError
from lfdm.motion.codec import MotionCodec
from lfdm.motion.motion import Motion

MAX_TWO_STAGE_SIGMA = 80.0
"""As EDM begins (2206.00364, table 1)."""
Prediction = Callable[[Tensor, Tensor], Tensor]
"""The network as a function of sample and timestep."""
Progress = Callable[[Iterable[Tensor]], Iterable[Tensor]]
AfterStep = Callable[[int, Tensor, Tensor], Tensor]
"""Called after every step with its index, its timestep and the sample; returns the sample to go on with."""


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """What the motion is drawn for: the prediction is negative + scale * (condition - negative) of the two predictions.

    Classifier-free guidance (arXiv 2207.12598, eq. 6 with w + 1) where `negative` is the null condition.
    """

    latent: Tensor
    """(b, C, h, w), of the source image."""
    condition: Tensor
    """(b, D)."""
    negative: Tensor
    """(b, D): the null condition, or what is to be avoided."""
    scale: float
    """1 = the condition's prediction alone, 0 = the other alone."""


@dataclass(frozen=True, kw_only=True)
class MotionSampler:
    """Draws motion samples with the parts of a pipeline."""

    unet: MotionUNet3D
    scheduler: Any
    motion_codec: MotionCodec

    def sample(
        self,
        guidance: Guidance,
        num_frames: int,
        num_steps: int,
        generators: Sequence[torch.Generator],
        *,
        attention_frames: int | None = None,
        windows: Sequence[Window] = (),
        progress: Progress,
        after_step: AfterStep,
    ) -> Tensor:
        """A clean sample (b, 3, num_frames, h, w) in float32.

        Each frame attends to `attention_frames` around it, or to all. Without `windows` the network takes all frames at once.
        With them every step's prediction is put together from theirs, and a first frame that is known to be still is held so,
        since windows that begin elsewhere do not know of it.

        Raises:
            UserError: a scheduler that does not fit the network, or fails at so many steps.
        """
        device = guidance.latent.device
        scheduler, translates = _that_takes_this_network(self.scheduler)
        if getattr(scheduler.config, "clip_sample", False):  # to [-1, 1], meant for pixels: motion has a range of its own
            scheduler = copy.copy(scheduler)
            scheduler.register_to_config(clip_sample=False)
        sampler = replace(self, scheduler=scheduler)
        set_timesteps(scheduler, num_steps, device)
        padded = num_frames if windows else _whole_patches(num_frames, self.unet.frame_patch_size)
        sample = self._draw_noise(guidance.latent, padded, generators) * getattr(scheduler, "init_noise_sigma", 1.0)
        options = {"generator": list(generators)} if "generator" in inspect.signature(scheduler.step).parameters else {}
        predict = guided_prediction(self.unet, guidance, attention_frames)
        if windows:
            predict = predict_in_windows(predict, windows)
        first = self._still_frame(sample) if windows and self.motion_codec.still_first_frame else None
        for index, timestep in enumerate(progress(scheduler.timesteps)):
            scaled = scheduler.scale_model_input(sample, timestep) if hasattr(scheduler, "scale_model_input") else sample
            if translates:
                prediction = v_by_velocity(predict, scaled, signal_and_noise(scheduler, index, timestep))
            else:
                prediction = predict(scaled, timestep)
            prediction = sampler._keep_to_known(prediction, scaled, index, timestep, first)
            stepping = scheduler if index + 1 < len(scheduler.timesteps) else _without_noise(scheduler)
            sample = stepping.step(prediction, timestep, sample, **options, return_dict=False)[0]
            sample = after_step(index, timestep, sample)
        if not sample.isfinite().all():
            what = f"{num_steps} steps of {type(scheduler).__name__}"
            raise UserError(f"{what} end in values that are not finite; use other num_inference_steps or another scheduler")
        # solvers extrapolate a little after the last clamped x0
        return self.motion_codec.clamp(sample)[:, :, :num_frames]

    def _draw_noise(self, latent: Tensor, num_frames: int, generators: Sequence[torch.Generator]) -> Tensor:
        shape = (self.unet.config["sample_channels"], num_frames, *latent.shape[-2:])
        noise = [torch.randn(shape, generator=one, device=one.device).to(latent.device) for one in generators]
        return torch.stack(noise)

    def _still_frame(self, sample: Tensor) -> Tensor:
        """No motion, as a sample of one frame: (b, 3, 1, h, w)."""
        size = (sample.shape[-2], sample.shape[-1])
        target = self.motion_codec
        return target.encode(Motion.identity(len(sample), 1, size, corners=target.corners, device=sample.device))

    def _keep_to_known(self, prediction: Tensor, sample: Tensor, index: int, timestep: Tensor, first: Tensor | None) -> Tensor:
        """The prediction whose x0 is that of `prediction`, clamped to the range of the training set, its first frame `first`.

        Unchanged where x0 is inside that range.
        """
        if not self.motion_codec.clamps and first is None:
            return prediction

        def known(clean: Tensor) -> Tensor:
            clean = self.motion_codec.clamp(clean)
            return clean if first is None else torch.cat((first, clean[:, :, 1:]), dim=2)

        scales = signal_and_noise(self.scheduler, index, timestep)
        return clamp_prediction(prediction, sample, scales, predicted_by(self.scheduler), known)


def set_timesteps(scheduler: Any, num_steps: int, device: torch.device) -> None:
    """Those of a diffusers scheduler for `num_steps` steps, begun at the first.

    Rounding gives "trailing" spacing one more at some counts (61 of 1000), -1, which reads as the noisiest of all; and a
    scheduler that looks its first one up takes the second of two that are the same whole number.

    A two-stage solver (Heun's, KDPM2) begins at a noise level of `MAX_TWO_STAGE_SIGMA`: over the first step of the cosine
    schedule, from 20,000, it would multiply the error of its second slope by as much.

    Raises UserError where a multistep solver has not so many noise levels: a step between two that are equal is 0/0.
    """
    scheduler.set_timesteps(num_steps, device=device)
    if (scheduler.timesteps < 0).any():
        scheduler.timesteps = scheduler.timesteps[scheduler.timesteps >= 0]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    if hasattr(scheduler, "state_in_first_order"):
        for name in {"sigmas", "sigmas_interpol"} & set(vars(scheduler)):
            setattr(scheduler, name, getattr(scheduler, name).clamp(max=MAX_TWO_STAGE_SIGMA))
    if "solver_order" in own_settings(scheduler) and (scheduler.sigmas[:-1].diff() == 0).any():
        name = type(scheduler).__name__
        raise UserError(f"num_inference_steps is {num_steps}; {name} has fewer different noise levels for this model")


def _without_noise(scheduler: Any) -> Any:
    """The scheduler for its last step, which few steps end above timestep 0: there DDPM's variance beta_t would leave noise."""
    if scheduler.config.get("variance_type") != "fixed_large":
        return scheduler
    last = copy.copy(scheduler)
    last.register_to_config(variance_type="fixed_small")  # that of x0 known: none
    return last


def guided_prediction(unet: MotionUNet3D, guidance: Guidance, attention_frames: int | None = None) -> Prediction:
    """The network's prediction under guidance, both of its halves in one batched pass."""
    condition, negative = guidance.condition.to(unet.dtype), guidance.negative.to(unet.dtype)
    known: dict[str, Any] = {
        "latent_embedding": unet.embed_latent(guidance.latent.to(unet.dtype)),
        "attention_frames": attention_frames,
    }
    scale = guidance.scale
    if scale in (0, 1):
        chosen = condition if scale == 1 else negative
        return lambda sample, t: unet(sample.to(unet.dtype), t, chosen, **known).float()
    both = torch.cat((negative, condition))

    def predict(sample: Tensor, timestep: Tensor) -> Tensor:
        without, with_condition = unet(sample.to(unet.dtype), timestep, both, **known).float().chunk(2)
        return without + scale * (with_condition - without)

    return predict


def _whole_patches(num_frames: int, patch: int) -> int:
    """As many frames as the U-Net's last patch of frames takes."""
    return math.ceil(num_frames / patch) * patch


def _that_takes_this_network(scheduler: Any) -> tuple[Any, bool]:
    """The scheduler, and whether predictions must be translated: one off the straight path gets v of a network of velocity.

    Raises UserError where a scheduler of the straight path would step by a prediction of another kind.
    """
    kind, straight = predicted_by(scheduler), follows_straight_path(scheduler)
    if straight and kind != "velocity":
        raise UserError(f"{type(scheduler).__name__} takes a unet that predicts velocity; this one predicts {kind}")
    if straight or kind != "velocity":
        return scheduler, False
    return type(scheduler).from_config(scheduler.config, prediction_type="v_prediction"), True


def signal_and_noise(scheduler: Any, index: int, timestep: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma of x_t = alpha x0 + sigma noise at step `index` of the scheduler's timesteps."""
    if not hasattr(scheduler, "sigmas"):
        abar = scheduler.alphas_cumprod[timestep.long().cpu()]
        return abar.sqrt().to(timestep.device), (1 - abar).sqrt().to(timestep.device)
    sigma = scheduler.sigmas[index].to(timestep.device)
    if predicted_by(scheduler) == "velocity":
        return 1 - sigma, sigma
    alpha = (1 + sigma**2).rsqrt()
    return alpha, sigma * alpha
