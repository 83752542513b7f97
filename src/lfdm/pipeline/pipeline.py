"""`LatentFlowPipeline`: one image and a condition in, a video out (LFDM, arXiv 2303.13744, section 3.3).

The image is encoded once, its motion is made by diffusion over N steps, and all frames are decoded from the image warped by it.

Shapes: image (b, 3, S, S) in [0, 1] · motion sample (b, 3, t, h, w) · video (b, 3, t, S, S) in [0, 1].
"""

import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, Self, Unpack, cast, get_args

import diffusers
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.condition.encoder import ConditionEncoder, ConditionInput
from lfdm.config.checks import check_integer, check_number
from lfdm.config.diffusion import MAX_GUIDANCE_SCALE, PredictionType
from lfdm.config.presets import Preset, get_preset
from lfdm.config.serialization import to_json
from lfdm.config.video import Fit
from lfdm.denoiser.network import DenoiserContext, DenoiserNetwork
from lfdm.denoiser.unet3d import MotionUNet3D
from lfdm.diffusion.guidance import Guidance
from lfdm.diffusion.process import NoiseLevel
from lfdm.diffusion.samplers import AfterStep
from lfdm.diffusion.sampling import MotionSampler
from lfdm.diffusion.schedulers import make_scheduler, max_inference_steps, predicted_by
from lfdm.diffusion.windows import Window, plan_windows
from lfdm.errors import UserError
from lfdm.folders.model_folder import check_load_options, check_safetensors
from lfdm.folders.run_folder import find_layout
from lfdm.folders.sources import HubOptions, find_folder, upload_folder
from lfdm.motion.codec import MotionCodec, make_codec
from lfdm.motion.motion import Motion
from lfdm.pipeline.control import MotionControl, estimate_driving_motion
from lfdm.pipeline.decoding import decode_video
from lfdm.pipeline.folder import component_types, load_components, read_index, save_folder, setting_names, subclasses
from lfdm.pipeline.inputs import (
    DrivingInput,
    ImageInput,
    MaskInput,
    Picture,
    SeedInput,
    fit_images,
    read_images,
    sample_generators,
)
from lfdm.pipeline.result import LatentFlowOutput, OutputType, check_output_type

StepCallback = Callable[["LatentFlowPipeline", int, Tensor, dict[str, Tensor]], dict[str, Tensor] | None]

MAX_FRAMES = 10_000
"""The longest video."""
MAX_VIDEOS = 10_000
"""Most videos of one call per image and condition."""
MAX_PASS_FACTOR = 4
"""Up to this many times as long as training clips, the network takes a video at once; a longer one in windows of that length."""
LOOP_SHARE = 1 / 4
"""Part of a training clip, or of a shorter video, over which a loop's end eases into its start."""


