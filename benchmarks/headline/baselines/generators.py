"""The baselines as `VideoGenerator`s.

Shapes: images (S, S, 3) uint8 · frames (b, t, S, S, 3) uint8.
"""

from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from einops import repeat
from torch import Tensor

from benchmarks.headline.baselines.denoiser import ClipDenoiser
from benchmarks.headline.baselines.space import ClipSpace
from lfdm.config.presets import Preset
from lfdm.data.cache import ClipCache
from lfdm.data.frame_indices import uniform_indices
from lfdm.diffusion.guidance import make_denoiser
from lfdm.diffusion.samplers import sample_noise
from lfdm.diffusion.schedulers import make_scheduler, predicted_by, run_sampler
from lfdm.errors import UserError
from lfdm.evaluation.generators import GeneratedVideos
from lfdm.pipeline.inputs import sample_generators
from lfdm.pipeline.pipeline import LatentFlowPipeline
from lfdm.pipeline.result import frames_to_uint8

OUTLINE_SIZE = 16
"""Side of the edge maps by which first frames are compared, in cells."""


class ClipDiffusionGenerator:
    """VDM or LDM: sample a clip from its first frame and its label. Frame 0 is the image itself, as in ours.

    `scheduler` is one for the denoiser's prediction type; guidance_scale 1 is the conditional prediction.
    """

    def __init__(
        self,
        name: str,
        denoiser: ClipDenoiser,
        space: ClipSpace,
        scheduler: Any,
        *,
        num_frames: int,
        num_inference_steps: int,
        guidance_scale: float = 1.0,
    ) -> None:
        self.name = name
        self.denoiser, self.space, self.scheduler = denoiser, space, scheduler
        self.num_frames, self.num_inference_steps, self.guidance_scale = num_frames, num_inference_steps, guidance_scale

    @classmethod
    def from_preset(cls, name: str, denoiser: ClipDenoiser, space: ClipSpace, preset: Preset) -> Self:
        """Use the scheduler, steps and guidance of our stage 2."""
        config = preset.diffusion
        return cls(
            name,
            denoiser,
            space,
            make_scheduler(config.sampler, prediction_type=config.prediction_type),
            num_frames=preset.num_frames,
            num_inference_steps=config.num_inference_steps,
            guidance_scale=config.guidance_scale,
        )

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray], labels: Sequence[str] | None, seeds: Sequence[int]) -> GeneratedVideos:
        device = self.denoiser.device
        stacked = np.stack(list(images))
        first = self.space.encode(torch.from_numpy(stacked).permute(0, 3, 1, 2)[:, :, None].to(device).float() / 255)
        rows = self.denoiser.rows([None] * len(stacked) if labels is None else labels).to(device)
        sample = self._sample(first[:, :, 0], rows, sample_generators(list(seeds), len(seeds)))
        frames = frames_to_uint8(self.space.decode(sample))
        frames[:, 0] = stacked
        return GeneratedVideos(frames, None)

    def _sample(self, first: Tensor, rows: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Sample (b, c, t, h, w), each from its own noise."""
        c, h, w = first.shape[1:]
        noise = sample_noise((c, self.num_frames, h, w), generators, first.device)
        denoise = make_denoiser(self._guided(first, rows), predicted_by(self.scheduler), self.space.clamp)
        sample = run_sampler(self.scheduler, denoise, noise, self.num_inference_steps, generators, lambda _, __, x: x)
        return self.space.clamp(sample)

    def _guided(self, first: Tensor, rows: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the guided denoiser as a function of sample and timestep; both predictions are made in one batched pass."""
        denoiser, scale = self.denoiser, self.guidance_scale
        null = torch.full_like(rows, -1)
        if scale in (0, 1):
            chosen = rows if scale == 1 else null
            return lambda sample, time: denoiser(sample, time.expand(len(sample)), chosen, first)
        both, firsts = torch.cat((null, rows)), repeat(first, "b c h w -> (two b) c h w", two=2)

        def predict(sample: Tensor, time: Tensor) -> Tensor:
            doubled = denoiser(sample.repeat(2, 1, 1, 1, 1), time.expand(2 * len(sample)), both, firsts)
            without, with_label = doubled.chunk(2)
            return without + scale * (with_label - without)

        return predict


class CopyGenerator:
    """Repeat the image in every frame."""

    name = "copy"

    def __init__(self, num_frames: int) -> None:
        self.num_frames = num_frames

    def __call__(self, images: Sequence[np.ndarray], labels: Sequence[str] | None, seeds: Sequence[int]) -> GeneratedVideos:
        del labels, seeds
        return GeneratedVideos(repeat(np.stack(list(images)), "b h w c -> b t h w c", t=self.num_frames).copy(), None)


class NearestMotionGenerator:
    """Transfer the motion of the training clip of the requested label whose first frame looks most alike.

    First frames are compared by `outline`, which ignores colours: relative transfer needs a figure in the same pose and place.
    Our stage 1 applies the clip's motion to the image.
    """

    name = "nearest"

    def __init__(self, pipeline: LatentFlowPipeline, clips: ClipCache, *, num_frames: int) -> None:
        self.pipeline, self.clips, self.num_frames = pipeline, clips, num_frames
        self.labels = np.array([record.label for record in clips.records])
        self.outlines = np.stack([outline(clips.clip(i)[0]) for i in range(len(clips))])

    def nearest(self, image: np.ndarray, label: str | None) -> int:
        """Return the index of the closest training clip of `label` (None: any label). UserError for a label without clips."""
        allowed = np.flatnonzero(self.labels == label) if label is not None else np.arange(len(self.labels))
        if not len(allowed):
            raise UserError(f"no training clip of the label {label!r}; there are {sorted(set(self.labels.tolist()))}")
        distance = np.square(self.outlines[allowed] - outline(image)).sum(axis=(1, 2))
        return int(allowed[distance.argmin()])

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray], labels: Sequence[str] | None, seeds: Sequence[int]) -> GeneratedVideos:
        del seeds
        requested = [None] * len(images) if labels is None else labels
        frames = []
        for image, label in zip(images, requested, strict=True):
            index = self.nearest(image, label)
            driving = np.asarray(self.clips.clip(index)[uniform_indices(self.clips.num_frames(index), self.num_frames)])
            frames.append(np.asarray(self.pipeline.transfer(image, driving, relative=True, output_type="uint8").frames)[0])
        return GeneratedVideos(np.stack(frames), None)


def outline(image: np.ndarray) -> np.ndarray:
    """Return the edge strength of an image (S, S, 3) uint8 in 16x16 cells, with unit norm: (16, 16) float64."""
    grey = image.astype(np.float64).mean(axis=2)
    edges = np.hypot(*np.gradient(grey))
    values = F.adaptive_avg_pool2d(torch.from_numpy(edges)[None], OUTLINE_SIZE)[0].numpy()
    return values / max(float(np.linalg.norm(values)), 1e-9)
