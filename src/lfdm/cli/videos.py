"""Commands that make videos."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from lfdm.cli.console import Values, progress_bar
from lfdm.cli.control_options import PointOptions, report_lines
from lfdm.cli.options import (
    DEFAULT_MODEL,
    ControlOptions,
    ModelOptions,
    OutputOptions,
    Panel,
    import_torch,
    open_pipeline,
    panel_options,
    read_inputs,
)
from lfdm.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from lfdm.motion.motion import Motion
    from lfdm.pipeline.outputs import VideoFiles
    from lfdm.pipeline.pipeline import LatentFlowPipeline
    from lfdm.pipeline.result import LatentFlowOutput
    from lfdm.pipeline.transfer import MotionTransfer

MAX_VIDEOS = 100_000
MAX_DRIVING_FRAMES = 1_000_000
MAX_DEFAULT_FRAMES = 50_000
"""Most frames that are used without --num-frames: at 64x64 they take 2 GB, and a small file can hold millions."""
VIDEOS_PER_BATCH = 8
DEMO_SCALE = 4


def demo(*, out: Path = Path("demo"), seed: int = 0, device: str | None = None, panel: Panel = None) -> Values:
    """Make a video and a panel for every label of the bundled model, from its bundled images.

    Videos and panels of an earlier run are replaced.

    Args:
        out: Folder for <label>.mp4 and <label>-panel.gif.
        seed: Seed of the noise.
        device: cpu, cuda, cuda:1, ...; by default the GPU if there is one.
        panel: Tiles of the panels, as for `lfdm generate`.
    """
    import_torch()
    from lfdm.folders.files import distinct_file_names
    from lfdm.folders.sources import bundled_images
    from lfdm.pipeline.outputs import VideoFiles

    pipe = open_pipeline(DEFAULT_MODEL, device)
    images = bundled_images(DEFAULT_MODEL)
    labels, tiles = pipe.condition.labels, panel_options(panel or (), None)
    names = distinct_file_names(labels)
    all_files = [VideoFiles(out=out / f"{name}.mp4", scale=DEMO_SCALE, **tiles) for name in names]
    for files in all_files:
        files.check_targets(images, overwrite=True)
    written: list[Path] = []
    for i, (label, files) in enumerate(zip(labels, all_files, strict=True)):
        source, _ = read_inputs(pipe, images[i % len(images)])
        written += _write(files, pipe, source, [pipe(source, label, generator=seed, output_type="uint8")])
    return {"files": written}


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How motion is sampled."""

    num_frames: int | None = None
    """1 to 10000; by default the length of training clips."""
    num_inference_steps: int | None = None
    """Sampling steps; more are slower and slightly better. By default the model's."""
    guidance_scale: float | None = None
    """1 = as trained, higher follows the condition more, 0 = ignores it. By default the model's."""
    negative_condition: str | None = None
    """Label, mix or text that guidance pushes away from; needs a --guidance-scale above 1."""
    num_videos: int = 1
    """Videos to make, from seeds SEED, SEED + 1, ..., as <out>-0, <out>-1, ..."""
    seed: int = 0
    """Seed of the noise."""
    loop: bool = False
    """Let the last frame lead into the first."""
    slow_motion: bool = False
    """Stretch one motion over --num-frames instead of going on with it; for models that sample one image per clip."""
    unconditional: bool = False
    """Sample without a condition."""

    def check(self) -> None:
        """Check the options that do not reach the pipeline as they are."""
        from lfdm.config.checks import MAX_SEED, check_integer

        check_integer("num_videos", self.num_videos, 1, MAX_VIDEOS)
        check_integer("seed", self.seed, 0, MAX_SEED - self.num_videos)
        if self.unconditional and self.guidance_scale is not None and self.negative_condition is None:
            raise UserError(f"--guidance-scale has no effect with --unconditional; got {self.guidance_scale:g}")


