"""Stage 1 judged on real clips: how well it rebuilds their frames from frame 0, and how true its motion is.

Shapes: video (b, 3, t, S, S) in [0, 1] · per-clip figures have the clip first · frame 0, which is given, never counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.data.puppets.truth import truth_path
from lfdm.evaluation.loading import file_sha256
from lfdm.evaluation.metrics.frames import l1_per_clip, psnr_per_clip, ssim_per_clip
from lfdm.evaluation.metrics.motion import ExactMotion, PooledRatio, ceilings, displacement_px, flow_score, frame_score
from lfdm.evaluation.run import EvaluationRun, to_numpy
from lfdm.evaluation.store import StoredArrays
from lfdm.motion.motion import Motion
from lfdm.training.losses.perceptual import PerceptualLoss

GUESSES = ("prediction", "warped", "copy")
"""What is compared with the real frames: the decoder's frames, frame 0 warped alone, frame 0 itself."""
SCORES = ("flow_epe_ratio", "warp_recovery")
FITS = ("ceiling", "whole_frame_fit")
VISIBLE_ABOVE = 0.5
"""An occlusion map above this says visible."""
NO_TRUTH = "no clip has exact truth (<clip>.truth.npz beside it)"
NO_PERCEPTUAL = "no VGG weights were given (--perceptual-weights)"


@dataclass(frozen=True)
class PerceptualDistance:
    """The distance of training's perceptual loss at full size alone, clip by clip, and the file of its network."""

    network: PerceptualLoss
    sha256: str

    @classmethod
    def load(cls, path: str | Path, device: torch.device) -> "PerceptualDistance":
        """Raises FileNotFoundError for no such file and UserError for a file of neither VGG network."""
        network = PerceptualLoss(path, num_scales=1)
        network.to(device)
        return cls(network, file_sha256(Path(path)))

    def per_clip(self, guess: Tensor, video: Tensor) -> Tensor:
        """Mean over frames of each clip's distance, (b,)."""
        pairs = zip(guess, video, strict=True)
        return torch.stack([self.network(*(rearrange(x, "c t h w -> t c h w") for x in pair)) for pair in pairs])


def judge_stage1(
    run: EvaluationRun, autoencoder: LatentFlowAutoencoder, num_ceiling_clips: int, perceptual: PerceptualDistance | None
) -> tuple[dict[str, Any], StoredArrays]:
    """Every figure of stage 1, and what they were made of; its array `flow` is the flow estimated of the real clips.

    `flow` is (n, 2, t, h, w) float16 in half images, `flow_length` (n,) its mean length after frame 0 in pixels.
    """
    truth = _Truth(run, num_ceiling_clips)

    @torch.inference_mode()
    def measure(chosen: list[int]) -> dict[str, np.ndarray]:
        video = run.video(run.clips.frames(chosen))
        source = video[:, :, 0]
        with run.autocast():
            motion = autoencoder.estimate_motion(source, video)
            decoded = autoencoder.decode(autoencoder.encode(source), motion)
        guesses = {"prediction": decoded.prediction, "warped": decoded.warped, "copy": video[:, :, :1].expand_as(video)}
        arrays = {}
        for name, guess in guesses.items():
            arrays |= {f"{name}.{key}": value for key, value in _distances(guess[:, :, 1:].float(), video[:, :, 1:]).items()}
            if perceptual is not None:
                arrays[f"{name}.perceptual"] = perceptual.per_clip(guess[:, :, 1:].float(), video[:, :, 1:])
        arrays |= truth.measure(chosen, video, motion, decoded.prediction.float())
        arrays |= {"flow": motion.flow.half(), "flow_length": flow_length(motion, run.clips.image_size)}
        return to_numpy(arrays)

    stored = run.store.compute("stage1", range(len(run.clips)), measure, what="stage 1")
    if perceptual is None:
        run.left_out["stage1.reconstruction.perceptual"] = NO_PERCEPTUAL
    reconstruction = {name: _mean_distances(stored, name) for name in GUESSES}
    results: dict[str, Any] = {"reconstruction": reconstruction}
    if perceptual is not None:
        results["perceptual_network"] = {"sha256": perceptual.sha256, "num_scales": 1}
    return results | truth.results(stored), stored


def flow_length(motion: Motion, image_size: int) -> Tensor:
    """Mean length of every clip's flow after frame 0, in pixels of the image, (b,)."""
    return motion.flow[:, :, 1:].float().norm(dim=1).mean(dim=(1, 2, 3), dtype=torch.float64) * (image_size / 2)


def _distances(guess: Tensor, video: Tensor) -> dict[str, Tensor]:
    by_frame = (guess - video).abs().mean(dim=(1, 3, 4))
    return {
        "l1": l1_per_clip(guess, video),
        "psnr": psnr_per_clip(guess, video),
        "ssim": ssim_per_clip(guess, video),
        "l1_by_frame": by_frame,
    }


def _mean_distances(stored: StoredArrays, name: str) -> dict[str, Any]:
    measures = ["l1", "psnr", "ssim", *(["perceptual"] if f"{name}.perceptual" in stored else [])]
    values = {measure: stored[f"{name}.{measure}"].astype(np.float64) for measure in measures}
    by_frame = stored[f"{name}.l1_by_frame"].mean(axis=0, dtype=np.float64).tolist()
    means = {measure: float(value.mean()) for measure, value in values.items()}
    return means | {"num_clips": len(values["l1"]), "l1_by_frame": by_frame}


