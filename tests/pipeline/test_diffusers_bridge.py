"""Folders loaded by `DiffusionPipeline.from_pretrained`; nothing of diffusers is imported before it is used."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.utils import logging

from lfdm import FrameCodec, LatentFlowPipeline, MotionScheduler
from lfdm.config.presets import Preset
from lfdm.errors import UserError


@pytest.fixture(scope="module")
def pipe(tiny_preset: Preset) -> LatentFlowPipeline:
    return LatentFlowPipeline.from_preset(tiny_preset, ("jump", "wave"))


@pytest.fixture
def folder(pipe: LatentFlowPipeline, tmp_path: Path) -> Path:
    pipe.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("scheduler", [MotionScheduler, DDIMScheduler])
def test_diffusers_loads_our_folders(pipe: LatentFlowPipeline, tmp_path: Path, scheduler: type) -> None:
    LatentFlowPipeline.from_pipe(pipe, scheduler=scheduler()).save_pretrained(tmp_path / "model")
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    assert isinstance(loaded, LatentFlowPipeline)
    assert loaded.dtype == torch.bfloat16
    assert not loaded.unet.training
    assert isinstance(loaded.scheduler, scheduler)
    ours = LatentFlowPipeline.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    assert {**loaded.config, "_name_or_path": None} == {**ours.config, "_name_or_path": None}
    assert loaded.motion_codec.config == ours.motion_codec.config
    for network in ("autoencoder", "unet", "condition"):
        one, other = (getattr(model, network).state_dict() for model in (loaded, ours))
        assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_diffusers_loads_as_strictly_as_we_do(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    for change, message in (({"num_frame": 3}, "unknown key 'num_frame'"), ({"unet": ["os", "system"]}, "component 'unet' must")):
        (folder / "model_index.json").write_text(json.dumps({**index, **change}))
        with pytest.raises(UserError, match=message):
            DiffusionPipeline.from_pretrained(folder)
    (folder / "model_index.json").write_text(json.dumps(index))
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps({**config, "dim": 16}))
    with pytest.raises(UserError, match="misshapen"):
        DiffusionPipeline.from_pretrained(folder)


def test_schedulers_of_diffusers_take_our_settings_without_a_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.get_logger("diffusers"), "propagate", True)
    taken: Any = DDIMScheduler.from_config(MotionScheduler(prediction_type="v_prediction", sampler="heun").config)
    assert taken.config["prediction_type"] == "v_prediction"
    assert caplog.records == []


def test_a_component_loads_from_a_folder_inside_a_model(folder: Path) -> None:
    inside = FrameCodec.from_pretrained(folder, subfolder="motion_codec")
    assert inside.config == FrameCodec.from_pretrained(folder / "motion_codec").config
    assert MotionScheduler.from_pretrained("puppets64", subfolder="scheduler").prediction_type == "v_prediction"


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_loading_and_calling_a_pipeline_imports_nothing_of_diffusers() -> None:
    code = """
import sys
from lfdm import LatentFlowPipeline
from lfdm.folders.sources import bundled_images
pipe = LatentFlowPipeline.from_pretrained("puppets64")
pipe(bundled_images("puppets64")[0], "wave", num_frames=2, num_inference_steps=1)
print([name for name in ("accelerate", "diffusers", "huggingface_hub", "transformers") if name in sys.modules])
"""
    assert run(code) == "[]"


@pytest.mark.slow
def test_diffusers_may_be_imported_after_us(folder: Path) -> None:
    code = f"""
from lfdm import LatentFlowPipeline
from diffusers import DiffusionPipeline
print(type(DiffusionPipeline.from_pretrained({str(folder)!r})) is LatentFlowPipeline)
"""
    assert run(code) == "True"
