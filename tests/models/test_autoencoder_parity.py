"""The published system's recorded outputs (mug128) against ours, for weights that any machine can build."""

import runpy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lfdm.models.autoencoder import LatentFlowAutoencoder
from lfdm.models.loading import load_exactly
from lfdm.models.motion import Motion
from lfdm.models.regions import RegionMotionPredictor, relative_affine
from lfdm.released import convert_autoencoder

PARITY = Path(__file__).parents[2] / ".." / "shared" / "parity"
TOLERANCE = dict.fromkeys(
    ["region_shift", "region_covar", "relative_affine", "background", "grid", "occlusion", "latent"], 1e-4
) | dict.fromkeys(["prediction", "warped", "decoded_prediction", "decoded_warped"], 5e-4)


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    if not PARITY.is_dir():
        pytest.skip(f"no recorded outputs: {PARITY} is absent")
    return runpy.run_path(str(PARITY / "build_checkpoint.py"))


@pytest.fixture(scope="module")
def autoencoder(published: dict[str, Any]) -> LatentFlowAutoencoder:
    networks = published["build"](PARITY / "mug128.keys.json")
    model = LatentFlowAutoencoder(motion="regions", corners=True)
    names = ("generator", "region_predictor", "bg_predictor")
    load_exactly(model, convert_autoencoder(*(networks[name] for name in names)), "the published layout")
    return model.eval()


@pytest.fixture(scope="module")
def outputs(published: dict[str, Any], autoencoder: LatentFlowAutoencoder) -> Mapping[str, Tensor]:
    uniform: Callable[[str, tuple[int, ...]], Tensor] = published["uniform"]

    def image(name: str) -> Tensor:
        small = uniform(name, (1, 3, 9, 9))
        return F.interpolate(small, size=(128, 128), mode="bicubic", align_corners=True).clamp(0, 1)

    def field(values: Tensor) -> Tensor:
        return F.interpolate(values, size=(32, 32), mode="bilinear", align_corners=True)

    source, driving = image("source"), image("driving")
    grid = field(uniform("grid", (1, 2, 5, 5)) * 2 - 1).movedim(1, -1)
    given = Motion.from_grid(grid, field(uniform("occlusion", (1, 1, 5, 5))), corners=True)
    predictor = autoencoder.motion_predictor
    assert isinstance(predictor, RegionMotionPredictor)
    with torch.no_grad():
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


@pytest.mark.parametrize("name", TOLERANCE)
def test_output_equals_the_recorded_one(outputs: Mapping[str, Tensor], name: str) -> None:
    ours = outputs[name].numpy()
    with np.load(PARITY / "mug128.npz") as recorded:
        index, value, std = recorded[f"{name}/index"], recorded[f"{name}/value"], recorded[f"{name}/std"]
        assert ours.shape == tuple(recorded[f"{name}/shape"])
    worst = np.abs(ours.ravel()[index] - value).max() / std
    assert worst < TOLERANCE[name]
