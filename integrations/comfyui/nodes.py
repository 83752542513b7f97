"""The nodes. Frames are ComfyUI's IMAGE: (n, H, W, C) float32 in [0, 1] on the CPU, a video being a batch of its frames.

ComfyUI calls INPUT_TYPES for the inputs of a node, and its FUNCTION with them by name. Its own modules are imported by name, so
that this file can be read and tested without it.
"""

import importlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from lfdm import LatentFlowPipeline
from lfdm.config.checks import MAX_SEED
from lfdm.config.control import MAX_PART_STRENGTH, Control, PartStrength
from lfdm.config.video import MAX_SIDE
from lfdm.errors import UserError
from lfdm.folders.sources import INDEX_NAME, bundled_models
from lfdm.pipeline.control_file import parse_drag, parse_labels, parse_part_strength, parse_point
from lfdm.pipeline.inputs import parse_condition
from lfdm.pipeline.result import LatentFlowOutput

MODEL_FOLDER = "lfdm"
"""Folder of ComfyUI's `models` for model folders and diffusion run folders."""
RUN_CONFIG = "config.json"
MODEL, MOTION, CONTROL = "LFDM_MODEL", "LFDM_MOTION", "LFDM_CONTROL"
"""Types of connections: a `LatentFlowPipeline`, the `LatentFlowOutput` of a call, and a `Control`."""
CATEGORY = "lfdm"
TILES = ("flow", "arrows", "occlusion", "warped", "generated")

Inputs = dict[str, dict[str, tuple[Any, ...]]]


def register_model_folder() -> None:
    """Tell ComfyUI of `models/lfdm`; `extra_model_paths.yaml` may name more folders under `lfdm`."""
    paths = importlib.import_module("folder_paths")
    paths.add_model_folder_path(MODEL_FOLDER, str(Path(paths.models_dir) / MODEL_FOLDER))


def find_models() -> dict[str, str]:
    """Return the bundled models and those of the model folders: name -> what `from_pretrained` takes."""
    roots = importlib.import_module("folder_paths").get_folder_paths(MODEL_FOLDER)
    folders = [entry for root in map(Path, roots) if root.is_dir() for entry in sorted(root.iterdir()) if entry.is_dir()]
    own = {folder.name: str(folder) for folder in folders if (folder / INDEX_NAME).is_file() or (folder / RUN_CONFIG).is_file()}
    return own | {name: name for name in bundled_models()}


def to_pictures(image: Tensor) -> Tensor:
    """Convert an IMAGE (b, H, W, C) to (b, C, H, W)."""
    return image.movedim(-1, 1).float().clamp(0, 1).cpu()


def to_image(result: LatentFlowOutput) -> Tensor:
    """Convert videos (b, t, C, H, W) to an IMAGE (b * t, H, W, C), one video after the other."""
    assert isinstance(result.frames, Tensor)
    return result.frames.flatten(0, 1).movedim(1, -1).float().cpu().contiguous()


def first_mask(mask: Tensor | None) -> Tensor | None:
    """Return the first of a MASK (b, H, W) in [0, 1]."""
    return None if mask is None else mask.reshape(-1, *mask.shape[-2:])[0].float().cpu()


def to_picture(values: Tensor) -> Image.Image:
    """Convert an image (H, W, C) or a mask (H, W) in [0, 1] to a PIL image."""
    return Image.fromarray((values.float().clamp(0, 1) * 255).round().byte().cpu().numpy())


class ProgressReport:
    """ComfyUI's progress bar over steps (of sampling, or frames that are read), then decoded frames.

    Raises when the user stops the queue.
    """

    def __init__(self, num_steps: int, num_frames: int) -> None:
        self.num_steps = num_steps
        self.total = num_steps + num_frames
        self.bar = importlib.import_module("comfy.utils").ProgressBar(self.total)
        self.stop_if_interrupted: Callable[[], None] = importlib.import_module(
            "comfy.model_management"
        ).throw_exception_if_processing_interrupted

    def step(self, _pipe: object, step: int, _timestep: Tensor, _tensors: dict[str, Tensor]) -> None:
        """Report a step, counted from 0, as `callback_on_step_end`."""
        self._update(step + 1)

    def reading(self, frames: Tensor) -> Iterator[Tensor]:
        """Yield frames (n, C, H, W) one by one, and report each."""
        for done, frame in enumerate(frames, 1):
            yield frame
            self._update(done)

    def decoded(self, num_frames: int) -> None:
        """Report decoded frames, as `callback_on_decode`."""
        self._update(self.num_steps + num_frames)

    def _update(self, done: int) -> None:
        self.stop_if_interrupted()
        self.bar.update_absolute(min(done, self.total), self.total)


