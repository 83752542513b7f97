"""What users of diffusers type works, or says in one line why it does not."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers.utils import logging

from lfdm import LatentFlowAutoencoder, LatentFlowPipeline, Motion
from lfdm.config.presets import Preset
from lfdm.denoiser.unet3d import MotionUNet3D
from lfdm.errors import UserError
from lfdm.pipeline.folder import component_types


@pytest.fixture
def pipe(tiny_preset: Preset) -> LatentFlowPipeline:
    preset = replace(tiny_preset, fps=25.0, diffusion=replace(tiny_preset.diffusion, guidance_scale=3.0))
    pipe = LatentFlowPipeline.from_preset(preset, ("jump", "wave"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_moving_and_converting_a_pipeline_warns_of_nothing(
    pipe: LatentFlowPipeline, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.get_logger("diffusers"), "propagate", True)
    assert pipe.to("cpu", torch.bfloat16) is pipe
    assert pipe.dtype == torch.bfloat16
    out = pipe(torch.rand(3, 32, 32), "wave", num_inference_steps=1, output_type="pt")
    assert torch.as_tensor(out.frames).isfinite().all()
    assert pipe.to("meta", torch.float16).unet.device.type == "meta"
    assert pipe.unet.to(torch.float32).dtype == torch.float32
    assert caplog.records == []


def test_a_pipeline_of_the_components_has_the_same_settings(pipe: LatentFlowPipeline) -> None:
    expected = {name: value for name, value in pipe.config.items() if not name.startswith("_")}
    for same in (
        LatentFlowPipeline(**pipe.components),
        LatentFlowPipeline(**pipe.components, **pipe.parameters),
        LatentFlowPipeline.from_pipe(pipe),
    ):
        assert {name: value for name, value in same.config.items() if not name.startswith("_")} == expected
        assert all(getattr(same, name) is getattr(pipe, name) for name in component_types(LatentFlowPipeline))


def test_a_tuple_is_returned_on_request(pipe: LatentFlowPipeline) -> None:
    frames, warped, motion = pipe(torch.rand(3, 32, 32), "wave", num_inference_steps=1, return_dict=False)  # pyright: ignore[reportGeneralTypeIssues]
    assert len(frames[0]) == len(warped[0]) == motion.num_frames
    assert isinstance(motion, Motion)


def test_options_of_loading(pipe: LatentFlowPipeline, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    pipe.save_pretrained(folder)
    loaded = LatentFlowPipeline.from_pretrained(folder, torch_dtype=torch.float16, local_files_only=True, use_safetensors=True)
    assert loaded.dtype == torch.float16
    assert (
        LatentFlowAutoencoder.from_pretrained(folder, subfolder="autoencoder", torch_dtype=torch.float16).dtype == torch.float16
    )
    wrong = {
        "device_map": ("auto", "device_map"),
        "use_safetensors": (False, r"use_safetensors .*got False"),
        "torch_dtype": ("float16", r"dtype must be .*got 'float16'"),
        "variant": ("fp16", r"diffusion_pytorch_model\.fp16\.safetensors"),
    }
    for name, (value, message) in wrong.items():
        for load in (LatentFlowPipeline.from_pretrained, partial(MotionUNet3D.from_pretrained, subfolder="unet")):
            with pytest.raises((UserError, FileNotFoundError), match=message):
                load(folder, **{name: value})
    with pytest.raises(UserError, match="dtype and torch_dtype"):
        LatentFlowPipeline.from_pretrained(folder, torch_dtype=torch.float16, dtype=torch.float16)
    with pytest.raises(UserError, match=r"safe_serialization .*got False"):
        pipe.save_pretrained(folder, safe_serialization=False)


def test_an_image_size_that_the_unet_cannot_take_is_refused_when_the_pipeline_is_built(tiny_preset: Preset) -> None:
    unet = replace(tiny_preset.unet, patch_size=2 * tiny_preset.unet.patch_size)
    pipe = LatentFlowPipeline.from_preset(replace(tiny_preset, unet=unet))
    multiple = pipe.unet.size_multiple * pipe.autoencoder.stride
    wrong = 3 * multiple // 2
    assert wrong % pipe.autoencoder.size_multiple == 0
    with pytest.raises(UserError, match=rf"image_size .*multiple of {multiple} .*got {wrong}"):
        LatentFlowPipeline(**{**pipe.components, "image_size": wrong})
