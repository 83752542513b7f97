"""The judgement of one model: stage 1 on real clips, generation on videos made from their first frames and labels.

Shapes: video (b, 3, t, S, S) in [0, 1] · flows (n, 2, t - 1, h, w) in pixels of the image, frame 0 left out.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lfdm.data.clips import ClipCache, ClipRecord, labels, open_cache
from lfdm.data.puppets import truth_path
from lfdm.data.video import uniform_indices
from lfdm.evaluation.classifier import ActionClassifier, ClassifierTraining, cached_classifier
from lfdm.evaluation.frames import l1_per_clip, psnr_per_clip, ssim_per_clip
from lfdm.evaluation.loading import EvaluatedModel
from lfdm.evaluation.motion import ExactMotion, PooledRatio, ceilings, displacement_px, flow_score, frame_score
from lfdm.evaluation.report import Example
from lfdm.models.motion import Motion
from lfdm.pipeline import LatentFlowPipeline

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, how much of it is done, how much there is)."""


RELIABLE_ACCURACY = 0.98
"""Accuracy on real held-out clips below which the classifier's word is worth little."""


def reporter(progress: Progress | None, what: str) -> Callable[[int, int], None]:
    """`progress` for one kind of work."""

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress(what, done, total)

    return report


@dataclass
class Evaluation:
    """One run of `evaluate`: what every part of it needs, and what was left out and why."""

    model: EvaluatedModel
    root: Path
    cache: ClipCache
    """Every held-out clip."""
    clips: list[int]
    """Those that are judged on; everything else here counts these from 0."""
    batch_size: int
    device: torch.device
    bf16: bool
    progress: Progress | None
    unconditional: bool = False
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def records(self) -> list[ClipRecord]:
        return [self.cache.records[i] for i in self.clips]

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def batches(self, what: str, indices: Sequence[int]) -> Iterator[list[int]]:
        """Clips, `batch_size` at a time, progress reported after each."""
        report = reporter(self.progress, what)
        for start in range(0, len(indices), self.batch_size):
            chosen = list(indices[start : start + self.batch_size])
            yield chosen
            report(start + len(chosen), len(indices))

    def frame_indices(self, clip: int) -> np.ndarray:
        """Which frames of a clip are used, as many as the model makes."""
        return uniform_indices(self.cache.num_frames(self.clips[clip]), self.model.num_frames)

    def frames(self, clip: int) -> np.ndarray:
        """(t, S, S, 3) uint8."""
        return self.cache.clip(self.clips[clip])[self.frame_indices(clip)]

    def video(self, chosen: Sequence[int]) -> Tensor:
        return _to_video(np.stack([self.frames(i) for i in chosen])).to(self.device)


def judge_stage1(run: Evaluation, num_ceiling_clips: int) -> tuple[dict[str, Any], Tensor]:
    """Every figure of stage 1, and the flows that it estimates of the real clips."""
    autoencoder = run.model.autoencoder
    scores = _MotionScores(run, num_ceiling_clips)
    distances: dict[str, list[Tensor]] = defaultdict(list)
    flows = []
    for chosen in run.batches("stage 1", range(len(run.clips))):
        video = run.video(chosen)
        source = video[:, :, 0]
        with run.autocast():
            motion = autoencoder.estimate_motion(source, video)
            decoded = autoencoder.decode(autoencoder.encode(source), motion)
        copy = video[:, :, :1].expand_as(video)
        for name, guess in (("prediction", decoded.prediction), ("warped", decoded.warped), ("copy", copy)):
            distances[name].append(_distances(guess[:, :, 1:].float(), video[:, :, 1:]))
        scores.add(chosen, video, motion, decoded.prediction.float())
        flows.append(_flow_px(motion.flow, run.model.image_size))
    reconstruction = {name: _mean_distances(values) for name, values in distances.items()}
    return {"reconstruction": reconstruction, **scores.results()}, torch.cat(flows)


