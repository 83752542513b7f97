import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import Tensor

import lfdm
from lfdm.condition.encoder import ConditionEncoder
from lfdm.config.presets import PRESETS, Preset
from lfdm.config.video import Fit
from lfdm.denoiser.network import DenoiserContext
from lfdm.diffusion.guidance import Guidance, guided_prediction
from lfdm.diffusion.samplers import SAMPLERS
from lfdm.diffusion.schedulers import MotionScheduler, make_scheduler
from lfdm.errors import UserError
from lfdm.folders import sources
from lfdm.folders.run_folder import find_checkpoints
from lfdm.motion.codec import FrameCodec
from lfdm.motion.motion import Motion
from lfdm.pipeline.inputs import ImageInput, fit_images, read_images
from lfdm.pipeline.pipeline import LatentFlowPipeline
from lfdm.pipeline.result import frames_to_uint8


def prepared(image: ImageInput, *, size: int, fit: Fit) -> Tensor:
    return fit_images(read_images(image), size=size, fit=fit).over_white


LABELS = ("jump", "raise arms", "wave")
SIZE = 32


def build(preset: Preset, *, seed: int = 0) -> LatentFlowPipeline:
    pipe = LatentFlowPipeline.from_preset(preset, LABELS, seed=seed)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def module_pipe(tiny_preset: Preset) -> LatentFlowPipeline:
    return build(tiny_preset)


@pytest.fixture
def pipe(module_pipe: LatentFlowPipeline, monkeypatch: pytest.MonkeyPatch) -> LatentFlowPipeline:
    """Few steps; a test may replace the scheduler and the target."""
    monkeypatch.setitem(module_pipe.__dict__, "scheduler", type(module_pipe.scheduler).from_config(module_pipe.scheduler.config))
    monkeypatch.setitem(module_pipe.__dict__, "motion_codec", module_pipe.motion_codec)
    return module_pipe


def with_scheduler(pipe: LatentFlowPipeline, scheduler: Any) -> LatentFlowPipeline:
    """The same models, taken for what the scheduler says that they predict."""
    other = LatentFlowPipeline(**{**pipe.components, "scheduler": scheduler})
    other.set_progress_bar_config(disable=True)
    return other


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def sample(pipe: LatentFlowPipeline, image: Any, condition: Any = "wave", **options: Any) -> Tensor:
    options = {"num_inference_steps": 2, "generator": 0, **options}
    return pipe(image, condition, output_type="pt", **options).motion.flow


# ------------------------------------------------------------------------------------------------------ what comes out