class LoadNode:
    """Loads a model."""

    CATEGORY, FUNCTION = CATEGORY, "load"
    DESCRIPTION = "Loads a model of lfdm: a bundled one, or a model or run folder in models/lfdm."
    RETURN_TYPES: ClassVar[tuple[str, ...]] = (MODEL, "STRING")
    RETURN_NAMES: ClassVar[tuple[str, ...]] = ("model", "labels")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        """Return the inputs as ComfyUI wants them."""
        dtypes = (["float32", "bfloat16", "float16"], {"tooltip": "Number format of the networks."})
        return {"required": {"model": (sorted(find_models()),), "dtype": dtypes}}

    def load(self, model: str, dtype: str) -> tuple[LatentFlowPipeline, str]:
        """Return the pipeline on ComfyUI's device, and its labels, one a line."""
        models = find_models()
        if model not in models:
            raise UserError(f"model must be one of {', '.join(sorted(models))}; got {model!r}")
        device = importlib.import_module("comfy.model_management").get_torch_device()
        pipe = LatentFlowPipeline.from_pretrained(models[model], torch_dtype=getattr(torch, dtype), device=device)
        pipe.set_progress_bar_config(disable=True)
        return pipe, "\n".join(pipe.condition.labels)


class GenerateNode:
    """Makes a video of every image under a condition."""

    CATEGORY, FUNCTION = CATEGORY, "generate"
    DESCRIPTION = "Animates images by a label. Several images give several videos, one after the other in the batch."
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ("IMAGE", MOTION, "FLOAT")
    RETURN_NAMES: ClassVar[tuple[str, ...]] = ("frames", "motion", "fps")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        """Return the inputs as ComfyUI wants them; 0 and -1 are the model's own value."""
        required: dict[str, tuple[Any, ...]] = {
            "model": (MODEL,),
            "image": ("IMAGE",),
            "condition": ("STRING", {"default": "wave", "tooltip": "Label, or a mix such as wave=0.7,jump=0.3; empty: none."}),
            "seed": ("INT", {"default": 0, "min": 0, "max": MAX_SEED, "control_after_generate": True}),
            "num_frames": ("INT", {"default": 0, "min": 0, "max": 10_000, "tooltip": "0: as in training."}),
            "num_inference_steps": ("INT", {"default": 0, "min": 0, "max": 1000, "tooltip": "0: the model's."}),
            "guidance_scale": ("FLOAT", {"default": -1.0, "min": -1.0, "max": 100.0, "step": 0.1, "tooltip": "-1: the model's."}),
            "motion_strength": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 2.0, "step": 0.05}),
            "loop": ("BOOLEAN", {"default": False, "tooltip": "Let the last frame lead into the first."}),
            "full_size": ("BOOLEAN", {"default": False, "tooltip": "Frames in the image's own size, from its own pixels."}),
        }
        mask = ("MASK", {"tooltip": "White moves, black stays still; of the image's size."})
        return {"required": required, "optional": {"motion_mask": mask, "control": (CONTROL,)}}

    def generate(
        self,
        model: LatentFlowPipeline,
        image: Tensor,
        condition: str,
        seed: int,
        num_frames: int,
        num_inference_steps: int,
        guidance_scale: float,
        motion_strength: float,
        loop: bool,
        full_size: bool,
        motion_mask: Tensor | None = None,
        control: Control | None = None,
    ) -> tuple[Tensor, LatentFlowOutput, float]:
        """Return frames (b * t, H, W, C), the output with the motion, and the frame rate."""
        scale = None if guidance_scale < 0 else guidance_scale
        frames, steps, _ = model.sampling_settings(num_frames or None, num_inference_steps or None, scale, loop=loop)
        report = ProgressReport(steps, frames)
        result = model(
            to_pictures(image),
            parse_condition(condition.strip() or None, model.condition.labels),
            num_frames=num_frames or None,
            num_inference_steps=num_inference_steps or None,
            guidance_scale=scale,
            generator=seed,
            motion_strength=motion_strength,
            motion_mask=first_mask(motion_mask),
            control=control,
            loop=loop,
            output_size="native" if full_size else "model",
            output_type="pt",
            callback_on_step_end=report.step,
            callback_on_decode=report.decoded,
        )
        if result.control is not None:
            lines = [line for sample in range(len(result.control.distance)) for line in result.control.messages(sample)]
            logging.getLogger(__name__).info("\n".join(lines))
        return to_image(result), result, float(model.config["fps"])


