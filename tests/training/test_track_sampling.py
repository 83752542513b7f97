"""Tracks that stage 2 sees in training."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lfdm.config.models import TRACK_CHANNELS
from lfdm.config.presets import Preset
from lfdm.denoiser.unet3d import MotionUNet3D
from lfdm.errors import UserError
from lfdm.motion.tracks import FLOW_SCALE
from lfdm.training.stage2 import train_diffusion
from lfdm.training.track_sampling import sample_track_maps
from tests.motion.test_tracks import turning
from tests.training.test_stage2 import stage1, with_steps  # noqa: F401 - a fixture


def motion() -> Tensor:
    found = turning(8, 16, step=0.02)
    return torch.cat((found.flow[0], found.occlusion[0]))


@pytest.mark.parametrize(("progress", "most"), [(0.0, 256), (0.9, 256)])
def test_maps_hold_the_flow_of_the_motion_in_few_or_many_cells(progress: float, most: int) -> None:
    truth, counts = motion(), []
    for seed in range(40):
        maps = sample_track_maps(truth, progress, np.random.default_rng(seed))
        assert maps.shape == (TRACK_CHANNELS, 8, 16, 16)
        drawn = maps[2] == 1
        counts.append(int(drawn.flatten(1).sum(1).max()))
        error = (maps[:2] / FLOW_SCALE - truth[:2]).norm(dim=0)[drawn]
        assert error.numel() == 0 or error.max() < 0.1
    assert 4 <= counts.count(0) <= 22  # samples without tracks keep the network's own motion
    assert 4 < max(counts) <= most


def test_sampling_depends_on_the_generator_only() -> None:
    first, second, other = (sample_track_maps(motion(), 0.9, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.usefixtures("own_random_state")
def test_a_network_without_tracks_is_trained_to_follow_them(
    tiny_preset: Preset,
    puppets_dir: Path,
    stage1: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    free = with_steps(tiny_preset, 1)
    following = replace(free, unet=replace(free.unet, track_inputs=True))
    start = train_diffusion(free, puppets_dir, stage1, tmp_path / "free")
    after = train_diffusion(following, puppets_dir, stage1, tmp_path / "run", init=tmp_path / "free")
    old, new = (MotionUNet3D.from_pretrained(folder / "unet") for folder in (start, after))
    assert not old.track_inputs
    assert new.tracks is not None
    assert new.tracks.weights.out.weight.abs().max() > 0
    with pytest.raises(UserError, match="track_inputs"):
        train_diffusion(free, puppets_dir, stage1, tmp_path / "other", init=tmp_path / "run")


def test_tracks_need_a_motion_of_flow() -> None:
    from lfdm.config.presets import MUG128

    with pytest.raises(UserError, match=r"unet\.track_inputs"):
        replace(MUG128, unet=replace(MUG128.unet, track_inputs=True))
