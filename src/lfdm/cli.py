"""The command line, `lfdm`: one function per command, which calls the library and prints where its output is.

Imports neither torch nor diffusers before a command runs.
"""

import functools
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from lfdm.config import AdaptationConfig, Fit, Preset, SchedulerName
from lfdm.console import CommandTree, Group, ProgressUpdate, progress_bar, run
from lfdm.presets import PRESETS

if TYPE_CHECKING:
    from lfdm.data.conversion import FolderReport
    from lfdm.pipeline import LatentFlowPipeline
    from lfdm.training.loop import StepReport

DEFAULT_MODEL = "puppets64"
VIDEOS_PER_BATCH = 8
DEMO_SCALE = 4
MAX_LINES = 20

Dtype = Literal["float32", "bfloat16", "float16"]

# ------------------------------------------------------------------------------------------------- making videos


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

    pipe = LatentFlowPipeline.from_pretrained(model, dtype=getattr(torch, dtype), device=_pick_device(device))
    pipe.set_progress_bar_config(desc="sampling", leave=False)
    if fit is not None:
        pipe.register_to_config(fit=fit)
    return pipe


def _pick_device(name: str | None) -> str:
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


# ----------------------------------------------------------------------------------------------------- data sets


def data_puppets(
    *,
    out: Path,
    num_subjects: int = 360,
    num_takes: int = 2,
    size: int = 64,
    num_frames: int = 16,
    fps: float = 8.0,
    seed: int = 0,
    test_fraction: float = 0.2,
    truth: Literal["none", "test", "all"] = "test",
    num_workers: int | None = None,
) -> None:
    """Render procedural puppets doing labelled actions, whose motion is known exactly.

    Args:
        out: new folder of the clip data set.
        num_subjects: puppets, each of another look.
        num_takes: clips of every subject and action.
        size: frames are SIZE x SIZE, at least 32.
        num_frames: frames of a clip.
        fps: frames per second.
        seed: the same one gives the same data set.
        test_fraction: share of subjects that is held out.
        truth: which clips get their exact flow and visibility beside them.
        num_workers: processes; by default one per core.
    """
    from lfdm.data.puppets import write_puppets

    with progress_bar() as update:
        index = write_puppets(
            out,
            num_subjects=num_subjects,
            num_takes=num_takes,
            size=size,
            num_frames=num_frames,
            fps=fps,
            seed=seed,
            test_fraction=test_fraction,
            truth=truth,
            num_workers=num_workers,
            progress=functools.partial(update, "rendering"),
        )
    print(index)


def data_lpc(
    *,
    sheets: Path,
    out: Path,
    num_characters: int = 300,
    size: int = 64,
    num_frames: int = 16,
    seed: int = 0,
    test_fraction: float = 0.2,
    num_workers: int | None = None,
) -> None:
    """Render labelled clips from LPC sprite sheets.

    Args:
        sheets: folder of the sheets.
        out: new folder of the clip data set.
        num_characters: characters, put together at random.
        size: frames are SIZE x SIZE.
        num_frames: frames of a clip.
        seed: the same one gives the same data set.
        test_fraction: share of characters that is held out.
        num_workers: threads; by default one per core.
    """
    from lfdm.data.lpc import write_lpc

    with progress_bar() as update:
        index = write_lpc(
            sheets,
            out,
            num_characters=num_characters,
            size=size,
            num_frames=num_frames,
            seed=seed,
            test_fraction=test_fraction,
            num_workers=num_workers,
            progress=functools.partial(update, "rendering"),
        )
    print(index)


def data_folder(
    folder: Annotated[Path, Positional, arg(metavar="DIR")],
    *,
    out: Path,
    size: int = 64,
    fit: Fit = "pad",
    test_fraction: float = 0.2,
    seed: int = 0,
    max_frames: int | None = None,
    num_workers: int | None = None,
) -> None:
    """Make a clip data set of your own clips, in folders <label>/<subject>/<clip> or <label>/<clip>.

    Args:
        folder: the tree of mp4, avi, mov, webm and gif files or frame folders.
        out: new folder of the clip data set.
        size: frames are SIZE x SIZE.
        fit: black borders, or a centre crop.
        test_fraction: share of subjects that is held out.
        seed: of the split.
        max_frames: keep only the first so many of each clip.
        num_workers: threads; by default one per core.
    """
    from lfdm.data.corpora import write_folder

    with progress_bar() as update:
        report = write_folder(
            folder,
            out,
            size=size,
            fit=fit,
            test_fraction=test_fraction,
            seed=seed,
            max_frames=max_frames,
            num_workers=num_workers,
            progress=functools.partial(update, "converting"),
        )
    _print_skipped(report)
    _print_clips(report)


