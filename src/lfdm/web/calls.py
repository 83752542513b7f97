"""The calls of page and API: each takes one request and yields its progress and its result. Independent of gradio."""

import itertools
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lfdm.errors import UserError
from lfdm.folders.files import as_file_name
from lfdm.motion.motion import Motion
from lfdm.pipeline.lengths import MAX_PASS_FACTOR
from lfdm.pipeline.pipeline import LatentFlowPipeline
from lfdm.pipeline.result import LatentFlowOutput
from lfdm.web.jobs import Finished, JobProgress, Jobs, Report
from lfdm.web.limits import MEGA, ServeLimits
from lfdm.web.requests import Choices, GenerateRequest, RequestReader, TransferRequest, resize_mask, with_masks_of_size
from lfdm.web.results import CALLS_PER_FRAME, VideoResult, write_result
from lfdm.web.storage import Storage
from lfdm.web.track_points import track_points
from lfdm.web.uploads import open_clip, read_upload

Updates = AsyncGenerator[JobProgress | Finished[list[VideoResult]], None]


class Calls:
    """Answers requests with a trained pipeline."""

    def __init__(
        self,
        pipe: LatentFlowPipeline,
        choices: Choices,
        limits: ServeLimits,
        storage: Storage,
        generator: Callable[..., LatentFlowOutput] | None = None,
    ) -> None:
        """Set up the calls; `generator` makes the videos of `generate` instead of the pipeline, called in the same way."""
        self.choices = choices
        self.limits = limits
        self.storage = storage
        self._reader = RequestReader(choices, limits, storage)
        self._jobs = Jobs(limits.num_jobs)
        self._pipe = type(pipe)(**pipe.components)  # the same networks, for jobs in several threads
        self._pipe.set_progress_bar_config(disable=True)
        self._generator = generator or self._pipe

    def generate(self, **fields: object) -> Updates:
        """Generate videos of one picture and a label; the fields are those of `RequestReader.generate`.

        Raises:
            UserError: a field or a file that is not allowed; raised by the first iteration.
        """
        return self._jobs.run(lambda report: self._generate(self._reader.generate(**fields), report))

    def transfer(self, **fields: object) -> Updates:
        """Transfer the motion of a clip to a picture; the fields are those of `RequestReader.transfer`.

        Raises:
            UserError: a field or a file that is not allowed; raised by the first iteration.
        """
        return self._jobs.run(lambda report: self._transfer(self._reader.transfer(**fields), report))

    def close(self) -> None:
        """Wait for running jobs."""
        self._jobs.close()

    def _generate(self, request: GenerateRequest, report: Report) -> list[VideoResult]:
        steps = request.num_inference_steps
        total = steps * len(request.seeds)
        report(0, total)
        image, mask = self._read_picture(request)
        options = self._size_arguments(image, request.num_frames, full_size=request.full_size)
        if request.control is not None:
            options["control"] = with_masks_of_size(request.control, (image.shape[0], image.shape[1]))
        folder = self.storage.new_result()
        results = []
        with self.storage.held(folder):
            for k, seed in enumerate(request.seeds):  # one at a time, so that memory does not grow with their number
                notice = partial(report, (k + 1) * steps, total)  # no progress, but it stops a cancelled job

                def after_step(_: object, index: int, *rest: object, done: int = k * steps) -> dict[str, Tensor]:  # noqa: ARG001
                    report(done + index + 1, total)
                    return {}

                output = self._generator(
                    image,
                    request.condition,
                    generator=seed,
                    num_frames=request.num_frames,
                    num_inference_steps=steps,
                    guidance_scale=request.guidance_scale,
                    motion_strength=request.motion_strength,
                    motion_mask=mask,
                    fit=request.fit,
                    loop=request.loop,
                    output_type="uint8",
                    callback_on_step_end=after_step,
                    callback_on_decode=lambda _, stop=notice: stop(),
                    **options,
                )
                label = _describe(request)
                frames, motion = _only_sample(output)
                name = f"{as_file_name(label)}-{seed}"
                title, fps = f"{label}, seed {seed}", self._pipe.config["fps"]
                shown = write_result(folder, name, title, frames, motion, fps=fps, after_frame=notice)
                results.append(replace(shown, points=track_points(output), note=_left_over(output)))
        return results

    def _transfer(self, request: TransferRequest, report: Report) -> list[VideoResult]:
        """Estimate the clip's motion, decode and write; each counts as a third of the steps."""
        image, mask = self._read_picture(request)
        clip = open_clip(request.driving, self.limits)
        folder = self.storage.new_result()
        n, total = clip.num_frames, 3 * clip.num_frames
        size = self._size_arguments(image, n, full_size=request.full_size)
        written = itertools.count(1)

        def driving_frames() -> Iterator[np.ndarray]:
            for k, frame in enumerate(clip.frames):
                report(k, total)
                yield frame

        with self.storage.held(folder), self.storage.held(request.driving.parent):  # its sound is read last
            output = self._pipe.transfer(
                image,
                driving_frames(),
                relative=request.relative,
                motion_strength=request.motion_strength,
                motion_mask=mask,
                fit=request.fit,
                output_type="uint8",
                callback_on_decode=lambda decoded: report(n + decoded, total),
                **size,
            )
            frames, motion = _only_sample(output)
            result = write_result(
                folder,
                "transfer",
                request.driving.stem,
                frames,
                motion,
                fps=clip.fps,
                after_frame=lambda: report(2 * n + next(written) // CALLS_PER_FRAME, total),
                sound=request.driving if request.audio and clip.may_sound else None,
                note=clip.note,
            )
        return [result]

    def _read_picture(self, request: GenerateRequest | TransferRequest) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the picture (H, W, 3) uint8 and its mask (H, W) in [0, 1]."""
        image = read_upload(request.image, self.limits)
        return image, None if request.mask is None else resize_mask(request.mask, (image.shape[0], image.shape[1]))

    def _size_arguments(self, image: np.ndarray, num_frames: int, *, full_size: bool) -> dict[str, Any]:
        """Return the arguments of the pipeline for the size of frames; UserError for more pixels than the limit."""
        if not full_size:
            return {}
        limit, (height, width) = self.limits.full_size_megapixels, image.shape[:2]
        megapixels = height * width * num_frames / MEGA
        if megapixels > limit:
            raise UserError(
                f"full_size allows {limit:g} megapixels in all; got {num_frames} frames of {width}x{height} ({megapixels:.1f} "
                "megapixels): choose fewer frames or a smaller picture"
            )
        return {"output_size": "native", "max_megapixels": limit}


def choices_of(pipe: LatentFlowPipeline, examples: tuple[Path, ...]) -> Choices:
    """Return the labels, examples, defaults and limits that a pipeline allows."""
    config = pipe.config
    return Choices(
        labels=tuple(pipe.condition.labels),
        examples=examples,
        max_frames=MAX_PASS_FACTOR * config["num_frames"],
        max_steps=pipe.max_inference_steps,
        num_frames=config["num_frames"],
        num_inference_steps=config["num_inference_steps"],
        guidance_scale=config["guidance_scale"],
        guidance_range=pipe.guidance_range,
        fit=config["fit"],
        follows_tracks=pipe.unet.track_inputs,
    )


def _describe(request: GenerateRequest) -> str:
    condition = request.condition
    if request.control is not None and request.control.labels:
        return ", ".join(f"{span.label}@{span.start:g}-{span.end:g}" for span in request.control.labels)
    if isinstance(condition, dict):
        return ",".join(f"{name}={weight:g}" for name, weight in condition.items())
    return condition or "unconditional"


def _left_over(output: LatentFlowOutput) -> str:
    return "" if output.control is None else "; ".join(output.control.messages(0))


def _only_sample(output: LatentFlowOutput) -> tuple[np.ndarray, Motion]:
    assert isinstance(output.frames, np.ndarray)
    return output.frames[0], output.motion_over_frames(0)
