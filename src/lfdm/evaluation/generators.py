"""Generators of videos from first frames. `PipelineGenerator` wraps our own pipeline.

Shapes: images (H, W, 3) uint8 · frames (b, t, H, W, 3) uint8, where frame 0 is the generator's rendering of the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from lfdm.config.diffusion import SamplerName
from lfdm.diffusion.schedulers import make_scheduler, predicted_by, scheduler_name
from lfdm.motion.motion import Motion
from lfdm.pipeline.pipeline import LatentFlowPipeline


@dataclass(frozen=True, eq=False)
class GeneratedVideos:
    """A batch of generated videos."""

    frames: np.ndarray
    """(b, t, H, W, 3) uint8."""
    motion: Motion | None
    """Motion of the same b and t; None for a generator without flow."""


class VideoGenerator(Protocol):
    """Generates one video per image. A video must depend only on its image, label and seed, not on the rest of the batch."""

    name: str

    def __call__(self, images: Sequence[np.ndarray], labels: Sequence[str] | None, seeds: Sequence[int]) -> GeneratedVideos:
        """Generate videos for b images (H, W, 3) uint8, b labels (or None: unconditional) and b seeds."""
        ...


class PipelineGenerator:
    """`LatentFlowPipeline` with fixed sampling settings.

    Args:
        num_inference_steps, guidance_scale, sampler: None = the pipeline's own; a sampler replaces it.
        bf16: run the networks under bfloat16 autocast.

    Raises:
        UserError: a setting that is not allowed.
    """

    def __init__(
        self,
        pipeline: LatentFlowPipeline,
        *,
        name: str = "lfdm",
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        sampler: SamplerName | None = None,
        bf16: bool = False,
    ) -> None:
        if sampler is not None:
            pipeline.scheduler = _with_sampler(pipeline.scheduler, sampler)
        self.name = name
        self.pipeline = pipeline
        _, self.num_inference_steps, self.guidance_scale = pipeline.sampling_settings(
            num_inference_steps=num_inference_steps, guidance_scale=guidance_scale
        )
        self.bf16 = bf16

    @property
    def settings(self) -> dict[str, Any]:
        """Sampling settings, for results.json."""
        return {
            "scheduler": scheduler_name(self.pipeline.scheduler),
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
        }

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray], labels: Sequence[str] | None, seeds: Sequence[int]) -> GeneratedVideos:
        with torch.autocast(self.pipeline.device.type, torch.bfloat16, enabled=self.bf16):
            output = self.pipeline(
                list(images),
                labels,
                num_inference_steps=self.num_inference_steps,
                guidance_scale=self.guidance_scale,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                output_type="uint8",
            )
        return GeneratedVideos(np.asarray(output.frames), output.motion)


def _with_sampler(scheduler: Any, sampler: SamplerName) -> Any:
    """Return a scheduler with another sampler for the same network, with the paper's thresholding if that one has it."""
    paper = bool(scheduler.config.get("thresholding", False))
    return make_scheduler(sampler, prediction_type=predicted_by(scheduler), paper=paper)