def test_output_forms_agree(pipe: LatentFlowPipeline, image: np.ndarray) -> None:
    pil, array, tensor, floats = (
        pipe([image, image], ["wave", "jump"], num_frames=5, num_inference_steps=2, generator=3, output_type=kind)
        for kind in ("pil", "uint8", "pt", "np")
    )
    assert isinstance(array.frames, np.ndarray)
    assert isinstance(tensor.frames, Tensor)
    assert array.frames.shape == (2, 5, SIZE, SIZE, 3)
    assert array.frames.dtype == np.uint8
    assert tensor.frames.shape == (2, 5, 3, SIZE, SIZE)
    assert isinstance(floats.frames, np.ndarray)
    assert floats.frames.dtype == np.float32
    assert np.array_equal(floats.frames, tensor.frames.permute(0, 1, 3, 4, 2).numpy())
    assert 0 <= floats.frames.min() <= floats.frames.max() <= 1
    assert tensor.motion.flow.shape == (2, 2, 5, SIZE // 2, SIZE // 2)
    assert tensor.motion.occlusion.shape == (2, 1, 5, SIZE // 2, SIZE // 2)
    assert np.array_equal(np.array([[np.asarray(frame) for frame in video] for video in pil.frames]), array.frames)
    assert np.array_equal(frames_to_uint8(tensor.frames.transpose(1, 2)), array.frames)
    assert isinstance(array.warped, np.ndarray)
    assert array.warped.shape == array.frames.shape


def test_the_first_frame_is_the_image_exactly(pipe: LatentFlowPipeline, image: np.ndarray) -> None:
    frames = pipe(image, "wave", num_inference_steps=2, generator=0, output_type="uint8").frames
    assert isinstance(frames, np.ndarray)
    assert np.array_equal(frames[0, 0], image)
    assert not np.array_equal(frames[0, 1], image)


def test_eight_bits_survive_and_the_published_truncation_is_kept() -> None:
    values = torch.arange(256).float().div(255).reshape(1, 1, 1, 16, 16).expand(1, 3, -1, -1, -1)
    assert np.array_equal(frames_to_uint8(values)[0, 0, ..., 0].ravel(), np.arange(256))
    assert frames_to_uint8(torch.full((1, 3, 1, 1, 1), 0.999), truncate=True).max() == 254
    assert frames_to_uint8(torch.full((1, 3, 1, 1, 1), 1.5)).max() == 255


def test_up_to_four_times_the_training_length(pipe: LatentFlowPipeline, image: np.ndarray) -> None:
    assert sample(pipe, image, num_frames=16).shape[2] == 16
    assert sample(pipe, image, num_frames=1).shape[2] == 1


# ------------------------------------------------------------------------------------------------------------ randomness


def test_a_sample_does_not_depend_on_its_batch(pipe: LatentFlowPipeline, image: np.ndarray) -> None:
    def generator(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    batch = sample(pipe, [image, 255 - image], ["wave", None], generator=[generator(7), 8], guidance_scale=2.0)
    first = sample(pipe, image, "wave", generator=generator(7), guidance_scale=2.0)
    second = sample(pipe, 255 - image, None, generator=8)
    torch.testing.assert_close(batch, torch.cat((first, second)), rtol=0, atol=1e-4)
    assert (first - sample(pipe, image, "wave", generator=8, guidance_scale=2.0)).abs().max() > 1e-2


def test_one_generator_seeds_the_samples_in_order(pipe: LatentFlowPipeline, image: np.ndarray) -> None:
    batch = sample(pipe, [image, image], generator=torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    singles = [sample(pipe, image, generator=generator) for _ in range(2)]
    torch.testing.assert_close(batch, torch.cat(singles), rtol=0, atol=1e-4)
    assert not torch.allclose(batch[0], batch[1], atol=1e-2)


def test_stochastic_schedulers_draw_per_sample(pipe: LatentFlowPipeline, image: np.ndarray) -> None:
    pipe.scheduler = MotionScheduler(sampler="ddpm")
    batch = sample(pipe, [image, image], generator=[1, 2], num_inference_steps=3)
    torch.testing.assert_close(batch[1:], sample(pipe, image, generator=2, num_inference_steps=3), rtol=0, atol=1e-4)


@pytest.mark.parametrize("make", [FlowMatchEulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler.from_config])
def test_a_scheduler_of_flow_matching_solves_the_same_equation(pipe: LatentFlowPipeline, image: np.ndarray, make: Any) -> None:
    expected = sample(pipe, image, num_inference_steps=50)
    pipe.scheduler = make(*[pipe.scheduler.config][: make is not FlowMatchEulerDiscreteScheduler])
    torch.testing.assert_close(sample(pipe, image, num_inference_steps=50), expected, rtol=0, atol=0.05 * float(expected.std()))


def test_a_scheduler_for_another_prediction_type_is_refused(pipe: LatentFlowPipeline, image: np.ndarray) -> None:
    pipe.scheduler = DDIMScheduler()
    with pytest.raises(UserError, match=r"unet predicts velocity, DDIMScheduler is for epsilon; .*from_config"):
        sample(pipe, image)
    pipe = with_scheduler(pipe, make_scheduler("ddim", prediction_type="v_prediction"))
    pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(UserError, match="unet predicts v_prediction, FlowMatchEulerDiscreteScheduler is for velocity"):
        sample(pipe, image)


# -------------------------------------------------------------------------------------------------------------- guidance


def test_guidance_is_the_extrapolation_of_two_predictions(pipe: LatentFlowPipeline) -> None:
    latent, x, t = torch.randn(2, 16, 16, 16), torch.randn(2, 3, 4, 16, 16), torch.tensor(500)
    condition = pipe.embed_condition(["wave", "jump"])
    with torch.no_grad():
        with_condition = pipe.unet(x, t, condition, latent)
        without = pipe.unet(x, t, torch.zeros_like(condition), latent)
        for scale in (0.0, 1.0, 2.5):
            expected = without + scale * (with_condition - without)
            guidance = Guidance(negative=torch.zeros_like(condition), scale=scale)
            guided = guided_prediction(pipe.unet, DenoiserContext(condition=condition, latent=latent), guidance)(x, t)
            torch.testing.assert_close(guided, expected, rtol=0, atol=1e-4)
    assert (with_condition - without).abs().max() > 1e-2


def test_no_condition_means_no_guidance(pipe: LatentFlowPipeline, image: np.ndarray) -> None:
    unconditional = sample(pipe, image, None, guidance_scale=3.0)
    torch.testing.assert_close(unconditional, sample(pipe, image, "wave", guidance_scale=0), rtol=0, atol=1e-5)
    assert (unconditional - sample(pipe, image, "wave")).abs().max() > 1e-3


def test_an_embedding_tensor_stands_for_its_label(pipe: LatentFlowPipeline, image: np.ndarray) -> None:
    embedding = pipe.embed_condition("wave")
    assert torch.equal(sample(pipe, image, embedding), sample(pipe, image, "wave"))
    assert torch.equal(sample(pipe, image, embedding[0]), sample(pipe, image, "wave"))
    assert pipe.embed_condition(["wave", None]).shape == (2, 8)


# ------------------------------------------------------------------------------------------------ schedulers and clamping


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "velocity"])
@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"flow_map"}))  # that one needs a distilled network
def test_clamped_motion_keeps_to_the_range_with_every_sampler(
    pipe: LatentFlowPipeline, image: np.ndarray, name: Any, kind: Any
) -> None:
    pipe = with_scheduler(pipe, make_scheduler(name, prediction_type=kind))
    statistics: dict[str, Any] = {"mean": (0.1, 0, 0.5), "std": (0.5, 0.5, 0.5), "still_first_frame": False}
    pipe.motion_codec = FrameCodec(**statistics)
    free = sample(pipe, image, num_inference_steps=5)
    pipe.motion_codec = FrameCodec(**statistics, low=(-1e6,) * 3, high=(1e6,) * 3)
    torch.testing.assert_close(sample(pipe, image, num_inference_steps=5), free, rtol=1e-4, atol=1e-4)
    pipe.motion_codec = FrameCodec(**statistics, low=(-0.05, -0.1, -1), high=(0.1, 0.02, 1))
    x, y = sample(pipe, image, num_inference_steps=5).unbind(1)
    assert free.abs().max() > 0.15
    assert -0.051 <= x.min() < -0.03
    assert 0.08 < x.max() <= 0.101
    assert -0.101 <= y.min() < -0.08
    assert 0.01 < y.max() <= 0.021


