"""Measure what comes along with drags and tracks: limbs, or only pixels?

    python -m benchmarks.control --model runs/control --sheets SHEETS

Real tracks of held-out free clips are given to the model, then hands and feet are dragged to places that they can reach, by the
model and by baselines. Writes benchmarks/results/control.json and the tables of docs/control.md.

    python -m benchmarks.control --render    # only the tables, from the stored results
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.control.baselines import BASELINES, real_motion, sample_baseline
from benchmarks.control.measures import measure_drag, pin_leakage, pixel_flow
from benchmarks.control.scenes import DragScene, Scene, drag_scenes
from benchmarks.experiment.machine import machine
from benchmarks.experiment.tables import RESULTS_DIR, ROOT, number, table, write_results
from lfdm.config.control import Control
from lfdm.data.free_motion import FREE_LABEL
from lfdm.data.puppets.actions import ACTIONS
from lfdm.evaluation.metrics.dynamics import jitter_share, temporal_spectrum
from lfdm.evaluation.networks.classifier import ActionClassifier
from lfdm.folders.model_folder import read_json
from lfdm.motion.motion import Motion
from lfdm.pipeline.pipeline import LatentFlowPipeline

RESULTS, DOCUMENT = RESULTS_DIR / "control.json", ROOT / "docs" / "control.md"
NUM_TRACKS = (0, 1, 4, 16, 64)
START, END = "<!-- control: rendered by python -m benchmarks.control --render -->", "<!-- end of control -->"
ARRIVED = {"marker_distance": 1.0, "patch_difference": 15.0, "limb_share": 0.8}
"""Limits of a limb that arrived: at most the first two, at least the third."""
ROWS = {
    "marker_distance": "marker from the target, mean px",
    "marker_within_1": "marker within 1 px",
    "path_distance": "point from its path, mean % of the side",
    "patch_difference": "patch around the point, mean difference of 255",
    "limb_share": "share of the limb within 4 px of the target",
    "vacated": "old place vacated",
    "islands": "pieces of the figure, more than before",
    "folded": "folded pixels, share",
    "arrived": "limb arrived: patch, share, vacated, at most one piece more",
}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a model that follows tracks")
    parser.add_argument("--note", default="", help="how the model was trained, for the document")
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--drags", type=int, default=30)
    parser.add_argument("--labelled", type=int, default=64, help="clips of actions, for --classifier")
    parser.add_argument("--sheets", type=Path, help="folder for contact sheets")
    parser.add_argument(
        "--classifier", type=Path, help="folder of an ActionClassifier of puppets, as `lfdm evaluate` trains it in DATA/.cache"
    )
    parser.add_argument("--render", action="store_true")
    arguments = parser.parse_args()
    if not arguments.render:
        torch.set_num_threads(1)
        pipe = LatentFlowPipeline.from_pretrained(arguments.model)
        pipe.set_progress_bar_config(disable=True)
        results: dict[str, Any] = {"model": arguments.note or arguments.model, "machine": machine()}
        results["tracks"] = measure_tracks(pipe, arguments.clips)
        write_results(results, RESULTS)
        results["drags"] = measure_drags(pipe, list(drag_scenes(arguments.drags)), arguments.sheets)
        write_results(results, RESULTS)
        if arguments.classifier is not None:
            classifier = ActionClassifier.from_pretrained(arguments.classifier)
            results["labels"] = measure_labels(pipe, classifier, arguments.labelled)
            write_results(results, RESULTS)
    before, _, rest = DOCUMENT.read_text().partition(START)
    DOCUMENT.write_text(f"{before}{START}\n{render(read_json(RESULTS))}{END}{rest.partition(END)[2]}")


def measure_tracks(pipe: LatentFlowPipeline, num_clips: int) -> dict[str, Any]:
    """Return flow error and PSNR of held-out free clips by the number of their real tracks that are given.

    `perfect_parts_over_copying` is the error if parts with a track had the motion of the real clip on the grid of cells, and
    the others that of the label without tracks.
    """
    scenes = [Scene.render(number_) for number_ in range(num_clips)]
    on_cells = [flow_error(real_motion(pipe, scene), scene) for scene in scenes]
    label_only: list[np.ndarray] = []
    real = np.concatenate([temporal_spectrum(scene.frames[None]) for scene in scenes])
    rows: dict[str, Any] = {}
    for count in NUM_TRACKS:
        error = still = perfect = 0.0
        ratios, spectra = [], []
        for index, scene in enumerate(scenes):
            control = scene.real_tracks(count)
            out = pipe(scene.frames[0], FREE_LABEL, control=control, generator=scene.seed, output_type="uint8")
            difference = flow_error(out.motion, scene)
            if count == 0:
                label_only.append(difference)
            error += float(difference[scene.moving].sum())
            still += float(np.linalg.norm(scene.truth.flow, axis=-1)[scene.moving].sum())
            perfect += float(np.where(scene.has_track(control), on_cells[index], label_only[index])[scene.moving].sum())
            frames = np.asarray(out.frames)
            ratios.append(10 * np.log10(255**2 / np.square(frames[0].astype(float) - scene.frames).mean()))
            spectra.append(temporal_spectrum(frames))
        rows[str(count)] = {
            "error_over_copying": error / still,
            "perfect_parts_over_copying": perfect / still,
            "psnr": float(np.mean(ratios)),
            "jitter_over_real": jitter_share(np.concatenate(spectra), 16) / jitter_share(real, 16),
        }
    for row in rows.values():
        for name in ("error", "perfect_parts"):
            row[f"{name}_over_label_only"] = row[f"{name}_over_copying"] / rows["0"]["error_over_copying"]
    return {"clips": num_clips, "by_number": rows}


def flow_error(motion: Motion, scene: Scene) -> np.ndarray:
    """Return the distance in pixels of a motion from a clip's exact one, (t, H, W)."""
    return np.linalg.norm(np.moveaxis(pixel_flow(motion), 1, -1) - scene.truth.flow, axis=-1)


