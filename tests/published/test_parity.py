"""The published system's recorded outputs (mug128) against ours, imported from files whose weights any machine can build."""

import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lfdm import LatentFlowPipeline, Motion
from lfdm.autoencoder.predictors.region_geometry import relative_affine
from lfdm.autoencoder.predictors.regions import RegionMotionPredictor
from lfdm.denoiser.network import DenoiserContext
from lfdm.diffusion.guidance import Guidance, guided_prediction
from lfdm.diffusion.process import add_noise
from lfdm.published.importing import import_released

PARITY = Path(__file__).parents[3] / "shared" / "parity"
TIMESTEPS = (0, 1, 250, 637, 998, 999)
TOLERANCE = {
    **dict.fromkeys(["region_shift", "region_covar", "relative_affine", "background", "grid", "occlusion", "latent"], 1e-4),
    **dict.fromkeys(["prediction", "warped"], 5e-4),
    **dict.fromkeys(["decoded_prediction", "decoded_warped", "betas", "alphas_cumprod", "q_sample_637"], 1e-4),
    **dict.fromkeys([f"unet_guidance_{scale}" for scale in (0.0, 1.0, 2.5)], 1e-4),
    "unet_40_frames": 1e-4,
    **dict.fromkeys([f"ddpm_mean_{t}" for t in TIMESTEPS], 1e-4),
    **dict.fromkeys(["ddpm_mean_1", "ddpm_mean_999"], 1e-3),
}
"""Largest difference, relative to each entry's standard deviation."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PARITY.is_dir(), reason=f"no recorded outputs: {PARITY} is absent"),
]


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    return runpy.run_path(str(PARITY / "build_checkpoint.py"))


def import_pipeline(published: dict[str, Any], preset: str, keys: str, folder: Path) -> LatentFlowPipeline:
    """Import a pair of checkpoint files in the published layout."""
    networks = published["build"](PARITY / f"{keys}.keys.json")
    torch.save({"diffusion": networks.pop("diffusion"), "optimizer_diff": {}, "example": 1}, folder / "flowdiff.pth")
    torch.save({**networks, "optimizer": {}, "example": 1, "epoch": 100}, folder / "RegionMM.pth")
    files = {"autoencoder": folder / "RegionMM.pth", "diffusion": folder / "flowdiff.pth"}
    out = import_released(preset, folder / "model", **files).path
    pipe = LatentFlowPipeline.from_pretrained(out)
    pipe.set_progress_bar_config(disable=True)
    for path in [*files.values(), *out.rglob("*.safetensors")]:
        path.unlink()  # a gigabyte, once loaded
    return pipe


@pytest.fixture(scope="module")
def pipe(published: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> LatentFlowPipeline:
    return import_pipeline(published, "mug128", "mug128", tmp_path_factory.mktemp("mug128"))


@pytest.fixture(scope="module")
def outputs(published: dict[str, Any], pipe: LatentFlowPipeline) -> Mapping[str, Tensor]:
    """Compute every recorded entry with the imported pipeline."""
    with torch.no_grad():
        return _stage1(published, pipe) | _stage2(published, pipe)


def test_every_recorded_entry_is_compared() -> None:
    with np.load(PARITY / "mug128.npz") as recorded:
        entries = {key.partition("/")[0] for key in recorded}
    assert entries == TOLERANCE.keys() | {f"ddpm_variance_{t}" for t in TIMESTEPS}


@pytest.mark.parametrize("name", TOLERANCE)
def test_output_equals_the_recorded_one(outputs: Mapping[str, Tensor], name: str) -> None:
    ours = outputs[name].double().numpy()
    with np.load(PARITY / "mug128.npz") as recorded:
        index, value, std = recorded[f"{name}/index"], recorded[f"{name}/value"], recorded[f"{name}/std"]
        assert ours.shape == tuple(recorded[f"{name}/shape"])
        differences = [
            np.abs(ours.ravel()[index] - value).max(),
            abs(ours.mean() - recorded[f"{name}/mean"]),
            abs(ours.std() - std),
        ]
    assert max(differences) < TOLERANCE[name] * std, [difference / std for difference in differences]


@pytest.mark.parametrize("timestep", TIMESTEPS)
def test_variance_of_a_step_equals_the_recorded_one(outputs: Mapping[str, Tensor], timestep: int) -> None:
    with np.load(PARITY / "mug128.npz") as recorded:
        expected = float(recorded[f"ddpm_variance_{timestep}/mean"])
    assert abs(float(outputs[f"ddpm_variance_{timestep}"]) - expected) < 1e-3 * expected + 1e-12


def _stage1(published: dict[str, Any], pipe: LatentFlowPipeline) -> dict[str, Tensor]:
    def image(name: str) -> Tensor:
        small = published["uniform"](name, (1, 3, 9, 9))
        return F.interpolate(small, size=(128, 128), mode="bicubic", align_corners=True).clamp(0, 1)

    def field(values: Tensor) -> Tensor:
        return F.interpolate(values, size=(32, 32), mode="bilinear", align_corners=True)

    source, driving = image("source"), image("driving")
    grid = field(published["uniform"]("grid", (1, 2, 5, 5)) * 2 - 1).movedim(1, -1)
    given = Motion.from_grid(grid, field(published["uniform"]("occlusion", (1, 1, 5, 5))), corners=True)
    autoencoder = pipe.autoencoder
    predictor = autoencoder.motion_predictor
    assert isinstance(predictor, RegionMotionPredictor)
    source_regions, driving_regions = predictor.region_predictor(source), predictor.region_predictor(driving)
    background = F.pad(predictor.background_predictor(source, driving), (0, 0, 0, 1))
    background[:, 2, 2] = 1
    features = autoencoder.encode(source)
    motion = autoencoder.estimate_motion(source, driving)
    estimated, decoded = autoencoder.decode(features, motion), autoencoder.decode(features, given)
    return {
        "region_shift": driving_regions.shift,
        "region_covar": driving_regions.covariance,
        "relative_affine": relative_affine(source_regions, driving_regions),
        "background": background,
        "grid": motion.grid().squeeze(1),
        "occlusion": motion.occlusion.squeeze(2),
        "latent": features.latent,
        "prediction": estimated.prediction.squeeze(2),
        "warped": estimated.warped.squeeze(2),
        "decoded_prediction": decoded.prediction.squeeze(2),
        "decoded_warped": decoded.warped.squeeze(2),
    }


def _stage2(published: dict[str, Any], pipe: LatentFlowPipeline) -> dict[str, Tensor]:
    normal = published["normal"]
    x, latent, condition = (
        normal("x", (1, 3, 8, 32, 32)),
        normal("context", (1, 256, 32, 32)),
        0.5 * normal("condition", (1, 768)),
    )
    found = {"unet_40_frames": pipe.unet(normal("x_40", (1, 3, 40, 32, 32)), 12, condition, latent)}
    for scale in (0.0, 1.0, 2.5):
        guidance = Guidance(negative=pipe.embed_condition(None), scale=scale)
        predict = guided_prediction(pipe.unet, DenoiserContext(condition=condition, latent=latent), guidance)
        found[f"unet_guidance_{scale}"] = predict(x, torch.tensor(637))
    pipe.scheduler.set_timesteps(1000)
    for t in TIMESTEPS:
        noise = found["unet_guidance_1.0"] if t == 637 else pipe.unet(x, t, condition, latent)
        found[f"ddpm_mean_{t}"], found[f"ddpm_variance_{t}"] = _ddpm_step(pipe.scheduler, noise, t, x)
    start, added = normal("x_start", x.shape).clamp(-1, 1), normal("noise", x.shape)
    return {
        **found,
        "betas": pipe.scheduler.betas,
        "alphas_cumprod": pipe.scheduler.alphas_cumprod,
        "q_sample_637": add_noise(start, added, torch.tensor([637]), "epsilon"),
    }


def _ddpm_step(scheduler: Any, noise: Tensor, timestep: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of a step, recovered from two samples with known noise."""
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    draws = [scheduler.step(noise, timestep, x, generator=one).prev_sample.double() for one in generators]
    normals = [torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).double() for seed in (0, 1)]
    difference = normals[0] - normals[1]
    deviation = ((draws[0] - draws[1]) * difference).sum() / difference.square().sum()
    return draws[0] - deviation * normals[0], deviation**2


@pytest.mark.parametrize(("preset", "keys"), [("natops128", "natops128"), ("mhad128", "mug128")])
def test_the_other_presets_import_and_run(published: dict[str, Any], preset: str, keys: str, tmp_path: Path) -> None:
    pipe = import_pipeline(published, preset, keys, tmp_path)
    predictor = pipe.autoencoder.motion_predictor
    assert isinstance(predictor, RegionMotionPredictor)
    image = torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert predictor.region_predictor(image[None]).heatmap.shape[-2:] == (26, 26)
    null = pipe.embed_condition([None])
    learned = preset == "natops128"
    expected = published["fill"]("diffusion", "denoise_fn.null_cond_emb", (1, 768), "float32") if learned else torch.zeros(1, 768)
    assert torch.equal(null, expected)
    assert (type(pipe.unet.get_submodule("up.0.resample")).__name__ == "NearestUpsample") == learned
    out = pipe(image, torch.ones(768), num_frames=2, num_inference_steps=2, guidance_scale=2.0, generator=0, output_type="pt")
    assert isinstance(out.frames, Tensor)
    assert out.frames.shape == (1, 2, 3, 128, 128)
    assert out.frames.isfinite().all()
