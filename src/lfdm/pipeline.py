"""`LatentFlowPipeline`: one image and a condition in, a video out (LFDM, arXiv 2303.13744, section 3.3).

The image is encoded once, its motion is made by diffusion over N steps, and all frames are decoded from the image warped by it.

Shapes: image (b, 3, S, S) in [0, 1] · motion sample (b, 3, t, h, w) · video (b, 3, t, S, S) in [0, 1].
"""

import inspect
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import diffusers
import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from einops import rearrange
from PIL import Image
from torch import Tensor

from lfdm.config import MAX_GUIDANCE_SCALE, Fit, Preset, to_json
from lfdm.data.puppet_actions import ACTIONS
from lfdm.diffusion import make_scheduler
from lfdm.models.autoencoder import Features, LatentFlowAutoencoder
from lfdm.models.condition import ConditionEncoder
from lfdm.models.loading import replace_folder
from lfdm.models.motion import Motion
from lfdm.models.motion_target import MotionTarget
from lfdm.models.unet3d import MotionUNet3D
from lfdm.pipeline_folder import (
    INDEX_NAME,
    MODEL_CLASSES,
    MODEL_DIR,
    bundled_models,
    find_folder,
    load_components,
    read_settings,
    resolve_parts,
)
from lfdm.pipeline_inputs import (
    ImageInput,
    SeedInput,
    check_integer,
    check_number,
    prepare_images,
    prepare_video,
    sample_generators,
)
from lfdm.presets import get_preset

__all__ = ["MODEL_DIR", "LatentFlowOutput", "LatentFlowPipeline", "bundled_models", "frames_to_uint8"]

OutputType = Literal["pil", "np", "pt"]
ConditionInput = str | None | Sequence[str | None] | Tensor
StepCallback = Callable[["LatentFlowPipeline", int, Tensor, dict[str, Tensor]], dict[str, Tensor] | None]
Frames = list[list[Image.Image]] | np.ndarray | Tensor

MAX_FRAMES_FACTOR = 4
"""Videos may be this many times longer than training clips."""
DECODE_BYTES = 512 * 2**20
"""About how much memory decoding may take; more frames are decoded in chunks."""
DECODE_TENSORS = 8
"""Full-size feature maps that are alive at once while a frame is decoded."""
PRESET_LABELS: dict[str, tuple[str, ...]] = {"puppets64": ACTIONS}
"""Labels of a freshly initialised preset, where it has a data set of its own."""


@dataclass(frozen=True)
class LatentFlowOutput:
    """Videos and what they were made with.

    `frames`, and `warped` (the source image warped alone), are as `output_type` says: `pil` a list per sample of lists of
    images, `np` (b, t, H, W, 3) uint8, `pt` (b, 3, t, H, W) in [0, 1].
    """

    frames: Frames
    warped: Frames
    motion: Motion