def measure_drags(pipe: LatentFlowPipeline, scenes: Sequence[DragScene], sheets: Path | None) -> dict[str, Any]:
    """Return the figures of drags by the model and by the baselines, and the leakage at pins."""
    ways: dict[str, Any] = {}
    for way in ("ours", *BASELINES):
        figures, strips = [], []
        for scene in scenes:
            if way == "ours":
                out = pipe(scene.image, None, control=scene.control, generator=scene.seed, output_type="uint8")
            else:
                out = sample_baseline(pipe, scene, FREE_LABEL, way, scene.seed)
            frames = np.asarray(out.frames)[0]
            figures.append(measure_drag(pipe, scene, out.motion, frames))
            strips.append(strip(scene, frames))
        ways[way] = summarize(figures)
        if sheets is not None:
            sheets.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.concatenate(strips)).save(sheets / f"{way}.png")
    return {"drags": len(scenes), "ways": ways, "pins": measure_pins(pipe, scenes)}


def measure_pins(pipe: LatentFlowPipeline, scenes: Sequence[DragScene]) -> dict[str, Any]:
    """Return the mean displacement at pinned places, with and without the pins."""
    pinned, free = [], []
    for scene in [scene for scene in scenes if scene.pins]:
        for pins, found in ((scene.pins, pinned), ((), free)):
            control = Control(drags=scene.control.drags, pins=pins)
            motion = pipe(scene.image, None, control=control, generator=scene.seed, output_type="latent").motion
            found += pin_leakage(motion, scene.pins)
    return {"places": len(pinned), "leakage": float(np.mean(pinned)), "without_pins": float(np.mean(free))}


