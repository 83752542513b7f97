"""What users of diffusers type works, or says in one line why it does not."""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from diffusers.utils import logging

from lfdm import LatentFlowAutoencoder, LatentFlowPipeline, Motion
from lfdm.config.presets import Preset
from lfdm.config.unsupported import UNSUPPORTED
from lfdm.denoiser.unet3d import MotionUNet3D
from lfdm.errors import UserError
from lfdm.folders import components, model_folder
from lfdm.pipeline.folder import component_types
from lfdm.pipeline.inputs import sample_generators


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


@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [
        ("prompt", "wave", "condition"),
        ("negative_prompt", "jump", "negative_condition"),
        ("height", 32, "image_size"),
        ("width", 32, "image_size"),
        ("num_videos_per_prompt", 2, "num_videos"),
        ("callback_on_step_end_tensor_inputs", ["latents"], "callback_on_step_end"),
        ("cross_attention_kwargs", {}, "scaled_dot_product_attention"),
        ("timesteps", [1], "scheduler"),
        ("num_frame", 3, "num_frames"),
    ],
)
def test_arguments_of_other_pipelines_are_refused_with_what_to_use(
    pipe: LatentFlowPipeline, name: str, value: object, instead: str
) -> None:
    with pytest.raises(UserError, match=rf"^[^\n]*'{name}'[^\n]*\b{instead}\b[^\n]*$"):
        pipe(torch.rand(3, 32, 32), "wave", **{name: value})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("enable_model_cpu_offload", "to"),
        ("enable_sequential_cpu_offload", "to"),
        ("enable_attention_slicing", "scaled_dot_product_attention"),
        ("enable_xformers_memory_efficient_attention", "scaled_dot_product_attention"),
        ("enable_vae_tiling", "no setting"),
        ("load_lora_weights", "lfdm adapt"),
        ("vae", "autoencoder"),
    ],
)
def test_attributes_of_other_pipelines_are_refused_with_what_to_use(pipe: LatentFlowPipeline, name: str, instead: str) -> None:
    assert not hasattr(pipe, name)
    with pytest.raises(UserError, match=rf"^[^\n]*'{name}'[^\n]*{instead}[^\n]*$"):
        getattr(pipe, name)
    with pytest.raises(AttributeError, match="'nothing'"):
        _ = pipe.nothing


def test_every_unsupported_name_is_really_missing(pipe: LatentFlowPipeline) -> None:
    taken = {*inspect.signature(pipe.__call__).parameters, *inspect.signature(pipe.from_pretrained).parameters}
    assert not set(UNSUPPORTED) & taken
    assert [name for name in UNSUPPORTED if hasattr(pipe, name)] == ["scheduler", "unet", "autoencoder", "motion_codec"]


def test_latents_are_the_noise_to_begin_with(pipe: LatentFlowPipeline) -> None:
    image = torch.rand(3, 32, 32)
    options: dict[str, Any] = {"num_inference_steps": 2, "num_frames": 3, "output_type": "latent"}
    expected = pipe(image, "wave", generator=5, **options)
    shape = pipe.motion_codec.sample_shape(3, *expected.motion.flow.shape[-2:])
    noise = torch.randn(shape, generator=sample_generators(5, 1)[0])[None]
    assert torch.equal(pipe(image, "wave", latents=noise, **options).motion.flow, expected.motion.flow)
    for wrong in (noise[0], noise.double().log(), "noise"):
        with pytest.raises(UserError, match=r"latents must be a tensor \(1, 3, 3, "):
            pipe(image, "wave", latents=wrong, **options)  # pyright: ignore[reportArgumentType]


def test_latent_output_is_the_diffused_sample(pipe: LatentFlowPipeline) -> None:
    image = torch.rand(3, 32, 32)
    options: dict[str, Any] = {"num_inference_steps": 2, "num_frames": 3, "generator": 5}
    out = pipe(image, "wave", output_type="latent", **options)
    assert isinstance(out.frames, torch.Tensor)
    motion = pipe.motion_codec.decode(out.frames, 3)
    assert torch.equal(motion.flow, out.motion.flow)
    assert len(out.warped) == 0
    with pytest.raises(UserError, match=r"output_type .*got 'latent'"):
        out.show()
    with pytest.raises(UserError, match=r"output_type .*got 'latent'"):
        pipe.animate(image, motion, output_type="latent")  # pyright: ignore[reportArgumentType]
    frames = pipe(image, "wave", output_type="pt", **options).frames
    assert torch.equal(torch.as_tensor(pipe.animate(image, motion, output_type="pt").frames), torch.as_tensor(frames))


def test_a_replaced_component_is_used_or_refused(pipe: LatentFlowPipeline, tiny_preset: Preset) -> None:
    image = torch.rand(3, 32, 32)
    options: dict[str, Any] = {"num_inference_steps": 2, "generator": 5, "output_type": "latent"}
    before = pipe(image, "wave", **options).motion.flow
    other = LatentFlowPipeline.from_preset(tiny_preset, ("jump", "wave"), seed=1)
    pipe.unet = other.unet
    assert not torch.equal(pipe(image, "wave", **options).motion.flow, before)
    pipe.condition = type(pipe.condition).from_labels(("wave",), pipe.condition.dim + 1)
    with pytest.raises(UserError, match=rf"condition must have dim={pipe.condition.dim - 1}"):
        pipe(image, "wave", **options)


