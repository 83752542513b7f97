"""Stage 1 on real clips: how well it reconstructs their frames from frame 0, and how accurate its motion is.

Shapes: video (b, 3, t, H, W) in [0, 1] · figures per clip have the clip first · frame 0, which is given, never counts.
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
from lfdm.config.video import Size
from lfdm.data.truth import truth_path
from lfdm.evaluation.metrics.frames import l1_per_clip, psnr_per_clip, ssim_per_clip
from lfdm.evaluation.metrics.motion import ExactMotion, ceilings, displacement_px, flow_epe_ratio, pool, warp_recovery
from lfdm.evaluation.run import EvaluationRun
from lfdm.evaluation.store import Arrays, StoredArrays
from lfdm.folders.files import file_sha256
from lfdm.motion.motion import Motion
from lfdm.training.losses.perceptual import PerceptualLoss

RECONSTRUCTIONS = ("prediction", "warped", "copy")
"""Videos compared with the real frames: the decoder's frames, warped frame 0, frame 0 itself."""
MOTION_FIGURES = ("flow_epe_ratio", "warp_recovery")
"""Figures that need the exact motion."""
CEILINGS = ("ceiling", "whole_frame_ceiling")
VISIBLE_ABOVE = 0.5
"""Threshold of the occlusion map: above it a pixel counts as visible."""
NO_TRUTH = "no clip has exact motion (a file CLIP.truth.npz next to it)"
NO_PERCEPTUAL = "no VGG weights were given (--perceptual-weights)"


@dataclass(frozen=True, eq=False)
class PerceptualDistance:
    """The perceptual loss of training, at full size only and per clip, and the SHA-256 of its network's file."""

    network: PerceptualLoss
    sha256: str

    @classmethod
    def load(cls, path: str | Path, device: torch.device) -> "PerceptualDistance":
        """Load a VGG network; raises FileNotFoundError without the file and UserError for a file of another network."""
        network = PerceptualLoss(path, num_scales=1)
        network.to(device)
        return cls(network, file_sha256(Path(path)))

    def per_clip(self, guess: Tensor, video: Tensor) -> Tensor:
        """Return the distance of videos (b, 3, t, H, W), averaged over frames: (b,)."""
        pairs = zip(guess, video, strict=True)
        return torch.stack([self.network(*(rearrange(x, "c t h w -> t c h w") for x in pair)) for pair in pairs])


def measure_stage1(
    run: EvaluationRun, autoencoder: LatentFlowAutoencoder, num_ceiling_clips: int, perceptual: PerceptualDistance | None
) -> tuple[dict[str, Any], StoredArrays]:
    """Return all figures of stage 1 and the arrays they are computed from.

    The array `flow` (n, 2, t, h, w) float16 is the estimated flow of the real clips in half images, `flow_length` (n,) its mean
    length after frame 0 in pixels.
    """
    motion_accuracy = _MotionAccuracy(run, num_ceiling_clips)

    @torch.inference_mode()
    def measure(chosen: list[int]) -> Arrays:
        video = run.video(run.clips.frames(chosen))
        source = video[:, :, 0]
        with run.autocast():
            motion = autoencoder.estimate_motion(source, video)
            refined = autoencoder.estimate_motion(source, video, refine=True)
            decoded = autoencoder.decode(autoencoder.encode(source), refined)
            applied = autoencoder.upsample_motion(source, refined)
        guesses = (decoded.prediction, decoded.warped, video[:, :, :1].expand_as(video))
        arrays: dict[str, Tensor] = {}
        for name, guess in zip(RECONSTRUCTIONS, guesses, strict=True):
            distances = _distances(guess[:, :, 1:].float(), video[:, :, 1:], perceptual)
            arrays |= {f"{name}.{key}": value for key, value in distances.items()}
        arrays |= motion_accuracy.measure(chosen, video, applied, motion.size, decoded.prediction.float())
        arrays |= {"flow": motion.flow.half(), "flow_length": flow_length(motion, run.clips.image_size)}
        return {name: tensor.detach().cpu().numpy() for name, tensor in arrays.items()}

    stored = run.store.compute("stage1", range(len(run.clips)), measure, task="stage 1")
    results: dict[str, Any] = {"reconstruction": {name: _mean_distances(stored, name) for name in RECONSTRUCTIONS}}
    if perceptual is None:
        run.left_out["stage1.reconstruction.perceptual"] = NO_PERCEPTUAL
    else:
        results["perceptual_network"] = {"sha256": perceptual.sha256, "num_scales": 1}
    return results | motion_accuracy.results(stored), stored


def flow_length(motion: Motion, image_size: Size) -> Tensor:
    """Return the mean length of each clip's flow after frame 0, in pixels of the image: (b,)."""
    x, y = motion.flow[:, :, 1:].float().unbind(1)
    flow = torch.stack((x, y * (image_size.height / image_size.width)), dim=1)  # in half widths
    return flow.norm(dim=1).mean(dim=(1, 2, 3), dtype=torch.float64) * (image_size.width / 2)


def _distances(guess: Tensor, video: Tensor, perceptual: PerceptualDistance | None) -> dict[str, Tensor]:
    distances = {
        "l1": l1_per_clip(guess, video),
        "psnr": psnr_per_clip(guess, video),
        "ssim": ssim_per_clip(guess, video),
        "l1_by_frame": (guess - video).abs().mean(dim=(1, 3, 4)),
    }
    return distances if perceptual is None else distances | {"perceptual": perceptual.per_clip(guess, video)}


