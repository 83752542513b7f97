"""A saved pipeline folder generates its recorded video."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from lfdm import LatentFlowPipeline

GOLDEN = Path(__file__).parent / "golden"


def test_a_saved_pipeline_generates_its_recorded_video() -> None:
    pipe = LatentFlowPipeline.from_pretrained(GOLDEN / "pipeline")
    recorded = load_file(GOLDEN / "pipeline_output.safetensors")
    ramp = np.indices((32, 32)).sum(0)[..., None]
    image = (ramp * np.array([3, 2, 1]) % 256).astype(np.uint8)
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    out = pipe(image, ["jump", "wave"], num_inference_steps=3, guidance_scale=2.0, generator=generators, output_type="pt")
    torch.testing.assert_close(out.motion.flow, recorded["flow"], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(out.motion.occlusion, recorded["occlusion"], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(out.frames, recorded["frames"].transpose(1, 2), atol=1e-3, rtol=0)
