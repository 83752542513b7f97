"""Stage 2 with a learned codec: from clips to a model folder that makes videos of any length at one cost."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lfdm.config.control import Control, LabelSpan
from lfdm.config.diffusion import DiffusionConfig
from lfdm.config.presets import LEARNED64, Preset
from lfdm.errors import UserError
from lfdm.motion.learned_codec import LearnedCodec
from lfdm.pipeline.pipeline import LatentFlowPipeline
from lfdm.training.stage2 import train_diffusion


@pytest.fixture(scope="module")
def learned_preset(tiny_preset: Preset) -> Preset:
    diffusion = replace(tiny_preset.diffusion, codec="learned", num_inference_steps=2)
    unet = replace(tiny_preset.unet, sample_channels=diffusion.sample_channels, separate_heads=False)
    return replace(tiny_preset, unet=unet, diffusion=diffusion)


@pytest.fixture(scope="module")
def run(learned_preset: Preset, puppets_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of stage 2."""
    folder = tmp_path_factory.mktemp("learned")
    torch.manual_seed(0)
    LatentFlowPipeline.from_preset(learned_preset, ("jump", "wave")).autoencoder.save_pretrained(folder / "stage1")
    train_diffusion(learned_preset, puppets_dir, folder / "stage1", folder / "run")
    return folder / "run"


@pytest.fixture
def moving(run: Path) -> LatentFlowPipeline:
    """The run's pipeline with a codec of arbitrary components: the untrained stage 1 of the run has seen no motion."""
    pipe = LatentFlowPipeline.from_pretrained(run)
    pipe.set_progress_bar_config(disable=True)
    pipe.motion_codec = LearnedCodec()
    return pipe


def test_a_run_can_be_loaded_and_sampled(run: Path) -> None:
    pipe = LatentFlowPipeline.from_pretrained(run)
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe.motion_codec, LearnedCodec)
    assert pipe.motion_codec.high.isfinite().all()
    image = torch.rand(3, 32, 32)
    both = pipe(image, "wave", num_videos=2, generator=[1, 2], output_type="pt")
    frames = torch.as_tensor(both.frames)
    assert frames.shape == (2, 4, 3, 32, 32)
    assert torch.equal(frames[:, 0], image.expand(2, -1, -1, -1))
    alone = pipe(image, "wave", generator=2, output_type="pt")
    torch.testing.assert_close(both.motion.flow[1:], alone.motion.flow, rtol=0, atol=1e-4)
    still = pipe(image, "wave", generator=1, motion_strength=0.0, output_type="pt")
    assert torch.equal(torch.as_tensor(still.frames), image.expand(1, 4, -1, -1, -1))


def test_more_frames_are_slow_motion_of_the_same_sample(moving: LatentFlowPipeline) -> None:
    pipe, image = moving, torch.rand(3, 32, 32)
    short = pipe(image, "wave", generator=3, output_type="pt").motion
    slow = pipe(image, "wave", generator=3, num_frames=10, slow_motion=True, output_type="pt").motion
    torch.testing.assert_close(slow.flow[:, :, ::3], short.flow, atol=1e-5, rtol=0)
    assert short.flow.abs().max() > 0.1


def test_more_frames_are_more_latents(moving: LatentFlowPipeline) -> None:
    pipe, image, steps = moving, torch.rand(3, 32, 32), []

    def after_step(_: object, index: int, __: object, tensors: dict[str, torch.Tensor]) -> None:
        steps.append((index, tensors["latents"].shape))

    options: dict[str, Any] = {"num_frames": 10, "generator": 3, "output_type": "pt"}
    long = pipe(image, "wave", callback_on_step_end=after_step, **options)
    assert torch.as_tensor(long.frames).shape == (1, 10, 3, 32, 32)
    assert torch.equal(torch.as_tensor(long.frames)[0, 0], image)
    assert steps == [(index, (1, 16, 4, 16, 16)) for index in range(2)]  # 4 latents: frames 0 to 3, 4 and 5, 6 and 7, 8 and 9
    assert not torch.equal(long.motion.flow[:, :, 4:6], long.motion.flow[:, :, 6:8])
    both = pipe(image, "wave", **options | {"num_videos": 2, "generator": [2, 3]})
    torch.testing.assert_close(both.motion.flow[1:], long.motion.flow, rtol=0, atol=1e-4)
    still = pipe(image, "wave", motion_strength=0.0, **options)
    assert torch.equal(torch.as_tensor(still.frames), image.expand(1, 10, -1, -1, -1))
    with pytest.raises(UserError, match=r"latents must be a tensor \(1, 16, 4, 16, 16\)"):
        pipe(image, "wave", latents=torch.randn(1, 16, 1, 16, 16), **options)


def test_latents_have_labels_of_their_own(moving: LatentFlowPipeline) -> None:
    pipe, image = moving, torch.rand(3, 32, 32)
    options: dict[str, Any] = {"generator": 3, "output_type": "latent", "guidance_scale": 20.0}
    turn = Control(labels=(LabelSpan(label="wave", start=0, end=0.5), LabelSpan(label="jump", start=0.5, end=1)))
    mixed = torch.as_tensor(pipe(image, control=turn, num_frames=10, **options).frames)
    wave = torch.as_tensor(pipe(image, "wave", num_frames=10, **options).frames)
    difference = (mixed - wave).abs().amax(dim=(0, 1, 3, 4))
    assert difference[0] < 1e-4
    assert difference[3] > 10 * difference[0] + 1e-4
    with pytest.raises(UserError, match="labels over time"):
        pipe(image, control=turn, num_frames=10, slow_motion=True, **options)
    with pytest.raises(UserError, match="end_image must be None with a LearnedCodec"):
        pipe(image, control=Control(end_image=Image.new("RGB", (32, 32))), num_frames=10, **options)


def test_slow_motion_of_a_model_of_frames_is_refused(tiny_preset: Preset) -> None:
    pipe = LatentFlowPipeline.from_preset(tiny_preset, ("wave",))
    with pytest.raises(UserError, match="slow_motion must be False with a FrameCodec"):
        pipe(torch.rand(3, 32, 32), "wave", slow_motion=True)


def test_the_preset_denoises_one_image_per_clip() -> None:
    assert LEARNED64.diffusion.codec == "learned"
    assert LEARNED64.unet.sample_channels == 16
    assert not any(LEARNED64.unet.temporal_attention_levels or ())


def test_settings_that_contradict_a_learned_codec_are_refused(learned_preset: Preset) -> None:
    with pytest.raises(UserError, match="still_first_frame"):
        DiffusionConfig(codec="learned", still_first_frame=False)
    with pytest.raises(UserError, match="normalize"):
        DiffusionConfig(codec="learned", normalize=False, clamp_to_range=False)
    training = learned_preset.diffusion_training
    with pytest.raises(UserError, match="normalize"):
        replace(learned_preset, diffusion_training=replace(training, cache_motion=False))
    with pytest.raises(UserError, match="frame_sampler"):
        replace(learned_preset, diffusion_training=replace(training, frame_sampler="random"))
    with pytest.raises(UserError, match="num_frames"):
        replace(learned_preset, num_frames=2)
