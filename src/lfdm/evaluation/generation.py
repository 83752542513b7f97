"""Evaluate generation: videos made from the first frames and labels of held-out clips, compared with those clips.

Shapes: frames (n, t, H, W, 3) uint8 · flow (n, 2, t, h, w) float16 in half images. Frame 0 is given and does not count as motion.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lfdm.config.video import Size
from lfdm.data.index import ClipRecord
from lfdm.evaluation.cluster import ClusterGenerator, GeneratorInputs
from lfdm.evaluation.distances import frame_distance, video_distances
from lfdm.evaluation.generators import VideoGenerator
from lfdm.evaluation.metrics.actions import action_accuracy, label_probabilities, predicted_labels
from lfdm.evaluation.metrics.dynamics import energy_ratio, jitter_ratio, motion_energy, ratio, temporal_spectrum
from lfdm.evaluation.metrics.frames import psnr_per_clip
from lfdm.evaluation.metrics.identity import identity, identity_per_clip
from lfdm.evaluation.networks.evaluation_networks import EvaluationNetworks
from lfdm.evaluation.run import EvaluationRun
from lfdm.evaluation.settings import EvaluationConfig
from lfdm.evaluation.stage1 import flow_length
from lfdm.evaluation.store import Arrays, StoredArrays

NO_FLOW = "the generator has no flow, or there is no stage 1 to estimate the flow of real clips"


@dataclass(frozen=True, eq=False)
class GeneratedClips:
    """The generated clips and their individual scores, for the report."""

    arrays: StoredArrays
    predicted: np.ndarray | None
    """The classifier's label of each clip, (n,)."""
    scores: np.ndarray | None
    """Score of each clip, (n,); higher is better."""
    score_name: str
    energies: tuple[np.ndarray, np.ndarray]
    """Motion energy of every generated and every real clip, (n,) each."""


def measure_generation(
    run: EvaluationRun,
    generator: VideoGenerator | ClusterGenerator,
    networks: EvaluationNetworks,
    real: StoredArrays | None,
    config: EvaluationConfig,
) -> tuple[dict[str, Any], GeneratedClips]:
    """Generate a video per clip, and return all figures and the clips.

    Args:
        real: arrays of `measure_stage1`: the flow that the generator's stage 1 estimates of the real clips; None without stage 1.
    """
    everything = range(len(run.clips))
    generated = generate_videos(run, generator, everything, "generated", config.seed, task="generating")
    pixels = run.store.compute(
        "pixels", everything, lambda chosen: _measure_pixels(run, generated, chosen), task="comparing pixels"
    )
    energies = pixels["generated_energy"], pixels["real_energy"]
    psnr = pixels["frame_0_psnr"]
    results: dict[str, Any] = {
        "seconds_per_video": float(generated["seconds"].mean()),
        "frame_0": {"psnr": float(psnr.mean()), "lowest_psnr": float(psnr.min()), "num_clips": len(psnr)},
        "pixel_motion_amount": energy_ratio(*energies),
        "temporal_smoothness": jitter_ratio(pixels["generated_spectrum"], pixels["real_spectrum"], run.clips.num_frames),
    }
    if real is not None and "flow" in generated:
        lengths = {name: float(arrays["flow_length"].mean()) for name, arrays in (("generated", generated), ("real", real))}
        results["motion_amount"] = ratio("px", **lengths) | {"num_clips": len(everything)}
    else:
        run.left_out["generation.motion_amount"] = NO_FLOW
    results |= _diversity(run, generator, generated, real, config)
    accuracy, logits = _action_accuracy(run, networks, generated)
    likeness, features = _identity(run, networks, generated)
    results |= accuracy | likeness
    distances = {e.name: video_distances(run, e, generated, config.allow_small) for e in networks.extractors}
    results["distances"] = {name: figures for name, figures in distances.items() if figures}
    results["frame_distances"] = {
        e.name: frame_distance(run, e, generated, config.allow_small) for e in networks.frame_extractors
    }
    return results, _score_clips(run, networks, generated, logits, features, energies)


