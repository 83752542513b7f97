"""Distances between the features of real and generated clips: FVD, cFVD, sFVD, KVD, and of single frames.

The real side is the held-out clips whose first frames the generated ones begin with, at the same frame numbers.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from lfdm.evaluation.metrics.frechet import Distance, estimate, frechet_distance, grouped, kernel_distance
from lfdm.evaluation.networks.features import FrameFeatures, VideoFeatures, kernel_name
from lfdm.evaluation.run import EvaluationRun
from lfdm.evaluation.store import Arrays, StoredArrays

GROUPS = ("by_label", "by_subject")
"""cFVD and sFVD: a distance per class or per subject, and the mean and standard deviation of these."""


def judge_video_distances(
    run: EvaluationRun, extractor: VideoFeatures, generated: StoredArrays, allow_small: bool
) -> dict[str, Any]:
    """FVD, cFVD, sFVD and KVD with one extractor; what cannot be had is left out with a reason."""
    if run.clips.num_frames < extractor.min_frames:
        reason = f"it needs {extractor.min_frames} frames; the clips have {run.clips.num_frames}"
        run.left_out[f"generation.distances.{extractor.name}"] = reason
        return {}

    @torch.inference_mode()
    def measure(chosen: list[int]) -> Arrays:
        pair = {"real": run.clips.frames(chosen), "generated": generated.rows("frames", chosen)}
        return {name: extractor(run.video(frames)).float().cpu().numpy() for name, frames in pair.items()}

    features = run.store.compute(
        _folder_name(extractor.name, extractor.sha256), range(len(run.clips)), measure, what=f"features for {extractor.name}"
    )
    real, made = features["real"], features["generated"]
    results: dict[str, Any] = _described(extractor)

    def add(figure: str, measured: Callable[[], dict[str, Any]]) -> None:
        _measure(run, results, f"generation.distances.{extractor.name}", figure, measured)

    add("frechet", lambda: asdict(estimate(frechet_distance, real, made, allow_small=allow_small)))
    keys = ([record.label for record in run.records], [record.subject for record in run.records])
    for name, key in zip(GROUPS, keys, strict=True):
        add(f"frechet_{name}", lambda key=key: _grouped(frechet_distance, real, made, key, allow_small))
    add("kernel", lambda: asdict(estimate(kernel_distance, real, made)))
    return results


def judge_frame_distance(
    run: EvaluationRun, extractor: FrameFeatures, generated: StoredArrays, allow_small: bool
) -> dict[str, Any]:
    """The Frechet distance of one frame per clip, never frame 0, so that no two samples share a clip."""
    results = _described(extractor)
    where = f"generation.frame_distances.{extractor.name}"

    @torch.inference_mode()
    def measure(chosen: list[int]) -> Arrays:
        rows, when = np.arange(len(chosen)), [1 + i % (run.clips.num_frames - 1) for i in chosen]
        pair = {"real": run.clips.frames(chosen), "generated": generated.rows("frames", chosen)}
        pictures = {name: run.video(frames[rows, when][:, None])[:, :, 0] for name, frames in pair.items()}
        return {name: extractor(frames).float().cpu().numpy() for name, frames in pictures.items()}

    features = run.store.compute(
        _folder_name(extractor.name, extractor.sha256), range(len(run.clips)), measure, what=f"features for {extractor.name}"
    )
    real, made = features["real"], features["generated"]
    _measure(run, results, where, "frechet", lambda: asdict(estimate(frechet_distance, real, made, allow_small=allow_small)))
    return results


def _measure(
    run: EvaluationRun, results: dict[str, Any], where: str, figure: str, measured: Callable[[], dict[str, Any]]
) -> None:
    """Put a figure into `results`, or the reason that it has none (too few samples) into what is left out."""
    try:
        results[figure] = measured()
    except ValueError as error:
        run.left_out[f"{where}.{figure}"] = str(error)


def _grouped(distance: Distance, real: np.ndarray, made: np.ndarray, keys: Sequence[str], allow_small: bool) -> dict[str, Any]:
    return asdict(grouped(distance, real, made, keys, num_bootstrap=50, allow_small=allow_small))


def _described(extractor: VideoFeatures | FrameFeatures) -> dict[str, Any]:
    return {"dim": extractor.dim, "sha256": extractor.sha256, "kernel_name": kernel_name(extractor)}


def _folder_name(name: str, sha256: str | None) -> str:
    """What keeps the features of one extractor apart from those of another of the same name."""
    readable = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name)
    return f"features-{readable}" + (f"-{sha256[:12]}" if sha256 else "")
