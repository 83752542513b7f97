"""Generation judged: videos made from the first frames and labels of held-out clips, against those clips.

Shapes: frames (n, t, S, S, 3) uint8 · flow (n, 2, t, h, w) in half images, float16 · frame 0 is given: it counts as no
motion.
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from lfdm.data.index import ClipRecord
from lfdm.errors import UserError
from lfdm.evaluation.distances import judge_frame_distance, judge_video_distances
from lfdm.evaluation.generators import VideoGenerator
from lfdm.evaluation.metrics.actions import certainty, judge_actions, named
from lfdm.evaluation.metrics.appearance import identity_per_clip, judge_identity
from lfdm.evaluation.metrics.dynamics import judge_energy, judge_smoothness, motion_energy, ratio, temporal_spectrum
from lfdm.evaluation.metrics.frames import psnr_per_clip
from lfdm.evaluation.networks.judges import Judges
from lfdm.evaluation.run import EvaluationRun
from lfdm.evaluation.stage1 import flow_length
from lfdm.evaluation.store import Arrays, StoredArrays

NO_FLOW = "the generator knows no flow, or no stage 1 is there to estimate that of real clips"


@dataclass(frozen=True)
class Judged:
    """What was made and how each clip fared, for the report."""

    generated: StoredArrays
    named: np.ndarray | None
    """What the classifier calls each clip, (n,)."""
    scores: np.ndarray | None
    """A number per clip, (n,), the higher the better."""
    score_name: str
    """What the number is."""
    energies: tuple[np.ndarray, np.ndarray]
    """Motion energy of every generated and every real clip, (n,) each."""


def judge_generation(
    run: EvaluationRun,
    generator: VideoGenerator,
    judges: Judges,
    real: StoredArrays | None,
    *,
    seed: int,
    num_diversity_clips: int,
    allow_small: bool,
) -> tuple[dict[str, Any], Judged]:
    """Every figure of the videos that `generator` makes.

    Args:
        real: the flow that the generator's stage 1 estimates of the real clips (see `judge_stage1`), where it has one.
    """
    everything = range(len(run.clips))
    generated = generate(run, generator, everything, "generated", seed, what="generating")
    pixels = run.store.compute(
        "pixels", everything, lambda chosen: _measure_pixels(run, generated, chosen), what="comparing pixels"
    )
    energies = pixels["generated_energy"], pixels["real_energy"]
    psnr = pixels["frame_0_psnr"]
    results: dict[str, Any] = {
        "seconds_per_video": float(generated["seconds"].mean()),
        "frame_0": {"psnr": float(psnr.mean()), "lowest_psnr": float(psnr.min()), "num_clips": len(psnr)},
        "pixel_motion_amount": judge_energy(*energies),
        "temporal_smoothness": judge_smoothness(pixels["generated_spectrum"], pixels["real_spectrum"], run.clips.num_frames),
    }
    if real is not None and "flow" in generated:
        lengths = {"generated": generated["flow_length"].mean(), "real": real["flow_length"].mean()}
        results["motion_amount"] = ratio("px", **{name: float(value) for name, value in lengths.items()})
        results["motion_amount"]["num_clips"] = len(everything)
    else:
        run.left_out["generation.motion_amount"] = NO_FLOW
    results |= _judge_diversity(run, generator, generated, real, seed + len(everything), num_diversity_clips)
    actions, logits = _judge_actions(run, judges, generated)
    appearance, features = _judge_appearance(run, judges, generated)
    results |= actions | appearance
    results["distances"] = {
        extractor.name: found
        for extractor in judges.extractors
        if (found := judge_video_distances(run, extractor, generated, allow_small))
    }
    results["frame_distances"] = {
        extractor.name: judge_frame_distance(run, extractor, generated, allow_small) for extractor in judges.frame_extractors
    }
    return results, _describe(run, judges, generated, logits, features, energies)


def generate(
    run: EvaluationRun, generator: VideoGenerator, items: Sequence[int], name: str, seed: int, *, what: str
) -> StoredArrays:
    """A video from the first frame and the label (or none) of each clip; clip i by seed + i."""

    def make(chosen: list[int]) -> Arrays:
        started = time.monotonic()
        labels = None if run.unconditional else [run.records[i].label for i in chosen]
        videos = generator(list(run.clips.sources(chosen)), labels, [seed + i for i in chosen])
        seconds = (time.monotonic() - started) / len(chosen)
        expected = (len(chosen), run.clips.num_frames, *run.clips.sources(chosen).shape[1:])
        if videos.frames.shape != expected:
            raise UserError(f"{generator.name} must make videos {expected}; got {videos.frames.shape}")
        arrays: Arrays = {"frames": videos.frames, "seconds": np.full(len(chosen), seconds)}
        if videos.motion is not None:
            arrays |= {
                "flow": videos.motion.flow.half().cpu().numpy(),
                "occlusion": (videos.motion.occlusion.float() * 255).round().to(torch.uint8).cpu().numpy(),
                "corners": np.full(len(chosen), videos.motion.corners),
                "flow_length": flow_length(videos.motion, run.clips.image_size).cpu().numpy(),
            }
        return arrays

    return run.store.compute(name, items, make, what=what)


def _measure_pixels(run: EvaluationRun, generated: StoredArrays, chosen: list[int]) -> Arrays:
    made, real = generated.rows("frames", chosen), run.clips.frames(chosen)
    first, source = (torch.from_numpy(frames[:, 0]).double() / 255 for frames in (made, real))
    return {
        "frame_0_psnr": psnr_per_clip(first, source).numpy(),
        "generated_energy": motion_energy(made),
        "real_energy": motion_energy(real),
        "generated_spectrum": temporal_spectrum(made),
        "real_spectrum": temporal_spectrum(real),
    }


def _judge_diversity(
    run: EvaluationRun,
    generator: VideoGenerator,
    generated: StoredArrays,
    real: StoredArrays | None,
    seed: int,
    num_clips: int,
) -> dict[str, Any]:
    """How far two seeds are apart, over how far two real takes of one subject and label are: in flow, and in pixels."""
    pairs = _pair_takes(run.records)
    n = len(run.clips)
    again = np.linspace(0, n - 1, min(num_clips, n)).astype(int).tolist()
    if not (pairs and again):
        reason = "no two takes of one subject and label" if again else "num_diversity_clips is 0"
        run.left_out["generation.diversity"] = run.left_out["generation.pixel_diversity"] = reason
        return {}
    others = generate(run, generator, again, "generated-again", seed, what="generating by another seed")
    size = run.store.batch_size
    seeds, takes, pixel_seeds, pixel_takes = [], [], [], []
    with_flow = real is not None and "flow" in generated
    for start in range(0, len(again), size):
        chosen = again[start : start + size]
        pixel_seeds.append(_mean_change(generated.rows("frames", chosen), others.rows("frames", chosen)))
        if with_flow:
            seeds.append(_mean_length(others.rows("flow", chosen), generated.rows("flow", chosen)))
    for start in range(0, len(pairs), size):
        one, other = ([pair[k] for pair in pairs[start : start + size]] for k in range(2))
        pixel_takes.append(_mean_change(run.clips.frames(one), run.clips.frames(other)))
        if real is not None and with_flow:
            takes.append(_mean_length(real.rows("flow", one), real.rows("flow", other)))
    numbers = {"num_clips": len(again), "num_take_pairs": len(pairs)}
    levels = {"between_seeds": _mean(pixel_seeds), "between_takes": _mean(pixel_takes)}
    results = {"pixel_diversity": ratio("l1", **levels) | numbers}
    if not with_flow:
        run.left_out["generation.diversity"] = NO_FLOW
        return results
    half = run.clips.image_size / 2
    lengths = {"between_seeds": _mean(seeds) * half, "between_takes": _mean(takes) * half}
    return results | {"diversity": ratio("px", **lengths) | numbers}


def _mean_length(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean length of the difference of two flows (n, 2, t, h, w) after frame 0, (n,)."""
    difference = a[:, :, 1:].astype(np.float32) - b[:, :, 1:].astype(np.float32)
    return np.linalg.norm(difference, axis=1).mean(axis=(1, 2, 3), dtype=np.float64)


