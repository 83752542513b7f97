"""Stage 2 on trajectories: from clips to a model folder that makes videos of any length at one cost."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.config.diffusion import DiffusionConfig
from lfdm.config.predictors import RegionConfig
from lfdm.config.presets import TRAJECTORIES64, Preset
from lfdm.data.cache import ClipCache
from lfdm.errors import UserError
from lfdm.motion.trajectories import Trajectories
from lfdm.motion.trajectory_codec import TrajectoryCodec
from lfdm.pipeline.pipeline import LatentFlowPipeline
from lfdm.training.motion_cache import CachedMotions, open_motion_cache
from lfdm.training.stage2 import train_diffusion


@pytest.fixture(scope="module")
def trajectory_preset(tiny_preset: Preset) -> Preset:
    diffusion = replace(tiny_preset.diffusion, codec="trajectories", num_inference_steps=2)
    unet = replace(tiny_preset.unet, sample_channels=diffusion.sample_channels, separate_heads=False)
    return replace(tiny_preset, unet=unet, diffusion=diffusion)


@pytest.fixture(scope="module")
def run(trajectory_preset: Preset, puppets_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of stage 2."""
    folder = tmp_path_factory.mktemp("trajectories")
    torch.manual_seed(0)
    LatentFlowPipeline.from_preset(trajectory_preset, ("jump", "wave")).autoencoder.save_pretrained(folder / "stage1")
    train_diffusion(trajectory_preset, puppets_dir, folder / "stage1", folder / "run")
    return folder / "run"


def test_trajectories_are_cached_apart_from_motion(autoencoder: LatentFlowAutoencoder, clips: ClipCache) -> None:
    cache = open_motion_cache(autoencoder, clips, trajectories=True)
    assert cache.folder != open_motion_cache(autoencoder, clips).folder
    autoencoder.eval()
    for index, found in enumerate(CachedMotions(cache)):
        assert isinstance(found, Trajectories)
        video = torch.from_numpy(np.array(clips.clip(index))).permute(3, 0, 1, 2)[None].float() / 255
        with torch.no_grad():
            direct = autoencoder.estimate_trajectories(video)
        torch.testing.assert_close(found.displacement, direct.displacement, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(found.visibility, direct.visibility, atol=1e-3, rtol=1e-3)
    autoencoder.train()
    mirrored = list(CachedMotions(cache, mirrored=True))
    torch.testing.assert_close(mirrored[1].displacement[:, 0], -mirrored[0].displacement[:, 0].flip(-1))


def test_a_run_can_be_loaded_and_sampled(run: Path) -> None:
    pipe = LatentFlowPipeline.from_pretrained(run)
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe.motion_codec, TrajectoryCodec)
    assert pipe.motion_codec.config["displacement"] is not None
    assert pipe.motion_codec.config["std"] is not None
    image = torch.rand(3, 32, 32)
    both = pipe(image, "wave", num_videos=2, generator=[1, 2], output_type="pt")
    frames = torch.as_tensor(both.frames)
    assert frames.shape == (2, 4, 3, 32, 32)
    assert torch.equal(frames[:, 0], image.expand(2, -1, -1, -1))
    alone = pipe(image, "wave", generator=2, output_type="pt")
    torch.testing.assert_close(both.motion.flow[1:], alone.motion.flow, rtol=0, atol=1e-4)
    still = pipe(image, "wave", generator=1, motion_strength=0.0, output_type="pt")
    assert torch.equal(torch.as_tensor(still.frames), image.expand(1, 4, -1, -1, -1))


def test_more_frames_are_slow_motion_of_the_same_sample(run: Path) -> None:
    pipe = LatentFlowPipeline.from_pretrained(run)
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand(3, 32, 32)
    short = pipe(image, "wave", generator=3, output_type="pt").motion
    slow = pipe(image, "wave", generator=3, num_frames=10, slow_motion=True, output_type="pt").motion
    torch.testing.assert_close(slow.flow[:, :, ::3], short.flow, atol=1e-5, rtol=0)
    with pytest.raises(UserError, match=r"num_frames must be at most 4 .*slow_motion=True.* got 10"):
        pipe(image, "wave", num_frames=10)


def test_slow_motion_of_a_model_of_frames_is_refused(tiny_preset: Preset) -> None:
    pipe = LatentFlowPipeline.from_preset(tiny_preset, ("wave",))
    with pytest.raises(UserError, match="slow_motion must be False with a FrameCodec"):
        pipe(torch.rand(3, 32, 32), "wave", slow_motion=True)


def test_trajectories_need_the_cache_on_which_their_basis_is_measured(trajectory_preset: Preset) -> None:
    training = replace(trajectory_preset.diffusion_training, cache_motion=False)
    with pytest.raises(UserError, match="normalize"):
        replace(trajectory_preset, diffusion_training=training)


def test_the_preset_denoises_one_image_per_clip() -> None:
    assert TRAJECTORIES64.diffusion.codec == "trajectories"
    assert TRAJECTORIES64.unet.sample_channels == 21
    assert not any(TRAJECTORIES64.unet.temporal_attention_levels or ())


def test_settings_that_contradict_trajectories_are_refused(trajectory_preset: Preset) -> None:
    with pytest.raises(UserError, match="still_first_frame"):
        DiffusionConfig(codec="trajectories", still_first_frame=False)
    with pytest.raises(UserError, match="normalize"):
        DiffusionConfig(codec="trajectories", normalize=False, clamp_to_range=False)
    with pytest.raises(UserError, match="frame_sampler"):
        replace(trajectory_preset, diffusion_training=replace(trajectory_preset.diffusion_training, frame_sampler="random"))
    regions = replace(trajectory_preset.autoencoder, predictor=RegionConfig(), num_downs=2)
    with pytest.raises(UserError, match="track points"):
        replace(trajectory_preset, image_size=128, autoencoder=regions)
