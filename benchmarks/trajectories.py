"""How well trajectories compress the motion of puppets: `python -m benchmarks.trajectories`.

Exact trajectories of the source's points are reduced to K coefficients of time each, fitted on other puppets, and splatted back
to backward flow at the latent's size. The same is done with trajectories that a model tracks. Every figure is the error over
moving visible figure pixels, divided by that of knowing only the camera's drift (`flow_epe_ratio`).
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.experiment.tables import RESULTS_DIR, number, table, write_results
from benchmarks.shapes import exact_motion
from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.config.video import Size
from lfdm.data.puppets.actions import ACTIONS
from lfdm.data.puppets.data_set import animate, render_clip
from lfdm.data.puppets.render import Track, render
from lfdm.evaluation.metrics.motion import ExactMotion, displacement_px, flow_epe_ratio, pool
from lfdm.motion.motion import Motion
from lfdm.motion.splatting import fill_holes
from lfdm.motion.time_basis import instants
from lfdm.motion.trajectories import Trajectories, TrajectoryBasis
from lfdm.motion.trajectory_codec import moving_in_front
from lfdm.motion.warp import flow_to_grid, warp
from lfdm.pipeline.pipeline import LatentFlowPipeline

SIZE = Size(64, 64)
GRID = (32, 32)
FIRST_SUBJECT, FIRST_FITTED_SUBJECT = 900_000, 910_000
"""Seeds of subjects from here on are in no training set; the basis is fitted on the second ones."""
TAKE = 7
COUNTS = (4, 6, 8, 15)
VISIBILITY_COUNT = 4
IN_FRONT = 4.0
"""Exact priority of the figure, the background's being 0."""
BACKGROUND_SHARE = 1e-3
"""Weight of background pixels in a cell that also has figure pixels."""
RESULTS = RESULTS_DIR / "trajectories-puppets.json"
TITLES = {
    "displacement": "exact displacement of source points, K coefficients",
    "splat": "exact, 32x32 source grid, splatted back to 32x32",
    "splat_without_doubling": "the same without doubling the source grid",
    "splat_without_priority": "the same without priority",
    "splat_without_visibility": "the same with everything visible",
    "tracked_displacement": "tracked displacement",
    "tracked_splat": "tracked, splatted back, what moves being in front",
}


@dataclass(frozen=True, eq=False)
class Example:
    """A clip, its exact motion, and the exact trajectories of the pixels of frame 0."""

    video: Tensor
    """(1, 3, t, H, W) in [0, 1]."""
    exact: ExactMotion
    trajectories: Trajectories
    """Of every pixel."""

    def of_points(self) -> ExactMotion:
        """Return the exact motion with roles swapped: of the pixels of frame 0, `visible` where frame k shows them."""
        pixels = self.trajectories.displacement * torch.tensor([SIZE.width / 2, SIZE.height / 2]).view(1, 2, 1, 1, 1)
        figure = self.exact.figure[:, :1].expand_as(self.exact.figure)
        return ExactMotion(pixels, self.trajectories.visibility[:, 0] > 0, figure, -self.exact.drift)

    def reduced(self) -> tuple[Trajectories, Tensor]:
        """Return trajectories and priority of the cells of `GRID`; a cell that has figure pixels moves with them."""
        figure = self.exact.figure[:, None, :1].float()
        weight = figure + BACKGROUND_SHARE

        def reduce(x: Tensor) -> Tensor:
            total = F.adaptive_avg_pool3d(x * weight, (x.shape[2], *GRID))
            return total / F.adaptive_avg_pool3d(weight, (1, *GRID))

        found = Trajectories(reduce(self.trajectories.displacement), reduce(self.trajectories.visibility))
        return found, IN_FRONT * (F.adaptive_max_pool2d(figure[:, :, 0], GRID) > 0).float()


def make_example(subject: int, action: str, take: int) -> Example:
    """Render a clip; roles are swapped for its trajectories: frame k becomes the source of frame 0."""
    clip = render_clip(subject, action, take, size=SIZE)
    drawn, tracks, drift = animate(subject, action, take, SIZE)
    moved, seen = [], []
    for k in range(len(drift)):
        pair = [Track(track.part, track.origin[[k, 0]], track.angle[[k, 0]]) for track in tracks]
        _, truth = render(drawn, pair, np.stack([np.zeros(2), -drift[k]]), SIZE, truth=True)
        assert truth is not None
        moved.append(truth.flow[1])
        seen.append(truth.visible[1])
    half = torch.tensor([2 / SIZE.width, 2 / SIZE.height]).view(1, 2, 1, 1, 1)
    displacement = torch.from_numpy(np.stack(moved)).permute(3, 0, 1, 2)[None] * half
    video = torch.from_numpy(clip.frames).permute(3, 0, 1, 2)[None].float() / 255
    return Example(video, exact_motion(clip), Trajectories(displacement, torch.from_numpy(np.stack(seen))[None, None].float()))


def flow_error(flow: Tensor, exact: ExactMotion) -> Tensor:
    """Return the sums of `flow_epe_ratio` of backward flow (1, 2, t, h, w) in half images."""
    motion = Motion(flow, torch.ones_like(flow[:, :1]))
    return flow_epe_ratio(displacement_px(motion, exact.size), exact)


