"""Clips with alpha in training: composed over white, or over a random background in every sample."""

from pathlib import Path

import numpy as np
import pytest

from lfdm.data.alpha import compose, premultiply
from lfdm.data.augmentation import ColorJitter
from lfdm.data.backgrounds import sample_background, sample_training_background
from lfdm.data.cache import ClipCache, open_cache
from lfdm.data.clips import ClipDataset, PairDataset
from lfdm.data.index import ClipRecord, read_index, write_index
from lfdm.data.video import read_fitted, write_video

SIZE = 16


@pytest.fixture
def frames() -> np.ndarray:
    """A grey figure with a soft edge that moves to the right: (5, 16, 16, 4) uint8."""
    frames = np.zeros((5, SIZE, SIZE, 4), np.uint8)
    for k, frame in enumerate(frames):
        frame[4:12, 2 + k : 8 + k] = (90, 100, 110, 255)
        frame[4:12, 8 + k] = (90, 100, 110, 128)
    return frames


@pytest.fixture
def root(tmp_path: Path, frames: np.ndarray) -> Path:
    records = []
    for number in range(2):
        path = f"clips/{number}.avi"
        write_video(tmp_path / path, frames, fps=8)
        records.append(ClipRecord.describe(frames.shape, path=path, label="walk", subject=str(number), split="train", fps=8))
    write_index(tmp_path, records)
    return tmp_path


def caches(root: Path) -> tuple[ClipCache, ClipCache]:
    plain, alpha = (open_cache(root, read_index(root), SIZE, "pad", keep_alpha=keep) for keep in (False, True))
    return plain, alpha


def test_both_caches_give_clips_over_white(root: Path, frames: np.ndarray) -> None:
    plain, alpha = caches(root)
    assert plain.folder != alpha.folder
    assert np.array_equal(plain.clip(1), compose(frames))
    assert np.array_equal(alpha.clip(1), plain.clip(1))
    assert np.array_equal(plain.frames(1, [3, 0], np.random.default_rng(0)), compose(frames)[[3, 0]])


def test_stored_frames_are_premultiplied_when_they_are_fitted(root: Path, frames: np.ndarray) -> None:
    clip = root / "clips" / "0.avi"
    assert np.array_equal(read_fitted(clip, SIZE, "pad", keep_alpha=True), premultiply(frames))
    small = read_fitted(clip, 4, "pad", keep_alpha=True)
    assert np.abs(small[..., 0].astype(float) - small[..., 3].astype(float) * 90 / 255).max() <= 1


def test_pairs_lie_over_one_random_background(root: Path) -> None:
    _, alpha = caches(root)
    pairs = PairDataset(alpha, seed=3, distinct=True)
    again = PairDataset(alpha, seed=3, distinct=True)
    seen = set()
    for position in range(12):
        item = pairs[position, 0]
        source, driving = item["source"].numpy(), item["driving"].numpy()
        assert np.array_equal(source, again[position, 0]["source"].numpy())
        assert np.array_equal(source[:, :4], driving[:, :4])  # above the figure there is only the background
        assert (source != driving).any()
        seen.add(source[:, 0, 0].tobytes())
    assert len(seen) > 5


def test_clips_lie_over_one_random_background(root: Path) -> None:
    _, alpha = caches(root)
    dataset = ClipDataset(alpha, num_frames=4, jitter=ColorJitter(amounts=(0, 0, 0, 0)))
    video = dataset[7, 1]["video"].numpy()
    assert video.shape == (3, 4, SIZE, SIZE)
    assert (video[:, :, :4] == video[:, :1, :4]).all()


def test_white_takes_no_random_number(root: Path) -> None:
    """Data sets without alpha are trained as before this setting existed."""
    plain, _ = caches(root)
    rng = np.random.default_rng(0)
    plain.frames(0, [0], rng)
    assert rng.random() == np.random.default_rng(0).random()


def test_backgrounds_are_muted_or_white() -> None:
    rng = np.random.default_rng(0)
    backgrounds = [sample_training_background(rng, 24, 40) for _ in range(60)]
    assert {background.shape for background in backgrounds} == {(24, 40, 3)}
    white = [background for background in backgrounds if background.min() == 255]
    assert 5 < len(white) < 30
    assert any(background.std() > 3 for background in backgrounds)
    assert all(sample_background(rng, 8, 8).max() < 210 for _ in range(20))
