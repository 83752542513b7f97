"""Distances between the features of real and generated clips: FVD, cFVD, sFVD, KVD, and Frechet distances of single frames.

The real side consists of the held-out clips from whose first frames the videos were generated, at the same frame indices.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from lfdm.errors import UserError
from lfdm.evaluation.metrics.frechet import estimate, estimate_groups, frechet_distance, kernel_distance
from lfdm.evaluation.networks.features import FrameFeatures, VideoFeatures, kernel_name
from lfdm.evaluation.run import EvaluationRun
from lfdm.evaluation.store import StoredArrays

NUM_GROUP_BOOTSTRAP = 50
"""Half-samples of the interval of every class and subject."""


def video_distances(run: EvaluationRun, extractor: VideoFeatures, generated: StoredArrays, allow_small: bool) -> dict[str, Any]:
    """Return FVD, cFVD (by label), sFVD (by subject) and KVD with one extractor; those that cannot be measured are left out."""
    where = f"generation.distances.{extractor.name}"
    if run.clips.num_frames < extractor.min_frames:
        run.left_out[where] = f"it needs {extractor.min_frames} frames; the clips have {run.clips.num_frames}"
        return {}
    fake, real = run.apply_network(
        _folder_name(extractor), generated, lambda frames, _: extractor(run.video(frames)), task=f"features for {extractor.name}"
    )

    def by_group(groups: list[str]) -> dict[str, Any]:
        bootstrap = {"num_bootstrap": NUM_GROUP_BOOTSTRAP, "allow_small": allow_small}
        return asdict(estimate_groups(frechet_distance, real, fake, groups, **bootstrap))

    figures = {
        "frechet": lambda: asdict(estimate(frechet_distance, real, fake, allow_small=allow_small)),
        "frechet_by_label": lambda: by_group([record.label for record in run.records]),
        "frechet_by_subject": lambda: by_group([record.subject for record in run.records]),
        "kernel": lambda: asdict(estimate(kernel_distance, real, fake)),
    }
    return _description(extractor) | _measurable(run, where, figures)


def frame_distance(run: EvaluationRun, extractor: FrameFeatures, generated: StoredArrays, allow_small: bool) -> dict[str, Any]:
    """Return the Frechet distance of one frame per clip (never frame 0), so that no two samples come from the same clip."""

    def features(frames: np.ndarray, chosen: list[int]) -> Any:
        rows, indices = np.arange(len(chosen)), [1 + i % (run.clips.num_frames - 1) for i in chosen]
        return extractor(run.video(frames[rows, indices][:, None])[:, :, 0])

    task = f"features for {extractor.name}"
    fake, real = run.apply_network(_folder_name(extractor), generated, features, task=task)
    figures = {"frechet": lambda: asdict(estimate(frechet_distance, real, fake, allow_small=allow_small))}
    return _description(extractor) | _measurable(run, f"generation.frame_distances.{extractor.name}", figures)


def _measurable(run: EvaluationRun, where: str, figures: dict[str, Callable[[], dict[str, Any]]]) -> dict[str, Any]:
    """Compute the figures; note for those with too few samples why they are left out."""
    results = {}
    for name, compute in figures.items():
        try:
            results[name] = compute()
        except UserError as error:
            run.left_out[f"{where}.{name}"] = str(error)
    return results


def _description(extractor: VideoFeatures | FrameFeatures) -> dict[str, Any]:
    return {"dim": extractor.dim, "sha256": extractor.sha256, "kernel_name": kernel_name(extractor)}


def _folder_name(extractor: VideoFeatures | FrameFeatures) -> str:
    """Return a folder name that differs between extractors of the same name with different weights."""
    readable = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in extractor.name)
    return f"features-{readable}-{extractor.sha256[:12]}"
