"""A codec of another rank with a network of its own: a whole clip as one image, denoised by a 2-D network."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.condition.encoder import ConditionEncoder
from lfdm.config.presets import Preset
from lfdm.config.registration import register_to_config
from lfdm.config.serialization import to_json
from lfdm.data.cache import open_cache
from lfdm.data.index import ClipRecord
from lfdm.denoiser.network import DenoiserNetwork
from lfdm.diffusion.schedulers import MotionScheduler
from lfdm.errors import UserError
from lfdm.folders.components import Model
from lfdm.motion.codec import MotionCodec
from lfdm.motion.motion import Motion
from lfdm.pipeline.pipeline import LatentFlowPipeline
from lfdm.training.encoded_clips import open_encoded_clips
from lfdm.training.loop import train
from lfdm.training.motion_cache import CachedMotions
from lfdm.training.stage2 import DiffusionTask

FRAMES = 4
WIDTH = 8
LABELS = ("jump", "wave")


class ClipImageCodec(Model, MotionCodec):
    """All frames of a clip as the channels of one image, (b, 3 * num_frames, h, w), times a stored factor.

    It has weights, which a pipeline folder stores with it.
    """

    scale: Tensor

    @register_to_config
    def __init__(self, *, num_frames: int = FRAMES, corners: bool = False) -> None:
        super().__init__()
        self.num_frames, self.corners = num_frames, corners
        self.register_buffer("scale", torch.ones(()))

    def sample_shape(self, num_frames: int, height: int, width: int) -> tuple[int, ...]:
        if num_frames != self.num_frames:
            raise UserError(f"num_frames must be {self.num_frames} with this codec; got {num_frames}")
        return (3 * num_frames, height, width)

    def encode(self, motion: Motion) -> Tensor:
        return self.scale * torch.cat((motion.flow, 2 * motion.occlusion - 1), dim=1).flatten(1, 2)

    def decode(self, sample: Tensor, num_frames: int) -> Motion:
        channels = (sample / self.scale).unflatten(1, (3, num_frames))
        return Motion(channels[:, :2], (channels[:, 2:] + 1).div(2).clamp(0, 1), self.corners).from_rest()

    def measured(self, motions: Iterable[Motion], *, clamp: bool = True) -> Self:
        del clamp
        measured = type(self)(num_frames=self.num_frames, corners=self.corners)
        stds = [motion.flow.std() for motion in motions]
        measured.scale = 1 / (torch.stack(stds).mean() + 0.1)
        return measured


class ImageDenoiser(DenoiserNetwork):
    """A 2-D network of two convolutions."""

    @register_to_config
    def __init__(self, *, sample_channels: int, latent_channels: int, condition_dim: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(sample_channels + latent_channels, WIDTH, 3, padding=1)
        self.embed = nn.Linear(condition_dim + 1, WIDTH)
        self.out = nn.Conv2d(WIDTH, sample_channels, 3, padding=1)

    def forward(self, sample: Tensor, timestep: Tensor | float, condition: Tensor, latent: Tensor) -> Tensor:
        times = torch.as_tensor(timestep, dtype=sample.dtype, device=sample.device).expand(len(sample)) / 1000
        count = len(condition) // len(sample)
        known = torch.cat((condition.to(sample.dtype), times.repeat(count)[:, None]), dim=1)
        x = self.stem(torch.cat((sample, latent), dim=1)).repeat(count, 1, 1, 1)
        return self.out(torch.tanh(x + self.embed(known)[:, :, None, None]))


@pytest.fixture(scope="module")
def pipe(tiny_preset: Preset) -> LatentFlowPipeline:
    autoencoder = LatentFlowAutoencoder(**to_json(tiny_preset.autoencoder)).eval()
    sizes = {"sample_channels": 3 * FRAMES, "latent_channels": tiny_preset.autoencoder.latent_channels, "condition_dim": 8}
    condition = ConditionEncoder.from_labels(LABELS, sizes["condition_dim"])
    pipe = LatentFlowPipeline(
        autoencoder,
        ImageDenoiser(**sizes).eval(),
        condition,
        ClipImageCodec(),
        MotionScheduler(),
        image_size=tiny_preset.image_size,
        num_frames=FRAMES,
        num_inference_steps=2,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_it_trains_saves_loads_and_samples(
    pipe: LatentFlowPipeline, tiny_preset: Preset, puppets_dir: Path, puppet_records: list[ClipRecord], tmp_path: Path
) -> None:
    optimization = replace(tiny_preset.diffusion_training.optimization, num_steps=2)
    preset = replace(tiny_preset, diffusion_training=replace(tiny_preset.diffusion_training, optimization=optimization))
    clips = open_cache(puppets_dir, puppet_records, preset.size, preset.fit, tmp_path / "cache")
    encoded = open_encoded_clips(pipe.autoencoder, clips, preset.diffusion_training)
    pipe.motion_codec = pipe.motion_codec.measured(CachedMotions(encoded.motion))
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    task = DiffusionTask(pipe, preset.diffusion_training, clips, encoded)
    pipe.save_pretrained(tmp_path / "run" / "model", leave_out=["unet"])
    train(task, optimization, tmp_path / "run")

    loaded = LatentFlowPipeline.from_pretrained(tmp_path / "run")
    loaded.set_progress_bar_config(disable=True)
    assert isinstance(pipe.motion_codec, ClipImageCodec)
    assert isinstance(loaded.motion_codec, ClipImageCodec)
    assert isinstance(loaded.unet, ImageDenoiser)
    assert float(loaded.motion_codec.scale) == float(pipe.motion_codec.scale) != 1
    assert any(not torch.equal(value, before[name]) for name, value in loaded.unet.state_dict().items())
    image = clips.clip(0)[0]
    options: dict[str, Any] = {"guidance_scale": 2.0, "output_type": "pt"}
    both = loaded(image, "wave", num_videos=2, generator=[1, 2], **options)
    assert both.motion.flow.shape == (2, 2, FRAMES, 16, 16)
    alone = loaded(image, "wave", generator=2, **options)
    torch.testing.assert_close(both.motion.flow[1:], alone.motion.flow, rtol=0, atol=1e-4)
    assert loaded(image, "wave", generator=1, loop=True, output_type="pt").motion.num_frames == FRAMES


def test_a_length_that_the_codec_does_not_support_is_refused(pipe: LatentFlowPipeline) -> None:
    image = torch.rand(3, 32, 32)
    with pytest.raises(UserError, match="num_frames must be 4 with this codec; got 40"):
        pipe(image, "wave", num_frames=40, slow_motion=True)
    with pytest.raises(UserError, match="num_frames must be at most 4 with a ClipImageCodec; got 40"):
        pipe(image, "wave", num_frames=40)


def test_a_network_for_other_samples_is_refused(pipe: LatentFlowPipeline) -> None:
    parts = {**pipe.components, "motion_codec": ClipImageCodec(num_frames=5), "image_size": 32, "num_frames": 5}
    with pytest.raises(UserError, match="sample_channels=15, as the motion codec gives; got 12"):
        LatentFlowPipeline(**parts)