def displacement_error(displacement: Tensor, exact: ExactMotion) -> Tensor:
    """Return the same sums for displacement of source points, read where frames show those points."""
    half = exact.flow.new_tensor([2 / exact.size[1], 2 / exact.size[0]]).view(1, 2, 1, 1, 1)
    grid = flow_to_grid(exact.flow * half, corners=False)
    frames = [warp(displacement[:, :, k], grid[:, k : k + 1], padding_mode="border") for k in range(grid.shape[1])]
    return flow_epe_ratio(-torch.cat(frames, dim=2) / half, exact)


@torch.inference_mode()
def measure(
    examples: Sequence[Example], fitted: Sequence[Example], autoencoder: LatentFlowAutoencoder
) -> dict[str, dict[str, float]]:
    """Return the figures by row and by K, those of all displacements as K = 0."""
    sums: dict[tuple[str, int], list[Tensor]] = {}
    reduced = [example.reduced() for example in examples]
    tracked = [autoencoder.estimate_trajectories(example.video) for example in examples]
    exact_fit = [example.reduced()[0] for example in fitted]
    tracked_fit = [autoencoder.estimate_trajectories(example.video) for example in fitted]
    for example, found in zip(examples, tracked, strict=True):
        backward = autoencoder.estimate_motion(example.video[:, :, 0], example.video).flow
        sums.setdefault(("backward", 0), []).append(flow_error(backward, example.exact))
        sums.setdefault(("tracked_displacement", 0), []).append(displacement_error(found.displacement, example.exact))
    for count in COUNTS:
        basis, other = (
            TrajectoryBasis.from_trajectories(lambda x=x: x, count, VISIBILITY_COUNT) for x in (exact_fit, tracked_fit)
        )
        for example, (exact, priority), found in zip(examples, reduced, tracked, strict=True):
            for row, value in _rows(example, basis, exact, priority):
                sums.setdefault((row, count), []).append(value)
            coefficients = other.fit(found, moving_in_front(found))
            moved = other.trajectories(coefficients, instants(found.num_frames)).displacement
            sums.setdefault(("tracked_displacement", count), []).append(displacement_error(moved, example.exact))
            splatted = other.motion(coefficients, found.num_frames, GRID).flow
            sums.setdefault(("tracked_splat", count), []).append(flow_error(splatted, example.exact))
    rows: dict[str, dict[str, float]] = {}
    for (row, count), values in sums.items():
        rows.setdefault(row, {})[str(count)] = pool(torch.cat(values))["value"]
    return rows


def _rows(example: Example, basis: TrajectoryBasis, exact: Trajectories, priority: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield the sums of the rows with exact trajectories."""
    t, tau = exact.num_frames, instants(exact.num_frames)
    every_pixel = basis.fit(example.trajectories, torch.zeros(1, 1, *example.exact.size))
    yield "displacement", flow_error(basis.trajectories(every_pixel, tau).displacement, example.of_points())
    coefficients = basis.fit(exact, priority)
    yield "splat", flow_error(basis.motion(coefficients, t, GRID).flow, example.exact)
    kept = basis.trajectories(coefficients, tau)
    yield "splat_without_doubling", flow_error(fill_holes(kept.splat(priority, GRID)), example.exact)
    level = torch.cat((coefficients[:, :-1], torch.zeros_like(priority)), dim=1)
    yield "splat_without_priority", flow_error(basis.motion(level, t, GRID).flow, example.exact)
    split = 2 * len(basis.displacement)
    seen = torch.cat((coefficients[:, :split], torch.zeros_like(coefficients[:, split:-1]), priority), dim=1)
    yield "splat_without_visibility", flow_error(basis.motion(seen, t, GRID).flow, example.exact)


def render_table(results: dict[str, Any]) -> str:
    """Render the table of docs/ablation.md."""
    rows = results["rows"]
    cells = [[TITLES[row], *(number(rows[row].get(str(count)), 3) for count in (*COUNTS, 0))] for row in TITLES]
    header = ["", *(f"K = {count}" for count in COUNTS), "all frames"]
    clips = f"{results['num_clips']} clips of {results['num_subjects']} unseen puppets, basis of {results['num_fitted']} clips"
    lines = (
        "## Trajectories: coefficients of time, visibility, priority\n",
        f"{clips} of others; {VISIBILITY_COUNT} coefficients of visibility. Error of moving visible figure pixels over that of",
        f"knowing the drift. Backward flow as {results['model']} estimates it: {number(rows['backward']['0'], 3)}.\n",
        f"`python -m benchmarks.trajectories`\n\n{table(header, cells)}",
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Error of motion compressed as trajectories.")
    parser.add_argument("--model", default="puppets64")
    parser.add_argument("--num-subjects", type=int, default=3)
    parser.add_argument("--num-fitted", type=int, default=24, help="clips that the basis is fitted on")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    autoencoder = LatentFlowPipeline.from_pretrained(options.model).autoencoder
    subjects = range(FIRST_SUBJECT, FIRST_SUBJECT + options.num_subjects)
    examples = [make_example(subject, action, TAKE) for subject in subjects for action in ACTIONS]
    actions = list(ACTIONS)
    fitted = [make_example(FIRST_FITTED_SUBJECT + k, actions[k % len(actions)], TAKE) for k in range(options.num_fitted)]
    results = {
        "model": options.model,
        "num_subjects": options.num_subjects,
        "num_clips": len(examples),
        "num_fitted": len(fitted),
        "rows": measure(examples, fitted, autoencoder),
    }
    write_results(results, options.out)
    print(render_table(results))


if __name__ == "__main__":
    main()
