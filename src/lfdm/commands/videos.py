"""Commands that make videos, and `info`."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from lfdm.config import Fit
from lfdm.presets import PRESETS

if TYPE_CHECKING:
    from lfdm.pipeline import LatentFlowPipeline

DEFAULT_MODEL = "puppets64"
VIDEOS_PER_BATCH = 8
DEMO_SCALE = 4

Dtype = Literal["float32", "bfloat16", "float16"]


def demo(*, out: Path = Path("demo"), seed: int = 0, device: str | None = None) -> None:
    """Make a video and a panel for every label of the bundled model, from its bundled images.

    Args:
        out: folder for <label>.mp4 and <label>-panel.gif.
        seed: of the noise.
        device: cpu, cuda, cuda:1, ...; the GPU if there is one.
    """
    from lfdm.pipeline_folder import bundled_images

    pipe = _open_pipeline(DEFAULT_MODEL, device)
    images = bundled_images(DEFAULT_MODEL)
    for i, label in enumerate(pipe.condition.labels):
        path = out / f"{_slug(label)}.mp4"
        _generate(pipe, images[i % len(images)], label, path, seeds=[seed], scale=DEMO_SCALE, panel=True)


def generate(
    image: Annotated[Path, Positional, arg(metavar="IMAGE")],
    condition: Annotated[str | None, Positional, arg(metavar="[CONDITION]")] = None,
    *,
    model: str = DEFAULT_MODEL,
    out: Path | None = None,
    num_frames: int | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    num_videos: int = 1,
    seed: int = 0,
    panel: bool = False,
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
        condition: one of the model's labels (`lfdm info --model NAME` lists them), or any text for a model with a text
            model; left out with --unconditional.
        model: bundled name, pipeline folder, diffusion run folder or Hub repository.
        out: mp4, webm or gif file, or without ending a folder of exact PNGs; by default <condition>.mp4.
        num_frames: up to four times the length of training clips; by default that length.
        num_inference_steps: sampling steps; more are slower and a little better.
        guidance_scale: 1 = as trained, higher follows the condition more, 0 = ignores it.
        num_videos: that many, from seeds SEED, SEED + 1, ..., as <out>-0, <out>-1, ...
        seed: of the noise.
        panel: also write <out>-panel.gif: source, generated, warped, flow, occlusion.
        unconditional: any motion, without a condition.
        fps: frames per second; by default the model's.
        device: cpu, cuda, cuda:1, ...; the GPU if there is one.
        dtype: number format of the networks.
        fit: how other shapes are fitted; by default as the model's training data.
        scale: enlarge the written video by this whole factor.
    """
    from lfdm.settings import MAX_SEED, check_integer

    if (condition is None) != unconditional:
        got = "neither" if condition is None else "both"
        raise ValueError(f"give a CONDITION (a label of the model) or --unconditional; got {got}")
    check_integer("num_videos", num_videos, 1, 100_000)
    check_integer("seed", seed, 0, MAX_SEED - num_videos)
    path = out or Path(f"{_slug(condition or 'unconditional')}.mp4")
    _check_out(path, num_videos, fps, scale)
    pipe = _open_pipeline(model, device, dtype, fit)
    _generate(
        pipe,
        image,
        condition,
        path,
        seeds=range(seed, seed + num_videos),
        scale=scale,
        panel=panel,
        fps=fps,
        num_frames=num_frames,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
    )


def transfer(
    image: Annotated[Path, Positional, arg(metavar="IMAGE")],
    driving_video: Annotated[Path, Positional, arg(metavar="DRIVING_VIDEO")],
    *,
    model: str = DEFAULT_MODEL,
    out: Path = Path("transfer.mp4"),
    absolute: bool = False,
    num_frames: int | None = None,
    panel: bool = False,
    fps: float | None = None,
    device: str | None = None,
    dtype: Dtype = "float32",
    fit: Fit | None = None,
    scale: int = 1,
) -> None:
    """Move an image as a driving video moves.

    Args:
        image: picture of any size and common format.
        driving_video: mp4, avi, mov, webm, gif or a folder of frames.
        model: bundled name, pipeline folder, diffusion run folder or Hub repository.
        out: mp4, webm or gif file, or without ending a folder of exact PNGs.
        absolute: motion of the driving frames against the image, instead of against the video's own first frame.
        num_frames: only the video's first so many.
        panel: also write <out>-panel.gif: source, generated, warped, flow, occlusion.
        fps: frames per second; by default the driving video's.
        device: cpu, cuda, cuda:1, ...; the GPU if there is one.
        dtype: number format of the networks.
        fit: how other shapes are fitted; by default as the model's training data.
        scale: enlarge the written video by this whole factor.
    """
    from lfdm.data.video import read_video, video_info
    from lfdm.pipeline_outputs import VideoFiles, fitted_source
    from lfdm.settings import check_integer

    if num_frames is not None:
        check_integer("num_frames", num_frames, 1, 1_000_000)

    rate = video_info(driving_video).fps if fps is None else fps
    files = VideoFiles(out=out, fps=rate, scale=scale, panel=panel)
    pipe = _open_pipeline(model, device, dtype, fit)
    source = fitted_source(pipe, image)
    driving = read_video(driving_video, max_frames=num_frames)
    _print_paths(files.write(source, pipe.transfer(source, driving, relative=not absolute, output_type="np")))


def _generate(
    pipe: "LatentFlowPipeline",
    image: Path,
    condition: str | None,
    out: Path,
    *,
    seeds: Sequence[int],
    scale: int,
    panel: bool,
    fps: float | None = None,
    **sampling: Any,
) -> None:
    """Videos of all seeds, some at a time."""
    from lfdm.pipeline_outputs import VideoFiles, fitted_source

    rate: float = pipe.config["fps"] if fps is None else fps
    files = VideoFiles(out=out, num_videos=len(seeds), fps=rate, scale=scale, panel=panel)
    source = fitted_source(pipe, image)
    for start in range(0, len(seeds), VIDEOS_PER_BATCH):
        batch = list(seeds[start : start + VIDEOS_PER_BATCH])
        result = pipe([source] * len(batch), condition, generator=batch, output_type="np", **sampling)
        _print_paths(files.write(source, result, first=start))


def _check_out(out: Path, num_videos: int, fps: float | None, scale: int) -> None:
    """Refuse what cannot be written before a model is loaded for it."""
    from lfdm.pipeline_outputs import VideoFiles

    VideoFiles(out=out, num_videos=num_videos, fps=1.0 if fps is None else fps, scale=scale)


def _open_pipeline(model: str, device: str | None, dtype: Dtype = "float32", fit: Fit | None = None) -> "LatentFlowPipeline":
    import torch

    from lfdm.pipeline import LatentFlowPipeline

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
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {name!r} cannot be used here ({str(error).splitlines()[0]}); try cpu or cuda") from None
    return name


def _slug(label: str) -> str:
    return re.sub(r"[^\w]+", "-", label).strip("-") or "video"


def _print_paths(paths: Sequence[Path]) -> None:
    for path in paths:
        print(path)


def info(*, model: str | None = None) -> None:
    """What this installation can do, and what a model is.

    Args:
        model: bundled name, pipeline folder, diffusion run folder or Hub repository.
    """
    import diffusers
    import torch

    import lfdm
    from lfdm.pipeline_folder import bundled_models

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
        pipe = _open_pipeline(model, "cpu")
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
