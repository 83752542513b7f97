"""Makes the videos of batches of requests with one model."""

import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from lfdm.config.checks import check_integer
from lfdm.data.images import read_gray
from lfdm.data.pictures import read_picture
from lfdm.distributed.requests import VideoRequest
from lfdm.distributed.results import Result
from lfdm.errors import MissingExtraError, UserError
from lfdm.folders.remote import StoredFolder, is_url, read_url
from lfdm.pipeline.inputs import parse_condition
from lfdm.pipeline.outputs import OUT_ENDINGS, VideoFiles
from lfdm.pipeline.pipeline import LatentFlowPipeline
from lfdm.pipeline.result import LatentFlowOutput

logger = logging.getLogger(__name__)

MAX_BATCH = 1024


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """Settings that all videos of a batch job share.

    Raises:
        UserError: a value that is not allowed.
    """

    model: str
    """Name or folder of the model."""
    out: str
    """Folder or URL of the results."""
    base: str = "."
    """Folder that paths of images are relative to."""
    file_format: str = "mp4"
    """Ending of the videos."""
    batch_size: int = 8
    """Most videos that are made at once."""
    fps: float | None = None
    """Frames per second; None = the model's."""
    scale: int = 1
    """Whole factor by which videos are enlarged."""
    dtype: str = "float32"
    """Number format of the networks."""

    def __post_init__(self) -> None:
        if f".{self.file_format}" not in OUT_ENDINGS:
            allowed = ", ".join(ending[1:] for ending in OUT_ENDINGS)
            raise UserError(f"file_format must be one of {allowed}; got {self.file_format!r}")
        check_integer("batch_size", self.batch_size, 1, MAX_BATCH)
        self.files(Path("video"))  # checks fps and scale

    def files(self, stem: Path) -> VideoFiles:
        """Return the files of one video."""
        return VideoFiles(out=stem.with_name(f"{stem.name}.{self.file_format}"), fps=self.fps, scale=self.scale)


class VideoWorker:
    """Makes videos of requests with a loaded model.

    Raises:
        UserError: no such model, or one that cannot be read.
    """

    def __init__(self, settings: BatchSettings, device: str) -> None:
        self.settings = settings
        dtype = getattr(torch, settings.dtype)
        self.pipe = LatentFlowPipeline.from_pretrained(settings.model, device=device, dtype=dtype)
        self.pipe.set_progress_bar_config(disable=True)
        self.folder = StoredFolder(settings.out)

    def make(self, batch: Sequence[VideoRequest], wanted: Sequence[str]) -> list[Result]:
        """Make the videos of a batch of equal settings and write those whose keys are `wanted`; return their results.

        All are made, since a video's last digits depend on those that are made with it: a batch that is repeated gives the same
        files. A request that fails has a result with an error.
        """
        pictures: dict[str, np.ndarray] = {}
        results = {}
        for request in batch:
            try:
                pictures[request.key] = self._read(request)
            except Exception as error:
                results[request.key] = Result(request.key, error=_describe(error, request))
        for group in self._compatible([one for one in batch if one.key in pictures], pictures):
            for result in self._make_or_halve(group, pictures, set(wanted)):
                results[result.key] = result
        return [results[key] for key in wanted]

    def _read(self, request: VideoRequest) -> np.ndarray:
        """Return the picture of a request, after a check of what differs between requests of a batch."""
        self.pipe.embed_condition([parse_condition(request.condition, self.pipe.condition.labels)])
        keep_alpha = not self.settings.files(Path("video")).loses_alpha()
        return self._read_file(request.image, partial(read_picture, keep_alpha=keep_alpha))

    def _read_file(self, source: str, read: Callable[[Path], np.ndarray]) -> np.ndarray:
        """Return what `read` makes of the file at a path or URL."""
        if not is_url(source):
            return read(Path(self.settings.base) / source)
        with tempfile.TemporaryDirectory(prefix="lfdm-batch-") as folder:
            path = Path(folder) / (PurePosixPath(source.split("?")[0]).name or "picture")
            path.write_bytes(read_url(source))
            return read(path)

    @staticmethod
    def _compatible(batch: Sequence[VideoRequest], pictures: dict[str, np.ndarray]) -> list[list[VideoRequest]]:
        """Split a batch into requests whose pictures can be animated together: with alpha or not, and of one shape if needed."""
        groups: dict[object, list[VideoRequest]] = {}
        for request in batch:
            shape = pictures[request.key].shape
            own_shape = request.fit == "native" or request.pixel_art or request.motion_mask is not None
            groups.setdefault(shape if own_shape else shape[-1], []).append(request)
        return list(groups.values())

    def _make_or_halve(self, group: Sequence[VideoRequest], pictures: dict[str, np.ndarray], wanted: set[str]) -> list[Result]:
        """Make and write a group of videos; where that fails, try each half, down to single requests."""
        if not any(request.key in wanted for request in group):
            return []
        started = time.monotonic()
        try:
            output = self._sample(group, [pictures[request.key] for request in group])
            names = {one.key: self._write(one, pictures[one.key], output, i) for i, one in enumerate(group) if one.key in wanted}
            seconds = round((time.monotonic() - started) / len(group), 3)
            return [Result(key, name, seconds) for key, name in names.items()]
        except Exception as error:
            if len(group) == 1:
                return [Result(group[0].key, error=_describe(error, group[0]))]
        half = len(group) // 2
        return [
            *self._make_or_halve(group[:half], pictures, wanted),
            *self._make_or_halve(group[half:], pictures, wanted),
        ]

    def _sample(self, group: Sequence[VideoRequest], pictures: list[np.ndarray]) -> LatentFlowOutput:
        shared, labels = group[0], self.pipe.condition.labels
        conditions: Any = [parse_condition(request.condition, labels) for request in group]
        return self.pipe(
            pictures,
            None if all(one is None for one in conditions) else conditions,
            num_frames=shared.num_frames,
            num_inference_steps=shared.num_inference_steps,
            guidance_scale=shared.guidance_scale,
            negative_condition=parse_condition(shared.negative_condition, labels),
            generator=[request.seed for request in group],
            motion_strength=shared.motion_strength,
            motion_mask=None if shared.motion_mask is None else self._read_file(shared.motion_mask, read_gray),
            fit=shared.fit,
            loop=shared.loop,
            output_size="native" if shared.full_size else "model",
            pixel_art=shared.pixel_art,
            output_type="uint8",
        )

    def _write(self, request: VideoRequest, picture: np.ndarray, output: LatentFlowOutput, index: int) -> str:
        """Write video `index` of an output and return its name."""
        one = slice(index, index + 1)
        video = LatentFlowOutput(output.frames[one], output.warped[one], output.motion.samples(index, index + 1))
        name = self.settings.files(Path(request.file_stem)).out.name
        with self.folder.writing(name) as path:
            list(self.settings.files(path.with_suffix("")).write(self.pipe, picture, [video]))
        return name


def _describe(error: Exception, request: VideoRequest) -> str:
    """Return the line of an error for the manifest; the traceback of a bug is logged."""
    if isinstance(error, UserError | MissingExtraError | OSError | MemoryError | torch.OutOfMemoryError):
        return str(error) or type(error).__name__
    logger.error("%s: an error in lfdm", request, exc_info=error)
    return f"error in lfdm: {type(error).__name__}: {error}"
