"""Measure jitter and drift of videos 1, 2, 4 and 8 times as long as training clips, and of loops, against real clips.

    python -m benchmarks.length --data data/puppets

Prints a table and writes benchmarks/results/length.json after every clip. Everything is measured in segments as long as a
training clip, so that real clips, with motion estimated by stage 1, are measured in the same way:

amount    mean length of the flow, pixels
jitter    share of the power of the flow's temporal spectrum above 0.25 cycles per frame (mean removed, Hann window)
step      mean change of the flow from frame to frame, pixels
start     the first step over the mean step; far above that of a real clip, the video begins with a jump
seam      (beyond one pass) the mean step at the ends of windows over the mean step
closing   (loops) the step from the last frame to the first over the mean step
colour    mean distance of a frame's mean colour from the source's, in levels of 8 bits
likeness  intersection of a frame's colour histogram (8x8x8) with the source's; 1 = identical histograms

`first` and `last` are the first and last segment: drift is the difference between them.

Shapes: flow (2, t, h, w) in pixels · frames (t, H, W, 3) uint8.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from benchmarks.experiment.tables import RESULTS_DIR, write_results
from lfdm import LatentFlowPipeline, Motion
from lfdm.data.frame_indices import uniform_indices
from lfdm.data.index import ClipRecord, read_index
from lfdm.data.video import read_fitted
from lfdm.diffusion.windows import plan_windows
from lfdm.pipeline.lengths import MAX_PASS_FACTOR

FACTORS = (1, 2, 4, 8)
LOOP_FACTORS = (1, 2, 4)
JITTER_ABOVE = 0.25
RESULTS = RESULTS_DIR / "length.json"


def measure_flow(flow: np.ndarray, length: int) -> dict[str, float]:
    """Return amount, jitter and step of a flow (2, t, h, w), averaged over segments of `length` frames."""
    figures = defaultdict(list)
    for start in range(0, flow.shape[1] - length + 1, length):
        part = flow[:, start : start + length]
        tapered = (part - part.mean(axis=1, keepdims=True)) * np.hanning(length + 2)[1:-1, None, None]
        power = np.square(np.abs(np.fft.rfft(tapered, axis=1))).sum(axis=(0, 2, 3))
        figures["amount"].append(np.linalg.norm(part, axis=0).mean())
        figures["jitter"].append(ratio(power[np.fft.rfftfreq(length) > JITTER_ABOVE].sum(), power.sum()))
        figures["step"].append(np.linalg.norm(np.diff(part, axis=1), axis=0).mean())
    return {name: float(np.mean(values)) for name, values in figures.items()}


def ratio(part: float, whole: float) -> float:
    """Divide; NaN if nothing moves."""
    return float(part / whole) if whole else float("nan")


def measure_colours(frames: np.ndarray, source: np.ndarray) -> dict[str, float]:
    """Return the distance of the colours of frames (t, H, W, 3) from those of the source (H, W, 3)."""
    shift = np.abs(frames.mean(axis=(1, 2)) - source.mean(axis=(0, 1))).mean()
    reference = histogram(source)
    likeness = np.mean([np.minimum(histogram(frame), reference).sum() for frame in frames])
    return {"colour": float(shift), "likeness": float(likeness)}


def histogram(picture: np.ndarray) -> np.ndarray:
    """Return the normalised histogram of 8x8x8 colours, (512,)."""
    cells = (picture // 32).reshape(-1, 3).astype(np.int64) @ (64, 8, 1)
    return np.bincount(cells, minlength=512) / len(cells)


def measure(frames: np.ndarray, motion: Motion, source: np.ndarray, length: int) -> dict[str, float]:
    """Return all figures of one video."""
    flow = (motion.flow[0] * source.shape[0] / 2).float().cpu().numpy()
    steps = np.linalg.norm(np.diff(flow, axis=1), axis=0).mean(axis=(1, 2))
    figures = measure_flow(flow, length)
    windows = plan_windows(len(frames), longest=MAX_PASS_FACTOR * length)
    ends = {int(end) for window in windows for end in (window.frames[0] - 1, window.frames[-1]) if 0 < end < len(steps)}
    if ends:
        figures["seam"] = ratio(steps[sorted(ends)].mean(), steps.mean())
    figures["start"] = ratio(steps[0], steps.mean())
    figures["closing"] = ratio(np.linalg.norm(flow[:, 0] - flow[:, -1], axis=0).mean(), steps.mean())
    for name, part in (("first", frames[:length]), ("last", frames[-length:])):
        figures |= {f"{figure}_{name}": value for figure, value in measure_colours(part, source).items()}
    return figures


def held_out(root: Path, count: int) -> list[ClipRecord]:
    """Return the first `count` held-out clips of a fixed shuffle."""
    records = [record for record in read_index(root) if record.split == "test"]
    return [records[i] for i in np.random.default_rng(0).permutation(len(records))[:count]]


@torch.no_grad()
def measure_real(pipe: LatentFlowPipeline, frames: np.ndarray) -> dict[str, float]:
    """Return all figures of a real clip, with the motion estimated by stage 1."""
    video = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 255
    motion = pipe.autoencoder.estimate_motion(video[:, :, 0], video)
    return measure(frames, motion, frames[0], len(frames))


def main() -> None:
    parser = argparse.ArgumentParser(description="Jitter and drift over the length of generated videos.")
    parser.add_argument("--data", type=Path, required=True, help="clip data set; its held-out clips are used")
    parser.add_argument("--model", default="puppets64")
    parser.add_argument("--num-clips", type=int, default=16)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    pipe = LatentFlowPipeline.from_pretrained(options.model)
    pipe.set_progress_bar_config(disable=True)
    length, size, fit = pipe.config["num_frames"], pipe.size, pipe.config["fit"]
    variants = {f"{factor}x": (factor, False) for factor in FACTORS}
    variants |= {f"{factor}x loop": (factor, True) for factor in LOOP_FACTORS}
    figures: dict[str, list[dict[str, float]]] = defaultdict(list)
    for seed, record in enumerate(held_out(options.data, options.num_clips)):
        real = read_fitted(options.data / record.path, size, fit)
        real = real[uniform_indices(len(real), length)]
        figures["real"].append(measure_real(pipe, real))
        for name, (factor, loop) in variants.items():
            started = time.monotonic()
            out = pipe(real[0], record.label, num_frames=factor * length, loop=loop, generator=seed, output_type="uint8")
            seconds = {"seconds": time.monotonic() - started}
            figures[name].append(measure(np.asarray(out.frames)[0], out.motion, real[0], length) | seconds)
        setting = describe(options.model, pipe, len(figures["real"]))
        write_results({"setting": setting, "figures": mean_rows(figures)}, options.out)
    rows = mean_rows(figures)
    columns = list(dict.fromkeys(figure for row in rows.values() for figure in row))
    print(f"{'':10}" + "".join(f"{column:>16}" for column in columns))
    for name, row in rows.items():
        print(f"{name:10}" + "".join(f"{row[column]:16.3f}" if column in row else f"{'-':>16}" for column in columns))


def mean_rows(figures: Mapping[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Average every figure of every row over clips."""
    return {name: {key: float(np.mean([one[key] for one in each])) for key in each[0]} for name, each in figures.items()}


def describe(model: str, pipe: LatentFlowPipeline, num_clips: int) -> dict[str, Any]:
    """Return the settings of the measurement."""
    return {
        "model": model,
        "num_clips": num_clips,
        "num_inference_steps": pipe.config["num_inference_steps"],
        "guidance_scale": pipe.config["guidance_scale"],
        "seeds": f"0 to {num_clips - 1}",
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }


if __name__ == "__main__":
    main()
