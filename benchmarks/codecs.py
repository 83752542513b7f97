"""What codecs keep of the motion of puppets, and what a call with each costs: `python -m benchmarks.codecs`.

Motion that stage 1 estimates, and exact motion, are encoded and decoded again; learned codecs are measured on other puppets.
Errors are those over moving visible figure pixels, divided by that of knowing only the camera's drift (`flow_epe_ratio`). The
rows of trajectories and of a network were measured by code that is gone (docs/decisions/0036-learned-codec.md) and stay in the
results.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.experiment.tables import RESULTS_DIR, number, table, write_results
from benchmarks.shapes import exact_motion
from benchmarks.speed.measuring import device_name
from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.config.diffusion import LEARNED_COMPONENTS
from lfdm.config.video import Size
from lfdm.data.puppets.actions import ACTIONS
from lfdm.data.puppets.data_set import render_clip
from lfdm.evaluation.metrics.frames import psnr_per_clip
from lfdm.evaluation.metrics.motion import ExactMotion, displacement_px, flow_epe_ratio, pool
from lfdm.folders.model_folder import read_json
from lfdm.motion.codec import FrameCodec, MotionCodec
from lfdm.motion.learned_codec import LearnedCodec
from lfdm.motion.motion import Motion
from lfdm.pipeline.pipeline import LatentFlowPipeline

SIZE = Size(64, 64)
GRID = (32, 32)
FIRST_SUBJECT, FIRST_FITTED_SUBJECT = 900_000, 910_000
"""Seeds of subjects from here on are in no training set; codecs are measured on the second ones."""
TAKE = 7
COUNTS = (8, 16, 32, LEARNED_COMPONENTS, 128)
LENGTHS = (16, 64, 128)
NUM_STEPS = 4
FIGURE_WEIGHT = 50.0
"""Weight of a pixel of the figure in the mean over a cell, a pixel of the background having 1."""
RESULTS = RESULTS_DIR / "codecs-puppets.json"
TRAJECTORY_TITLES = {
    "displacement": "exact displacement of source points, K coefficients",
    "splat": "exact, 32x32 source grid, softmax splat to 32x32",
    "splat_without_doubling": "the same without doubling the source grid",
    "splat_without_priority": "the same without priority",
    "splat_without_visibility": "the same with everything visible",
    "plain_splat": "the same with neither: a plain splat",
    "tracked_displacement": "tracked displacement",
    "tracked_splat": "tracked, splatted back, what moves being in front",
}
TRAJECTORY_COUNTS = (4, 6, 8, 15, 0)


@dataclass(frozen=True, eq=False)
class Example:
    """A clip, its exact motion, and its motion on the grid: exact and as stage 1 estimates it."""

    video: Tensor
    """(1, 3, t, H, W) in [0, 1]."""
    exact: ExactMotion
    reduced: Motion
    estimated: Motion


def make_example(autoencoder: LatentFlowAutoencoder, subject: int, action: str) -> Example:
    """Render a clip and estimate its motion."""
    clip = render_clip(subject, action, TAKE, size=SIZE)
    video = torch.from_numpy(clip.frames).permute(3, 0, 1, 2)[None].float() / 255
    exact = exact_motion(clip)
    return Example(video, exact, reduce(exact), autoencoder.estimate_motion(video[:, :, 0], video))


def reduce(exact: ExactMotion) -> Motion:
    """Return exact motion on `GRID`: a cell moves with the figure in it, and with its visible pixels."""
    visible = exact.visible[:, None].float()
    weight = visible * (1 + FIGURE_WEIGHT * exact.figure[:, None].float()) + 1e-3

    def pooled(x: Tensor) -> Tensor:
        return F.adaptive_avg_pool3d(x, (x.shape[2], *GRID))

    half = torch.tensor([2 / SIZE.width, 2 / SIZE.height]).view(1, 2, 1, 1, 1)
    return Motion(pooled(exact.flow * half * weight) / pooled(weight), pooled(visible))


def flow_error(motion: Motion, exact: ExactMotion) -> Tensor:
    """Return the sums of `flow_epe_ratio`."""
    return flow_epe_ratio(displacement_px(motion, exact.size), exact)


def codec_row(codec: MotionCodec, examples: Sequence[Example], autoencoder: LatentFlowAutoencoder) -> dict[str, float]:
    """Return what a codec keeps: errors with exact and with estimated motion, and the frames decoded from the latter."""
    found: dict[str, list[Tensor]] = {"exact": [], "estimated": []}
    frames = []
    for example in examples:
        for name, motion in (("exact", example.reduced), ("estimated", example.estimated)):
            decoded = codec.decode(codec.encode(motion), motion.num_frames)
            found[name].append(flow_error(decoded, example.exact))
        prediction = autoencoder.decode(autoencoder.encode(example.video[:, :, 0]), decoded).prediction
        frames.append(psnr_per_clip(prediction[:, :, 1:], example.video[:, :, 1:]).mean().item())
    errors = {name: pool(torch.cat(values))["value"] for name, values in found.items()}
    numbers = torch.Size(codec.sample_shape(LENGTHS[0], *GRID)).numel()
    return {"numbers": numbers, **errors, "psnr": statistics.mean(frames)}


def processor_seconds(call: Callable[[], object], num_rounds: int) -> float:
    """Return the median processor time of a call after one that warms up."""
    call()
    seconds = []
    for _ in range(num_rounds):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def cost(pipe: LatentFlowPipeline, num_rounds: int) -> dict[str, float]:
    """Return seconds of `NUM_STEPS` predictions, of decoding motion from their sample, and of the whole call, by length."""
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(0))
    slow = not pipe.motion_codec.has_frame_axis
    seconds: dict[str, float] = {}
    for length in LENGTHS:
        options = {"num_frames": length, "num_inference_steps": NUM_STEPS, "guidance_scale": 1.0, "slow_motion": slow}

        def sample(options: dict[str, Any] = options) -> Tensor:
            return torch.as_tensor(pipe(image, "wave", generator=0, output_type="latent", **options).frames)

        seconds[f"motion_{length}"] = processor_seconds(sample, num_rounds)
        seconds[f"call_{length}"] = processor_seconds(
            lambda options=options: pipe(image, "wave", generator=0, output_type="uint8", **options), num_rounds
        )
    return seconds


def learned_pipeline(codec: LearnedCodec) -> LatentFlowPipeline:
    """Return a pipeline of the preset, whose weights are random but cost the same, with a measured codec."""
    pipe = LatentFlowPipeline.from_preset("learned64", ("wave",))
    pipe.motion_codec = codec
    return pipe


@torch.inference_mode()
def measure(pipe: LatentFlowPipeline, num_subjects: int, num_fitted: int, num_rounds: int) -> dict[str, dict[str, float]]:
    """Return the figures by row."""
    actions, autoencoder = list(ACTIONS), pipe.autoencoder
    subjects = range(FIRST_SUBJECT, FIRST_SUBJECT + num_subjects)
    examples = [make_example(autoencoder, subject, action) for subject in subjects for action in actions]
    fitted = [make_example(autoencoder, FIRST_FITTED_SUBJECT + k, actions[k % len(actions)]).estimated for k in range(num_fitted)]
    rows = {"frames": codec_row(FrameCodec(), examples, autoencoder) | cost(pipe, num_rounds)}
    for count in COUNTS:
        codec = LearnedCodec(num_components=count).measured(fitted)
        rows[f"learned, {count}"] = codec_row(codec, examples, autoencoder)
        if count == LEARNED_COMPONENTS:
            rows[f"learned, {count}"] |= cost(learned_pipeline(codec), num_rounds)
    return rows


def render_table(results: dict[str, Any]) -> str:
    """Render the tables of docs/ablation.md."""
    clips = f"{results['num_clips']} clips of {results['num_subjects']} unseen puppets through the codec and back"
    fitted = f"learned codecs were measured on {results['num_fitted']} clips of others"
    lines = (
        "## Codecs: what is diffused\n",
        f"{clips} ([decision 36](decisions/0036-learned-codec.md)); {fitted}.",
        "Errors are `flow_epe_ratio`; frames are rebuilt from the estimated motion. Seconds of processor time in float32 for one",
        f"video ({results['machine']}): {NUM_STEPS} predictions and the motion of their sample, and the whole call.",
        "More frames of a codec without a frame axis are the same motion, slower.\n",
        f"`python -m benchmarks.codecs`\n\n{table(_HEADER, list(_cells(results['rows'])))}",
        "### Trajectories: coefficients of time, softmax splatting, priority\n",
        "The codec that was tried and removed, on the same clips; 4 coefficients of visibility. Verdict: with exact motion,",
        "8 coefficients, softmax splatting, priority and visibility are each worth their place. With tracked motion 0.29 of the",
        "error is the tracking's, and splatting adds 0.06 to it: the learned codec, 0.296 in all, is better.\n",
        table(["", *(f"K = {count}" if count else "all frames" for count in TRAJECTORY_COUNTS)], _trajectory_cells(results)),
    )
    return "\n".join(lines)


_HEADER = ["codec", "numbers of a clip", "error, exact in", "error, estimated in", "frames, dB"]
_HEADER += [f"{what}, {length} frames" for what in ("motion", "call") for length in LENGTHS] + [
    f"call, {LENGTHS[-1]} over {LENGTHS[0]}"
]


def _cells(rows: dict[str, dict[str, float]]) -> Iterator[list[str]]:
    for name, row in rows.items():
        seconds = [row.get(f"{what}_{length}") for what in ("motion", "call") for length in LENGTHS]
        shortest, longest = (row.get(f"call_{length}") for length in (LENGTHS[0], LENGTHS[-1]))
        ratio = None if shortest is None or longest is None else longest / shortest
        kept = [number(row.get(figure), 3) for figure in ("exact", "estimated")]
        yield [name, f"{row['numbers']:,}", *kept, number(row["psnr"], 1), *map(number, seconds), number(ratio, 1)]


def _trajectory_cells(results: dict[str, Any]) -> list[list[str]]:
    rows = results["trajectories"]
    return [
        [title, *(number(rows[row].get(str(count)), 3) for count in TRAJECTORY_COUNTS)]
        for row, title in TRAJECTORY_TITLES.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="What codecs keep of motion, and what they cost.")
    parser.add_argument("--model", default="puppets64")
    parser.add_argument("--num-subjects", type=int, default=3)
    parser.add_argument("--num-fitted", type=int, default=128, help="clips that learned codecs are measured on")
    parser.add_argument("--num-rounds", type=int, default=5, help="timed calls of each kind")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    stored = read_json(RESULTS)
    pipe = LatentFlowPipeline.from_pretrained(options.model)
    rows = measure(pipe, options.num_subjects, options.num_fitted, options.num_rounds)
    removed = {name: row for name, row in stored["rows"].items() if name.startswith(("trajectories", "network"))}
    results = {
        "model": options.model,
        "machine": device_name(torch.device("cpu")),
        "num_subjects": options.num_subjects,
        "num_clips": options.num_subjects * len(ACTIONS),
        "num_fitted": options.num_fitted,
        "rows": rows | removed,
        "trajectories": stored["trajectories"],
    }
    write_results(results, options.out)
    print(render_table(results))


if __name__ == "__main__":
    main()
