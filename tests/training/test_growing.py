from dataclasses import replace
from pathlib import Path

import pytest

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.config.presets import FLOW128, Preset
from lfdm.config.sizes import parse_stages
from lfdm.folders.run_folder import find_checkpoints, find_model
from lfdm.training.growing import train_growing
from lfdm.training.stage1 import train_autoencoder


def growing_preset(tiny_preset: Preset) -> Preset:
    """Return the tiny preset for images of 64x64, whose motion has the grid of 32x32 images."""
    return replace(tiny_preset, image_size=64, autoencoder=replace(tiny_preset.autoencoder, num_downs=2, upsampling="convex"))


def test_training_grows_from_size_to_size_and_resumes(tiny_preset: Preset, puppets_dir: Path, tmp_path: Path) -> None:
    out, stages = tmp_path / "run", parse_stages(["32:2", "64:2"])
    preset = growing_preset(tiny_preset)
    last = train_growing(preset, puppets_dir, out, stages)
    assert last == find_checkpoints(out)[-1]
    small, large = (LatentFlowAutoencoder.from_pretrained(find_model(run, "autoencoder")) for run in (tmp_path / "run-32", out))
    assert (small.config["num_downs"], large.config["num_downs"]) == (1, 2)
    weight = "motion_predictor.stem.conv.weight"
    assert (small.get_parameter(weight) - large.get_parameter(weight)).abs().max() < 0.05  # two steps away
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert train_growing(preset, puppets_dir, out, stages) == last
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == times


@pytest.mark.parametrize("init", [None, "puppets64"])
def test_presets_of_larger_images_train(init: str | None, tiny_preset: Preset, puppets_dir: Path, tmp_path: Path) -> None:
    training = replace(tiny_preset.autoencoder_training.optimization, num_steps=2, batch_size=2)
    preset = growing_preset(tiny_preset) if init is None else replace(FLOW128, image_size=64)
    preset = replace(preset, autoencoder_training=replace(preset.autoencoder_training, optimization=training))
    assert train_autoencoder(preset, puppets_dir, tmp_path / "run", init=init).is_dir()
