from pathlib import Path

import pytest
import torch

from lfdm.config.diffusion import DiffusionConfig
from lfdm.errors import UserError
from lfdm.motion.codecs import make_codec
from lfdm.motion.instants import instants
from lfdm.motion.learned_codec import LearnedCodec
from lfdm.motion.motion import Motion

SIZE = (8, 12)


def swings(seed: int, num_frames: int = 16, b: int = 2) -> Motion:
    """Return mixtures of three smooth functions of time with a pattern of space each, the same patterns for all seeds."""
    tau = instants(num_frames).float()
    functions = torch.stack([tau, tau**2, 1 - torch.cos(4 * tau)])
    patterns = torch.rand(3, 3, 2, 2, generator=torch.Generator().manual_seed(100)) - 0.5
    amounts = torch.randn(b, 3, SIZE[0] // 2, SIZE[1] // 2, generator=torch.Generator().manual_seed(seed))
    values = torch.einsum("ft,fcij,bfhw->bcthiwj", functions, patterns, amounts).reshape(b, 3, num_frames, *SIZE)
    return Motion(0.2 * values[:, :2], 0.9 - 0.02 * values[:, 2:])


@pytest.fixture
def codec() -> LearnedCodec:
    return LearnedCodec(num_components=4).measured([swings(seed) for seed in range(8)])


def test_samples_have_one_shape_at_any_length(codec: LearnedCodec) -> None:
    assert codec.sample_shape(16, *SIZE) == codec.sample_shape(128, *SIZE) == (1, 1, *SIZE)
    assert codec.encode(swings(0, 16)).shape == codec.encode(swings(0, 40)).shape == (2, 1, 1, *SIZE)
    for num_frames in (1, 2, 16, 128):
        assert codec.decode(codec.encode(swings(0)), num_frames).num_frames == num_frames


def test_settings_make_the_codec_and_know_its_channels() -> None:
    config = DiffusionConfig(codec="learned")
    codec = make_codec(config, corners=False)
    assert isinstance(codec, LearnedCodec)
    assert codec.sample_shape(16, 4, 4)[0] == config.sample_channels == 16


@pytest.mark.parametrize("num_frames", [16, 31, 40])
def test_motion_of_the_kind_that_was_measured_comes_back(codec: LearnedCodec, num_frames: int) -> None:
    motion = swings(20, num_frames)
    found = codec.decode(codec.encode(motion), num_frames)
    torch.testing.assert_close(found.flow[:, :, 1:], motion.flow[:, :, 1:], atol=5e-3, rtol=0)
    torch.testing.assert_close(found.occlusion[:, :, 1:], motion.occlusion[:, :, 1:], atol=5e-3, rtol=0)
    assert codec.std[2] > 5 * codec.std[3]  # three functions, so that the fourth component is only the error of interpolation


def test_measured_samples_have_zero_mean_and_unit_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    motions = [Motion(torch.randn(4, 2, 16, *SIZE, generator=generator), torch.rand(4, 1, 16, *SIZE, generator=generator))]
    codec = LearnedCodec(num_components=8).measured(motions)
    coefficients = torch.nn.functional.pixel_unshuffle(codec.encode(motions[0])[:, :, 0], 2).transpose(0, 1).flatten(1)
    torch.testing.assert_close(coefficients.mean(1), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(coefficients.std(1, correction=0), torch.ones(8), atol=1e-4, rtol=0)


def test_frame_0_is_exact_and_lengths_agree_at_shared_instants(codec: LearnedCodec) -> None:
    sample = torch.randn(2, *codec.sample_shape(16, *SIZE))
    short, long = codec.decode(sample, 16), codec.decode(sample, 31)
    still = Motion.identity(2, 1, SIZE, corners=False)
    assert torch.equal(short.flow[:, :, :1], still.flow)
    assert torch.equal(short.occlusion[:, :, :1], still.occlusion)
    torch.testing.assert_close(short.flow, long.flow[:, :, ::2], atol=1e-5, rtol=0)
    torch.testing.assert_close(short.occlusion, long.occlusion[:, :, ::2], atol=1e-5, rtol=0)


def test_clamping_keeps_the_range_of_training_samples(codec: LearnedCodec) -> None:
    samples = torch.cat([codec.encode(swings(seed)) for seed in range(8)])
    torch.testing.assert_close(codec.clamp(samples), samples, atol=1e-5, rtol=0)
    clamped = torch.nn.functional.pixel_unshuffle(codec.clamp(100 * torch.randn(4, 1, 1, *SIZE))[:, :, 0], 2)
    assert (clamped >= codec.low[:, None, None]).all()
    assert (clamped <= codec.high[:, None, None]).all()
    free = LearnedCodec(num_components=4).measured([swings(0)], clamp=False)
    assert torch.equal(free.clamp(100 * samples), 100 * samples)


def test_it_is_saved_and_loaded_with_its_components(codec: LearnedCodec, tmp_path: Path) -> None:
    codec.save_pretrained(tmp_path / "codec")
    loaded = LearnedCodec.from_pretrained(tmp_path / "codec")
    sample = torch.randn(1, *codec.sample_shape(16, *SIZE))
    assert torch.equal(loaded.decode(sample, 20).flow, codec.decode(sample, 20).flow)
    assert torch.equal(loaded.encode(swings(1)), codec.encode(swings(1)))


def test_values_are_checked(codec: LearnedCodec) -> None:
    for motion in (swings(0, 2), Motion.identity(1, 4, SIZE, corners=True)):
        with pytest.raises(UserError, match="motion"):
            codec.encode(motion)
    with pytest.raises(UserError, match="sample"):
        codec.decode(torch.zeros(1, 3, 1, *SIZE), 4)
    with pytest.raises(UserError, match="7x8"):
        codec.sample_shape(16, 7, 8)
    for count in (0, 6, 196):
        with pytest.raises(UserError, match="num_components"):
            LearnedCodec(num_components=count)
    with pytest.raises(UserError, match="empty"):
        codec.measured([])
    with pytest.raises(UserError, match="finite"):
        codec.measured([Motion(torch.full((1, 2, 4, *SIZE), torch.inf), torch.ones(1, 1, 4, *SIZE))])


def test_energy_is_the_variance_that_each_entry_was_divided_by(codec: LearnedCodec) -> None:
    sample = codec.encode(swings(0))
    energy = codec.energy(*SIZE)
    assert energy.shape == sample.shape[1:]
    undone = sample * energy.sqrt()
    reference = LearnedCodec(num_components=4)
    reference.load_state_dict({**codec.state_dict(), "std": torch.ones(4)})
    torch.testing.assert_close(undone, reference.encode(swings(0)))