def _data_corpus(name: str, layout: str) -> Callable[..., None]:
    def data_corpus(
        source: Annotated[Path, Positional, arg(metavar="SOURCE")],
        *,
        out: Path,
        size: int = 128,
        num_workers: int | None = None,
    ) -> None:
        """Make a clip data set of your copy of CORPUS, cropped and split as in the paper; the same command resumes.

        Args:
            source: folder of LAYOUT
            out: folder of the clip data set.
            size: frames are SIZE x SIZE, with black borders.
            num_workers: threads; by default one per core.
        """
        from lfdm.data.mhad import UTD_MHAD
        from lfdm.data.mug import MUG
        from lfdm.data.natops import NATOPS
        from lfdm.data.published import write_published

        corpus = {"mug": MUG, "mhad": UTD_MHAD, "natops": NATOPS}[name]
        with progress_bar() as update:
            progress = functools.partial(update, "converting")
            report = write_published(corpus, source, out, size=size, num_workers=num_workers, progress=progress)
        _print_skipped(report.clips, most=MAX_LINES)
        _print_clips(report.clips)
        if report.num_kept:
            print(f"{report.num_kept} of them were there already")
        print(f"training clips: {report.clips.num_train} of the paper's {report.expected_train}")
        _print_some([f"missing {gap}" for gap in report.missing], MAX_LINES)

    data_corpus.__doc__ = (data_corpus.__doc__ or "").replace("CORPUS", name.upper()).replace("LAYOUT", layout)
    return data_corpus


def _print_skipped(report: "FolderReport", most: int | None = None) -> None:
    _print_some([f"skipped {skipped.path}: {skipped.reason}" for skipped in report.skipped], most)


def _print_clips(report: "FolderReport") -> None:
    for label, count in report.clips_per_label.items():
        print(f"{label}: {count} clips")
    print(f"{report.num_train} training and {report.num_test} test clips of {report.num_subjects} subjects in {report.root}")


def _print_some(lines: Sequence[str], most: int | None) -> None:
    for line in lines[:most]:
        print(line)
    if most is not None and len(lines) > most:
        print(f"... and {len(lines) - most} more lines of '{lines[-1].split()[0]}'")


# ------------------------------------------------------------------------------------------- training, evaluation


def _train_autoencoder(preset: Preset) -> Callable[..., None]:
    def train_autoencoder(
        *, data: Path, out: Path, init: Path | None = None, config: Annotated[Preset, arg(name="")] = preset
    ) -> None:
        """Train stage 1; the same command resumes.

        Args:
            data: clip data set.
            out: run folder, for checkpoints and logs.
            init: model, pipeline or run folder whose weights to start from.
        """
        from lfdm.training import autoencoder as stage1

        with progress_bar() as update:
            progress = functools.partial(update, "decoding clips")
            print(stage1.train_autoencoder(config, data, out, init=init, report=_reporter(update), progress=progress))

    return _naming_preset(train_autoencoder, preset)


def _train_diffusion(preset: Preset) -> Callable[..., None]:
    def train_diffusion(
        *,
        data: Path,
        autoencoder: Path,
        out: Path,
        init: Path | None = None,
        config: Annotated[Preset, arg(name="")] = preset,
    ) -> None:
        """Train stage 2; the same command resumes.

        Args:
            data: clip data set.
            autoencoder: stage-1 run, model or pipeline folder.
            out: run folder, for checkpoints and logs; can be given to --model.
            init: U-Net, pipeline or run folder whose weights to start from.
        """
        from lfdm.training import diffusion as stage2

        with progress_bar() as update:
            progress = functools.partial(update, "preparing clips and motion")
            trained = stage2.train_diffusion(
                config, data, autoencoder, out, init=init, report=_reporter(update), progress=progress
            )
            print(trained)

    return _naming_preset(train_diffusion, preset)


def _naming_preset(command: Callable[..., None], preset: Preset) -> Callable[..., None]:
    """`command` with the preset in its help text."""
    size = f"{preset.image_size}x{preset.image_size}, {preset.num_frames} frames"
    command.__doc__ = (command.__doc__ or "").replace(";", f" of {preset.name} ({size});", 1)
    return command


def _reporter(update: ProgressUpdate) -> Callable[["StepReport"], None]:
    def report(step: "StepReport") -> None:
        loss = step.metrics.get("loss", float("nan"))
        update("training", step.step, step.num_steps, note=f"loss {loss:.4f}, {step.steps_per_second:.2f} steps/s")

    return report


def adapt(
    *,
    data: Path,
    out: Path,
    model: str = DEFAULT_MODEL,
    config: Annotated[AdaptationConfig, arg(name="")] = AdaptationConfig(),  # noqa: B008 - frozen
) -> None:
    """Adapt a model's decoder to the images of a new domain, motion kept; the same command resumes.

    Args:
        data: clip data set of the new domain; labels play no part.
        out: run folder, and in the end a pipeline folder that can be given to --model.
        model: bundled name, pipeline folder, diffusion run folder or Hub repository.
    """
    from lfdm.training import adaptation

    with progress_bar() as update:
        progress = functools.partial(update, "decoding clips")
        print(adaptation.adapt(model, data, out, config, report=_reporter(update), progress=progress))


