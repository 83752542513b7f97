import numpy as np
import pytest

from lfdm.evaluation.metrics.identity import identity, identity_per_clip

SUBJECTS = ["a", "a", "b", "b", "c", "c"]


def features(scale: float) -> np.ndarray:
    """Return features of clips of three subjects, 4 frames each, with noise of `scale` on the later frames."""
    rng = np.random.default_rng(0)
    centres = 5 * np.eye(3, 8)[[0, 0, 1, 1, 2, 2]]
    found = np.repeat(centres[:, None], 4, axis=1)
    found[:, 1:] += scale * rng.standard_normal((6, 3, 8))
    return found


def test_identity_is_one_for_real_clips_and_zero_for_other_subjects() -> None:
    real = features(0.3)
    itself = identity(real, real, SUBJECTS)
    assert itself["value"] == pytest.approx(1)
    assert itself["real_recognised"] == itself["generated_recognised"] == 1
    swapped = real.copy()
    swapped[:, 1:] = np.roll(real, 2, axis=0)[:, 1:]
    other = identity(swapped, real, SUBJECTS)
    assert abs(other["value"]) < 0.1
    assert other["generated_recognised"] == 0
    worse = identity(features(3.0), real, SUBJECTS)
    assert 0 < worse["value"] < 0.9


def test_a_single_subject_has_no_identity() -> None:
    real = features(0.3)
    assert np.isnan(identity(real, real, ["a"] * 6)["value"])
    same = np.ones_like(real)
    assert np.isnan(identity(same, same, SUBJECTS)["value"])


def test_clips_rank_by_likeness_to_their_first_frame() -> None:
    assert identity_per_clip(features(0.0)).tolist() == pytest.approx([1] * 6)
    assert identity_per_clip(features(3.0)).max() < 0.95