@pytest.mark.parametrize(
    "name",
    [
        "EulerDiscreteScheduler",
        "HeunDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "UniPCMultistepScheduler",
        "DEISMultistepScheduler",
        "DDIMScheduler",
    ],
)
@pytest.mark.parametrize("kind", ["velocity", "v_prediction"])
def test_a_diffusers_scheduler_can_take_over(
    pipe: LatentFlowPipeline, image: np.ndarray, tmp_path: Path, name: str, kind: Any
) -> None:
    pipe = with_scheduler(pipe, make_scheduler("dpmpp_2m", prediction_type=kind))
    usual = sample(pipe, image, num_inference_steps=24)
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
    flow = sample(pipe, image, num_inference_steps=24)
    assert float(torch.corrcoef(torch.stack((flow.flatten(), usual.flatten())))[0, 1]) > 0.8
    assert 0.8 < float(flow.std() / usual.std()) < 1.25
    pipe.save_pretrained(tmp_path / "saved")
    loaded = LatentFlowPipeline.from_pretrained(tmp_path / "saved")
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.scheduler).__name__ == name
    torch.testing.assert_close(sample(loaded, image, num_inference_steps=2), sample(pipe, image, num_inference_steps=2))


def test_another_sampler_solves_the_same_equation(pipe: LatentFlowPipeline, image: np.ndarray) -> None:
    expected = sample(pipe, image, num_inference_steps=20)
    pipe.scheduler = MotionScheduler.from_config(pipe.scheduler.config, sampler="heun")
    torch.testing.assert_close(sample(pipe, image, num_inference_steps=20), expected, rtol=0, atol=0.1 * float(expected.std()))


def test_more_steps_than_there_are_noise_levels_are_refused(pipe: LatentFlowPipeline, image: np.ndarray) -> None:
    pipe = with_scheduler(pipe, make_scheduler("dpmpp_2m", prediction_type="v_prediction"))
    with pytest.raises(UserError, match="num_inference_steps must be a whole number from 1 to 999; got 1000"):
        sample(pipe, image, num_inference_steps=1000)


