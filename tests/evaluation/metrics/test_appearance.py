from pathlib import Path

import numpy as np
import pytest
import torch

from lfdm.data.cache import open_cache
from lfdm.data.index import read_index
from lfdm.errors import UserError
from lfdm.evaluation.metrics.appearance import FrameNetwork, cached_frame_network, identity_per_clip, judge_identity
from lfdm.evaluation.settings import ClassifierTraining

SUBJECTS = ["a", "a", "b", "b", "c", "c"]


def features(scale: float) -> np.ndarray:
    """Clips of three subjects, 4 frames each, later frames off their subject by `scale`."""
    rng = np.random.default_rng(0)
    centres = 5 * np.eye(3, 8)[[0, 0, 1, 1, 2, 2]]
    found = np.repeat(centres[:, None], 4, axis=1)
    found[:, 1:] += scale * rng.standard_normal((6, 3, 8))
    return found


def test_identity_is_one_for_real_clips_and_zero_for_other_subjects() -> None:
    real = features(0.3)
    itself = judge_identity(real, real, SUBJECTS)
    assert itself["value"] == pytest.approx(1)
    assert itself["real_recognised"] == itself["generated_recognised"] == 1
    swapped = real.copy()
    swapped[:, 1:] = np.roll(real, 2, axis=0)[:, 1:]
    other = judge_identity(swapped, real, SUBJECTS)
    assert abs(other["value"]) < 0.1
    assert other["generated_recognised"] == 0
    worse = judge_identity(features(3.0), real, SUBJECTS)
    assert 0 < worse["value"] < 0.9


def test_a_single_subject_has_nobody_to_be_told_from() -> None:
    real = features(0.3)
    assert np.isnan(judge_identity(real, real, ["a"] * 6)["value"])
    same = np.ones_like(real)
    assert np.isnan(judge_identity(same, same, SUBJECTS)["value"])


def test_clips_are_ranked_by_how_like_their_first_frame_they_are() -> None:
    assert identity_per_clip(features(0.0)).tolist() == pytest.approx([1] * 6)
    assert identity_per_clip(features(3.0)).max() < 0.95


def test_frame_network_tells_unseen_frames_of_its_subjects_apart(puppets_dir: Path) -> None:
    records = [record for record in read_index(puppets_dir) if record.split == "train" and record.label == "wave"]
    cache = open_cache(puppets_dir, records, 32, "pad")
    training = ClassifierTraining(num_steps=60, batch_size=8, learning_rate=5e-3)
    network, folder = cached_frame_network(cache, training=training)
    again, same = cached_frame_network(cache, training=training)
    assert folder == same
    others = [record for record in read_index(puppets_dir) if record.split == "train" and record.label == "jump"]
    clips = open_cache(puppets_dir, others, 32, "pad")
    frames = torch.from_numpy(np.stack([clips.clip(i)[-1] for i in range(len(clips))])).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        logits = network(frames)
        assert torch.equal(logits, again(frames))
        assert network.features(frames).shape == (len(clips), 64)
    subjects = sorted({record.subject for record in records})
    named = [subjects[i] for i in logits.argmax(dim=1)]
    assert sum(a == record.subject for a, record in zip(named, others, strict=True)) >= len(others) - 1


def test_one_subject_is_too_few() -> None:
    with pytest.raises(UserError, match="two or more different subjects"):
        FrameNetwork(subjects=["a"])
