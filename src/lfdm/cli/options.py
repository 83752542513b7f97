"""Options that several commands share; tyro flattens each class into the options of a command."""

import gc
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from lfdm.config.video import PanelFormat, PanelKind, PictureFit, SheetFormat
from lfdm.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from lfdm.pipeline.outputs import VideoFiles
    from lfdm.pipeline.pipeline import LatentFlowPipeline
    from lfdm.pipeline.transfer import MotionTransfer, Stage1Pipeline

DEFAULT_MODEL = "puppets64"

Dtype = Literal["float32", "bfloat16", "float16"]
Panel = Annotated[tuple[PanelKind, ...] | None, arg(metavar="[KIND ...]")]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Model, device and number format."""

    model: str = DEFAULT_MODEL
    """Bundled name, pipeline folder, diffusion run folder or Hub repository; to transfer or reuse motion also a stage-1 run."""
    device: str | None = None
    """cpu, cuda, cuda:1, ...; by default the GPU if there is one."""
    dtype: Dtype | Literal["auto"] = "float32"
    """Number format of the networks; auto = bfloat16 where the device is faster in it, otherwise float32."""
    fit: PictureFit | None = None
    """Black borders (pad), the central part (crop) or stretching for images of another shape than in training, or `native`: a
    video in the image's own shape. By default as in training."""

    def open(self) -> "LatentFlowPipeline":
        """Load the model."""
        return open_pipeline(self.model, self.device, dtype=self.torch_dtype())

    def open_stage1(self) -> "Stage1Pipeline":
        """Load stage 1 of the model, or of a stage-1 run."""
        from lfdm.pipeline.transfer import Stage1Pipeline

        return Stage1Pipeline.from_pretrained(self.model, dtype=self.torch_dtype(), device=pick_device(self.device))

    def torch_dtype(self) -> "torch.dtype":
        """Return the number format as torch knows it, that of `auto` for the device."""
        import torch

        from lfdm.folders.components import has_fast_bfloat16

        if self.dtype != "auto":
            return getattr(torch, self.dtype)
        return torch.bfloat16 if has_fast_bfloat16(torch.device(pick_device(self.device))) else torch.float32


@dataclass(frozen=True, kw_only=True)
class ControlOptions:
    """How the motion is applied to the image."""

    motion_strength: float = 1.0
    """Factor of the motion, 0 to 2; 0 = a still image."""
    motion_mask: Path | None = None
    """Picture of the image's size: white moves, black stays still."""
    pixel_art: bool = False
    """Frames in the image's own size, of its own pixels and colours, with hard edges."""


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Files to write."""

    out: Path | None = None
    """mp4, webm, mov, gif, webp or apng file; json for a sprite sheet, with the picture next to it; without an ending, a folder
    of lossless PNGs. All but mp4 keep the alpha of an image. By default an mp4 in the current folder, named after the label, and
    numbered if that exists: wave.mp4, wave-2.mp4, ..."""
    full_size: bool = False
    """Make frames in the image's own size: its own pixels, moved."""
    max_megapixels: float | None = None
    """Largest image for --full-size; by default 16, where 16 frames take 1.5 GB."""
    overwrite: bool = False
    """Replace files of earlier runs. Without it, an --out or --motion that exists is an error. Inputs are never replaced."""
    fps: float | None = None
    """Frames per second; by default the model's or the driving video's."""
    scale: int = 1
    """Whole factor by which the written video is enlarged."""
    sheet_format: SheetFormat | None = None
    """Data of a sprite sheet: aseprite (the default), or hash or array as TexturePacker writes them."""
    panel: Panel = None
    """Also write <out>-panel.gif: source, generated, warped, flow and occlusion, or only the tiles named."""
    panel_format: PanelFormat | None = None
    """gif (the default), mp4, or png for a folder of frames."""
    motion: Path | None = None
    """Also save the motion to this .safetensors file, for --reuse-motion."""

    def size_arguments(self) -> dict[str, Any]:
        """Return the arguments of the pipeline for full-size frames; none without --full-size."""
        if not self.full_size:
            if self.max_megapixels is not None:
                raise UserError(f"--max-megapixels has no effect without --full-size; got {self.max_megapixels:g}")
            return {}
        limit = {} if self.max_megapixels is None else {"max_megapixels": self.max_megapixels}
        return {"output_size": "native", **limit}

    def files(
        self, name: str, inputs: Iterable[str | Path | None], *, num_videos: int = 1, fps: float | None = None
    ) -> "VideoFiles":
        """Check the options, and remove what killed runs left in the same folder.

        Args:
            name: Name of the file without --out.
            inputs: Files and folders that are read, which must not be replaced; pictures may be frames of clips.
            fps: Rate without --fps; None = the model's.
        """
        from lfdm.data.pictures import picture_file
        from lfdm.folders.files import as_file_name
        from lfdm.pipeline.outputs import VideoFiles

        files = VideoFiles(
            out=self.out or Path(f"{as_file_name(name)}.mp4"),
            num_videos=num_videos,
            fps=fps if self.fps is None else self.fps,
            scale=self.scale,
            sheet_format=self.sheet_format,
            motion=self.motion,
            **panel_options(self.panel, self.panel_format),
        )
        if self.out is None and not self.overwrite:
            files = files.with_free_name()
        files.check_targets([picture_file(path) for path in inputs if path is not None], overwrite=self.overwrite)
        files.remove_leftovers()
        return files


