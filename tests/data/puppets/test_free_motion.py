"""Free motion of puppets: random, smooth, from rest, with exact truth."""

from pathlib import Path

import numpy as np
import pytest

from lfdm.data.free_motion import FREE_LABEL
from lfdm.data.index import read_index
from lfdm.data.puppets.actions import REST_ARM, Reach
from lfdm.data.puppets.data_set import render_clip, write_puppets
from lfdm.data.puppets.free_motion import move_freely
from lfdm.errors import UserError

REACH = Reach(arm=0.13, leg=0.14, shoulder=0.09)
TIME = np.arange(64) / 32


def test_joints_move_smoothly_from_rest_within_their_limits() -> None:
    moved = set()
    for seed in range(40):
        pose = move_freely(REACH, TIME, np.random.default_rng(seed))
        curves = {"arms": pose.upper_arm, "legs": pose.thigh, "torso": [pose.torso], "root": list(pose.root.T)}
        for name, parts in curves.items():
            for curve in parts:
                assert np.abs(np.diff(curve)).max() < 0.5
                assert -0.8 < curve.min() <= curve.max() < 3.0
                moved |= {name} if np.ptp(curve) > 0.01 else set()
        assert pose.upper_arm[0][0] == pose.upper_arm[1][0] == REST_ARM
        assert np.abs(pose.root[0]).max() == 0
    assert moved == {"arms", "legs", "torso", "root"}


def test_often_one_or_two_limbs_move_and_the_rest_stays() -> None:
    counts = []
    for seed in range(200):
        pose = move_freely(REACH, TIME, np.random.default_rng(seed))
        limbs = [*pose.upper_arm, *pose.thigh, pose.head, pose.torso, *pose.root.T]
        counts.append(sum(np.ptp(curve) > 0.01 for curve in limbs))
    assert counts.count(1) > 40
    assert counts.count(2) > 40
    assert min(counts) == 1
    assert max(counts) >= 4


def test_every_take_has_its_own_motion_and_the_same_first_frame() -> None:
    one, other = (render_clip(2, FREE_LABEL, seed, size=32, num_frames=8) for seed in (0, 1))
    assert np.array_equal(one.frames[0], render_clip(2, "wave", 0, size=32, num_frames=8).frames[0])
    assert np.array_equal(one.frames[0], other.frames[0])
    assert np.abs(one.frames[-1].astype(int) - other.frames[-1]).mean() > 1
    assert one.truth is not None
    assert np.abs(one.truth.flow[0]).max() < 1e-3


def test_the_share_of_free_clips(tmp_path: Path) -> None:
    write_puppets(
        tmp_path / "data", num_subjects=2, num_takes=1, free_motion=0.5, size=32, num_frames=2, test_fraction=0.5, num_workers=1
    )
    labels = [record.label for record in read_index(tmp_path / "data")]
    assert len(labels) == 32
    assert labels.count(FREE_LABEL) == 16


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_shares_that_are_not_allowed(share: float, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="free_motion"):
        write_puppets(tmp_path / "data", free_motion=share)
