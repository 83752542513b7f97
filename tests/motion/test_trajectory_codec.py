from pathlib import Path
from typing import Any

import pytest
import torch

from lfdm.config.diffusion import DiffusionConfig
from lfdm.errors import UserError
from lfdm.motion.codecs import make_codec
from lfdm.motion.motion import Motion
from lfdm.motion.time_basis import instants
from lfdm.motion.trajectories import Trajectories
from lfdm.motion.trajectory_codec import TrajectoryCodec, moving_in_front

SIZE = (8, 8)


def limbs(seed: int, num_frames: int = 16, b: int = 2) -> Trajectories:
    """Return smooth trajectories: a moving patch that leaves and comes back, over a slow drift; seen less towards the end."""
    generator = torch.Generator().manual_seed(seed)
    tau = instants(num_frames).float().view(1, 1, -1, 1, 1)
    way, other = 0.3 * torch.randn(2, b, 2, 1, 1, 1, generator=generator)
    inside = torch.zeros(b, 1, 1, *SIZE)
    inside[..., 2:5, 2:5] = 1
    displacement = inside * (way * torch.sin(3 * tau) + other * (1 - torch.cos(5 * tau))) + 0.02 * tau
    return Trajectories(displacement, (1 - 0.6 * inside * tau).expand(b, 1, num_frames, *SIZE))


@pytest.fixture
def codec() -> TrajectoryCodec:
    return TrajectoryCodec(num_coefficients=3, num_visibility_coefficients=2).measured([limbs(seed) for seed in range(8)])


def test_samples_have_one_shape_at_any_length(codec: TrajectoryCodec) -> None:
    assert codec.sample_shape(16, *SIZE) == codec.sample_shape(128, *SIZE) == (2 * 3 + 2 + 1, 1, *SIZE)
    assert codec.encode(limbs(0, 16)).shape == codec.encode(limbs(0, 40)).shape == (2, 9, 1, *SIZE)
    for num_frames in (1, 2, 16, 128):
        assert codec.decode(codec.encode(limbs(0)), num_frames).num_frames == num_frames


def test_settings_make_the_codec_and_know_its_channels() -> None:
    config = DiffusionConfig(codec="trajectories")
    codec = make_codec(config, corners=False)
    assert isinstance(codec, TrajectoryCodec)
    assert codec.sample_shape(16, 4, 4)[0] == config.sample_channels == 21


def test_measured_samples_have_zero_mean_and_unit_variance(codec: TrajectoryCodec) -> None:
    samples = torch.cat([codec.encode(limbs(seed)) for seed in range(8)]).transpose(0, 1).flatten(1)
    torch.testing.assert_close(samples.mean(1), torch.zeros(9), atol=1e-4, rtol=0)
    spread = samples.std(1, correction=0)
    assert ((spread - 1).abs() < 1e-3).sum() >= 6  # the last ones hardly vary
    assert spread.max() < 1.001


def test_decoding_is_the_backward_motion_of_what_was_encoded(codec: TrajectoryCodec) -> None:
    trajectories = limbs(3)
    motion = codec.decode(codec.encode(trajectories), 16)
    expected = trajectories.splat(moving_in_front(trajectories), SIZE)
    covered = (expected.coverage > 0.9).expand_as(motion.flow)
    assert covered.float().mean() > 0.5
    assert (motion.flow - expected.mean)[covered].abs().mean() < 0.02


def test_frame_0_is_exact_and_lengths_agree_at_shared_instants(codec: TrajectoryCodec) -> None:
    sample = torch.randn(2, *codec.sample_shape(16, *SIZE))
    short, long = codec.decode(sample, 16), codec.decode(sample, 31)
    still = Motion.identity(2, 1, SIZE, corners=False)
    assert torch.equal(short.flow[:, :, :1], still.flow)
    assert torch.equal(short.occlusion[:, :, :1], still.occlusion)
    torch.testing.assert_close(short.flow, long.flow[:, :, ::2], atol=1e-5, rtol=0)
    torch.testing.assert_close(short.occlusion, long.occlusion[:, :, ::2], atol=1e-5, rtol=0)


def test_clamping_keeps_the_range_of_training_samples(codec: TrajectoryCodec) -> None:
    samples = torch.cat([codec.encode(limbs(seed)) for seed in range(8)])
    torch.testing.assert_close(codec.clamp(samples), samples, atol=1e-5, rtol=0)
    low, high = samples.amin((0, 3, 4), keepdim=True), samples.amax((0, 3, 4), keepdim=True)
    clamped = codec.clamp(100 * torch.randn(4, 9, 1, *SIZE))
    assert (clamped >= low - 1e-4).all()
    assert (clamped <= high + 1e-4).all()


def test_it_is_saved_and_loaded_with_basis_and_statistics(codec: TrajectoryCodec, tmp_path: Path) -> None:
    codec.save_pretrained(tmp_path / "codec")
    loaded = TrajectoryCodec.from_pretrained(tmp_path / "codec")
    sample = torch.randn(1, *codec.sample_shape(16, *SIZE))
    assert torch.equal(loaded.decode(sample, 20).flow, codec.decode(sample, 20).flow)
    assert torch.equal(loaded.encode(limbs(1)), codec.encode(limbs(1)))


def test_what_moves_is_in_front_of_what_drifts() -> None:
    priority = moving_in_front(limbs(0))
    assert priority.shape == (2, 1, *SIZE)
    assert priority[..., 3, 3].min() > priority[..., 0, 0].max() + 0.5
    assert priority[..., 0, 0].abs().max() < 1e-4


def test_values_are_checked(codec: TrajectoryCodec) -> None:
    still = Motion.identity(1, 4, SIZE, corners=False)
    with pytest.raises(UserError, match="Trajectories"):
        codec.encode(still)
    with pytest.raises(UserError, match="sample"):
        codec.decode(torch.zeros(1, 3, 1, *SIZE), 4)
    knots: list[list[float]] = codec.config["displacement"]
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"num_coefficients": 16}, "num_coefficients"),
        ({"mean": [0.0]}, "mean and std"),
        ({"mean": [0.0], "std": [1.0]}, "mean must have 21"),
        ({"mean": [0.0] * 21, "std": [0.0] * 21}, "std"),
        ({"low": [1.0] * 21, "high": [0.0] * 21}, "low"),
        ({"displacement": knots}, "displacement_variance"),
        ({"displacement": knots, "displacement_variance": [1.0] * 3}, "displacement must be 8 rows"),
    )
    for settings, name in cases:
        with pytest.raises(UserError, match=name):
            TrajectoryCodec(**settings)
    with pytest.raises(UserError, match="finite"):
        codec.measured([Trajectories(torch.full((1, 2, 4, *SIZE), torch.inf), torch.ones(1, 1, 4, *SIZE))])
