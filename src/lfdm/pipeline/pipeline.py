"""`LatentFlowPipeline`: one image and a condition in, a video out (LFDM, arXiv 2303.13744, section 3.3).

The image is encoded once, its motion is sampled in N steps, and all frames are decoded from the image warped by that motion.

Shapes: image (b, 3, H, W) in [0, 1] · motion sample (b, 3, t, h, w) · video (b, 3, t, H, W) in [0, 1].
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Never, Self, cast

import torch
from torch import Tensor

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.condition.encoder import ConditionEncoder, ConditionInput
from lfdm.config.checks import check_integer, check_number
from lfdm.config.control import Control
from lfdm.config.diffusion import MAX_GUIDANCE_SCALE, PredictionType
from lfdm.config.presets import Preset, get_preset
from lfdm.config.serialization import to_json
from lfdm.config.unsupported import refuse_unknown
from lfdm.config.video import Fit, OutputSize, PictureFit, Size, SizeInput
from lfdm.denoiser.network import DenoiserContext, DenoiserNetwork
from lfdm.denoiser.unet3d import MotionUNet3D
from lfdm.diffusion.guidance import Guidance
from lfdm.diffusion.process import NoiseLevel
from lfdm.diffusion.samplers import AfterStep
from lfdm.diffusion.sampling import KnownMotion, MotionSampler
from lfdm.diffusion.schedulers import make_scheduler, max_inference_steps, predicted_by
from lfdm.errors import UserError
from lfdm.motion.codec import MotionCodec
from lfdm.motion.codecs import make_codec
from lfdm.pipeline.base import BasePipeline
from lfdm.pipeline.compatibility import check_components, side_multiple
from lfdm.pipeline.conditions import controlled_condition, make_guidance
from lfdm.pipeline.control import MotionControl
from lfdm.pipeline.framing import Framing
from lfdm.pipeline.full_size import MAX_MEGAPIXELS
from lfdm.pipeline.inputs import ImageInput, MaskInput, Picture, SeedInput, read_images, sample_generators
from lfdm.pipeline.lengths import SamplePlan, plan_samples
from lfdm.pipeline.placed_control import PlacedControl
from lfdm.pipeline.result import LatentFlowOutput, SampledOutputType, check_output_type
from lfdm.pipeline.transfer import EncodedImages, MotionTransfer

StepCallback = Callable[["LatentFlowPipeline", int, Tensor, dict[str, Tensor]], dict[str, Tensor] | None]

MAX_FRAMES = 10_000
"""Length of the longest video."""
LOOP_SHARE = 1 / 4
"""Part of a training clip (or of a shorter video) over which the end of a loop blends into its start."""


class LatentFlowPipeline(BasePipeline, MotionTransfer):
    """Makes a video of an image and a condition.

    Args:
        autoencoder: stage 1.
        unet: stage 2, the network that denoises the codec's samples.
        condition: embeds labels and text.
        motion_codec: converts motion to the samples that stage 2 diffuses, and back.
        scheduler: a `MotionScheduler` or one of diffusers; its `prediction_type` says what the unet predicts. Another one that
            is set later must say the same: make it with `from_config(pipe.scheduler.config)`.
        image_size: (height, width) of frames, or one number for squares.
        fit: how images of other shapes are fitted, as the training data was.
        num_frames: frames of a training clip, and the default of a call.
        fps: frames per second of written videos.
        num_inference_steps, guidance_scale: defaults of a call.
    """

    autoencoder: LatentFlowAutoencoder
    unet: DenoiserNetwork
    condition: ConditionEncoder
    motion_codec: MotionCodec
    scheduler: Any  # diffusers' schedulers share no typed interface

    def __init__(
        self,
        autoencoder: LatentFlowAutoencoder,
        unet: DenoiserNetwork,
        condition: ConditionEncoder,
        motion_codec: MotionCodec,
        scheduler: Any,
        *,
        image_size: SizeInput = 64,
        fit: Fit = "pad",
        num_frames: int = 16,
        fps: float = 8.0,
        num_inference_steps: int = 10,
        guidance_scale: float = 1.0,
    ) -> None:
        super().__init__()
        num_frames = check_integer("num_frames", num_frames, 2, MAX_FRAMES)
        self.autoencoder, self.unet, self.condition = autoencoder, unet, condition
        self.motion_codec, self.scheduler = motion_codec, scheduler
        self._predicts: PredictionType = predicted_by(scheduler)
        self.register_to_config(
            image_size=Size.parse(image_size, "image_size").setting,
            fit=fit,
            num_frames=num_frames,
            fps=check_number("fps", fps, low=0.01),
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
        )
        self._check_components()
        self.sampling_settings()

    def _check_components(self) -> None:
        """Raise UserError if a component, which may have been replaced, does not fit the others."""
        settings = {"image_size": self.size, "fit": self.config["fit"], "num_frames": self.config["num_frames"]}
        check_components(self.autoencoder, self.unet, self.condition, self.motion_codec, **settings)

    @classmethod
    @torch.inference_mode(False)
    def from_preset(cls, preset: str | Preset, labels: Sequence[str] = (), *, seed: int = 0) -> Self:
        """Build a preset with weights initialised from `seed`.

        Args:
            labels: the conditions that it knows. A preset for text has none before text embeddings are stored: its conditions
                are None or embedding tensors.

        Raises:
            UserError: an unknown preset, or labels for a preset for text.
        """
        preset = get_preset(preset) if isinstance(preset, str) else preset
        config = preset.diffusion
        if config.condition == "text" and labels:
            raise UserError(f"labels must be empty with preset {preset.name!r}, which takes text embeddings; got {list(labels)}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            autoencoder = LatentFlowAutoencoder(**to_json(preset.autoencoder)).eval()
            unet = MotionUNet3D(**to_json(preset.unet)).eval()
            condition = ConditionEncoder.from_labels(labels, preset.unet.condition_dim, learned_null=config.learned_null).eval()
        return cls.from_components(preset, autoencoder, unet, condition)

    @classmethod
    def from_components(
        cls,
        preset: Preset,
        autoencoder: LatentFlowAutoencoder,
        unet: DenoiserNetwork,
        condition: ConditionEncoder,
        motion_codec: MotionCodec | None = None,
    ) -> Self:
        """Return a pipeline of given models with a preset's scheduler, settings and, by default, its codec (not normalised)."""
        config = preset.diffusion
        motion_codec = motion_codec or make_codec(config, corners=preset.autoencoder.corners)
        scheduler = make_scheduler(config.sampler, prediction_type=config.prediction_type, paper=config.dynamic_thresholding)
        settings = {name: getattr(preset, name) for name in ("image_size", "fit", "num_frames", "fps")}
        sampling = {name: getattr(config, name) for name in ("num_inference_steps", "guidance_scale")}
        return cls(autoencoder, unet, condition, motion_codec, scheduler, **settings, **sampling)

    @property
    def side_multiple(self) -> int:
        """The number that height and width of images must be multiples of."""
        return side_multiple(self.autoencoder, self.unet)

    @property
    def max_inference_steps(self) -> int:
        """The largest `num_inference_steps` that the scheduler can take."""
        return max_inference_steps(self.scheduler)

    @property
    def guidance_range(self) -> tuple[float, float]:
        """Smallest and largest `guidance_scale`; 0, the unconditional prediction, is always allowed as well."""
        largest = self.unet.max_guidance
        return (0.0, MAX_GUIDANCE_SCALE) if largest is None else (1.0, largest)

    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(
        self,
        image: ImageInput,
        condition: ConditionInput = None,
        *,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_videos: int = 1,
        generator: SeedInput = None,
        latents: Tensor | None = None,
        output_type: SampledOutputType = "pil",
        callback_on_step_end: StepCallback | None = None,
        callback_on_decode: Callable[[int], None] | None = None,
        motion_strength: float = 1.0,
        motion_mask: MaskInput | None = None,
        fit: PictureFit | None = None,
        negative_condition: ConditionInput = None,
        loop: bool = False,
        slow_motion: bool = False,
        output_size: OutputSize = "model",
        max_megapixels: float = MAX_MEGAPIXELS,
        keep_alpha: bool = True,
        pixel_art: bool = False,
        control: Control | None = None,
        return_dict: bool = True,
        **unsupported: Never,
    ) -> LatentFlowOutput:
        """Make videos of an image under a condition; a single image or condition goes with every one of the other.

        Args:
            image: path, PIL image, array (H, W, 3), tensor (3, H, W), a list or a batch of them; fitted to the model's size.
                One of 4 channels has straight alpha.
            condition: see `ConditionEncoder.encode`; None = unconditional.
            num_frames: up to 10,000; more than four times the length of training clips are sampled in overlapping windows. A
                `LearnedCodec` makes more frames than training clips have of latents one after another, see `LatentChain`.
            guidance_scale: classifier-free guidance (2207.12598, eq. 6 with w + 1); 1 = the conditional prediction, 0 = the
                unconditional one. No effect if both conditions are None.
            num_videos: videos per pair of image and condition, which follow one another in the output.
            generator: one, or a list of one per video, see `lfdm.pipeline.inputs.sample_generators`.
            latents: noise to begin with instead of the generators', (b, *motion_codec.sample_shape(num_frames, h, w)); with n
                latents in a chain (b, c, n, h, w).
            output_type: form of the videos, see `lfdm.pipeline.result.SampledOutputType`.
            callback_on_step_end: called as in diffusers after every step; may return {"latents": sample} to replace the sample.
            callback_on_decode: called with the number of frames decoded so far after every chunk; may raise to stop.
            motion_strength: 0 to 2: 1 = as generated, 0 = the fitted image in every frame; see `Motion.scaled`.
            motion_mask: where the image moves, in the image's size: path, PIL image, array or tensor (H, W), uint8 or in [0, 1];
                see `Motion.masked`. None = everywhere.
            fit: how the image is fitted, see `framing`: `native` = in its own shape, with about as many pixels as in training.
            negative_condition: what guidance moves away from instead of the null condition; needs a guidance_scale above 1.
            loop: lets the last frames lead into the first; see `Motion.closed`.
            slow_motion: stretches one latent over any number of frames, at no cost in sampling; for models whose samples have
                no frame axis (`LearnedCodec`).
            output_size: `native` = frames have the image's own size and are its own pixels, moved; see `lfdm.pipeline.full_size`.
            max_megapixels: largest image with `native`, since its frames take much memory.
            keep_alpha: makes frames with alpha of images that are not opaque everywhere (all frames of a call, if one image is
                not); False = images are composed over white.
            pixel_art: makes frames in the image's own size, of its own pixels and colours; see `lfdm.pipeline.pixel_art`. With
                motion_mask, the image must have the model's size.
            control: where points go, what stays, labels over time, and the last pose, see `lfdm.config.control`.
            return_dict: False = return the tuple (frames, warped, motion), as diffusers' pipelines do.
            unsupported: any other name is refused, with a hint for those of diffusers; see `lfdm.config.unsupported`.

        Raises:
            UserError: a value that is not allowed, an unknown label, not an image, components that do not fit each other, or
                a scheduler that is not supported.
            FileNotFoundError: no such image file.
        """
        refuse_unknown("a call", unsupported, [*inspect.signature(self.__call__).parameters][:-1])
        self._check_components()
        num_frames, steps, scale = self.sampling_settings(num_frames, num_inference_steps, guidance_scale, loop=loop)
        plan = plan_samples(self.motion_codec, num_frames, trained=self.config["num_frames"], slow_motion=slow_motion)
        check_output_type(output_type, sampled=True)
        pictures = read_images(image, keep_alpha=keep_alpha)
        placed, art = self._place(pictures, motion_mask, pixel_art=pixel_art)
        framing = self.framing(placed, fit)
        motion_control = MotionControl(motion_strength, motion_mask, placed, framing, reach=self.autoencoder.upsampling_reach)
        placed_control = PlacedControl.place(self, control, pictures, framing, num_frames, pixel_art=pixel_art)
        conditions = (controlled_condition(condition, control, self.condition.labels), negative_condition)
        guidance, embedding = make_guidance(self.embed_condition, scale, *conditions, len(pictures), num_videos)
        guidance = placed_control.over_time(guidance, self.embed_condition, plan.space)
        generators = sample_generators(generator, len(embedding))
        full_size = self._full_size(pictures, framing, output_size, max_megapixels, art)
        source = self._encode(placed, framing, art).repeat(len(embedding) // len(pictures))
        latent = self._sampling_latent(placed, framing, source)
        tracks, attention = placed_control.maps(latent), self.config["num_frames"]
        context = DenoiserContext(condition=embedding, latent=latent, attention_frames=attention, tracks=tracks)
        known = placed_control.known(self, source.features, latent)
        sample = self._sample(plan, context, guidance, num_frames, steps, generators, callback_on_step_end, latents, known)
        motion, report = placed_control.apply(plan.space.decode(sample, num_frames).resize(source.features.latent_size))
        if loop:
            motion = motion.closed(max(1, int(LOOP_SHARE * min(num_frames, self.config["num_frames"]))))
        motion = motion_control(motion)
        if output_type == "latent":
            output = LatentFlowOutput(sample, sample[:0], motion)
        else:
            output = self._decode(source, motion, output_type, full_size, callback_on_decode)
        return replace(output, control=report) if return_dict else cast("LatentFlowOutput", output.to_tuple())

    def sampling_settings(
        self,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        *,
        loop: bool = False,
    ) -> tuple[int, int, float]:
        """Return number of frames, number of steps and guidance scale of a call, checked; None = the pipeline's default."""
        config = self.config
        frames = config["num_frames"] if num_frames is None else num_frames
        steps = config["num_inference_steps"] if num_inference_steps is None else num_inference_steps
        scale = config["guidance_scale"] if guidance_scale is None else guidance_scale
        low, high = self.guidance_range
        return (
            check_integer("num_frames", frames, 2 if loop else 1, MAX_FRAMES),
            check_integer("num_inference_steps", steps, 1, self.max_inference_steps),
            check_number("guidance_scale", scale, low=0 if scale == 0 else low, high=high),
        )

    def _sampling_latent(self, pictures: Sequence[Picture], framing: Framing, source: EncodedImages) -> Tensor:
        """Return image latents (b, C, h, w) at the size of training, where motion is sampled: it is relative to the frame."""
        if framing.size == self.size:
            return source.features.latent
        stretched = self._encode(pictures, Framing(size=self.size, fit="stretch"))
        return stretched.features.latent.repeat_interleave(len(source.features.latent) // len(pictures), dim=0)

    def _sample(
        self,
        plan: SamplePlan,
        context: DenoiserContext,
        guidance: Guidance,
        num_frames: int,
        num_steps: int,
        generators: list[torch.Generator],
        callback: StepCallback | None,
        noise: Tensor | None,
        known: KnownMotion,
    ) -> Tensor:
        """Return samples (b, *plan.space.sample_shape) by `num_steps` of the scheduler."""
        sampler = MotionSampler(self.unet, plan.space, self.scheduler, self._predicts)
        with self.progress_bar(total=num_steps) as bar:
            return sampler.sample(
                context,
                guidance,
                num_frames=num_frames,
                num_steps=num_steps,
                generators=generators,
                windows=plan.windows,
                callback=self._after_step(callback, bar),
                noise=noise,
                known=known,
            )

    def _after_step(self, callback: StepCallback | None, bar: Any) -> AfterStep:
        """Return what the sampler calls after every step: it moves the progress bar and calls the user's callback."""

        def after_step(index: int, level: NoiseLevel, sample: Tensor) -> Tensor:
            bar.update()
            if callback is None:
                return sample
            timestep = torch.tensor(level.timestep)
            return (callback(self, index, timestep, {"latents": sample}) or {}).get("latents", sample)

        return after_step

    @torch.no_grad()
    def embed_condition(self, condition: ConditionInput) -> Tensor:
        """Return the embeddings (b, D) of a condition in any of its forms; see `ConditionEncoder.encode`."""
        return self.condition.encode(condition)
