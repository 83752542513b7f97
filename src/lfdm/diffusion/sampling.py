"""Sampling motion with the parts of a pipeline (LFDM, 2303.13744, section 3.3): noise, denoiser, sampler.

Shapes: sample (b, *codec.sample_shape(num_frames, h, w)) · image latent (b, C, h, w) · condition embedding (b, D).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lfdm.config.diffusion import PredictionType
from lfdm.denoiser.network import DenoiserContext, DenoiserNetwork
from lfdm.diffusion.guidance import Guidance, Observation, Prediction, guided_prediction, make_denoiser
from lfdm.diffusion.samplers import AfterStep, sample_noise
from lfdm.diffusion.schedulers import check_supported, predicted_by, run_sampler, scheduler_name
from lfdm.diffusion.windows import Window, blend_windows
from lfdm.errors import UserError
from lfdm.motion.codec import SampleSpace


@dataclass(frozen=True, kw_only=True, eq=False)
class KnownMotion:
    """Constraints on a motion that are known before it is sampled."""

    last_frame: Tensor | None = None
    """(b, 3, 1, h, w), a clean sample that the last frame is held at."""
    observation: Observation | None = None
    """Values that every predicted clean sample is corrected towards."""


NOTHING = KnownMotion()


@dataclass(frozen=True, eq=False)
class MotionSampler:
    """Samples with the parts of a pipeline; `scheduler` is a `MotionScheduler` or one of diffusers."""

    network: DenoiserNetwork
    codec: SampleSpace
    scheduler: Any
    prediction_type: PredictionType
    """The prediction type that the network was trained on."""

    def sample(
        self,
        context: DenoiserContext,
        guidance: Guidance,
        *,
        num_frames: int,
        num_steps: int,
        generators: Sequence[torch.Generator],
        windows: Sequence[Window] = (),
        callback: AfterStep,
        noise: Tensor | None = None,
        known: KnownMotion = NOTHING,
    ) -> Tensor:
        """Return a clean sample in float32, for `codec.decode(sample, num_frames)`; not in inference mode with an observation.

        Without `windows` the network takes all frames at once. With them every prediction is blended from theirs, and a
        known first frame is held, since windows that begin later do not see it.

        Args:
            noise: (b, *codec.sample_shape(...)), of unit variance, to begin with; None = drawn from the generators.

        Raises:
            UserError: the scheduler is not supported, is for another prediction type, or fails at this number of steps; noise
                of another shape.
        """
        self._check_scheduler()
        codec, latent = self.codec, context.latent
        shape = codec.sample_shape(num_frames, latent.shape[-2], latent.shape[-1])
        predict = self._in_windows(context, guidance, windows) if windows else self._whole(context, guidance, num_frames)

        def constrain(clean: Tensor) -> Tensor:
            clean = codec.clamp(clean)
            clean = codec.hold_first_frame(clean) if windows else clean
            return clean if known.last_frame is None else torch.cat((clean[:, :, :-1], known.last_frame), dim=2)

        denoise = make_denoiser(predict, self.prediction_type, constrain, known.observation)
        noise = sample_noise(shape, generators, latent.device) if noise is None else self._check_noise(noise, context, shape)
        sample = run_sampler(self.scheduler, denoise, noise, num_steps, generators, callback)
        if not sample.isfinite().all():
            name = type(self.scheduler).__name__
            raise UserError(f"num_inference_steps is {num_steps}: {name} ends in values that are not finite; use another number")
        return codec.clamp(sample)  # solvers extrapolate a little after the last clamped x0

    def _check_noise(self, noise: Tensor, context: DenoiserContext, shape: tuple[int, ...]) -> Tensor:
        needed = (len(context.latent), *shape)
        if not isinstance(noise, Tensor) or noise.shape != needed or not noise.isfinite().all():
            got = tuple(noise.shape) if isinstance(noise, Tensor) else type(noise).__name__
            raise UserError(f"latents must be a tensor {needed} of finite noise for this model, image and length; got {got}")
        return noise.to(context.latent.device, torch.float32)

    def _check_scheduler(self) -> None:
        check_supported(self.scheduler)
        kind, name = predicted_by(self.scheduler), type(self.scheduler).__name__
        if kind != self.prediction_type:
            made = f"{name}.from_config(pipe.scheduler.config)"
            raise UserError(f"the unet predicts {self.prediction_type}, {name} is for {kind}; make the scheduler with {made}")
        if scheduler_name(self.scheduler) == "flow_map" and not self.network.flow_map:
            raise UserError("sampler must not be flow_map for this unet; `lfdm train few-steps` trains one that it can sample")

    def _whole(self, context: DenoiserContext, guidance: Guidance, num_frames: int) -> Prediction:
        frames = torch.arange(num_frames, device=context.latent.device) if self.codec.has_frame_axis else None
        return guided_prediction(self.network, replace(context, frames=frames), guidance)

    def _in_windows(self, context: DenoiserContext, guidance: Guidance, windows: Sequence[Window]) -> Prediction:
        contexts = [_in_window(context, window.frames.to(context.latent.device)) for window in windows]
        return blend_windows(windows, [guided_prediction(self.network, one, guidance) for one in contexts])


def _in_window(context: DenoiserContext, frames: Tensor) -> DenoiserContext:
    """Return the context of some frames (n,) of a clip."""
    tracks = None if context.tracks is None else context.tracks[:, :, frames]
    return replace(context, frames=frames, tracks=tracks)