def generate(
    image: Annotated[Path, Positional, arg(metavar="IMAGE")],
    condition: Annotated[str | None, Positional, arg(metavar="[CONDITION]")] = None,
    *,
    model: Annotated[ModelOptions, arg(name="")] = ModelOptions(),  # noqa: B008 - frozen
    sampling: Annotated[SamplingOptions, arg(name="")] = SamplingOptions(),
    control: Annotated[ControlOptions, arg(name="")] = ControlOptions(),  # noqa: B008 - frozen
    points: Annotated[PointOptions, arg(name="")] = PointOptions(),  # noqa: B008 - frozen
    output: Annotated[OutputOptions, arg(name="")] = OutputOptions(),  # noqa: B008 - frozen
    reuse_motion: Path | None = None,
) -> Values:
    """Make videos from one image and a condition.

    Args:
        image: Picture of any size and common format, or a frame of a video: clip.mp4@1.5s (time), clip.mp4@30 (number, from 0).
        condition: Label of the model (`lfdm info --model NAME` lists them), a mix of labels such as wave=0.7,jump=0.3, or labels
            over time such as "wave@0-0.5, jump@0.5-1"; any text for a model with a text encoder. Left out with --unconditional
            and --reuse-motion, and where a drag or an end image says what happens.
        reuse_motion: File of --motion whose motion is applied to the image; nothing is sampled.
    """
    import_torch()
    from lfdm.data.pictures import read_picture

    inputs = [image, control.motion_mask, reuse_motion, model.model, *points.inputs()]
    point_control, label = points.read(condition)
    if reuse_motion is not None:
        from lfdm.motion.motion import Motion

        _check_nothing_sampled(condition, sampling)
        if point_control is not None:
            raise UserError("--drag, --pin, --part-strength, --end-image and --control have no effect with --reuse-motion")
        motion = Motion.load(reuse_motion)
        files = output.files(reuse_motion.stem, inputs, num_videos=len(motion.flow))
        pipe = model.open_stage1()
        source, steering = read_inputs(pipe, image, control, model.fit, output.size_arguments())
        return {"files": _write(files, pipe, source, _animate(pipe, source, motion, steering))}
    if (condition is None) != sampling.unconditional and not (condition is None and point_control is not None):
        got = "neither" if condition is None else "both"
        raise UserError(
            f"give a CONDITION (a label of the model), --unconditional or --reuse-motion; got {got} (None means no CONDITION)"
        )
    sampling.check()
    name = condition or ("unconditional" if point_control is None else "controlled")
    files = output.files(name, inputs, num_videos=sampling.num_videos)
    pipe = model.open()
    source, steering = read_inputs(pipe, image, control, model.fit, output.size_arguments())
    picture = source
    if point_control is not None:  # its positions are those of the image before fitting
        picture = read_picture(image, keep_alpha=True)
        steering = {**steering, "motion_mask": control.motion_mask, "control": point_control}
    return {"files": _write(files, pipe, source, _sample(pipe, picture, label, sampling, steering))}


def _check_nothing_sampled(condition: str | None, sampling: SamplingOptions) -> None:
    """Refuse options of sampling, which have no effect on a saved motion."""
    given = [] if condition is None else ["CONDITION"]
    given += [name for name, default in vars(SamplingOptions()).items() if getattr(sampling, name) != default]
    if given:
        raise UserError(f"{', '.join(given)}: no effect with --reuse-motion; leave it out")


def _videos_per_batch(steering: dict[str, Any]) -> int:
    """Return how many videos are made at once; only one with full-size frames, which take much memory."""
    return 1 if "output_size" in steering else VIDEOS_PER_BATCH


def _animate(
    pipe: "MotionTransfer", source: "np.ndarray", motion: "Motion", steering: dict[str, Any]
) -> "Iterable[LatentFlowOutput]":
    size = _videos_per_batch(steering)
    for start in range(0, len(motion.flow), size):
        yield pipe.animate(source, motion.samples(start, start + size), **steering, output_type="uint8")