@torch.no_grad()
def measure_labels(pipe: LatentFlowPipeline, classifier: ActionClassifier, num_clips: int) -> dict[str, Any]:
    """Return how often a classifier recognises the label, with one track of a real clip of that label and without."""
    right = {"with_track": 0, "without": 0}
    for number_ in range(num_clips):
        action = ACTIONS[number_ % len(ACTIONS)]
        scene = Scene.render(number_, action)
        for way, control in (("with_track", scene.real_tracks(1)), ("without", None)):
            frames = pipe(scene.frames[0], action, control=control, generator=scene.seed, output_type="pt").frames
            logits = classifier.eval()(torch.as_tensor(frames).movedim(1, 2).float())
            right[way] += classifier.labels[int(logits[0].argmax())] == action
    return {"clips": num_clips, **{way: count / num_clips for way, count in right.items()}}


def summarize(figures: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return means over drags, and the share of limbs that arrived."""
    means = {name: float(np.nanmean([one[name] for one in figures])) for name in figures[0]}
    arrived = [
        one["patch_difference"] <= ARRIVED["patch_difference"]
        and one["limb_share"] >= ARRIVED["limb_share"]
        and one["vacated"] == 1
        and one["islands"] <= 1
        for one in figures
    ]
    within = [one["marker_distance"] <= ARRIVED["marker_distance"] for one in figures]
    return means | {"arrived": float(np.mean(arrived)), "marker_within_1": float(np.mean(within))}


def strip(scene: DragScene, frames: np.ndarray) -> np.ndarray:
    """Return six frames in a row, twice as large, with a ring around the target in the last one."""
    shown = np.concatenate([frame.repeat(2, 0).repeat(2, 1) for frame in frames[[0, 3, 6, 9, 12, 15]]], axis=1).copy()
    angle = np.linspace(0, 2 * np.pi, 60)
    column, row = (2 * np.array(scene.target)[:, None] + 7 * np.stack([np.cos(angle), np.sin(angle)])).astype(int)
    offset = shown.shape[1] - 2 * frames.shape[2]
    inside = (row >= 0) & (row < shown.shape[0]) & (column >= 0) & (column + offset < shown.shape[1])
    shown[row[inside], column[inside] + offset] = (255, 0, 0)
    return shown


def render(results: dict[str, Any]) -> str:
    """Return the tables of the document."""
    tracks, drags = results["tracks"], results["drags"]
    counts = tracks["by_number"]
    first = table(
        [f"real tracks given ({tracks['clips']} held-out free clips)", *counts],
        [
            [
                "error of moving pixels of the figure over copying",
                *(number(row["error_over_copying"]) for row in counts.values()),
            ],
            ["the same over that of the label only", *(number(row["error_over_label_only"]) for row in counts.values())],
            [
                "the same if parts with a track were perfect, the others as without tracks",
                *(number(row["perfect_parts_over_label_only"]) for row in counts.values()),
            ],
            ["PSNR, dB", *(number(row["psnr"], 1) for row in counts.values())],
            ["jitter over that of real clips", *(number(row["jitter_over_real"]) for row in counts.values())],
        ],
    )
    ways = drags["ways"]
    names = {"ours": "ours", "touched": "touched cells, every step", "kernel": "kernel, every step", "bent": "bent once"}
    names |= {"guided": "correction without track inputs", "real": "motion of the real clip"}
    second = table(
        [f"{drags['drags']} drags of a hand or foot", *(names[way] for way in ways)],
        [[title, *(number(ways[way][name]) for way in ways)] for name, title in ROWS.items() if name in ways["ours"]],
    )
    pins = drags["pins"]
    pinned = f"{pins['leakage']:.2f} px, {pins['without_pins']:.2f} px without the pins"
    text = (
        f"Model: {results['model']}. {results['machine']}.\n\n{first}\n{second}\n"
        f"Displacement at {pins['places']} pinned hands and feet: {pinned}.\n"
    )
    if labels := results.get("labels"):
        text += (
            f"Label recognised by a classifier in {labels['clips']} videos with one track of a real clip of that label: "
            f"{labels['with_track']:.3f}, without it {labels['without']:.3f}.\n"
        )
    return text


if __name__ == "__main__":
    main()