def generate_videos(
    run: EvaluationRun, generator: VideoGenerator | ClusterGenerator, clips: Sequence[int], name: str, seed: int, *, task: str
) -> StoredArrays:
    """Generate a video from the first frame and the label of each clip (no label if unconditional), clip i with seed + i.

    Raises:
        ValueError: videos of another shape than the clips.
    """
    num_frames = run.clips.num_frames

    def inputs(chosen: list[int]) -> GeneratorInputs:
        labels = None if run.unconditional else [run.records[i].label for i in chosen]
        return list(run.clips.sources(chosen)), labels, [seed + i for i in chosen]

    if isinstance(generator, ClusterGenerator):
        work = partial(generate_arrays, num_frames=num_frames)
        return run.store.compute_all(name, clips, lambda batches: generator.work(work, batches, inputs), task=task)
    return run.store.compute(
        name, clips, lambda chosen: generate_arrays(generator, *inputs(chosen), num_frames=num_frames), task=task
    )


def generate_arrays(
    generator: VideoGenerator, images: list[np.ndarray], labels: list[str] | None, seeds: list[int], *, num_frames: int
) -> Arrays:
    """Generate videos and return what is stored of them."""
    started = time.monotonic()
    videos = generator(images, labels, seeds)
    seconds = (time.monotonic() - started) / len(images)
    expected = (len(images), num_frames, *images[0].shape)
    if videos.frames.shape != expected or videos.frames.dtype != np.uint8:
        raise ValueError(f"{generator.name} must make videos {expected} uint8; got {videos.frames.shape} {videos.frames.dtype}")
    arrays: Arrays = {"frames": videos.frames, "seconds": np.full(len(images), seconds)}
    if videos.motion is not None:
        arrays |= {
            "flow": videos.motion.flow.half().cpu().numpy(),
            "occlusion": (videos.motion.occlusion.float() * 255).round().to(torch.uint8).cpu().numpy(),
            "corners": np.full(len(images), videos.motion.corners),
            "flow_length": flow_length(videos.motion, Size(*images[0].shape[:2])).cpu().numpy(),
        }
    return arrays


def _measure_pixels(run: EvaluationRun, generated: StoredArrays, chosen: list[int]) -> Arrays:
    fake, real = generated.rows("frames", chosen), run.clips.frames(chosen)
    first, source = (torch.from_numpy(frames[:, 0]).double() / 255 for frames in (fake, real))
    return {
        "frame_0_psnr": psnr_per_clip(first, source).numpy(),
        "generated_energy": motion_energy(fake),
        "real_energy": motion_energy(real),
        "generated_spectrum": temporal_spectrum(fake),
        "real_spectrum": temporal_spectrum(real),
    }


def _diversity(
    run: EvaluationRun,
    generator: VideoGenerator | ClusterGenerator,
    generated: StoredArrays,
    real: StoredArrays | None,
    config: EvaluationConfig,
) -> dict[str, Any]:
    """Return the difference between two seeds over that between two real takes of one subject and label, in pixels and flow."""
    takes = _pairs_of_takes(run.records)
    n = len(run.clips)
    clips = np.linspace(0, n - 1, min(config.num_diversity_clips, n)).astype(int).tolist()
    if not (takes and clips):
        reason = "no two takes of one subject and label" if clips else "num_diversity_clips is 0"
        run.left_out["generation.diversity"] = run.left_out["generation.pixel_diversity"] = reason
        return {}
    others = generate_videos(run, generator, clips, "generated-again", config.seed + n, task="generating with another seed")
    seeds = [(i, i) for i in clips]
    counts = {"num_clips": len(clips), "num_take_pairs": len(takes)}
    fake, fake_again, size = _rows_of(generated, "frames"), _rows_of(others, "frames"), run.store.batch_size
    changes = {
        "between_seeds": _mean_over(seeds, _mean_change, fake, fake_again, size),
        "between_takes": _mean_over(takes, _mean_change, run.clips.frames, run.clips.frames, size),
    }
    results = {"pixel_diversity": ratio("l1", **changes) | counts}
    if real is None or "flow" not in generated:
        run.left_out["generation.diversity"] = NO_FLOW
        return results
    flow, flow_again, real_flow = (_rows_of(arrays, "flow") for arrays in (generated, others, real))
    mean_length = partial(_mean_length, image_size=run.clips.image_size)
    lengths = {
        "between_seeds": _mean_over(seeds, mean_length, flow, flow_again, size),
        "between_takes": _mean_over(takes, mean_length, real_flow, real_flow, size),
    }
    return results | {"diversity": ratio("px", **lengths) | counts}