def _mean_change(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean absolute difference of two clips' frames after frame 0, in units of the intensity range, (n,)."""
    difference = a[:, 1:].astype(np.float32) - b[:, 1:].astype(np.float32)
    return np.abs(difference / 255).mean(axis=(1, 2, 3, 4), dtype=np.float64)


def _mean(parts: Sequence[np.ndarray]) -> float:
    return float(np.concatenate(parts).mean())


def _pair_takes(records: Sequence[ClipRecord]) -> list[tuple[int, int]]:
    """Neighbouring takes of one subject and label, as indices."""
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, record in enumerate(records):
        groups[record.subject, record.label].append(i)
    return [pair for takes in groups.values() for pair in pairwise(takes)]


def _judge_actions(run: EvaluationRun, judges: Judges, generated: StoredArrays) -> tuple[dict[str, Any], np.ndarray | None]:
    """Action accuracy, and the logits of the generated clips."""
    classifier = judges.classifier
    if run.unconditional:
        run.left_out["generation.action_accuracy"] = "unconditional: no action is asked for"
        return {}, None
    if classifier is None:  # why is noted where it was to be trained
        return {}, None
    asked = [record.label for record in run.records]

    @torch.inference_mode()
    def measure(chosen: list[int]) -> Arrays:
        pair = {"real": run.clips.frames(chosen), "generated": generated.rows("frames", chosen)}
        return {name: classifier(run.video(frames)).cpu().numpy() for name, frames in pair.items()}

    name = f"actions-{judges.classifier_sha256[:12]}"
    logits = run.store.compute(name, range(len(run.clips)), measure, what="classifying")
    figure = judge_actions(logits["generated"], logits["real"], asked, classifier.labels)
    return {"action_accuracy": figure | {"classifier_sha256": judges.classifier_sha256}}, logits["generated"]


def _judge_appearance(run: EvaluationRun, judges: Judges, generated: StoredArrays) -> tuple[dict[str, Any], np.ndarray | None]:
    """Identity, and the features of the generated clips' frames (n, t, d)."""
    network = judges.frame_network
    if network is None:
        return {}, None

    @torch.inference_mode()
    def measure(chosen: list[int]) -> Arrays:
        pair = {"real": run.clips.frames(chosen), "generated": generated.rows("frames", chosen)}
        arrays = {}
        for name, frames in pair.items():
            flat = run.video(frames).transpose(1, 2).flatten(0, 1)
            arrays[name] = network.features(flat).cpu().numpy().reshape(*frames.shape[:2], -1)
        return arrays

    name = f"appearance-{judges.frame_network_sha256[:12]}"
    features = run.store.compute(name, range(len(run.clips)), measure, what="comparing appearance")
    subjects = [record.subject for record in run.records]
    figure = judge_identity(features["generated"], features["real"], subjects)
    return {"identity": figure | {"frame_network_sha256": judges.frame_network_sha256}}, features["generated"]


def _describe(
    run: EvaluationRun,
    judges: Judges,
    generated: StoredArrays,
    logits: np.ndarray | None,
    features: np.ndarray | None,
    energies: tuple[np.ndarray, np.ndarray],
) -> Judged:
    names, scores, score_name = None, None, ""
    if logits is not None and judges.classifier is not None:
        labels = judges.classifier.labels
        names = named(logits, labels)
        scores = np.exp(certainty(logits, [record.label for record in run.records], labels))
        score_name = "probability that the classifier gives to the action asked for"
    elif features is not None:
        scores, score_name = identity_per_clip(features), "likeness of later frames to the first"
    return Judged(generated, names, scores, score_name, energies)