def evaluate(
    *,
    data: Path,
    out: Path,
    model: str = DEFAULT_MODEL,
    num_clips: int | None = None,
    seed: int = 0,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    scheduler: SchedulerName | None = None,
    unconditional: bool = False,
    batch_size: int = 8,
    device: str | None = None,
    bf16: bool = False,
) -> None:
    """Measure a model on held-out clips: results.json, a contact sheet and samples.

    Args:
        data: clip data set.
        out: folder for the results.
        model: bundled name, pipeline folder, run folder (of either stage) or Hub repository.
        num_clips: how many held-out clips; by default all.
        seed: of the clips drawn and of the videos.
        num_inference_steps: sampling steps; by default the model's.
        guidance_scale: by default the model's.
        scheduler: by default the model's.
        unconditional: generate without the clips' labels; figures that need them are left out.
        batch_size: clips at a time.
        device: cpu, cuda, cuda:1, ...; the GPU if there is one.
        bf16: run the networks in bfloat16.
    """
    from lfdm.evaluation import protocol

    with progress_bar() as update:
        results = protocol.evaluate(
            model,
            data,
            out,
            num_clips=num_clips,
            seed=seed,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            scheduler=scheduler,
            unconditional=unconditional,
            batch_size=batch_size,
            device=_pick_device(device),
            bf16=bf16,
            progress=update,
        )
    print(json.dumps({key: results[key] for key in ("stage1", "generation", "left_out")}, indent=2))
    print(out / "results.json")


def import_(
    *,
    out: Path,
    preset: str | None = None,
    autoencoder: Path | None = None,
    diffusion: Path | None = None,
    labels: str | None = None,
    text_encoder: str | None = None,
) -> None:
    """Import published checkpoints; embed the labels that a model can be asked for.

    With both files OUT can be given to --model. With one it holds that half, and the other can be imported into it later;
    the auto-encoder alone can be given to `train diffusion --autoencoder` and `train autoencoder --init`.

    Args:
        out: the folder that is written, or that --labels are added to.
        preset: what the files were trained as: mug128, mhad128 or natops128.
        autoencoder: RegionMM.pth, or a stage-1 checkpoint of MRAA to start trainings from.
        diffusion: flowdiff.pth.
        labels: mug128, mhad128 or natops128 for that data set's labels, a text file with one label per line, or a comma list.
            Needs transformers and the text model once.
        text_encoder: folder or Hub name of the text model; by default the one that the model was trained with
            (bert-base-cased).
    """
    from lfdm.importing import add_labels, import_released, parse_labels

    if labels is None and text_encoder is not None:
        raise ValueError(f"--text-encoder embeds --labels; got {text_encoder} without labels")
    wanted = parse_labels(labels) if labels is not None else ()
    if preset is not None:
        imported = import_released(preset, out, autoencoder=autoencoder, diffusion=diffusion)
        print(out)
        if imported.has_diffusion and not (wanted or imported.labels):
            print(f"no label embeddings yet; `lfdm import --labels {preset} --out {out}` adds them (until then: tensors or None)")
    elif autoencoder or diffusion or not wanted:
        raise ValueError("give --preset (mug128, mhad128 or natops128) with the files to import, or --labels")
    if wanted:
        print(f"labels: {', '.join(add_labels(out, wanted, text_encoder).labels)}")


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


# --------------------------------------------------------------------------------------------------- entry point

COMMANDS: CommandTree = {
    "demo": demo,
    "generate": generate,
    "transfer": transfer,
    "data": Group(
        "Make a clip data set: puppets, lpc, mug, mhad, natops, folder.",
        {
            "puppets": data_puppets,
            "lpc": data_lpc,
            "mug": _data_corpus("mug", "<subject>/<expression>/<take>/*.jpg"),
            "mhad": _data_corpus("mhad", "RGB/a1_s1_t1_color.avi, ... and Depth/a1_s1_t1_depth.mat, ..."),
            "natops": _data_corpus("natops", "gesture01/g01s01.avi, ... and segmentation.txt"),
            "folder": data_folder,
        },
    ),
    "train": Group(
        "Train a model: autoencoder, diffusion.",
        {
            "autoencoder": Group(
                "Train stage 1 of a preset.", {name: _train_autoencoder(preset) for name, preset in PRESETS.items()}
            ),
            "diffusion": Group(
                "Train stage 2 of a preset.", {name: _train_diffusion(preset) for name, preset in PRESETS.items()}
            ),
        },
    ),
    "adapt": adapt,
    "evaluate": evaluate,
    "import": import_,
    "info": info,
}


def main() -> None:
    """Run the command line of this process and exit."""
    sys.exit(run(COMMANDS, sys.argv[1:], "A video from one image and a condition, by latent flow diffusion."))


if __name__ == "__main__":
    main()