Rows = Callable[[list[int]], np.ndarray]
"""Loads an array of the given clips."""


def _rows_of(arrays: StoredArrays, name: str) -> Rows:
    return lambda clips: arrays.rows(name, clips)


def _mean_over(
    pairs: list[tuple[int, int]],
    difference: Callable[[np.ndarray, np.ndarray], np.ndarray],
    first: Rows,
    second: Rows,
    batch_size: int,
) -> float:
    """Return the mean difference of `first` of clip i and `second` of clip j over all pairs (i, j)."""
    batches = [pairs[start : start + batch_size] for start in range(0, len(pairs), batch_size)]
    parts = [difference(first([i for i, _ in batch]), second([j for _, j in batch])) for batch in batches]
    return float(np.concatenate(parts).mean())


def _mean_length(a: np.ndarray, b: np.ndarray, *, image_size: Size) -> np.ndarray:
    """Return the mean length of the difference of two flows (n, 2, t, h, w) after frame 0, in pixels of the image: (n,)."""
    difference = a[:, :, 1:].astype(np.float32) - b[:, :, 1:].astype(np.float32)
    difference[:, 1] *= image_size.height / image_size.width  # now in half widths
    return np.linalg.norm(difference, axis=1).mean(axis=(1, 2, 3), dtype=np.float64) * (image_size.width / 2)


def _mean_change(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the mean absolute difference of frames (n, t, H, W, 3) after frame 0, in units of the intensity range, (n,)."""
    difference = a[:, 1:].astype(np.float32) - b[:, 1:].astype(np.float32)
    return np.abs(difference / 255).mean(axis=(1, 2, 3, 4), dtype=np.float64)


def _pairs_of_takes(records: Sequence[ClipRecord]) -> list[tuple[int, int]]:
    """Return the indices of consecutive takes of one subject and label."""
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, record in enumerate(records):
        groups[record.subject, record.label].append(i)
    return [pair for takes in groups.values() for pair in pairwise(takes)]


def _action_accuracy(
    run: EvaluationRun, networks: EvaluationNetworks, generated: StoredArrays
) -> tuple[dict[str, Any], np.ndarray | None]:
    """Return the action accuracy, and the logits of the generated clips."""
    classifier = networks.classifier
    if run.unconditional:
        run.left_out["generation.action_accuracy"] = "unconditional: no action is requested"
        return {}, None
    if classifier is None:  # the reason is noted where it would have been trained
        return {}, None
    sha256 = networks.classifier_sha256
    fake, real = run.apply_network(
        f"actions-{sha256[:12]}", generated, lambda frames, _: classifier(run.video(frames)), task="classifying"
    )
    figure = action_accuracy(fake, real, [record.label for record in run.records], classifier.labels)
    return {"action_accuracy": figure | {"classifier_sha256": sha256}}, fake


def _identity(
    run: EvaluationRun, networks: EvaluationNetworks, generated: StoredArrays
) -> tuple[dict[str, Any], np.ndarray | None]:
    """Return the identity figures, and the features of the generated clips' frames (n, t, d)."""
    network = networks.frame_network
    if network is None:
        return {}, None

    def features(frames: np.ndarray, _: list[int]) -> Tensor:
        return network.features(run.video(frames).transpose(1, 2).flatten(0, 1)).unflatten(0, frames.shape[:2])

    sha256 = networks.frame_network_sha256
    fake, real = run.apply_network(f"appearance-{sha256[:12]}", generated, features, task="comparing appearance")
    figure = identity(fake, real, [record.subject for record in run.records])
    return {"identity": figure | {"frame_network_sha256": sha256}}, fake


def _score_clips(
    run: EvaluationRun,
    networks: EvaluationNetworks,
    generated: StoredArrays,
    logits: np.ndarray | None,
    features: np.ndarray | None,
    energies: tuple[np.ndarray, np.ndarray],
) -> GeneratedClips:
    predicted, scores, score_name = None, None, ""
    if logits is not None and networks.classifier is not None:
        classes = networks.classifier.labels
        predicted = predicted_labels(logits, classes)
        scores = label_probabilities(logits, [record.label for record in run.records], classes)
        score_name = "classifier's probability of the requested action"
    elif features is not None:
        scores, score_name = identity_per_clip(features), "likeness of later frames to the first"
    return GeneratedClips(generated, predicted, scores, score_name, energies)
