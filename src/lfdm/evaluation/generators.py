"""What is judged on generation: anything that makes videos from first frames. `PipelineGenerator` wraps our own pipeline.

Shapes: images (S, S, 3) uint8 · frames (b, t, S, S, 3) uint8, frame 0 the image as the generator shows it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, get_args

import numpy as np
import torch

from lfdm.config.checks import check_integer, check_number
from lfdm.config.diffusion import MAX_GUIDANCE_SCALE, SchedulerName
from lfdm.diffusion.process import make_scheduler, predicted_by
from lfdm.errors import UserError
from lfdm.motion.motion import Motion
from lfdm.pipeline.pipeline import LatentFlowPipeline


@dataclass(frozen=True)
class GeneratedVideos:
    """A batch of generated clips."""

    frames: np.ndarray
    """(b, t, S, S, 3) uint8."""
    motion: Motion | None
    """Of the same b and t; None for a generator that knows none."""

    def __post_init__(self) -> None:
        if self.frames.ndim != 5 or self.frames.shape[-1] != 3 or self.frames.dtype != np.uint8:
            raise UserError(f"frames must be (b, t, S, S, 3) uint8; got {self.frames.shape} {self.frames.dtype}")
        if self.motion is not None and self.motion.flow.shape[0:3:2] != self.frames.shape[:2]:
            raise UserError(
                f"motion must have the frames' batch and length {self.frames.shape[:2]}; got {tuple(self.motion.flow.shape)}"
            )


class VideoGenerator(Protocol):
    """Makes one video per image. A video must depend on its image, label and seed alone, not on the rest of the batch."""

    name: str

    def __call__(self, images: Sequence[np.ndarray], labels: Sequence[str] | None, seeds: Sequence[int]) -> GeneratedVideos:
        """`images` (S, S, 3) uint8, as many `seeds`, and as many `labels` or None: unconditional."""
        ...


class PipelineGenerator:
    """`LatentFlowPipeline` with its sampling settings.

    Args:
        num_frames, num_inference_steps, guidance_scale, scheduler: None = the pipeline's own; a scheduler replaces it.
        bf16: run the networks under bfloat16 autocast.

    Raises:
        UserError: a setting that is not allowed.
    """

    def __init__(
        self,
        pipeline: LatentFlowPipeline,
        *,
        name: str = "lfdm",
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        scheduler: SchedulerName | None = None,
        bf16: bool = False,
    ) -> None:
        if scheduler is not None:
            pipeline.scheduler = _other_scheduler(pipeline, scheduler)
        settings = pipeline.config
        steps = settings["num_inference_steps"] if num_inference_steps is None else num_inference_steps
        scale = settings["guidance_scale"] if guidance_scale is None else guidance_scale
        self.name = name
        self.pipeline = pipeline
        self.num_frames: int = settings["num_frames"] if num_frames is None else num_frames
        most_steps = pipeline.scheduler.config.num_train_timesteps
        self.num_inference_steps = check_integer("num_inference_steps", steps, 1, most_steps)
        self.guidance_scale = check_number("guidance_scale", scale, low=0, high=MAX_GUIDANCE_SCALE)
        self.bf16 = bf16

    @property
    def settings(self) -> dict[str, Any]:
        """How it samples, for the record."""
        return {
            "scheduler": type(self.pipeline.scheduler).__name__,
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
        }

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray], labels: Sequence[str] | None, seeds: Sequence[int]) -> GeneratedVideos:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        with torch.autocast(self.pipeline.device.type, torch.bfloat16, enabled=self.bf16):
            output = self.pipeline(
                list(images),
                labels,
                num_frames=self.num_frames,
                num_inference_steps=self.num_inference_steps,
                guidance_scale=self.guidance_scale,
                generator=generators,
                output_type="np",
            )
        return GeneratedVideos(np.asarray(output.frames), output.motion)


def _other_scheduler(pipeline: LatentFlowPipeline, name: SchedulerName) -> Any:
    if name not in get_args(SchedulerName):
        raise UserError(f"scheduler must be one of {', '.join(get_args(SchedulerName))}; got {name!r}")
    scheduler = pipeline.scheduler
    return make_scheduler(name, prediction_type=predicted_by(scheduler), paper=bool(scheduler.config.get("thresholding", False)))
