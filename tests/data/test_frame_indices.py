"""The frame samplers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lfdm.data.frame_indices import random_indices, sample_indices, uniform_indices, very_random_indices
from lfdm.errors import UserError


def test_uniform_is_a_truncated_linspace() -> None:
    assert uniform_indices(81, 40).tolist() == [int(80 * i / 39) for i in range(40)]
    assert uniform_indices(5, 5).tolist() == [0, 1, 2, 3, 4]
    assert uniform_indices(3, 6).tolist() == [0, 1, 2, 2, 2, 2]
    assert uniform_indices(7, 1).tolist() == [0]


def test_random_moves_each_index_within_its_gaps() -> None:
    base = uniform_indices(100, 12)
    gaps = np.diff(base)
    draws = np.stack([random_indices(100, 12, np.random.default_rng(seed)) for seed in range(3000)])
    assert (draws[:, 0] == 0).all()
    assert (draws[:, -1] == 99).all()
    # An index lies strictly between the neighbouring uniform ones, and can be adjacent to them (before sorting and after).
    assert draws[:, 1].min() == base[1] - (gaps[0] - 1)
    assert draws[:, -2].max() == base[-2] + (gaps[-1] - 1)
    assert random_indices(5, 8, np.random.default_rng(0)).tolist() == uniform_indices(5, 8).tolist()


def test_very_random_draws_from_the_whole_clip_and_begins_at_zero() -> None:
    draws = np.stack([very_random_indices(6, 4, np.random.default_rng(seed)) for seed in range(2000)])
    assert (draws[:, 0] == 0).all()
    counts = np.bincount(draws[:, -1], minlength=6) / len(draws)
    largest = np.diff((np.arange(7) / 6) ** 4)  # distribution of the largest of four uniform draws
    assert np.abs(counts - largest).max() < 0.04


def test_random_adds_any_whole_number_between_the_neighbours_and_each_as_often() -> None:
    assert uniform_indices(10, 4).tolist() == [0, 3, 6, 9]
    draws = np.stack([random_indices(10, 4, np.random.default_rng(seed)) for seed in range(6000)])
    moves = np.arange(1, 6), np.arange(4, 9)  # 3 and 6, each moved by -2..2
    pairs = np.sort(np.stack(np.meshgrid(*moves, indexing="ij"), axis=-1).reshape(-1, 2), axis=1)
    for pair, count in zip(*np.unique(pairs, axis=0, return_counts=True), strict=True):
        share = (draws[:, 1:3] == pair).all(axis=1).mean()
        assert share == pytest.approx(count / len(pairs), abs=0.015), pair
    assert set(map(tuple, draws[:, 1:3])) == set(map(tuple, pairs))


@pytest.mark.parametrize("n", [1, 2, 39])
def test_shorter_clips_repeat_their_last_frame_except_in_very_random(n: int) -> None:
    repeated = [*range(n), *[n - 1] * (40 - n)]
    assert uniform_indices(n, 40).tolist() == repeated
    assert all(random_indices(n, 40, np.random.default_rng(seed)).tolist() == repeated for seed in range(20))
    draws = np.stack([very_random_indices(n, 40, np.random.default_rng(seed)) for seed in range(500)])
    assert (draws[:, 0] == 0).all()
    assert set(np.unique(draws)) == set(range(n))
    ends_early = (draws[:, -1] < n - 1).mean()  # 40 draws with replacement miss the last frame that often
    assert ends_early == pytest.approx((1 - 1 / n) ** 40, abs=0.07)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["uniform", "random", "very_random"]), st.integers(1, 90), st.integers(1, 50), st.integers(0, 9))
def test_samplers_give_sorted_indices_of_the_clip(name: str, n: int, num: int, seed: int) -> None:
    indices = sample_indices(name, n, num, np.random.default_rng(seed))  # pyright: ignore[reportArgumentType]
    assert indices.dtype == np.int64
    assert indices.shape == (num,)
    assert indices[0] == 0
    assert indices[-1] < n
    assert (np.diff(indices) >= 0).all()
    assert np.array_equal(indices, sample_indices(name, n, num, np.random.default_rng(seed)))  # pyright: ignore[reportArgumentType]


def test_samplers_refuse_empty_clips() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(UserError, match="at least 1"):
        sample_indices("uniform", 0, 4, rng)
