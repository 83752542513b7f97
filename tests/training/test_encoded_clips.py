"""What stage 2 reads of a clip: latents as the encoder gives them under augmentation, mirrored together with the motion."""

import copy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.config.presets import Preset
from lfdm.config.training import DiffusionTrainingConfig
from lfdm.data.augmentation import ColorJitter, mirror_motion
from lfdm.data.cache import ClipCache, open_cache
from lfdm.data.index import ClipRecord
from lfdm.data.video import write_video
from lfdm.errors import UserError
from lfdm.training import latent_cache
from lfdm.training.encoded_clips import EncodedDataset, open_encoded_clips
from lfdm.training.latent_cache import NUM_VERSIONS, LatentCache, open_latent_cache

STILL = ColorJitter(amounts=(0, 0, 0, 0))
BRIGHTER = ColorJitter(amounts=(0.5, 0, 0, 0), random_order=False, spare_borders=True)


@pytest.fixture
def training(tiny_preset: Preset) -> DiffusionTrainingConfig:
    optimization = replace(tiny_preset.diffusion_training.optimization, seed=5)
    return replace(tiny_preset.diffusion_training, optimization=optimization, color_jitter=(0, 0, 0, 0), flip_probability=0)


def encode(autoencoder: LatentFlowAutoencoder, image: np.ndarray) -> torch.Tensor:
    """The latent of an image (H, W, 3) uint8 in evaluation mode."""
    model = copy.deepcopy(autoencoder).eval()
    with torch.no_grad():
        return model.encode(torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255).latent[0]


def assert_equals(stored: np.ndarray, latent: torch.Tensor) -> None:
    torch.testing.assert_close(torch.from_numpy(stored.copy()).float(), latent, atol=1e-3, rtol=1e-3)  # stored as float16


def test_without_augmentation_there_is_one_latent_of_every_first_frame(
    autoencoder: LatentFlowAutoencoder, clips: ClipCache
) -> None:
    latents = open_latent_cache(autoencoder, clips, STILL, mirrored=False)
    assert autoencoder.training
    assert (len(latents), latents.num_versions) == (3, 1)
    for index in range(3):
        assert_equals(latents.latent(index, 0), encode(autoencoder, clips.clip(index)[0]))


def test_versions_are_recoloured_and_mirrored_images_encoded(autoencoder: LatentFlowAutoencoder, clips: ClipCache) -> None:
    latents = open_latent_cache(autoencoder, clips, BRIGHTER, mirrored=True)
    assert latents.num_versions == NUM_VERSIONS
    for version in (0, NUM_VERSIONS - 1):
        image = BRIGHTER.apply(clips.clip(2)[:1], np.random.default_rng((2, version)))[0]
        assert_equals(latents.latent(2, version), encode(autoencoder, image))
        assert_equals(latents.latent(2, version, mirrored=True), encode(autoencoder, image[:, ::-1]))
    assert len({latents.latent(2, version).tobytes() for version in range(NUM_VERSIONS)}) == NUM_VERSIONS


def test_clips_with_alpha_are_encoded_over_several_backgrounds(autoencoder: LatentFlowAutoencoder, tmp_path: Path) -> None:
    frames = np.zeros((3, 32, 32, 4), np.uint8)
    frames[:, 8:20, 8:20] = (200, 30, 30, 255)
    write_video(tmp_path / "a", frames, fps=8)
    record = ClipRecord(path="a", label="x", subject="a", split="train", frames=3, fps=8.0, width=32, height=32)
    clips = open_cache(tmp_path, [record], 32, "pad", tmp_path / "cache", keep_alpha=True)
    latents = open_latent_cache(autoencoder, clips, STILL, mirrored=False)
    assert latents.num_versions == NUM_VERSIONS
    assert len({latents.latent(0, version).tobytes() for version in range(NUM_VERSIONS)}) > 3  # some backgrounds are white