def _mean_distances(stored: StoredArrays, name: str) -> dict[str, Any]:
    measures = ["l1", "psnr", "ssim", *(["perceptual"] if f"{name}.perceptual" in stored else [])]
    values = {measure: stored[f"{name}.{measure}"].astype(np.float64) for measure in measures}
    by_frame = stored[f"{name}.l1_by_frame"].mean(axis=0, dtype=np.float64).tolist()
    means = {measure: float(value.mean()) for measure, value in values.items()}
    return means | {"num_clips": len(values["l1"]), "l1_by_frame": by_frame}


class _MotionAccuracy:
    """The motion figures, their ceilings at this flow resolution, and visibility, for the clips whose exact motion is known."""

    def __init__(self, run: EvaluationRun, num_ceiling_clips: int) -> None:
        self.run = run
        self.paths = [truth_path(run.clips.root / record.path) for record in run.records]
        self.known = [i for i, path in enumerate(self.paths) if path.is_file()]
        if not self.known:
            for figure in (*MOTION_FIGURES, "visibility_f1"):
                run.left_out[f"stage1.{figure}"] = NO_TRUTH
        chosen = np.linspace(0, len(self.known) - 1, min(num_ceiling_clips, len(self.known))).astype(int)
        self.with_ceiling = {self.known[k] for k in chosen}

    def measure(
        self, chosen: Sequence[int], video: Tensor, motion: Motion, grid: tuple[int, int], prediction: Tensor
    ) -> dict[str, Tensor]:
        """Return sums (b, 3: numerator, denominator, pixels) and visibility counts (b, 2, 4) of a batch; NaN where unknown.

        Args:
            motion: at full size.
            grid: size (h, w) of the motion that stage 2 learns, for the ceilings.
        """
        if not self.known:
            return {}
        names = [*MOTION_FIGURES, *(f"{figure}.{ceiling}" for figure in MOTION_FIGURES for ceiling in CEILINGS)]
        sums = {name: torch.full((len(chosen), 3), float("nan"), dtype=torch.float64) for name in names}
        counts = torch.full((len(chosen), 2, 4), float("nan"), dtype=torch.float64)
        rows = [row for row, i in enumerate(chosen) if i in set(self.known)]
        if rows:
            clips = [chosen[row] for row in rows]
            read = ExactMotion.read([self.paths[i] for i in clips], [self.run.clips.frame_indices(i) for i in clips])
            exact = read.to(self.run.device)
            flow = displacement_px(motion, exact.size)[rows].float()
            sums["flow_epe_ratio"][rows] = flow_epe_ratio(flow, exact)
            sums["warp_recovery"][rows] = warp_recovery(prediction[rows], video[rows], exact)
            counts[rows] = _count_visibility(motion.resize(exact.size).occlusion[rows, 0], exact)
            limited = [k for k, i in enumerate(clips) if i in self.with_ceiling]
            if limited:
                where = [rows[k] for k in limited]
                for ceiling, ratios in ceilings(video[where], exact.select(limited), grid).items():
                    for figure, ratio in zip(MOTION_FIGURES, ratios, strict=True):
                        sums[f"{figure}.{ceiling}"][where] = ratio
        return sums | {"visibility": counts}

    def results(self, stored: StoredArrays) -> dict[str, Any]:
        """Return the figures of all clips, each with its numbers of clips and pixels."""
        if not self.known:
            return {}
        results: dict[str, Any] = {}
        for figure in MOTION_FIGURES:
            results[figure] = _pool(stored[figure]) | {name: _pool(stored[f"{figure}.{name}"]) for name in CEILINGS}
        counts = stored["visibility"]
        known = counts[~np.isnan(counts).any(axis=(1, 2))]
        on_figure, everywhere = known.sum(axis=0)
        results["visibility_f1"] = {
            "threshold": VISIBLE_ABOVE,
            "num_clips": len(known),
            "figure": _f1(on_figure),
            "all_pixels": _f1(everywhere),
        }
        return results


def _pool(sums: np.ndarray) -> dict[str, Any]:
    return pool(torch.from_numpy(sums[~np.isnan(sums).any(axis=1)]))


def _count_visibility(occlusion: Tensor, exact: ExactMotion) -> Tensor:
    """Count true visible, false visible, false hidden and true hidden pixels of frames 1 on: (b, 2, 4), on the figure and in all.

    `occlusion` is (b, t, H, W).
    """
    predicted = occlusion > VISIBLE_ABOVE
    pairs = [(predicted, exact.visible), (predicted, ~exact.visible), (~predicted, exact.visible), (~predicted, ~exact.visible)]
    masks = (exact.figure, torch.ones_like(exact.figure))
    counts = [torch.stack([(a & b & mask)[:, 1:].sum(dim=(1, 2, 3)) for a, b in pairs], dim=1) for mask in masks]
    return torch.stack(counts, dim=1).double().cpu()


def _f1(counts: np.ndarray) -> dict[str, float]:
    """Return F1 of the visible and of the hidden pixels; `visible_if_all` is that of calling every pixel visible."""
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