def panel_options(kinds: tuple[PanelKind, ...] | None, panel_format: PanelFormat | None) -> dict[str, Any]:
    """Return the panel arguments of `VideoFiles`: no tiles without --panel, the usual ones where it names none."""
    from lfdm.visualize import PANEL_KINDS

    if kinds is None:
        if panel_format is not None:
            raise UserError(f"--panel-format has no effect without --panel; got {panel_format}")
        return {}
    return {"panel": kinds or PANEL_KINDS, "panel_format": panel_format or "gif"}


def read_inputs(
    pipe: "MotionTransfer",
    image: Path,
    control: ControlOptions = ControlOptions(),
    fit: PictureFit | None = None,
    size_arguments: Mapping[str, Any] = {},
) -> "tuple[np.ndarray, dict[str, Any]]":
    """Return the fitted image (H, W, 3) uint8, and the arguments of `control` and `fit` with the mask fitted in the same way.

    An image that is not opaque everywhere is (H, W, 4). With `size_arguments`, for full-size frames, and for pixel art nothing is
    fitted.
    """
    from lfdm.data.alpha import fit_picture
    from lfdm.data.pictures import read_picture
    from lfdm.pipeline.inputs import picture_size, prepare_mask

    picture, mask = read_picture(image, keep_alpha=True), control.motion_mask
    steering = {"motion_strength": control.motion_strength, "motion_mask": mask, "fit": fit, **size_arguments}
    if control.pixel_art:
        return picture, {**steering, "pixel_art": True}
    if size_arguments:
        return picture, steering
    framing, own = pipe.framing([picture], fit), picture_size(picture)
    size, mask_fit = framing.size, framing.fit_of(own)
    fitted_mask = None if mask is None else prepare_mask(mask, size=size, fit=mask_fit, image_sizes=[own])[0]
    return fit_picture(picture, size, mask_fit), {**steering, "motion_mask": fitted_mask}


def open_pipeline(model: str, device: str | None, **options: Any) -> "LatentFlowPipeline":
    """Load a model; `options` are those of `LatentFlowPipeline.from_pretrained`."""
    from lfdm.pipeline.pipeline import LatentFlowPipeline

    pipe = LatentFlowPipeline.from_pretrained(model, device=pick_device(device), **options)
    pipe.set_progress_bar_config(desc="sampling", leave=False, disable=None)  # None: only on a terminal
    return pipe


def import_torch() -> None:
    """Import torch and exempt its objects from garbage collection, whose full passes over them would take 0.1 s each."""
    gc.disable()
    import torch  # noqa: F401

    gc.freeze()
    gc.enable()


def pick_device(name: str | None) -> str:
    """Return the device `name`, by default the GPU if there is one; UserError if it cannot be used."""
    import torch

    from lfdm.folders.components import check_device

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if check_device(name).type == "meta":
        raise UserError("device 'meta' cannot be used here: its tensors hold no values; try cpu")
    return name
