"""The published network: recorded outputs of the published system with reproducible weights."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lfdm.diffusion import add_noise, alphas_cumprod, cosine_betas, make_scheduler
from lfdm.models.unet3d import MotionUNet3D
from lfdm.released import ReleasedUNet, convert_unet

PARITY = Path(__file__).parents[2] / ".." / "shared" / "parity"

pytestmark = pytest.mark.skipif(not PARITY.is_dir(), reason="needs ../shared/parity beside the repository")


@pytest.fixture(scope="module")
def checkpoints() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_checkpoint", PARITY / "build_checkpoint.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    with np.load(PARITY / "mug128.npz") as entries:
        return dict(entries)


@pytest.fixture(scope="module")
def unet(checkpoints: ModuleType) -> MotionUNet3D:
    return network_of(released(checkpoints, "mug128"))


@pytest.fixture(scope="module")
def guided(checkpoints: ModuleType, unet: MotionUNet3D) -> dict[float, Tensor]:
    """Noise prediction at timestep 637 by guidance scale."""
    normal = checkpoints.normal
    x, condition = normal("x", (1, 3, 8, 32, 32)), 0.5 * normal("condition", (1, 768))
    with torch.inference_mode():
        image = unet.embed_latent(normal("context", (1, 256, 32, 32)))
        both = torch.cat((torch.zeros_like(condition), condition))
        without, with_condition = unet(
            x.expand(2, -1, -1, -1, -1), 637, both, latent_embedding=image.expand(2, -1, -1, -1)
        ).chunk(2)
    return {scale: without + scale * (with_condition - without) for scale in (0.0, 1.0, 2.5)}


def published_state(checkpoints: ModuleType, name: str) -> dict[str, Tensor]:
    """The "diffusion" entry of a published checkpoint; building the other networks would take longer."""
    entries = json.loads((PARITY / f"{name}.keys.json").read_text())["diffusion"]
    tables = checkpoints.diffusion_buffers(entries["betas"][0][0])
    return {
        key: tables[key] if key in tables else checkpoints.fill("diffusion", key, shape, dtype)
        for key, (shape, dtype) in entries.items()
    }


def released(checkpoints: ModuleType, name: str) -> ReleasedUNet:
    return convert_unet(published_state(checkpoints, name))


def network_of(converted: ReleasedUNet, **config: Any) -> MotionUNet3D:
    with torch.device("meta"):
        network = MotionUNet3D(**config).eval()
    network.load_state_dict(converted.weights, assign=True)
    return network


def check(recorded: dict[str, np.ndarray], name: str, ours: Tensor, *, tolerance: float = 1e-4) -> None:
    assert list(ours.shape) == recorded[f"{name}/shape"].tolist()
    values = ours.double().flatten().numpy()
    scale = recorded[f"{name}/std"]
    assert np.abs(values[recorded[f"{name}/index"]] - recorded[f"{name}/value"]).max() < tolerance * scale
    assert abs(values.mean() - recorded[f"{name}/mean"]) < tolerance * scale
    assert abs(values.std() - scale) < tolerance * scale


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_guided_noise_prediction(scale: float, guided: dict[float, Tensor], recorded: dict[str, np.ndarray]):
    check(recorded, f"unet_guidance_{scale}", guided[scale])


def test_forty_frames_reach_the_far_buckets(checkpoints: ModuleType, unet: MotionUNet3D, recorded: dict[str, np.ndarray]):
    normal = checkpoints.normal
    with torch.inference_mode():
        out = unet(
            normal("x_40", (1, 3, 40, 32, 32)),
            12,
            0.5 * normal("condition", (1, 768)),
            normal("context", (1, 256, 32, 32)),
        )
    check(recorded, "unet_40_frames", out)


def test_natops_checkpoint_loads_and_runs(checkpoints: ModuleType):
    converted = released(checkpoints, "natops128")
    network = network_of(converted, upsample="nearest")
    assert converted.null_embedding is not None
    assert converted.null_embedding.shape == (1, 768)
    tensors = [*network.parameters(), converted.null_embedding]
    assert sum(tensor.numel() for tensor in tensors) == 42_129_859
    normal = checkpoints.normal
    with torch.inference_mode():
        out = network(normal("x", (1, 3, 2, 16, 16)), 637, converted.null_embedding, normal("z", (1, 256, 16, 16)))
    assert out.shape == (1, 3, 2, 16, 16)
    assert 0.1 < out.std() < 10


def test_an_unknown_or_altered_tensor_is_refused():
    name = "denoise_fn.init_temporal_attn.fn.fn.fn.rotary_emb.freqs"
    with pytest.raises(ValueError, match="surprise"):
        convert_unet({"surprise": torch.zeros(1)})
    with pytest.raises(ValueError, match="rotary"):
        convert_unet({name: torch.ones(16)})


def test_schedule(checkpoints: ModuleType, recorded: dict[str, np.ndarray]):
    check(recorded, "betas", cosine_betas())
    check(recorded, "alphas_cumprod", alphas_cumprod())
    normal = checkpoints.normal
    x0 = normal("x_start", (1, 3, 8, 32, 32)).clamp(-1, 1)
    noise = normal("noise", (1, 3, 8, 32, 32))
    check(recorded, "q_sample_637", add_noise(x0, noise, torch.tensor([637])))


@pytest.mark.parametrize("timestep", [0, 1, 250, 637, 998, 999])
def test_one_ddpm_step(timestep: int, checkpoints: ModuleType, unet: MotionUNet3D, recorded: dict[str, np.ndarray]):
    normal = checkpoints.normal
    x = normal("x", (1, 3, 8, 32, 32))
    with torch.inference_mode():
        image = unet.embed_latent(normal("context", (1, 256, 32, 32)))
        noise = unet(x, timestep, 0.5 * normal("condition", (1, 768)), latent_embedding=image)
    mean, variance = ddpm_step(noise, timestep, x)
    check(recorded, f"ddpm_mean_{timestep}", mean, tolerance=1e-3)
    expected = recorded[f"ddpm_variance_{timestep}/mean"]
    assert abs(variance - expected) < 1e-3 * expected + 1e-12


def ddpm_step(noise: Tensor, timestep: int, x: Tensor) -> tuple[Tensor, float]:
    """Mean and variance of the paper's DDPM step; two draws of noise tell the one from the other."""
    scheduler: Any = make_scheduler("ddpm", prediction_type="epsilon", paper=True)
    scheduler.set_timesteps(1000)
    draws = [
        scheduler.step(noise, timestep, x, generator=torch.Generator().manual_seed(seed)).prev_sample.double() for seed in (0, 1)
    ]
    normals = [torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).double() for seed in (0, 1)]
    difference = normals[0] - normals[1]
    deviation = float(((draws[0] - draws[1]) * difference).sum() / difference.square().sum())
    return draws[0] - deviation * normals[0], deviation**2