def test_a_scheduler_that_predicts_clean_samples_is_refused(pipe: LatentFlowPipeline) -> None:
    with pytest.raises(UserError, match="prediction_type must be one of epsilon, v_prediction, velocity; got 'sample'"):
        with_scheduler(pipe, DDIMScheduler(prediction_type="sample"))


def test_a_default_of_more_steps_than_the_scheduler_has_is_refused(pipe: LatentFlowPipeline) -> None:
    parts = {**pipe.components, "scheduler": make_scheduler("ddpm", prediction_type="epsilon")}
    with pytest.raises(UserError, match="num_inference_steps must be a whole number from 1 to 995; got 1000"):
        LatentFlowPipeline(**{**parts, "num_inference_steps": 1000})


def test_the_callback_sees_and_may_replace_every_step(pipe: LatentFlowPipeline, image: np.ndarray) -> None:
    seen: list[tuple[int, int]] = []

    def zero(called: LatentFlowPipeline, step: int, timestep: Tensor, kwargs: dict[str, Tensor]) -> dict[str, Tensor]:
        assert called is pipe
        assert kwargs["latents"].shape == (1, 3, 4, 16, 16)
        seen.append((step, int(timestep)))
        return {"latents": torch.zeros_like(kwargs["latents"])}

    flow = sample(pipe, image, num_inference_steps=3, callback_on_step_end=zero)
    assert [step for step, _ in seen] == [0, 1, 2]
    assert seen[0][1] > seen[1][1] > seen[2][1]
    assert torch.equal(flow, torch.zeros_like(flow))


# ------------------------------------------------------------------------------------------------------ given motion


def test_animate_with_no_motion_gives_the_image_back(pipe: LatentFlowPipeline, image: np.ndarray) -> None:
    out = pipe.animate(image, Motion.identity(1, 3, (16, 16), corners=False), output_type="uint8")
    assert isinstance(out.frames, np.ndarray)
    assert np.array_equal(out.frames, np.stack([image] * 3)[None])
    with pytest.raises(UserError, match="corners"):
        pipe.animate(image, Motion.identity(1, 3, (16, 16), corners=True))


def test_transfer_takes_the_motion_of_the_driving_clip(pipe: LatentFlowPipeline, image: np.ndarray) -> None:
    driving = np.random.default_rng(1).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    video = torch.from_numpy(driving).permute(3, 0, 1, 2)[None].float() / 255
    with torch.no_grad():
        relative = pipe.autoencoder.estimate_motion(video[:, :, 0], video)
        absolute = pipe.autoencoder.estimate_motion(prepared(image, size=SIZE, fit="pad"), video)
    assert torch.equal(pipe.transfer(image, driving).motion.flow, relative.flow)
    assert torch.equal(pipe.transfer(image, video[0], relative=False).motion.flow, absolute.flow)
    assert len(pipe.transfer(image, driving).frames[0]) == 3


# ------------------------------------------------------------------------------------------------------------------ inputs


