"""Evaluate stage 1 on held-out clips, with bootstrap intervals over clips."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.config.presets import Preset
from lfdm.data.cache import open_cache
from lfdm.data.index import read_index
from lfdm.evaluation.loading import select_clips
from lfdm.evaluation.run import EvaluationRun, HeldOutClips
from lfdm.evaluation.settings import EvaluationConfig
from lfdm.evaluation.stage1 import MOTION_FIGURES, measure_stage1
from lfdm.evaluation.store import BatchStore
from lfdm.folders.files import file_sha256
from lfdm.folders.model_folder import WEIGHTS_NAME
from lfdm.folders.run_folder import find_model

NUM_BOOTSTRAP = 1000
CONFIDENCE = 0.95
PSNR_FIGURES = ("prediction", "warped")


def evaluate_autoencoder(
    run_folder: Path, preset: Preset, data: Path, out: Path, config: EvaluationConfig, *, device: str
) -> dict[str, Any]:
    """PSNR of prediction and of the warped image, and flow error ratio and warp recovery where the exact motion is known:
    `value`, `low`, `high` of each.

    Goes on in `out` where it was stopped.
    """
    folder = find_model(run_folder, "autoencoder")
    autoencoder = LatentFlowAutoencoder.from_pretrained(folder, device=device)
    records = read_index(data)
    held_out = [record for record in records if record.split == "test"]
    chosen = select_clips(records, config.num_clips, config.seed, where=str(data))
    cache = open_cache(data, held_out, preset.size, preset.fit)
    store = BatchStore(
        out,
        {"weights_sha256": file_sha256(folder / WEIGHTS_NAME), "clips": cache.folder.name, "chosen": chosen},
        batch_size=config.batch_size,
        state=PartialState(cpu=torch.device(device).type == "cpu"),
    )
    run = EvaluationRun(HeldOutClips(data, cache, chosen, preset.num_frames), store, torch.device(device))
    _, stored = measure_stage1(run, autoencoder, 1, None)
    figures = {f"{name}_psnr": _interval(stored[f"{name}.psnr"], np.ones(len(chosen))) for name in PSNR_FIGURES}
    for figure in MOTION_FIGURES:
        if figure in stored:
            sums = stored[figure]
            known = sums[~np.isnan(sums).any(axis=1)]
            figures[figure] = _interval(known[:, 0], known[:, 1])
    return {"figures": figures, "num_clips": len(chosen)}


def _interval(numerators: np.ndarray, denominators: np.ndarray) -> dict[str, float]:
    """Return the ratio of two sums over clips, (n,) each, and its percentile bootstrap interval."""
    rng = np.random.default_rng(0)
    draws = rng.integers(len(numerators), size=(NUM_BOOTSTRAP, len(numerators)))
    ratios = numerators[draws].sum(axis=1, dtype=np.float64) / denominators[draws].sum(axis=1, dtype=np.float64)
    low, high = np.quantile(ratios, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    value = numerators.sum(dtype=np.float64) / denominators.sum(dtype=np.float64)
    return {"value": float(value), "low": float(low), "high": float(high)}