def _sample(
    pipe: "LatentFlowPipeline", source: "np.ndarray", condition: str | None, sampling: SamplingOptions, steering: dict[str, Any]
) -> "Iterable[LatentFlowOutput]":
    from lfdm.pipeline.inputs import parse_condition

    labels = pipe.condition.labels
    seeds = range(sampling.seed, sampling.seed + sampling.num_videos)
    size = _videos_per_batch(steering)
    for start in range(0, len(seeds), size):
        batch = list(seeds[start : start + size])
        output = pipe(
            source,
            parse_condition(condition, labels),
            num_frames=sampling.num_frames,
            num_inference_steps=sampling.num_inference_steps,
            guidance_scale=sampling.guidance_scale,
            negative_condition=parse_condition(sampling.negative_condition, labels),
            num_videos=len(batch),
            generator=batch,
            loop=sampling.loop,
            slow_motion=sampling.slow_motion,
            **steering,
            output_type="uint8",
        )
        for line in report_lines(output.control):
            sys.stderr.write(f"{line}\n")
        yield output


def transfer(
    image: Annotated[Path, Positional, arg(metavar="IMAGE")],
    driving_video: Annotated[Path, Positional, arg(metavar="DRIVING_VIDEO")],
    *,
    absolute: bool = False,
    num_frames: int | None = None,
    no_audio: bool = False,
    model: Annotated[ModelOptions, arg(name="")] = ModelOptions(),  # noqa: B008 - frozen
    control: Annotated[ControlOptions, arg(name="")] = ControlOptions(),  # noqa: B008 - frozen
    output: Annotated[OutputOptions, arg(name="")] = OutputOptions(),  # noqa: B008 - frozen
) -> Values:
    """Transfer the motion of a driving video of any length to an image.

    Args:
        image: Picture of any size and common format, or a frame of a video: clip.mp4@1.5s (time), clip.mp4@30 (number, from 0).
        driving_video: Video of any common format, gif or folder of frames.
        absolute: Measure the motion of driving frames against the image instead of against the video's first frame.
        num_frames: Number of frames to use from the start of the video; by default all, up to 50000.
        no_audio: Leave the sound of the driving video out. It is kept in mp4 and webm files that have the video's frame rate.
    """
    import_torch()
    from lfdm.config.checks import check_integer
    from lfdm.config.video import MIN_FPS
    from lfdm.data.video import iterate_video, max_fps, video_info

    if num_frames is not None:
        check_integer("num_frames", num_frames, 1, MAX_DRIVING_FRAMES)
    info = video_info(driving_video)
    if num_frames is None and info.frames > MAX_DEFAULT_FRAMES:
        raise UserError(f"{driving_video}: {info.frames} frames; give --num-frames to use more than {MAX_DEFAULT_FRAMES}")
    fps = max(MIN_FPS, min(info.fps, max_fps(output.out or Path("transfer.mp4"))))
    files = output.files("transfer", [image, driving_video, control.motion_mask, model.model], fps=fps)
    if not no_audio and files.fps == (info.stated_fps or info.fps):
        files = replace(files, sound=driving_video)
    pipe = model.open_stage1()
    source, steering = read_inputs(pipe, image, control, model.fit, output.size_arguments())
    total = info.frames if num_frames is None else min(info.frames, num_frames)
    with progress_bar() as update:

        def driving() -> "Iterable[np.ndarray]":
            for done, frame in enumerate(iterate_video(driving_video, max_frames=num_frames), 1):
                yield frame
                update("reading motion", done, total)

        result = pipe.transfer(
            source,
            driving(),
            relative=not absolute,
            **steering,
            output_type="uint8",
            callback_on_decode=lambda done: update("decoding", done, total),
        )
    return {"files": _write(files, pipe, source, [result])}


def _write(files: "VideoFiles", pipe: "MotionTransfer", source: "np.ndarray", results: Iterable[Any]) -> list[Path]:
    """Write results one by one; print the path of each file, and return all."""
    if source.shape[-1] == 4 and files.loses_alpha():
        note = f"{files.out}: mp4 stores no alpha; composed over white (webm, mov, webp, apng or a folder keep it)"
        print(note, file=sys.stderr)
    written: list[Path] = []
    for path in files.write(pipe, source, results):
        print(path)
        written.append(path)
    return written
