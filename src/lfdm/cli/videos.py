"""Commands that make videos, and `info`."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from lfdm.cli.console import progress_bar
from lfdm.config.presets import PRESETS
from lfdm.config.video import Fit, PanelFormat, PanelKind
from lfdm.errors import UserError
from lfdm.folders.files import as_file_name

if TYPE_CHECKING:
    import numpy as np

    from lfdm.pipeline.outputs import VideoFiles
    from lfdm.pipeline.pipeline import LatentFlowPipeline

DEFAULT_MODEL = "puppets64"
VIDEOS_PER_BATCH = 8
DEMO_SCALE = 4

Dtype = Literal["float32", "bfloat16", "float16"]
Panel = Annotated[tuple[PanelKind, ...] | None, arg(metavar="[KIND ...]")]


def demo(*, out: Path = Path("demo"), seed: int = 0, device: str | None = None, panel: Panel = None) -> None:
    """Make a video and a panel for every label of the bundled model, from its bundled images.

    Args:
        out: folder for <label>.mp4 and <label>-panel.gif.
        seed: of the noise.
        device: cpu, cuda, cuda:1, ...; the GPU if there is one.
        panel: tiles of the panels, as of `lfdm generate`.
    """
    from lfdm.folders.sources import bundled_images
    from lfdm.pipeline.outputs import VideoFiles, fitted_source

    pipe = open_pipeline(DEFAULT_MODEL, device)
    images = bundled_images(DEFAULT_MODEL)
    for i, label in enumerate(pipe.condition.labels):
        path = out / f"{as_file_name(label)}.mp4"
        files = VideoFiles(out=path, fps=pipe.config["fps"], scale=DEMO_SCALE, **_panel_options(panel or (), None))
        source = fitted_source(pipe, images[i % len(images)])
        _write(files, pipe, source, [pipe(source, label, generator=seed, output_type="np")])


def generate(
    image: Annotated[Path, Positional, arg(metavar="IMAGE")],
    condition: Annotated[str | None, Positional, arg(metavar="[CONDITION]")] = None,
    *,
    model: str = DEFAULT_MODEL,
    out: Path | None = None,
    num_frames: int | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    negative_condition: str | None = None,
    num_videos: int = 1,
    seed: int = 0,
    loop: bool = False,
    motion_strength: float = 1.0,
    motion_mask: Path | None = None,
    motion: Path | None = None,
    reuse_motion: Path | None = None,
    panel: Panel = None,
    panel_format: PanelFormat | None = None,
    unconditional: bool = False,
    fps: float | None = None,
    device: str | None = None,
    dtype: Dtype = "float32",
    fit: Fit | None = None,
    scale: int = 1,
) -> None:
    """Make videos from one image and a condition.

    Args:
        image: picture of any size and common format.
        condition: one of the model's labels (`lfdm info --model NAME` lists them), a mix of them such as wave=0.7,jump=0.3,
            or any text for a model with a text model; left out with --unconditional and --reuse-motion.
        model: bundled name, pipeline folder, diffusion run folder or Hub repository.
        out: mp4, webm or gif file, or without ending a folder of exact PNGs; by default <condition>.mp4.
        num_frames: up to 10000; by default the length of training clips.
        num_inference_steps: sampling steps; more are slower and a little better.
        guidance_scale: 1 = as trained, higher follows the condition more, 0 = ignores it.
        negative_condition: label, mix or text that guidance pushes away from; takes a --guidance-scale above 1.
        num_videos: that many, from seeds SEED, SEED + 1, ..., as <out>-0, <out>-1, ...
        seed: of the noise.
        loop: the last frame leads into the first.
        motion_strength: 0 to 2: 1 = as generated, 0 = a still image.
        motion_mask: picture of the image's shape: white moves, black stays still.
        motion: also save the motion, of all videos, to this .safetensors file.
        reuse_motion: instead of generating, move the image by a saved motion.
        panel: also write <out>-panel.gif: source, generated, warped, flow, occlusion, or the tiles that are named.
        panel_format: gif (the default), mp4, or png for a folder of frames.
        unconditional: any motion, without a condition.
        fps: frames per second; by default the model's.
        device: cpu, cuda, cuda:1, ...; the GPU if there is one.
        dtype: number format of the networks.
        fit: how other shapes are fitted; by default as the model's training data.
        scale: enlarge the written video by this whole factor.
    """
    from lfdm.config.checks import MAX_SEED, check_integer
    from lfdm.motion.motion import Motion
    from lfdm.pipeline.inputs import parse_condition
    from lfdm.pipeline.outputs import VideoFiles, fitted_source

    sampling = {"num_frames": num_frames, "num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
    steering = {"motion_strength": motion_strength, "motion_mask": motion_mask, "output_type": "np"}
    reused = None
    if reuse_motion is not None:
        fixed = {**sampling, "negative_condition": negative_condition, "loop": loop, "unconditional": unconditional}
        _refuse_with_reuse({"CONDITION": condition, **fixed, "num_videos": num_videos != 1, "seed": seed != 0})
        reused = Motion.load(reuse_motion)
        num_videos = len(reused.flow)
    elif (condition is None) != unconditional:
        got = "neither" if condition is None else "both"
        raise UserError(f"give a CONDITION (a label of the model), --unconditional or --reuse-motion; got {got}")
    elif unconditional and guidance_scale is not None and negative_condition is None:
        raise UserError(f"--guidance-scale would have no effect with --unconditional: leave it out; got {guidance_scale:g}")
    check_integer("num_videos", num_videos, 1, 100_000)
    check_integer("seed", seed, 0, MAX_SEED - num_videos)
    name = reuse_motion.stem if reuse_motion is not None else condition or "unconditional"
    files = VideoFiles(
        out=out or Path(f"{as_file_name(name)}.mp4"),
        num_videos=num_videos,
        fps=1.0 if fps is None else fps,  # the model's rate is not known yet, all else is checked before it is loaded
        scale=scale,
        **_panel_options(panel, panel_format),
        motion=motion,
    )
    pipe = open_pipeline(model, device, dtype, fit)
    files = replace(files, fps=pipe.config["fps"] if fps is None else fps)
    source = fitted_source(pipe, image)
    starts = range(0, num_videos, VIDEOS_PER_BATCH)
    if reused is not None:
        some = (reused.samples(start, start + VIDEOS_PER_BATCH) for start in starts)
        _write(files, pipe, source, (pipe.animate(source, one, **steering) for one in some))
        return
    asked, avoided = (parse_condition(text, pipe.condition.labels) for text in (condition, negative_condition))
    batches = (list(range(seed + start, seed + min(start + VIDEOS_PER_BATCH, num_videos))) for start in starts)
    options: dict[str, Any] = {**sampling, **steering, "negative_condition": avoided, "loop": loop}
    _write(files, pipe, source, (pipe([source] * len(seeds), asked, generator=seeds, **options) for seeds in batches))


def transfer(
    image: Annotated[Path, Positional, arg(metavar="IMAGE")],
    driving_video: Annotated[Path, Positional, arg(metavar="DRIVING_VIDEO")],
    *,
    model: str = DEFAULT_MODEL,
    out: Path = Path("transfer.mp4"),
    absolute: bool = False,
    num_frames: int | None = None,
    motion_strength: float = 1.0,
    motion_mask: Path | None = None,
    motion: Path | None = None,
    panel: Panel = None,
    panel_format: PanelFormat | None = None,
    fps: float | None = None,
    device: str | None = None,
    dtype: Dtype = "float32",
    fit: Fit | None = None,
    scale: int = 1,
) -> None:
    """Move an image as a driving video of any length moves.

    Args:
        image: picture of any size and common format.
        driving_video: mp4, avi, mov, webm, gif or a folder of frames.
        model: bundled name, pipeline folder, diffusion run folder or Hub repository.
        out: mp4, webm or gif file, or without ending a folder of exact PNGs.
        absolute: motion of the driving frames against the image, instead of against the video's own first frame.
        num_frames: only the video's first so many.
        motion_strength: 0 to 2: 1 = as in the video, 0 = a still image.
        motion_mask: picture of the image's shape: white moves, black stays still.
        motion: also save the motion to this .safetensors file, for `lfdm generate IMAGE --reuse-motion FILE`.
        panel: also write <out>-panel.gif: source, generated, warped, flow, occlusion, or the tiles that are named.
        panel_format: gif (the default), mp4, or png for a folder of frames.
        fps: frames per second; by default the driving video's, of a gif at most 50.
        device: cpu, cuda, cuda:1, ...; the GPU if there is one.
        dtype: number format of the networks.
        fit: how other shapes are fitted; by default as the model's training data.
        scale: enlarge the written video by this whole factor.
    """
    from lfdm.config.checks import check_integer
    from lfdm.data.video import iterate_video, max_fps, video_info
    from lfdm.pipeline.outputs import VideoFiles, fitted_source

    if num_frames is not None:
        check_integer("num_frames", num_frames, 1, 1_000_000)
    info = video_info(driving_video)
    files = VideoFiles(
        out=out,
        fps=min(info.fps, max_fps(out)) if fps is None else fps,
        scale=scale,
        **_panel_options(panel, panel_format),
        motion=motion,
    )
    pipe = open_pipeline(model, device, dtype, fit)
    source = fitted_source(pipe, image)
    total = info.frames if num_frames is None else min(info.frames, num_frames)
    with progress_bar() as update:
        result = pipe.transfer(
            source,
            _counted(iterate_video(driving_video, max_frames=num_frames), lambda done: update("following", done, total)),
            relative=not absolute,
            motion_strength=motion_strength,
            motion_mask=motion_mask,
            output_type="np",
            callback_on_decode=lambda done: update("decoding", done, total),
        )
    _write(files, pipe, source, [result])


def _counted(frames: "Iterable[np.ndarray]", report: Callable[[int], None]) -> "Iterator[np.ndarray]":
    for count, frame in enumerate(frames, 1):
        yield frame
        report(count)


def _panel_options(named: tuple[PanelKind, ...] | None, file_format: PanelFormat | None) -> dict[str, Any]:
    """What `VideoFiles` takes: no tiles without --panel, the usual ones where it names none."""
    from lfdm.visualize import PANEL_KINDS

    if named is None:
        if file_format is not None:
            raise UserError(f"--panel-format has no effect without --panel; got {file_format}")
        return {}
    return {"panel": named or PANEL_KINDS, "panel_format": file_format or "gif"}


def _refuse_with_reuse(given: dict[str, Any]) -> None:
    """A saved motion is what it is: options that would make another one would have no effect."""
    wrong = [name for name, value in given.items() if value is not None and value is not False]
    if wrong:
        raise UserError(f"{', '.join(wrong)} would have no effect with --reuse-motion: leave it out")


def _write(files: "VideoFiles", pipe: "LatentFlowPipeline", source: Any, results: Iterable[Any]) -> None:
    """Write results as they are made and print where they are."""
    for path in files.write(pipe, source, results):
        print(path)


def open_pipeline(model: str, device: str | None, dtype: Dtype = "float32", fit: Fit | None = None) -> "LatentFlowPipeline":
    import torch

    from lfdm.pipeline.pipeline import LatentFlowPipeline

    pipe = LatentFlowPipeline.from_pretrained(model, dtype=getattr(torch, dtype), device=pick_device(device))
    pipe.set_progress_bar_config(desc="sampling", leave=False, disable=None)  # None: shown on a terminal alone
    if fit is not None:
        pipe.register_to_config(fit=fit)
    return pipe


def pick_device(name: str | None) -> str:
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise UserError(f"device {name!r} cannot be used here ({str(error).splitlines()[0]}); try cpu or cuda") from None
    return name


def info(*, model: str | None = None) -> None:
    """What this installation can do, and what a model is.

    Args:
        model: bundled name, pipeline folder, diffusion run folder or Hub repository.
    """
    import diffusers
    import torch

    import lfdm
    from lfdm.folders.sources import bundled_models

    if model is None:
        devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        rows = {
            "lfdm": lfdm.__version__,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "devices": ", ".join(["cpu", *devices]),
            "bundled models": ", ".join(bundled_models()) or "none",
            "presets": ", ".join(PRESETS),
        }
    else:
        pipe = open_pipeline(model, "cpu")
        networks = {"auto-encoder": pipe.autoencoder, "motion U-Net": pipe.unet}
        counts = [f"{name} {sum(p.numel() for p in net.parameters()) / 1e6:.1f} M" for name, net in networks.items()]
        video, sampling = pipe.config, type(pipe.scheduler).__name__
        rows = {
            "model": model,
            "labels": ", ".join(pipe.condition.labels) or "none (--unconditional, or embedding tensors)",
            "text model": pipe.condition.text_encoder or "none (labels alone)",
            "video": "{num_frames} frames of {image_size}x{image_size}, {fps:g} per second".format(**video),
            "sampling": f"{sampling}, " + "{num_inference_steps} steps, guidance {guidance_scale:g}".format(**video),
            "parameters": ", ".join(counts),
        }
    for name, value in rows.items():
        print(f"{name:<16}{value}")