def test_every_kind_of_image_is_the_same_image(tmp_path: Path, image: np.ndarray) -> None:
    Image.fromarray(image).save(tmp_path / "image.png")
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    exact = tensor.float() / 255
    kinds = [
        str(tmp_path / "image.png"),
        tmp_path / "image.png",
        Image.fromarray(image),
        image,
        image / 255,
        tensor,
        exact,
        [image],
        image[None],
        exact[None],
    ]
    for kind in kinds:
        assert torch.equal(prepared(kind, size=SIZE, fit="pad"), exact[None]), type(kind)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_other_shapes_are_fitted_like_the_training_data(as_tensor: bool) -> None:
    wide = np.full((20, 40, 3), 200, np.uint8)
    given = torch.from_numpy(wide).permute(2, 0, 1).float() / 255 if as_tensor else wide
    padded = prepared(given, size=SIZE, fit="pad")[0]
    assert padded[:, SIZE // 2].min() == pytest.approx(200 / 255)
    assert padded[:, 0].max() == 0
    assert prepared(given, size=SIZE, fit="crop").min() == pytest.approx(200 / 255)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.full((3, SIZE, SIZE), torch.nan), "must lie in"),
        (torch.full((3, SIZE, SIZE), 1.5), "must lie in"),
        (torch.zeros(1, SIZE, SIZE), r"must be \(3, H, W\)"),
        (torch.zeros(3, SIZE, SIZE, dtype=torch.int64), "uint8 or floating"),
        (np.full((SIZE, SIZE, 3), np.nan), "must lie in"),
        (np.zeros((SIZE, 3)), None),
        ([], "at least one"),
        (3, "got int"),
    ],
)
def test_an_impossible_image_is_refused(wrong: Any, message: str | None) -> None:
    if message is None:  # a greyscale strip is one
        assert prepared(wrong, size=SIZE, fit="pad").shape == (1, 3, SIZE, SIZE)
        return
    with pytest.raises(UserError, match=message):
        prepared(wrong, size=SIZE, fit="pad")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 0}, "num_frames must be a whole number from 1 to 10000; got 0"),
        ({"num_frames": 10_001}, "from 1 to 10000; got 10001"),
        ({"num_frames": 4.0}, "num_frames"),
        ({"num_inference_steps": 0}, "num_inference_steps must be a whole number from 1 to 1000"),
        ({"num_inference_steps": 1001}, "num_inference_steps"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be a finite number, 0 to 100; got nan"),
        ({"guidance_scale": -1.0}, "guidance_scale"),
        ({"output_type": "gif"}, "output_type must be one of pil, np, pt, uint8, latent; got 'gif'"),
        ({"condition": "waev"}, "did you mean 'wave'"),
        ({"condition": torch.zeros(1, 5)}, r"must be \(8,\) or \(b, 8\)"),
        ({"condition": torch.full((8,), torch.nan)}, "not finite"),
        ({"condition": []}, r"condition must be one, or one per image \(1\); got 0"),
        ({"condition": ["wave", "jump"], "image": ["x"] * 3}, None),
        ({"generator": [1, 2]}, "list of 1, one per sample; got 2"),
        ({"generator": -1}, "a seed must be"),
        ({"generator": "7"}, "torch.Generator, an integer seed or a list of these; got str"),
        ({"generator": 3.0}, "torch.Generator, an integer seed or a list of these; got float"),
        ({"generator": {1: 2}}, "torch.Generator, an integer seed or a list of these; got dict"),
        ({"condition": 3}, "condition must be a label, a mix, None, a list of these, or a tensor of embeddings; got int"),
        ({"condition": [["wave"]]}, "a condition must be a label, a mix or None"),
    ],
)
def test_impossible_values_are_refused(
    pipe: LatentFlowPipeline, image: np.ndarray, options: dict[str, Any], message: str | None
) -> None:
    arguments: dict[str, Any] = {"image": image, "condition": "wave", "num_inference_steps": 1, **options}
    if message is None:
        arguments["image"], message = [image] * 3, r"condition must be one, or one per image \(3\); got 2"
    with pytest.raises(UserError, match=message):
        pipe(**arguments)


def test_numbers_of_numpy_are_numbers(pipe: LatentFlowPipeline, image: np.ndarray) -> None:
    mix = {"wave": np.float32(1), "jump": np.float32(3)}
    flow = sample(pipe, image, mix, generator=np.int64(3))
    torch.testing.assert_close(flow, sample(pipe, image, {"wave": 0.25, "jump": 0.75}, generator=3))
    with pytest.raises(UserError, match=r"motion must be a Motion, .*got NoneType"):
        pipe.animate(image, None)  # type: ignore[arg-type]