def test_a_compiled_network_works_and_is_saved(pipe: LatentFlowPipeline, tmp_path: Path) -> None:
    image = torch.rand(3, 32, 32)
    options: dict[str, Any] = {"num_inference_steps": 2, "generator": 5, "output_type": "latent"}
    expected = pipe(image, "wave", **options).motion.flow
    unet = pipe.unet
    pipe.unet = torch.compile(unet, backend="eager")  # pyright: ignore[reportAttributeAccessIssue]
    torch.testing.assert_close(pipe(image, "wave", **options).motion.flow, expected, rtol=0, atol=1e-5)
    pipe.save_pretrained(tmp_path / "model")
    loaded = LatentFlowPipeline.from_pretrained(tmp_path / "model")
    assert torch.equal(next(loaded.unet.parameters()), next(unet.parameters()))


def export_to_video_converts(frames: Sequence[object]) -> np.ndarray:
    """What `diffusers.utils.export_to_video` makes of frames before it encodes them."""
    if isinstance(frames[0], np.ndarray):
        return np.stack([(np.asarray(frame) * 255).astype(np.uint8) for frame in frames])
    return np.stack([np.array(frame) for frame in frames])


@pytest.mark.parametrize("output_type", ["pil", "np"])
def test_frames_have_the_right_colours_in_export_to_video(pipe: LatentFlowPipeline, output_type: Literal["pil", "np"]) -> None:
    image = torch.rand(3, 32, 32)
    options: dict[str, Any] = {"num_inference_steps": 1, "generator": 5}
    expected = pipe(image, "wave", output_type="uint8", **options).frames
    got = export_to_video_converts(pipe(image, "wave", output_type=output_type, **options).frames[0])  # pyright: ignore[reportArgumentType]
    assert np.abs(got.astype(int) - np.asarray(expected)[0]).max() <= (1 if output_type == "np" else 0)


def test_weights_in_half_precision_have_no_float32_copy(
    pipe: LatentFlowPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe.unet.save_pretrained(tmp_path / "unet", half=True)
    built: list[torch.dtype] = []

    def load_exactly(module: torch.nn.Module, tensors: dict[str, torch.Tensor], origin: str) -> None:
        built.extend({tensor.dtype for tensor in (*module.parameters(), *module.buffers()) if tensor.is_floating_point()})
        model_folder.load_exactly(module, tensors, origin)

    monkeypatch.setattr(components, "load_exactly", load_exactly)
    loaded = MotionUNet3D.from_pretrained(tmp_path / "unet", dtype=torch.bfloat16)
    assert built == [torch.bfloat16]
    assert torch.get_default_dtype() == torch.float32
    expected = MotionUNet3D.from_pretrained(tmp_path / "unet").to(torch.bfloat16)
    values = dict(chain(expected.named_parameters(), expected.named_buffers()))
    for name, tensor in chain(loaded.named_parameters(), loaded.named_buffers()):
        assert torch.equal(tensor, values[name]), name


def test_options_of_loading(pipe: LatentFlowPipeline, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    pipe.save_pretrained(folder)
    loaded = LatentFlowPipeline.from_pretrained(folder, torch_dtype=torch.float16, local_files_only=True, use_safetensors=True)
    assert loaded.dtype == torch.float16
    assert (
        LatentFlowAutoencoder.from_pretrained(folder, subfolder="autoencoder", torch_dtype=torch.float16).dtype == torch.float16
    )
    with pytest.raises(UserError, match=r"dtype .*floating point"):
        LatentFlowPipeline.from_pretrained(folder, dtype=torch.int8)
    wrong = {
        "device_map": ("auto", "device_map"),
        "use_safetensors": (False, r"use_safetensors .*got False"),
        "torch_dtype": ("float16", r"dtype must be .*got 'float16'"),
        "device": ("cuda:99", r"^device 'cuda:99' cannot be used here [^\n]*$"),
        "scheduler": (None, r"pipe\.scheduler = "),
        "low_cpu_mem_usage": (True, "small enough"),
        "trust_remote_code": (True, "nothing in a model folder is executed"),
        "revisoin": ("main", "did you mean 'revision'"),
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
    for options, message in (
        ({"max_shard_size": "1GB"}, "'max_shard_size': .*one file"),
        ({"private": True}, "push_to_hub=True"),
    ):
        with pytest.raises(UserError, match=message):
            pipe.save_pretrained(folder, **options)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="device 'cuda:99' cannot be used here"):
        pipe.to("cuda:99")
    with pytest.raises(UserError, match="from_pipe has no 'torch_dtype'"):
        LatentFlowPipeline.from_pipe(pipe, torch_dtype=torch.float16)


def test_an_image_size_that_the_unet_cannot_take_is_refused_when_the_pipeline_is_built(tiny_preset: Preset) -> None:
    unet = replace(tiny_preset.unet, patch_size=2 * tiny_preset.unet.patch_size)
    pipe = LatentFlowPipeline.from_preset(replace(tiny_preset, unet=unet))
    multiple = pipe.unet.size_multiple * pipe.autoencoder.stride
    wrong = 3 * multiple // 2
    assert wrong % pipe.autoencoder.size_multiple == 0
    with pytest.raises(UserError, match=rf"image_size .*multiple of {multiple} .*got {wrong}"):
        LatentFlowPipeline(**{**pipe.components, "image_size": wrong})