class LatentFlowPipeline(DiffusionPipeline):
    """Image and condition to video.

    Args:
        autoencoder: stage 1.
        unet: stage 2, the network that the codec's samples are diffused with.
        condition: label embeddings.
        motion_codec: what stage 2 diffuses.
        scheduler: a `MotionScheduler` or one of diffusers; its `prediction_type` says what the unet predicts. Another one that
            is set later must say the same: make it with `from_config(pipe.scheduler.config)`.
        image_size: frames are image_size x image_size.
        fit: how other shapes are fitted, as the training data was.
        num_frames: frames of a training clip, and by default of a video.
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
        image_size: int = 64,
        fit: Fit = "pad",
        num_frames: int = 16,
        fps: float = 8.0,
        num_inference_steps: int = 10,
        guidance_scale: float = 1.0,
    ) -> None:
        super().__init__()
        num_frames = check_integer("num_frames", num_frames, 2, MAX_FRAMES)
        _check_settings(autoencoder, unet, condition, motion_codec, image_size, fit, num_frames)
        self.register_modules(
            autoencoder=autoencoder, unet=unet, condition=condition, motion_codec=motion_codec, scheduler=scheduler
        )
        self._predicts: PredictionType = predicted_by(scheduler)
        self.register_to_config(
            image_size=image_size,
            fit=fit,
            num_frames=num_frames,
            fps=check_number("fps", fps, low=0.01),
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
        )
        self.sampling_settings()

    # ------------------------------------------------------------------------------------------ making and saving

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride] - strict: ignores no option
        cls,
        name: str | Path,
        *,
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        variant: str | None = None,
        use_safetensors: bool | None = None,
        **hub: Unpack[HubOptions],
    ) -> Self:
        """Load a trained pipeline, models in evaluation mode.

        Args:
            name: bundled name, local pipeline folder, diffusion run folder (its newest averaged weights) or Hub
                repository. A bundled name wins over a folder of that name; `./name` means the folder.
            dtype: number format of the models; float32 by default. `torch_dtype` means the same.
            variant: reads weights named `diffusion_pytorch_model.<variant>.safetensors`.
            hub: see `lfdm.folders.sources.HubOptions`.

        Raises:
            UserError: an unknown name (the bundled ones are listed), option or setting, a component class that is not
                allowed (see `lfdm.pipeline.folder`), or weights that do not match.
            FileNotFoundError: no such folder or file.
        """
        dtype = check_load_options(dtype, torch_dtype, use_safetensors)
        layout = find_layout(find_folder(name, **hub))
        classes, settings = read_index(layout.index, cls)
        return cls(**load_components(layout, classes, dtype=dtype, device=device, variant=variant), **settings)

    @classmethod
    def from_preset(cls, preset: str | Preset, labels: Sequence[str] = (), *, seed: int = 0) -> Self:
        """A named configuration, freshly initialised from `seed`.

        `labels` are what it can be asked for. A preset that takes text has no labels before text embeddings are stored:
        its conditions are None or embedding tensors.

        Raises:
            UserError: an unknown preset, or labels for a preset that takes text.
        """
        preset = get_preset(preset) if isinstance(preset, str) else preset
        config = preset.diffusion
        if config.condition == "text" and labels:
            raise UserError(f"preset {preset.name!r} takes text embeddings; labels must be left out, got {list(labels)}")
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
        """Return a pipeline of given models with the scheduler and sampling settings of a preset.

        The default codec is that of the preset, without statistics of training motion.
        """
        config = preset.diffusion
        motion_codec = motion_codec or make_codec(config, corners=preset.autoencoder.corners)
        scheduler = make_scheduler(config.sampler, prediction_type=config.prediction_type, paper=config.dynamic_thresholding)
        return cls(
            autoencoder,
            unet,
            condition,
            motion_codec,
            scheduler,
            image_size=preset.image_size,
            fit=preset.fit,
            num_frames=preset.num_frames,
            fps=preset.fps,
            num_inference_steps=config.num_inference_steps,
            guidance_scale=config.guidance_scale,
        )

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride] - strict: ignores no option
        self,
        folder: str | Path,
        *,
        half: bool = False,
        with_unet: bool = True,
        safe_serialization: bool = True,
        variant: str | None = None,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        token: str | None = None,
    ) -> None:
        """Write the pipeline folder whole, in safetensors and JSON.

        Args:
            half: store the networks in float16 (batch-norm statistics in float32).
            with_unet: False for the `model` folder of a stage-2 run, whose checkpoints hold the unet.
            variant: part of the weights' file names.
            push_to_hub: also upload the folder to the Hub repository `repo_id`, by default of the folder's name.

        Raises:
            UserError: the folder holds something else, or a component has a class that could not be loaded again.
        """
        check_safetensors("safe_serialization", safe_serialization)
        save_folder(Path(folder), self, half=half, variant=variant, leave_out=() if with_unet else ("unet",))
        if push_to_hub:
            upload_folder(Path(folder), repo_id, token)

    @property
    def components(self) -> dict[str, Any]:
        """The components and the settings, so that `LatentFlowPipeline(**pipe.components)` is the same pipeline."""
        return {name: getattr(self, name) for name in component_types(type(self))} | self._settings()

    @property
    def parameters(self) -> dict[str, Any]:
        """Empty: the settings are part of `components`."""
        return {}

    def _settings(self) -> dict[str, Any]:
        return {name: self.config[name] for name in setting_names(type(self))}

    @classmethod
    def extract_init_dict(cls, *_: object, **__: object) -> NoReturn:
        """Refuse `DiffusionPipeline.from_pretrained`, which would load our models without the checks of `from_pretrained`."""
        raise UserError("this is a model of lfdm: load it with lfdm.LatentFlowPipeline.from_pretrained")

    # --------------------------------------------------------------------------------------------------- sampling

    @classmethod
    def _get_signature_types(cls) -> dict[str, tuple[Any, ...]]:
        """Let diffusers' `from_pipe` accept subclasses of the annotated component types, too."""
        types = super()._get_signature_types()
        return {
            name: (*kinds, *(one for kind in kinds if inspect.isclass(kind) for one in subclasses(kind)))
            for name, kinds in types.items()
        }

    @property
    def max_inference_steps(self) -> int:
        """The largest `num_inference_steps` that the scheduler can take."""
        return max_inference_steps(self.scheduler)

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
        output_type: OutputType = "pil",
        callback_on_step_end: StepCallback | None = None,
        motion_strength: float = 1.0,
        motion_mask: MaskInput | None = None,
        negative_condition: ConditionInput = None,
        loop: bool = False,
        return_dict: bool = True,
    ) -> LatentFlowOutput:
        """Make videos of an image under a condition; a single image or condition goes with every one of the other.

        Args:
            image: path, PIL image, uint8 or float array (H, W, 3), tensor (3, H, W), a list or a batch of them; fitted to
                the model's size.
            condition: label (any text for a model with a text model), None (unconditional), a mix such as
                `{"wave": 0.7, "jump": 0.3}` (embeddings averaged by these weights), a list of these, or embedding tensor
                (D,) or (b, D).
            num_frames: up to 10,000. Up to four times the length of training clips the network takes all frames at once; a
                longer video is sampled in overlapping windows. Each frame attends to as many around it as in training.
            guidance_scale: classifier-free guidance (2207.12598, eq. 6 with w + 1); 1 = the conditional prediction, 0 = the
                unconditional one. No effect if both conditions are None.
            num_videos: videos per pair of image and condition, which follow one another in the output.
            generator: one, or a list of one per video, see `lfdm.pipeline.inputs.sample_generators`.
            callback_on_step_end: called as in diffusers after every step, with `{"latents": sample}`; may return such a dict to
                replace the sample.
            motion_strength: 0 to 2, see `Motion.scaled`: 1 = as generated, 0 = the fitted image in every frame.
            motion_mask: where the image moves: path, PIL image, array or tensor (H, W), uint8 or in [0, 1]; fitted as the
                image is; see `Motion.masked`. None = everywhere.
            negative_condition: what guidance moves away from, instead of the null condition; in the forms of `condition`.
                Needs a guidance_scale above 1.
            loop: the last frames lead into the first, for a video that is repeated; see `Motion.closed`.
            return_dict: False = return the tuple (frames, warped, motion), as diffusers' pipelines do.

        Raises:
            UserError: a value that is not allowed, an unknown label, not an image, or a scheduler that is not supported.
            FileNotFoundError: no such image file.
        """
        num_frames, steps, scale = self.sampling_settings(num_frames, num_inference_steps, guidance_scale, loop=loop)
        check_output_type(output_type)
        pictures = read_images(image)
        control = self._control(motion_strength, motion_mask, pictures)
        if negative_condition is not None and scale <= 1:
            raise UserError(f"guidance_scale must be above 1; got {scale:g}, which gives negative_condition no effect")
        if condition is None and negative_condition is None:
            scale = 1.0
        images = self._fit_images(pictures)
        embedding, negative = self._match_conditions(len(images), condition, negative_condition, num_videos)
        generators = sample_generators(generator, len(embedding))
        features = self.autoencoder.encode(images).repeat(len(embedding) // len(images))
        context = DenoiserContext(condition=embedding, latent=features.latent, attention_frames=self.config["num_frames"])
        with self.progress_bar(total=steps) as bar:  # pyright: ignore[reportCallIssue] - diffusers leaves it untyped
            sampler = MotionSampler(self.unet, self.motion_codec, self.scheduler, self._predicts)
            sample = sampler.sample(
                context,
                Guidance(negative=negative, scale=scale),
                num_frames=num_frames,
                num_steps=steps,
                generators=generators,
                windows=self._windows(num_frames),
                callback=self._after_step(callback_on_step_end, bar),
            )
        motion = self.motion_codec.decode(sample, num_frames)
        if loop:
            motion = motion.closed(max(1, int(LOOP_SHARE * min(num_frames, self.config["num_frames"]))))
        output = decode_video(self.autoencoder, features, control(motion), output_type)
        return output if return_dict else cast("LatentFlowOutput", output.to_tuple())

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
        num_frames = config["num_frames"] if num_frames is None else num_frames
        num_steps = config["num_inference_steps"] if num_inference_steps is None else num_inference_steps
        guidance_scale = config["guidance_scale"] if guidance_scale is None else guidance_scale
        return (
            check_integer("num_frames", num_frames, 2 if loop else 1, MAX_FRAMES),
            check_integer("num_inference_steps", num_steps, 1, self.max_inference_steps),
            check_number("guidance_scale", guidance_scale, low=0, high=MAX_GUIDANCE_SCALE),
        )

    def _windows(self, num_frames: int) -> tuple[Window, ...]:
        if not self.motion_codec.has_frame_axis:
            return ()
        return plan_windows(num_frames, longest=MAX_PASS_FACTOR * self.config["num_frames"])

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

    @torch.no_grad()
    def animate(
        self,
        image: ImageInput,
        motion: Motion,
        *,
        motion_strength: float = 1.0,
        motion_mask: MaskInput | None = None,
        output_type: OutputType = "pil",
    ) -> LatentFlowOutput:
        """Frames of given motion: `image` alone is moved, nothing is sampled.

        One image goes with every motion, and one motion with every image. `motion_strength`, `motion_mask`: as in a call.

        Raises:
            UserError: no motion, or one of the other coordinate convention or of another batch size.
        """
        check_output_type(output_type)
        if not isinstance(motion, Motion):
            raise UserError(f"motion must be a Motion, such as Motion.load gives; got {type(motion).__name__}")
        pictures = read_images(image)
        control = self._control(motion_strength, motion_mask, pictures)
        images = self._fit_images(pictures)
        if len(images) == 1:
            images = images.expand(len(motion.flow), -1, -1, -1)
        elif len(motion.flow) == 1:
            motion = Motion.concatenate([motion] * len(images), dim=0)
        features = self.autoencoder.encode(images)
        return decode_video(self.autoencoder, features, control(motion.to(images.device)), output_type)

    @torch.no_grad()
    def transfer(
        self,
        image: ImageInput,
        driving: DrivingInput,
        *,
        relative: bool = True,
        motion_strength: float = 1.0,
        motion_mask: MaskInput | None = None,
        output_type: OutputType = "pil",
        callback_on_decode: Callable[[int], None] | None = None,
    ) -> LatentFlowOutput:
        """Move one image as a driving clip of any length moves; of a streamed clip some frames at a time are held.

        Args:
            driving: frames (t, H, W, 3) uint8 or (3, t, H, W) in [0, 1], the path of a clip, or an iterable of frames
                (H, W, 3) or (3, H, W) and such chunks.
            relative: the clip's motion against its own first frame, so that frame 0 is the image; False = against the image
                itself, which suits clips that show what the image shows.
            motion_strength, motion_mask: as in a call.
            callback_on_decode: told how many frames are decoded so far, after every chunk; what it raises ends the work.
        """
        check_output_type(output_type)
        pictures = read_images(image)
        if len(pictures) != 1:
            raise UserError(f"image must be a single one for a transfer; got {len(pictures)}")
        control = self._control(motion_strength, motion_mask, pictures)
        images = self._fit_images(pictures)
        motion = estimate_driving_motion(self.autoencoder, images, driving, relative=relative, fit=self.config["fit"])
        features = self.autoencoder.encode(images)
        return decode_video(self.autoencoder, features, control(motion), output_type, after_chunk=callback_on_decode)

    def _control(self, strength: float, mask: MaskInput | None, pictures: list[Picture]) -> MotionControl:
        return MotionControl(strength, mask, pictures, size=self.config["image_size"], fit=self.config["fit"])

    def _fit_images(self, pictures: list[Picture]) -> Tensor:
        return fit_images(pictures, size=self.config["image_size"], fit=self.config["fit"]).to(self.device)

    def _match_conditions(
        self, num_images: int, condition: ConditionInput, negative: ConditionInput, num_videos: int
    ) -> tuple[Tensor, Tensor]:
        """Return the embeddings (b, D) of both conditions for every video, b = pairs of image and condition * num_videos."""
        num_videos = check_integer("num_videos", num_videos, 1, MAX_VIDEOS)
        embedding, negative_embedding = (self.embed_condition(one).to(self.device) for one in (condition, negative))
        pairs = max(num_images, len(embedding))
        if num_images not in (1, pairs) or len(embedding) not in (1, pairs) or len(embedding) == 0:
            raise UserError(f"condition must be one, or one per image ({num_images}); got {len(embedding)}")
        if len(negative_embedding) not in (1, pairs):
            raise UserError(f"negative_condition must be one, or one per condition ({pairs}); got {len(negative_embedding)}")
        embedding, negative_embedding = embedding.expand(pairs, -1), negative_embedding.expand(pairs, -1)
        return embedding.repeat_interleave(num_videos, dim=0), negative_embedding.repeat_interleave(num_videos, dim=0)


def _check_settings(
    autoencoder: LatentFlowAutoencoder,
    unet: DenoiserNetwork,
    condition: ConditionEncoder,
    motion_codec: MotionCodec,
    image_size: object,
    fit: object,
    num_frames: int,
) -> None:
    multiple = math.lcm(autoencoder.size_multiple, autoencoder.stride * unet.size_multiple)
    if isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < multiple or image_size % multiple:
        raise UserError(f"image_size must be a multiple of {multiple} for these networks; got {image_size!r}")
    if fit not in get_args(Fit):
        raise UserError(f"fit must be one of {', '.join(get_args(Fit))}; got {fit!r}")
    if condition.dim != unet.config["condition_dim"]:
        raise UserError(f"condition has {condition.dim} values, the unet takes {unet.config['condition_dim']}")
    latent_size = image_size // autoencoder.stride
    channels, taken = motion_codec.sample_shape(num_frames, latent_size, latent_size)[0], unet.config["sample_channels"]
    if taken != channels:
        raise UserError(f"unet must have sample_channels={channels}, as the motion codec gives; got {taken}")
    if motion_codec.corners != autoencoder.corners:
        raise UserError(f"motion_codec has corners={motion_codec.corners}, the auto-encoder corners={autoencoder.corners}")


setattr(diffusers, LatentFlowPipeline.__name__, LatentFlowPipeline)