class _MotionScores:
    """Scores 1 and 2 and their ceilings over the clips whose exact motion is known."""

    def __init__(self, run: Evaluation, num_ceiling_clips: int) -> None:
        self.run = run
        self.paths = [truth_path(run.root / record.path) for record in run.records]
        self.known = {i for i, path in enumerate(self.paths) if path.is_file()}
        with_ceiling = np.linspace(0, len(self.known) - 1, min(num_ceiling_clips, len(self.known))).astype(int)
        self.with_ceiling = {sorted(self.known)[k] for k in with_ceiling}
        self.ratios: dict[str, list[PooledRatio]] = defaultdict(list)

    def add(self, chosen: Sequence[int], video: Tensor, motion: Motion, prediction: Tensor) -> None:
        """One batch of clips `chosen`: what they show, the motion estimated and the frames predicted."""
        rows = [row for row, i in enumerate(chosen) if i in self.known]
        if not rows:
            return
        clips = [chosen[row] for row in rows]
        truth = ExactMotion.read([self.paths[i] for i in clips], [self.run.frame_indices(i) for i in clips])
        exact = truth.to(self.run.device)
        self.ratios["score_1"].append(flow_score(displacement_px(motion, exact.size)[rows].float(), exact))
        self.ratios["score_2"].append(frame_score(prediction[rows], video[rows], exact))
        limited = [k for k, i in enumerate(clips) if i in self.with_ceiling]
        if limited:
            fits = ceilings(video[[rows[k] for k in limited]], exact.pick(limited), motion.size)
            for name, (first, second) in fits.items():
                self.ratios[f"score_1.{name}"].append(first)
                self.ratios[f"score_2.{name}"].append(second)

    def results(self) -> dict[str, Any]:
        if not self.known:
            reason = "no clip has exact truth (<clip>.truth.npz beside it)"
            self.run.left_out["stage1.score_1"] = self.run.left_out["stage1.score_2"] = reason
            return {}
        pooled = {name: _pooled(ratios) for name, ratios in self.ratios.items()}
        results = {}
        for score in ("score_1", "score_2"):
            fits = {name.split(".")[1]: value for name, value in pooled.items() if name.startswith(f"{score}.")}
            results[score] = pooled[score] | fits
        return results


def _flow_px(flow: Tensor, image_size: int) -> Tensor:
    """Flow of frames 1 on in pixels of the image, on the CPU: (b, 2, t - 1, h, w)."""
    return (flow[:, :, 1:].float() * (image_size / 2)).cpu()


def _distances(guess: Tensor, video: Tensor) -> Tensor:
    """L1, PSNR and SSIM of every clip, (3, b)."""
    return torch.stack((l1_per_clip(guess, video), psnr_per_clip(guess, video), ssim_per_clip(guess, video))).cpu()


def _mean_distances(values: Sequence[Tensor]) -> dict[str, Any]:
    joined = torch.cat(list(values), dim=1).double()
    l1, psnr, ssim = joined.mean(dim=1).tolist()
    return {"l1": l1, "psnr": psnr, "ssim": ssim, "num_clips": joined.shape[1]}


def _pooled(parts: Sequence[PooledRatio]) -> dict[str, Any]:
    ratio = PooledRatio.join(parts)
    return {"value": ratio.value, "num_clips": len(ratio.pixels), "num_pixels": ratio.num_pixels}


def train_judge(run: Evaluation, records: Sequence[ClipRecord], training: ClassifierTraining | None) -> ActionClassifier | None:
    """The classifier of the data set's training clips; None, with the reason noted, where there can be none."""
    train = [record for record in records if record.split == "train"]
    lacking = sorted(set(labels(run.records)) - set(labels(train)))
    if lacking or len(labels(train)) < 2:
        reason = f"held-out labels without training clips: {lacking}" if lacking else f"one label alone: {labels(train)}"
        run.left_out["generation.action_accuracy"] = f"no classifier can be trained ({reason})"
        return None
    model = run.model
    cache = open_cache(
        run.root,
        train,
        model.image_size,
        model.fit,
        progress=reporter(run.progress, "decoding training clips"),
    )
    return cached_classifier(
        cache,
        num_frames=model.num_frames,
        training=training,
        device=run.device,
        progress=reporter(run.progress, "training the classifier"),
    )


@dataclass(frozen=True)
class _Videos:
    """Generated clips: frames (n, t, H, W, 3) uint8 and flows (n, 2, t - 1, h, w) in pixels."""

    frames: np.ndarray
    flows: Tensor


def _generate(
    run: Evaluation, pipe: LatentFlowPipeline, what: str, indices: Sequence[int], sampling: dict[str, Any], seed: int
) -> _Videos:
    """A video from the first frame and the label (or none) of each clip; clip i by seed + i."""
    frames, flows = [], []
    for chosen in run.batches(what, indices):
        images = [run.frames(i)[0] for i in chosen]
        named = None if run.unconditional else [run.records[i].label for i in chosen]
        seeds = [torch.Generator().manual_seed(seed + i) for i in chosen]
        with run.autocast():
            output = pipe(images, named, num_frames=run.model.num_frames, generator=seeds, output_type="np", **sampling)
        frames.append(np.asarray(output.frames))
        flows.append(_flow_px(output.motion.flow, run.model.image_size))
    return _Videos(np.concatenate(frames), torch.cat(flows))