class LatentFlowPipeline(DiffusionPipeline):
    """Image and condition to video.

    Args:
        autoencoder: stage 1.
        unet: stage 2.
        condition: label embeddings.
        motion_target: what stage 2 diffuses.
        scheduler: any diffusers scheduler for the unet's kind of prediction.
        image_size: frames are image_size x image_size.
        fit: how other shapes are fitted, as the training data was.
        num_frames: frames of a training clip, and by default of a video.
        fps: frames per second of written videos.
        num_inference_steps, guidance_scale: defaults of a call.
    """

    autoencoder: LatentFlowAutoencoder
    unet: MotionUNet3D
    condition: ConditionEncoder
    motion_target: MotionTarget
    scheduler: Any  # diffusers' schedulers share no typed interface

    def __init__(
        self,
        autoencoder: LatentFlowAutoencoder,
        unet: MotionUNet3D,
        condition: ConditionEncoder,
        motion_target: MotionTarget,
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
        _check_settings(autoencoder, unet, condition, motion_target, image_size, fit)
        self.register_modules(
            autoencoder=autoencoder, unet=unet, condition=condition, motion_target=motion_target, scheduler=scheduler
        )
        self.register_to_config(
            image_size=image_size,
            fit=fit,
            num_frames=check_integer("num_frames", num_frames, 2, 10_000),
            fps=check_number("fps", fps, low=0.01),
            num_inference_steps=check_integer("num_inference_steps", num_inference_steps, 1, 1000),
            guidance_scale=check_number("guidance_scale", guidance_scale, low=0, high=MAX_GUIDANCE_SCALE),
        )

    # ------------------------------------------------------------------------------------------ making and saving

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride] - strict: takes nothing that it would ignore
        cls, name: str | Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Self:
        """A trained pipeline, models in evaluation mode.

        Args:
            name: bundled name, local pipeline folder, diffusion run folder (its newest averaged weights) or Hub
                repository. A bundled name wins over a folder of that name; `./name` means the folder.

        Raises:
            ValueError: an unknown name (the bundled ones are listed), unknown settings, a component class that is not
                ours or a diffusers scheduler, or weights that do not fit.
            FileNotFoundError: no such folder or file.
        """
        parts = resolve_parts(find_folder(name))
        settings = read_settings(parts["index"], _setting_names(cls))
        return cls(**load_components(parts, dtype=dtype, device=device), **settings)

    @classmethod
    def from_preset(cls, preset: str | Preset, labels: Sequence[str] | None = None, *, seed: int = 0) -> Self:
        """A named configuration, freshly initialised from `seed`.

        `labels` are what it can be asked for; without them a preset with a data set of its own takes that one's. A preset
        that takes text has no labels before text embeddings are stored: its conditions are None or embedding tensors.

        Raises:
            ValueError: an unknown preset, or labels for a preset that takes text.
        """
        preset = get_preset(preset) if isinstance(preset, str) else preset
        config = preset.diffusion
        if config.condition == "text" and labels:
            raise ValueError(f"preset {preset.name!r} takes text embeddings; labels must be left out, got {list(labels)}")
        if labels is None:
            labels = PRESET_LABELS.get(preset.name, ()) if config.condition == "labels" else ()
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
        unet: MotionUNet3D,
        condition: ConditionEncoder,
        motion_target: MotionTarget | None = None,
    ) -> Self:
        """Given models, with the scheduler and the sampling settings of a preset; by default its target, not normalised."""
        config = preset.diffusion
        motion_target = motion_target or MotionTarget(
            kind=config.motion_target, corners=preset.autoencoder.corners, still_first_frame=config.still_first_frame
        )
        scheduler = make_scheduler(config.scheduler, prediction_type=config.prediction_type, paper=config.dynamic_thresholding)
        return cls(
            autoencoder,
            unet,
            condition,
            motion_target,
            scheduler,
            image_size=preset.image_size,
            fit=preset.fit,
            num_frames=preset.num_frames,
            fps=preset.fps,
            num_inference_steps=config.num_inference_steps,
            guidance_scale=config.guidance_scale,
        )

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride] - takes nothing that it would ignore
        self, folder: str | Path, *, half: bool = False, with_unet: bool = True
    ) -> None:
        """Write the pipeline folder whole, in safetensors and JSON.

        Args:
            half: store both networks in float16 (batch-norm statistics in float32).
            with_unet: False for the `model` folder of a stage-2 run, whose checkpoints hold the unet.

        Raises:
            ValueError: the folder holds something else, or the scheduler is not one of diffusers.
        """
        folder = Path(folder)
        if folder.exists() and not (folder / INDEX_NAME).is_file() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"{folder} exists and is not a model folder; choose another name")
        scheduler = type(self.scheduler)
        if not scheduler.__module__.startswith("diffusers."):
            raise ValueError(f"only schedulers of diffusers can be saved; got {scheduler.__module__}.{scheduler.__name__}")
        classes = {name: ["lfdm", cls.__name__] for name, cls in MODEL_CLASSES.items()}
        index = {
            "_class_name": "LatentFlowPipeline",
            "_diffusers_version": diffusers.__version__,
            **classes,
            "scheduler": ["diffusers", scheduler.__name__],
            **{name: self.config[name] for name in sorted(_setting_names(type(self)))},
        }

        def write(temporary: Path) -> None:
            self.autoencoder.save_pretrained(temporary / "autoencoder", half=half)
            if with_unet:
                self.unet.save_pretrained(temporary / "unet", half=half)
            self.condition.save_pretrained(temporary / "condition")
            self.motion_target.save_pretrained(temporary / "motion_target")
            self.scheduler.save_pretrained(temporary / "scheduler")
            (temporary / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")

        replace_folder(folder, write)

    # --------------------------------------------------------------------------------------------------- sampling

    @torch.no_grad()
    def __call__(
        self,
        image: ImageInput,
        condition: ConditionInput = None,
        *,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: SeedInput = None,
        output_type: OutputType = "pil",
        callback_on_step_end: StepCallback | None = None,
    ) -> LatentFlowOutput:
        """Make one video per image and condition; one image or one condition goes with every one of the other.

        Args:
            image: path, PIL image, uint8 or float array (H, W, 3), tensor (3, H, W), a list or a batch of them; fitted to
                the model's size.
            condition: label (any text for a model with a text model), list of them, None (unconditional) or embedding tensor (D,)
                or (b, D).
            num_frames: up to four times the length of training clips.
            guidance_scale: classifier-free guidance (arXiv 2207.12598, eq. 6 with w + 1); 1 = the conditional prediction
                alone, 0 = the unconditional one alone. Without effect where the condition is None.
            generator: see `lfdm.pipeline_inputs.sample_generators`.
            callback_on_step_end: called as in diffusers after every step, with `{"latents": sample}` (b, 3, t, h, w); it
                may return such a dict to replace the sample.

        Raises:
            ValueError: a value outside what is allowed, an unknown label, not an image.
            FileNotFoundError: no such image file.
        """
        config = self.config
        num_frames = config["num_frames"] if num_frames is None else num_frames
        num_frames = check_integer("num_frames", num_frames, 1, MAX_FRAMES_FACTOR * config["num_frames"])
        steps = config["num_inference_steps"] if num_inference_steps is None else num_inference_steps
        steps = check_integer("num_inference_steps", steps, 1, self.scheduler.config.num_train_timesteps)
        scale = config["guidance_scale"] if guidance_scale is None else guidance_scale
        scale = check_number("guidance_scale", scale, low=0, high=MAX_GUIDANCE_SCALE)
        _check_output_type(output_type)
        images, embedding = self._match_batches(self._prepare_images(image), self._prepare_condition(condition))
        if condition is None:
            scale = 1.0
        generators = sample_generators(generator, len(images))

        features = self.autoencoder.encode(images)
        sample = self._draw_noise(features, num_frames, generators)
        sample = self._denoise(sample, features.latent, embedding, steps, scale, generators, callback_on_step_end)
        return self._decode(features, self.motion_target.decode(sample[:, :, :num_frames]), output_type)

    def embed_condition(self, condition: ConditionInput) -> Tensor:
        """The embedding (b, D) of a label, a list of labels, None (the null condition) or embeddings.

        Raises:
            ValueError: an unknown label, a text model that cannot be had, or a tensor of another shape or with values that are
                not finite.
            ImportError: a text that is no stored label, without transformers.
        """
        if not isinstance(condition, Tensor):
            return self.condition.encode([condition] if condition is None or isinstance(condition, str) else condition)
        embedding = condition.unsqueeze(0) if condition.ndim == 1 else condition
        dim = self.condition.dim
        if embedding.ndim != 2 or embedding.shape[1] != dim:
            raise ValueError(f"a condition tensor must be ({dim},) or (b, {dim}); got {tuple(condition.shape)}")
        if not torch.isfinite(embedding).all():
            raise ValueError("the condition tensor holds values that are not finite")
        return embedding.to(self.condition.table)

    @torch.no_grad()
    def animate(self, image: ImageInput, motion: Motion, *, output_type: OutputType = "pil") -> LatentFlowOutput:
        """Frames of given motion: `image` alone is moved, nothing is sampled. One image goes with every motion.

        Raises:
            ValueError: a motion of the other coordinate convention, or of another batch size.
        """
        _check_output_type(output_type)
        images = self._prepare_images(image)
        if len(images) == 1:
            images = images.expand(len(motion.flow), -1, -1, -1)
        return self._decode(self.autoencoder.encode(images), motion.to(images.device), output_type)

    @torch.no_grad()
    def transfer(
        self,
        image: ImageInput,
        driving: np.ndarray | Tensor,
        *,
        relative: bool = True,
        output_type: OutputType = "pil",
    ) -> LatentFlowOutput:
        """Move one image as a driving clip moves.

        Args:
            driving: frames (t, H, W, 3) uint8, or (3, t, H, W) in [0, 1].
            relative: the clip's motion against its own first frame; False = against the image itself, which suits clips
                that show what the image shows.
        """
        images = self._prepare_images(image)
        if len(images) != 1:
            raise ValueError(f"transfer moves one image; got {len(images)}")
        video = prepare_video(driving, size=self.config["image_size"], fit=self.config["fit"]).to(images)
        reference = video[:, :, 0] if relative else images
        chunk = self._frames_per_chunk(1)
        chunks = [self.autoencoder.estimate_motion(reference, part) for part in video.split(chunk, dim=2)]
        return self.animate(images, Motion.concatenate(chunks, dim=2), output_type=output_type)

    def _prepare_images(self, image: ImageInput) -> Tensor:
        return prepare_images(image, size=self.config["image_size"], fit=self.config["fit"]).to(self.device)

    def _prepare_condition(self, condition: ConditionInput) -> Tensor:
        return self.embed_condition(condition).to(self.device)

    @staticmethod
    def _match_batches(images: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        b = max(len(images), len(embedding))
        if len(images) not in (1, b) or len(embedding) not in (1, b) or len(embedding) == 0:
            raise ValueError(f"as many conditions as images are needed, or one of either; got {len(embedding)} and {len(images)}")
        return images.expand(b, -1, -1, -1), embedding.expand(b, -1)

    def _draw_noise(self, features: Features, num_frames: int, generators: list[torch.Generator]) -> Tensor:
        """Noise (b, 3, t, h, w) of at least `num_frames`: as many as the U-Net's last patch of frames takes."""
        h, w = features.latent.shape[-2:]
        patch = self.unet.frame_patch_size
        shape = (self.unet.config["sample_channels"], math.ceil(num_frames / patch) * patch, h, w)
        noise = [torch.randn(shape, generator=one, device=one.device).to(self.device) for one in generators]
        return torch.stack(noise)

    def _denoise(
        self,
        sample: Tensor,
        latent: Tensor,
        embedding: Tensor,
        num_steps: int,
        scale: float,
        generators: list[torch.Generator],
        callback: StepCallback | None,
    ) -> Tensor:
        """`num_steps` of the scheduler from noise (b, 3, t, h, w), kept in float32."""
        scheduler = self.scheduler
        scheduler.set_timesteps(num_steps, device=self.device)
        sample = sample * getattr(scheduler, "init_noise_sigma", 1.0)
        options = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
        predict = self._guided_prediction(latent, embedding, scale)
        timesteps: Iterable[Tensor] = self.progress_bar(scheduler.timesteps)  # pyright: ignore[reportCallIssue, reportAssignmentType]
        for index, timestep in enumerate(timesteps):
            scaled = scheduler.scale_model_input(sample, timestep)
            prediction = self._clamp_prediction(predict(scaled, timestep), scaled, index, timestep)
            sample = scheduler.step(prediction, timestep, sample, **options, return_dict=False)[0]
            if callback is not None:
                sample = (callback(self, index, timestep, {"latents": sample}) or {}).get("latents", sample)
        return self.motion_target.clamp(sample)  # solvers extrapolate a little, and DDPM adds noise, after the last clamped x0

    def _guided_prediction(self, latent: Tensor, embedding: Tensor, scale: float) -> Callable[[Tensor, Tensor], Tensor]:
        """The network as a function of sample and timestep, guided in one batched pass."""
        unet = self.unet
        condition = embedding.to(unet.dtype)
        null = self.condition.null.to(condition).expand_as(condition)
        image = unet.embed_latent(latent.to(unet.dtype))
        if scale in (0, 1):
            chosen = condition if scale == 1 else null
            return lambda sample, t: unet(sample.to(unet.dtype), t, chosen, latent_embedding=image).float()
        both = torch.cat((null, condition))

        def predict(sample: Tensor, timestep: Tensor) -> Tensor:
            without, with_condition = unet(sample.to(unet.dtype), timestep, both, latent_embedding=image).float().chunk(2)
            return without + scale * (with_condition - without)

        return predict

    def _clamp_prediction(self, prediction: Tensor, sample: Tensor, index: int, timestep: Tensor) -> Tensor:
        """The prediction whose x0 is that of `prediction`, clamped to the range of the training set; unchanged inside."""
        if not self.motion_target.clamps:
            return prediction
        kind = self.scheduler.config.prediction_type
        alpha, sigma = _signal_and_noise(self.scheduler, index, timestep)
        if kind == "epsilon":
            clean = (sample - sigma * prediction) / alpha
            return prediction + alpha / sigma * (clean - self.motion_target.clamp(clean))
        clean = alpha * sample - sigma * prediction if kind == "v_prediction" else sample - sigma * prediction
        return prediction + (clean - self.motion_target.clamp(clean)) / sigma

    def _decode(self, features: Features, motion: Motion, output_type: OutputType) -> LatentFlowOutput:
        """All frames in one batch, or in chunks where that would take more than DECODE_BYTES."""
        chunk = self._frames_per_chunk(len(motion.flow))
        starts = range(0, motion.num_frames, chunk)
        decoded = [self.autoencoder.decode(features, motion.frames(start, start + chunk)) for start in starts]
        prediction = torch.cat([part.prediction for part in decoded], dim=2)
        warped = torch.cat([part.warped for part in decoded], dim=2)
        return LatentFlowOutput(self._convert(prediction, output_type), self._convert(warped, output_type), motion)

    def _frames_per_chunk(self, batch_size: int) -> int:
        floats = batch_size * self.autoencoder.config["channels"] * self.config["image_size"] ** 2
        return max(1, DECODE_BYTES // (4 * DECODE_TENSORS * floats))

    def _convert(self, video: Tensor, output_type: OutputType) -> Frames:
        video = video.float().clamp(0, 1)
        if output_type == "pt":
            return video
        frames = frames_to_uint8(video, truncate=self.autoencoder.corners)
        if output_type == "np":
            return frames
        return [[Image.fromarray(frame) for frame in sample] for sample in frames]


def frames_to_uint8(video: Tensor, *, truncate: bool = False) -> np.ndarray:
    """(b, 3, t, H, W) in [0, 1] -> (b, t, H, W, 3) uint8.

    Rounded, so that an 8-bit image comes back exactly (v / 255 * 255 may fall just below v in float32); `truncate` is the
    published behaviour, kept for the paper presets.
    """
    scaled = video.float().clamp(0, 1) * 255
    scaled = scaled if truncate else scaled.round()
    return rearrange(scaled.to(torch.uint8), "b c t h w -> b t h w c").cpu().numpy()


def _signal_and_noise(scheduler: Any, index: int, timestep: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma of x_t = alpha x0 + sigma noise at step `index` of the scheduler's timesteps."""
    if not hasattr(scheduler, "sigmas"):
        abar = scheduler.alphas_cumprod[timestep.long().cpu()]
        return abar.sqrt().to(timestep.device), (1 - abar).sqrt().to(timestep.device)
    sigma = scheduler.sigmas[index].to(timestep.device)
    if scheduler.config.prediction_type == "flow_prediction":
        return 1 - sigma, sigma
    alpha = (1 + sigma**2).rsqrt()
    return alpha, sigma * alpha


def _setting_names(cls: type[LatentFlowPipeline]) -> set[str]:
    parameters = inspect.signature(cls.__init__).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


def _check_output_type(output_type: object) -> None:
    if output_type not in get_args(OutputType):
        raise ValueError(f"output_type must be one of {', '.join(get_args(OutputType))}; got {output_type!r}")


def _check_settings(
    autoencoder: LatentFlowAutoencoder,
    unet: MotionUNet3D,
    condition: ConditionEncoder,
    motion_target: MotionTarget,
    image_size: object,
    fit: object,
) -> None:
    multiple = autoencoder.size_multiple
    if isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < multiple or image_size % multiple:
        raise ValueError(f"image_size must be a multiple of {multiple} for this auto-encoder; got {image_size!r}")
    if fit not in get_args(Fit):
        raise ValueError(f"fit must be one of {', '.join(get_args(Fit))}; got {fit!r}")
    if condition.dim != unet.config["condition_dim"]:
        raise ValueError(f"condition has {condition.dim} values, the unet takes {unet.config['condition_dim']}")
    if motion_target.corners != autoencoder.corners:
        raise ValueError(f"motion_target has corners={motion_target.corners}, the auto-encoder corners={autoencoder.corners}")