class _Truth:
    """Scores 1 and 2, what can be reached at this resolution, and visibility, of the clips whose exact motion is known."""

    def __init__(self, run: EvaluationRun, num_ceiling_clips: int) -> None:
        self.run = run
        self.paths = [truth_path(run.clips.root / record.path) for record in run.records]
        self.known = [i for i, path in enumerate(self.paths) if path.is_file()]
        if not self.known:
            for figure in (*SCORES, "visibility_f1"):
                run.left_out[f"stage1.{figure}"] = NO_TRUTH
        chosen = np.linspace(0, len(self.known) - 1, min(num_ceiling_clips, len(self.known))).astype(int)
        self.with_ceiling = {self.known[k] for k in chosen}

    def measure(self, chosen: Sequence[int], video: Tensor, motion: Motion, prediction: Tensor) -> dict[str, Tensor]:
        """Sums of one batch of clips (b, 3: numerator, denominator, pixels) and counts (b, 2, 4); NaN where unknown."""
        if not self.known:
            return {}
        names = [*SCORES, *(f"{score}.{fit}" for score in SCORES for fit in FITS)]
        sums = {name: torch.full((len(chosen), 3), float("nan"), dtype=torch.float64) for name in names}
        counts = torch.full((len(chosen), 2, 4), float("nan"), dtype=torch.float64)
        rows = [row for row, i in enumerate(chosen) if i in set(self.known)]
        if rows:
            clips = [chosen[row] for row in rows]
            read = ExactMotion.read([self.paths[i] for i in clips], [self.run.clips.frame_indices(i) for i in clips])
            exact = read.to(self.run.device)
            flow = displacement_px(motion, exact.size)[rows].float()
            sums["flow_epe_ratio"][rows] = _sums(flow_score(flow, exact))
            sums["warp_recovery"][rows] = _sums(frame_score(prediction[rows], video[rows], exact))
            counts[rows] = _count_visibility(motion.resize(exact.size).occlusion[rows, 0], exact)
            limited = [k for k, i in enumerate(clips) if i in self.with_ceiling]
            if limited:
                where = [rows[k] for k in limited]
                for fit, ratios in ceilings(video[where], exact.pick(limited), motion.size).items():
                    for score, ratio in zip(SCORES, ratios, strict=True):
                        sums[f"{score}.{fit}"][where] = _sums(ratio)
        return sums | {"visibility": counts}

    def results(self, stored: StoredArrays) -> dict[str, Any]:
        if not self.known:
            return {}
        results: dict[str, Any] = {}
        for score in SCORES:
            results[score] = _pool(stored[score]) | {fit: _pool(stored[f"{score}.{fit}"]) for fit in FITS}
        counts = stored["visibility"]
        known = counts[~np.isnan(counts).any(axis=(1, 2))]
        figure, everywhere = known.sum(axis=0)
        results["visibility_f1"] = {
            "threshold": VISIBLE_ABOVE,
            "num_clips": len(known),
            "figure": _f1(figure),
            "all_pixels": _f1(everywhere),
        }
        return results


def _sums(ratio: PooledRatio) -> Tensor:
    return torch.stack((ratio.numerator, ratio.denominator, ratio.pixels.double().cpu()), dim=1).double().cpu()


def _pool(sums: np.ndarray) -> dict[str, Any]:
    known = torch.from_numpy(sums[~np.isnan(sums).any(axis=1)])
    ratio = PooledRatio(known[:, 0], known[:, 1], known[:, 2])
    return {"value": ratio.value, "num_clips": len(known), "num_pixels": ratio.num_pixels}


def _count_visibility(occlusion: Tensor, exact: ExactMotion) -> Tensor:
    """True visible, false visible, false hidden and true hidden pixels of frames 1 on, figure pixels and all: (b, 2, 4).

    `occlusion` is (b, t, H, W).
    """
    said = occlusion > VISIBLE_ABOVE
    counts = []
    for mask in (exact.figure, torch.ones_like(exact.figure)):
        kinds = (said & exact.visible, said & ~exact.visible, ~said & exact.visible, ~said & ~exact.visible)
        counts.append(torch.stack([(kind & mask)[:, 1:].sum(dim=(1, 2, 3)) for kind in kinds], dim=1))
    return torch.stack(counts, dim=1).double().cpu()


def _f1(counts: np.ndarray) -> dict[str, float]:
    """F1 of the visible and of the hidden pixels; `visible_if_all` is what calling everything visible scores."""
    true_visible, false_visible, false_hidden, true_hidden = counts.tolist()
    wrong = false_visible + false_hidden

    def f1(right: float, wrong: float) -> float:
        return 2 * right / (2 * right + wrong) if right + wrong else float("nan")

    return {
        "visible": f1(true_visible, wrong),
        "hidden": f1(true_hidden, wrong),
        "visible_if_all": f1(true_visible + false_hidden, false_visible + true_hidden),
        "num_pixels": true_visible + true_hidden + wrong,
    }