def test_several_videos_of_one_image_encode_it_once(
    pipe: LatentFlowPipeline, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, encoded = pipe.autoencoder.encode, []
    monkeypatch.setattr(pipe.autoencoder, "encode", lambda images: encoded.append(len(images)) or encode(images))
    options: dict[str, Any] = {"guidance_scale": 2.0, "num_inference_steps": 2, "output_type": "pt"}
    both = pipe([image, 255 - image], ["wave", "jump"], num_videos=2, generator=[1, 2, 3, 4], **options)
    assert encoded == [2]
    conditions = [(image, "wave", 1), (image, "wave", 2), (255 - image, "jump", 3), (255 - image, "jump", 4)]
    for i, (one, condition, seed) in enumerate(conditions):
        alone = pipe(one, condition, generator=seed, **options)
        torch.testing.assert_close(both.motion.flow[i : i + 1], alone.motion.flow, rtol=0, atol=1e-4)
        torch.testing.assert_close(both.frames[i : i + 1], alone.frames, rtol=0, atol=1e-4)
    encoded.clear()
    assert len(pipe(image, ["wave", "jump"], **options).frames) == 2
    assert encoded == [1]
    with pytest.raises(UserError, match="num_videos must be a whole number from 1 to 10000; got 0"):
        pipe(image, "wave", num_videos=0)


def test_one_image_goes_with_many_conditions(pipe: LatentFlowPipeline, image: np.ndarray) -> None:
    several = sample(pipe, image, ["wave", "jump"], generator=[1, 1])
    torch.testing.assert_close(several[1:], sample(pipe, image, "jump", generator=1), rtol=0, atol=1e-4)
    assert (several[0] - several[1]).abs().max() > 1e-3


# -------------------------------------------------------------------------------------------------------- save and load


def test_save_and_load_bit_for_bit(pipe: LatentFlowPipeline, image: np.ndarray, tmp_path: Path) -> None:
    pipe.motion_codec = FrameCodec(mean=(0, 0.1, 0.9), std=(0.2, 0.3, 0.1), low=(-1, -1, -1), high=(1, 1, 1))
    pipe.save_pretrained(tmp_path / "model")
    loaded = LatentFlowPipeline.from_pretrained(tmp_path / "model")
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(sample(loaded, image), sample(pipe, image))
    assert type(loaded.scheduler) is type(pipe.scheduler)
    settings = ("image_size", "fit", "num_frames", "fps", "num_inference_steps", "guidance_scale")
    assert all(loaded.config[name] == pipe.config[name] for name in settings)
    assert not loaded.autoencoder.training
    assert not loaded.unet.training
    for name in ("autoencoder", "unet", "condition"):
        own, other = getattr(pipe, name).state_dict(), getattr(loaded, name).state_dict()
        assert all(torch.equal(own[key], other[key]) for key in {*own, *other})


def test_saving_again_replaces_the_model_and_leaves_nothing_behind(pipe: LatentFlowPipeline, tmp_path: Path) -> None:
    for _ in range(2):
        pipe.save_pretrained(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    files = {str(path.relative_to(tmp_path / "model")) for path in (tmp_path / "model").rglob("*") if path.is_file()}
    assert files == {
        "README.md",
        "model_index.json",
        "motion_codec/config.json",
        "scheduler/scheduler_config.json",
        *(
            f"{name}/{file}"
            for name in ("autoencoder", "unet", "condition")
            for file in ("config.json", "diffusion_pytorch_model.safetensors")
        ),
    }


def test_a_folder_of_something_else_is_not_replaced(pipe: LatentFlowPipeline, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match=r"thesis\.txt"):
        pipe.save_pretrained(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "precious"
    pipe.save_pretrained(tmp_path / "model")
    pipe.save_pretrained(tmp_path / "model")  # its own folder is
    (tmp_path / "model" / "notes.txt").write_text("precious")
    with pytest.raises(UserError, match=r"is not only a model folder: it also holds notes\.txt"):
        pipe.save_pretrained(tmp_path / "model")


def test_half_precision_weights_load_as_float32(pipe: LatentFlowPipeline, image: np.ndarray, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "half", half=True)
    pipe.save_pretrained(tmp_path / "full")
    name = "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "half" / name).stat().st_size < 0.6 * (tmp_path / "full" / name).stat().st_size
    loaded = LatentFlowPipeline.from_pretrained(tmp_path / "half")
    loaded.set_progress_bar_config(disable=True)
    assert loaded.unet.dtype == torch.float32
    assert torch.equal(loaded.condition.table, pipe.condition.table)
    torch.testing.assert_close(sample(loaded, image), sample(pipe, image), rtol=0, atol=0.05)


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("model_index.json", {"unet": ["os", "system"]}, r"component 'unet' .*'MotionUNet3D'.*; got \['os', 'system'\]"),
        ("model_index.json", {"unet": ["lfdm", "LatentFlowAutoencoder"]}, "component 'unet' must be"),
        ("model_index.json", {"scheduler": ["antigravity", "DDPMScheduler"]}, "scheduler class of diffusers; got .*antigravity"),
        ("model_index.json", {"scheduler": ["diffusers", "DiffusionPipeline"]}, "must be a scheduler class of diffusers"),
        ("model_index.json", {"scheduler": ["diffusers", "EvilScheduler"]}, "must be a scheduler class of diffusers"),
        ("model_index.json", {"num_frame": 3}, "unknown key 'num_frame'; did you mean 'num_frames'"),
        ("model_index.json", {"num_frames": -3}, "num_frames must be a whole number"),
        ("model_index.json", {"image_size": 33}, "image_size must be a multiple of"),
        ("scheduler/scheduler_config.json", {"_class_name": "UNet2DModel"}, "must be a scheduler class of diffusers"),
        ("scheduler/scheduler_config.json", {"beta": 3}, r"unknown keys \['beta'\]"),
        ("unet/config.json", {"dims": 8}, r"unknown keys \['dims'\]"),
        ("unet/config.json", {"dim": 16}, "misshapen"),
        ("condition/config.json", {"labels": ["wave"]}, "misshapen"),
        ("condition/config.json", {"labels": ["wave", "\x1b[31mred"]}, "labels must be one line each"),
        ("motion_codec/config.json", {"corners": True}, r"motion_codec must have corners=False, .*got True"),
    ],
)
def test_a_folder_with_wrong_classes_settings_or_weights_is_refused(
    pipe: LatentFlowPipeline, tmp_path: Path, file: str, change: dict[str, Any], message: str
) -> None:
    pipe.save_pretrained(tmp_path / "model")
    edit_json(tmp_path / "model" / file, lambda values: values.update(change))
    with pytest.raises(UserError, match=message):
        LatentFlowPipeline.from_pretrained(tmp_path / "model")
    assert "antigravity" not in sys.modules


def test_a_scheduler_of_billions_of_steps_is_refused_before_its_tables_are_made(pipe: LatentFlowPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "model")
    scheduler = {"_class_name": "DDIMScheduler", "num_train_timesteps": 10**11}
    (tmp_path / "model/scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    with pytest.raises(UserError, match="num_train_timesteps must be a whole number from 1 to 100000; got 100000000000"):
        LatentFlowPipeline.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("name", [None, 3, {}, [[]], torch.zeros(2)])
def test_a_model_is_given_by_its_name(name: Any) -> None:
    with pytest.raises(UserError, match=f"by its name or folder, not by a {type(name).__name__}"):
        LatentFlowPipeline.from_pretrained(name)


def test_paths_that_cannot_exist_are_not_found(pipe: LatentFlowPipeline) -> None:
    with pytest.raises(FileNotFoundError):
        pipe("~\0", LABELS[0])
    with pytest.raises(UserError, match=r"dtype must be a torch\.dtype"):
        LatentFlowPipeline.from_pretrained("puppets64", torch_dtype=np.zeros((2, 2)))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"device '.*' cannot be used here"):
        LatentFlowPipeline.from_pretrained("puppets64", device=np.zeros((2, 2)))  # type: ignore[arg-type]


@pytest.mark.parametrize("tensor", [torch.zeros(3, 8, 8).to_sparse(), torch.zeros(3, 8, 8, device="meta")])
def test_image_tensors_hold_their_values(pipe: LatentFlowPipeline, tensor: torch.Tensor) -> None:
    with pytest.raises(UserError, match="an image tensor must be dense"):
        pipe(tensor, LABELS[0])
    with pytest.raises(UserError, match="over 50 megapixels"):
        pipe(torch.zeros(1).expand(3, 10**6, 10**6), LABELS[0])


def test_images_may_have_any_floating_point_format(pipe: LatentFlowPipeline) -> None:
    for dtype in (torch.float8_e4m3fn, torch.bfloat16, torch.float64):
        assert pipe(torch.zeros(3, 32, 32, dtype=dtype), LABELS[0], num_inference_steps=1).frames
    with pytest.raises(UserError, match="uint8 or floating point"):
        pipe(torch.zeros(3, 8, 8, dtype=torch.cfloat), LABELS[0])


def test_a_missing_component_is_named(pipe: LatentFlowPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "model")
    edit_json(tmp_path / "model" / "model_index.json", lambda values: values.pop("unet"))
    with pytest.raises(UserError, match=r"misses the components \['unet'\]"):
        LatentFlowPipeline.from_pretrained(tmp_path / "model")


class OwnEncoder(ConditionEncoder):
    """A component class from outside the package."""


def test_a_component_of_an_imported_subclass_loads_by_its_name(
    pipe: LatentFlowPipeline, image: np.ndarray, tmp_path: Path
) -> None:
    own = OwnEncoder(**{"labels": LABELS, "dim": pipe.condition.dim})
    own.table.copy_(pipe.condition.table)
    LatentFlowPipeline.from_pipe(pipe, condition=own).save_pretrained(tmp_path / "model")
    loaded = LatentFlowPipeline.from_pretrained(tmp_path / "model")
    assert type(loaded.condition) is OwnEncoder
    assert json.loads((tmp_path / "model" / "model_index.json").read_text())["condition"] == [__name__, "OwnEncoder"]
    assert torch.equal(sample(loaded, image), sample(pipe, image))


def test_every_class_named_in_an_index_is_exported(pipe: LatentFlowPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "model")
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    entries = [value for value in index.values() if isinstance(value, list)]
    assert len(entries) == 5
    for library, name in entries:
        assert inspect.isclass(getattr({"lfdm": lfdm, "diffusers": diffusers}[library], name))


def test_pickled_weights_are_not_read(pipe: LatentFlowPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "model")
    weights = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(pipe.unet.state_dict(), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="safetensors"):
        LatentFlowPipeline.from_pretrained(tmp_path / "model")
    torch.save(pipe.unet.state_dict(), weights)
    with pytest.raises(UserError, match="not a readable safetensors file"):
        LatentFlowPipeline.from_pretrained(tmp_path / "model")


def test_a_diffusion_run_is_opened_with_its_newest_weights(tiny_preset: Preset, pipe: LatentFlowPipeline, tmp_path: Path) -> None:
    run = tmp_path / "run"
    pipe.save_pretrained(run / "model", leave_out=["unet"])
    assert not (run / "model" / "unet").exists()
    with pytest.raises(FileNotFoundError, match="without a checkpoint"):
        LatentFlowPipeline.from_pretrained(run)
    newest = build(tiny_preset, seed=1).unet
    for step, unet in ((20, newest), (3, pipe.unet)):
        folder = run / "checkpoints" / f"step-{step:08d}"
        unet.save_pretrained(folder / "unet")
        (folder / "state.json").write_text(json.dumps({"step": step}))
    assert len(find_checkpoints(run)) == 2
    loaded = LatentFlowPipeline.from_pretrained(run)
    assert all(torch.equal(a, b) for a, b in zip(loaded.unet.parameters(), newest.parameters(), strict=True))


def test_a_bundled_name_wins_over_a_folder(
    tiny_preset: Preset, pipe: LatentFlowPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe.save_pretrained(tmp_path / "assets" / "puppet")
    build(tiny_preset, seed=1).save_pretrained(tmp_path / "here" / "puppet")
    monkeypatch.setattr(sources, "ASSETS_DIR", tmp_path / "assets")
    monkeypatch.chdir(tmp_path / "here")

    def first_weight(name: str) -> Tensor:
        return next(LatentFlowPipeline.from_pretrained(name).unet.parameters())

    own = next(pipe.unet.parameters())
    assert torch.equal(first_weight("puppet"), own)
    assert not torch.equal(first_weight("./puppet"), own)
    with pytest.raises(UserError, match=r"unknown model 'pupet'; bundled models: puppet;"):
        LatentFlowPipeline.from_pretrained("pupet")
    with pytest.raises(FileNotFoundError, match=r"no model folder \./nothing; bundled models: puppet;"):
        LatentFlowPipeline.from_pretrained("./nothing")


# --------------------------------------------------------------------------------------------------------------- presets


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_builds(name: str) -> None:
    preset = PRESETS[name]
    pipe = LatentFlowPipeline.from_preset(name)
    assert pipe.config["image_size"] == preset.image_size
    assert pipe.config["num_inference_steps"] == preset.diffusion.num_inference_steps
    assert pipe.embed_condition(None).shape == (1, preset.unet.condition_dim)
    assert pipe.condition.labels == ()


def test_an_unknown_preset_lists_the_presets() -> None:
    with pytest.raises(UserError, match="unknown preset 'mug'; known: flow64"):
        LatentFlowPipeline.from_preset("mug")


def test_the_paper_recipe_samples_from_text_embeddings(tiny_paper_preset: Preset) -> None:
    with pytest.raises(UserError, match="takes text embeddings"):
        LatentFlowPipeline.from_preset(tiny_paper_preset, LABELS)
    pipe = LatentFlowPipeline.from_preset(tiny_paper_preset)
    pipe.set_progress_bar_config(disable=True)
    out = pipe(np.zeros((32, 32, 3), np.uint8), torch.randn(2, 6), num_inference_steps=3, guidance_scale=2.0, generator=0)
    assert len(out.frames) == 2
    assert out.motion.corners
    assert out.motion.grid().abs().max() <= 1 + 1e-4  # dynamic thresholding keeps x0, here the grid itself, in [-1, 1]
    with pytest.raises(UserError, match="no labels"):
        pipe(np.zeros((32, 32, 3), np.uint8), "Stop")


def test_the_package_itself_imports_neither_torch_nor_diffusers() -> None:
    code = "import sys, lfdm; print([name for name in ('torch', 'diffusers', 'numpy') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
