"""One pipeline called from several threads at once."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteScheduler

from lfdm.config.presets import Preset
from lfdm.diffusion.schedulers import predicted_by
from lfdm.pipeline.pipeline import LatentFlowPipeline


@pytest.mark.parametrize("kind", ["ours", "diffusers"])
def test_calls_from_threads_equal_single_calls(tiny_preset: Preset, kind: str) -> None:
    pipe: Any = LatentFlowPipeline.from_preset(tiny_preset, ["wave"])
    pipe.set_progress_bar_config(disable=True)
    if kind == "diffusers":
        predicts = predicted_by(pipe.scheduler)
        flow = predicts == "velocity"
        pipe.scheduler = FlowMatchHeunDiscreteScheduler() if flow else DPMSolverMultistepScheduler(prediction_type=predicts)
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)

    def frames(seed: int) -> np.ndarray:
        return pipe(image, "wave", num_inference_steps=6, generator=seed, output_type="uint8").frames

    single = [frames(seed) for seed in range(3)]
    with ThreadPoolExecutor(3) as threads:
        together = list(threads.map(frames, range(3)))
    assert all(np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(single, together, strict=True))
    assert (single[0] != single[1]).any()