def test_frames_are_encoded_again_only_if_something_that_determines_latents_changes(
    autoencoder: LatentFlowAutoencoder, clips: ClipCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = copy.deepcopy(autoencoder)

    def work(jitter: ColorJitter = STILL, *, mirrored: bool = False) -> list[int]:
        done: list[int] = []
        open_latent_cache(model, clips, jitter, mirrored=mirrored, progress=lambda _, count, __: done.append(count))
        return done

    assert work() == [1, 2, 3]
    with torch.no_grad():
        next(model.motion_predictor.parameters()).view(-1)[0] += 1e-3
    assert work() == []
    assert work(BRIGHTER) == [1, 2, 3]
    assert work(replace(BRIGHTER, amounts=(0.4, 0, 0, 0))) == [1, 2, 3]
    assert work(mirrored=True) == [1, 2, 3]
    with torch.no_grad():
        next(model.downs.parameters()).view(-1)[0] += 1e-3
    assert work() == [1, 2, 3]
    monkeypatch.setattr(latent_cache, "LATENT_VERSION", latent_cache.LATENT_VERSION + 1)
    assert work() == [1, 2, 3]
    assert work() == []


def test_latents_that_changed_on_the_disk_are_encoded_anew(
    autoencoder: LatentFlowAutoencoder, clips: ClipCache, caplog: pytest.LogCaptureFixture
) -> None:
    def open_again() -> LatentCache:
        return open_latent_cache(autoencoder, clips, BRIGHTER, mirrored=False)

    before = np.array(open_again().clip(2))
    path = open_again().folder / "latents.f16"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    np.testing.assert_array_equal(open_again().clip(2), before)
    assert [message.count(clips.records[2].path) for message in caplog.messages] == [1]


def test_latents_that_are_not_finite_are_never_stored(autoencoder: LatentFlowAutoencoder, clips: ClipCache) -> None:
    broken = copy.deepcopy(autoencoder).requires_grad_(False)
    for parameter in broken.first.parameters():
        parameter.fill_(float("nan"))
    with pytest.raises(UserError, match=f"{clips.records[0].path}: .*not finite"):
        open_latent_cache(broken, clips, STILL, mirrored=False)
    assert [path.name for path in clips.folder.parent.iterdir()] == [clips.folder.name]


# ---------------------------------------------------------------------------------------------------------- samples


def dataset(
    autoencoder: LatentFlowAutoencoder,
    clips: ClipCache,
    training: DiffusionTrainingConfig,
    *,
    frames: int = 4,
    **changes: Any,
) -> EncodedDataset:
    training = replace(training, frame_sampler="very_random" if frames > 6 else "uniform", **changes)
    return EncodedDataset(open_encoded_clips(autoencoder, clips, training), training, num_frames=frames)


def test_samples_hold_the_latent_of_the_first_frame_its_motion_and_the_clip(
    autoencoder: LatentFlowAutoencoder, clips: ClipCache, training: DiffusionTrainingConfig
) -> None:
    samples = dataset(autoencoder, clips, training)
    plain = samples[0, 1]
    assert plain["latent"].dtype == torch.float16
    assert_equals(plain["latent"].numpy(), encode(autoencoder, clips.clip(1)[0]))
    motion = samples.encoded.motion.clip(1)[[0, 1, 3, 5]].transpose(1, 0, 2, 3)
    np.testing.assert_array_equal(plain["motion"].numpy(), motion)
    assert int(plain["label"]) == clips.label_row(1)
    flipped = dataset(autoencoder, clips, training, flip_probability=1.0)[0, 1]
    assert_equals(flipped["latent"].numpy(), encode(autoencoder, clips.clip(1)[0, :, ::-1]))
    np.testing.assert_array_equal(flipped["motion"].numpy(), mirror_motion(motion))
    assert torch.equal(flipped["label"], plain["label"])


def test_samples_are_pure_functions_of_the_position(
    autoencoder: LatentFlowAutoencoder, clips: ClipCache, training: DiffusionTrainingConfig
) -> None:
    def make(**changes: Any) -> EncodedDataset:
        return dataset(autoencoder, clips, training, color_jitter=(0.5, 0, 0, 0), **changes)

    def varied() -> EncodedDataset:
        return make(flip_probability=0.5, frames=8)

    samples = [varied()[position, 2] for position in range(12)]
    for position in (3, 11, 0):
        again = varied()[position, 2]
        assert all(torch.equal(again[name], samples[position][name]) for name in again)
    assert len({sample["motion"].numpy().tobytes() for sample in samples}) > 6
    assert len({sample["latent"].numpy().tobytes() for sample in samples}) > 6
    colours_only = make()
    assert torch.equal(colours_only[1, 2]["motion"], colours_only[2, 2]["motion"])


def test_a_label_that_names_a_side_is_never_mirrored(
    autoencoder: LatentFlowAutoencoder, clips: ClipCache, training: DiffusionTrainingConfig
) -> None:
    clips.records[0] = replace(clips.records[0], label="turn left")
    sample = dataset(autoencoder, clips, training, flip_probability=1.0)[0, 0]
    assert_equals(sample["latent"].numpy(), encode(autoencoder, clips.clip(0)[0]))


def test_a_step_never_reads_a_frame(
    autoencoder: LatentFlowAutoencoder, clips: ClipCache, training: DiffusionTrainingConfig
) -> None:
    samples = dataset(autoencoder, clips, training, color_jitter=(0.5, 0, 0, 0))
    shutil.rmtree(clips.folder)
    clips._frames = np.empty(0)
    assert samples[0, 1]["latent"].shape == samples.encoded.latents.latent(1, 0).shape