def judge_generation(
    run: Evaluation,
    pipe: LatentFlowPipeline,
    judge: ActionClassifier | None,
    real_flows: Tensor,
    sampling: dict[str, Any],
    num_diversity_clips: int,
    seed: int,
) -> tuple[dict[str, Any], list[Example]]:
    """Every figure of the videos that `pipe` makes, and one example per label. `real_flows` are those of the real clips."""
    everything = range(len(run.clips))
    started = time.monotonic()
    videos = _generate(run, pipe, "generating", everything, sampling, seed)
    results: dict[str, Any] = {
        "seconds_per_video": (time.monotonic() - started) / len(everything),
        "frame_0": _judge_first_frames(run, videos.frames),
        "motion_amount": _ratio(generated=_length(videos.flows), real=_length(real_flows)) | {"num_clips": len(everything)},
    }
    named = None
    if run.unconditional:
        run.left_out["generation.action_accuracy"] = "unconditional: no action is asked for"
    if judge is not None:
        named = _name(run, judge, lambda chosen: _to_video(videos.frames[chosen]))
        results["action_accuracy"] = _judge_actions(run, named, _name(run, judge, run.video))
    pairs = _pair_takes(run.records)
    again = np.linspace(0, len(everything) - 1, min(num_diversity_clips, len(everything))).astype(int).tolist()
    if pairs and again:
        others = _generate(run, pipe, "generating by another seed", again, sampling, seed + len(everything))
        between_seeds = _length(videos.flows[again] - others.flows)
        between_takes = _length(real_flows[[a for a, _ in pairs]] - real_flows[[b for _, b in pairs]])
        numbers = {"num_clips": len(again), "num_take_pairs": len(pairs)}
        results["diversity"] = _ratio(between_seeds=between_seeds, between_takes=between_takes) | numbers
    else:
        run.left_out["generation.diversity"] = "no two takes of one subject and label" if again else "num_diversity_clips is 0"
    return results, _examples(run, videos.frames, named)


def _ratio(**lengths: float) -> dict[str, Any]:
    """The quotient of two lengths in pixels, and both; NaN over zero."""
    top, bottom = lengths.values()
    return {"value": top / bottom if bottom else float("nan"), **{f"{name}_px": value for name, value in lengths.items()}}


def _name(run: Evaluation, judge: ActionClassifier, videos: Callable[[list[int]], Tensor]) -> list[str]:
    return [label for chosen in run.batches("classifying", range(len(run.clips))) for label in judge.classify(videos(chosen))]


def _judge_actions(run: Evaluation, generated: Sequence[str], real: Sequence[str]) -> dict[str, Any]:
    """The share of clips that are taken for what was asked for, with that of the real clips beside it."""
    asked = np.array([record.label for record in run.records])
    right, reference = np.array(generated) == asked, np.array(real) == asked
    return {
        "value": float(right.mean()),
        "num_clips": len(asked),
        "real_held_out": float(reference.mean()),
        "reliable": bool(reference.mean() >= RELIABLE_ACCURACY),
        "by_label": {label: float(right[asked == label].mean()) for label in sorted(set(asked.tolist()))},
    }


def _judge_first_frames(run: Evaluation, frames: np.ndarray) -> dict[str, Any]:
    sources = np.stack([run.frames(i)[0] for i in range(len(run.clips))])
    psnr = psnr_per_clip(torch.from_numpy(frames[:, 0]).double() / 255, torch.from_numpy(sources).double() / 255)
    return {"psnr": float(psnr.mean()), "lowest_psnr": float(psnr.min()), "num_clips": len(psnr)}


def _pair_takes(records: Sequence[ClipRecord]) -> list[tuple[int, int]]:
    """Neighbouring takes of one subject and label, as indices."""
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, record in enumerate(records):
        groups[record.subject, record.label].append(i)
    return [pair for takes in groups.values() for pair in pairwise(takes)]


def _length(flow: Tensor) -> float:
    """Mean length of a flow (n, 2, t, h, w), pixels."""
    return float(flow.norm(dim=1).mean(dtype=torch.float64))


def _to_video(frames: np.ndarray) -> Tensor:
    return torch.from_numpy(frames).permute(0, 4, 1, 2, 3).float() / 255


def _examples(run: Evaluation, frames: np.ndarray, named: Sequence[str] | None) -> list[Example]:
    """The first clip of every label."""
    first: dict[str, int] = {}
    for i, record in enumerate(run.records):
        first.setdefault(record.label, i)
    examples = []
    for label, i in sorted(first.items()):
        taken_for = None if named is None else named[i]
        examples.append(Example(label, run.frames(i), frames[i], taken_for, unconditional=run.unconditional))
    return examples