class ControlNode:
    """Says where points go, what stays, how much parts move, how a video ends, and labels over time."""

    CATEGORY, FUNCTION = CATEGORY, "control"
    DESCRIPTION = "Controls the motion. Positions are X,Y in pixels of the image, times 0 to 1; one entry a line."
    RETURN_TYPES: ClassVar[tuple[str, ...]] = (CONTROL,)
    RETURN_NAMES: ClassVar[tuple[str, ...]] = ("control",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        """Return the inputs as ComfyUI wants them; everything may stay empty."""

        def text(tooltip: str, *, multiline: bool = True) -> tuple[Any, ...]:
            return ("STRING", {"default": "", "multiline": multiline, "tooltip": tooltip})

        radius = {"default": 0.0, "min": 0.0, "max": float(MAX_SIDE), "step": 0.5}
        strength = {"default": 1.0, "min": 0.0, "max": MAX_PART_STRENGTH, "step": 0.05}
        required: dict[str, tuple[Any, ...]] = {
            "drags": text("20,30:40,18, or by times 20,30:28,10@0.4:40,18@1; for models that follow tracks."),
            "drag_radius": ("FLOAT", radius | {"tooltip": "Pixels around each point that move with it; 0: only the point."}),
            "pins": text("5,60: a point that stays; for models that follow tracks."),
            "part_strengths": text("20,30=0.5: how much the part at a point moves, 0 to 2."),
            "labels": text("wave@0-0.5, jump@0.5-1; leave the condition of Generate empty.", multiline=False),
            "mask_strength": ("FLOAT", strength | {"tooltip": "How much the white part of part_mask moves."}),
        }
        mask = ("MASK", {"tooltip": "A part, white, of the image's size."})
        end = ("IMAGE", {"tooltip": "The pose of the last frame, in the image's shape."})
        return {"required": required, "optional": {"part_mask": mask, "end_image": end}}

    def control(
        self,
        drags: str,
        drag_radius: float,
        pins: str,
        part_strengths: str,
        labels: str,
        mask_strength: float,
        part_mask: Tensor | None = None,
        end_image: Tensor | None = None,
    ) -> tuple[Control]:
        """Return the control.

        Raises:
            UserError: a line of another form, or a contradiction.
        """
        strengths = [parse_part_strength(line) for line in _lines(part_strengths)]
        if any(part.at is None for part in strengths):
            raise UserError(f"part_strengths must be X,Y=VALUE (connect a mask to part_mask); got {part_strengths!r}")
        mask = first_mask(part_mask)
        if mask is not None:
            strengths.append(PartStrength(value=mask_strength, mask=to_picture(mask)))
        spans = parse_labels(labels)
        if labels.strip() and not spans:
            raise UserError(f"labels must be LABEL@START-END, such as wave@0-0.5, jump@0.5-1; got {labels!r}")
        control = Control(
            drags=tuple(parse_drag(line, drag_radius or None) for line in _lines(drags)),
            pins=tuple(parse_point(line, "pins") for line in _lines(pins)),
            strengths=tuple(strengths),
            end_image=None if end_image is None else to_picture(end_image[0]),
            labels=spans,
        )
        return (control,)


def _lines(text: str) -> list[str]:
    """Return the lines of a text that are not empty."""
    return [line.strip() for line in text.splitlines() if line.strip()]


class TransferNode:
    """Transfers the motion of a video to an image."""

    CATEGORY, FUNCTION = CATEGORY, "transfer"
    DESCRIPTION = "Moves an image as a driving video moves; the first frame of the video should be in the image's pose."
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ("IMAGE", MOTION)
    RETURN_NAMES: ClassVar[tuple[str, ...]] = ("frames", "motion")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        """Return the inputs as ComfyUI wants them."""
        required: dict[str, tuple[Any, ...]] = {
            "model": (MODEL,),
            "image": ("IMAGE",),
            "driving": ("IMAGE", {"tooltip": "Frames of the driving video."}),
            "relative": ("BOOLEAN", {"default": True, "tooltip": "Measure the motion against the video's first frame."}),
            "motion_strength": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 2.0, "step": 0.05}),
            "full_size": ("BOOLEAN", {"default": False, "tooltip": "Frames in the image's own size, from its own pixels."}),
        }
        mask = ("MASK", {"tooltip": "White moves, black stays still; of the image's size."})
        return {"required": required, "optional": {"motion_mask": mask}}

    def transfer(
        self,
        model: LatentFlowPipeline,
        image: Tensor,
        driving: Tensor,
        relative: bool,
        motion_strength: float,
        full_size: bool,
        motion_mask: Tensor | None = None,
    ) -> tuple[Tensor, LatentFlowOutput]:
        """Return frames (t, H, W, C), and the output with the motion."""
        report = ProgressReport(len(driving), len(driving))
        result = model.transfer(
            to_pictures(image),
            report.reading(to_pictures(driving[..., :3])),
            relative=relative,
            motion_strength=motion_strength,
            motion_mask=first_mask(motion_mask),
            output_size="native" if full_size else "model",
            output_type="pt",
            callback_on_decode=report.decoded,
        )
        return to_image(result), result


class MotionPreviewNode:
    """Draws the motion of a video."""

    CATEGORY, FUNCTION = CATEGORY, "preview"
    DESCRIPTION = "Draws flow (colour: direction), arrows, or what is painted anew (black in the occlusion map)."
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ("IMAGE",)
    RETURN_NAMES: ClassVar[tuple[str, ...]] = ("drawing",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        """Return the inputs as ComfyUI wants them."""
        video = ("INT", {"default": 0, "min": 0, "max": 10_000, "tooltip": "Which video, if there are several."})
        return {"required": {"motion": (MOTION,), "tile": (list(TILES),), "video": video}}

    def preview(self, motion: LatentFlowOutput, tile: Any, video: int) -> tuple[Tensor]:
        """Return drawings (t, H, W, 3)."""
        return (torch.from_numpy(motion.show((tile,), sample=video).frames).float() / 255,)
