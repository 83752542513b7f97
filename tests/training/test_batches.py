"""Order of samples and shares of processes."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lfdm.config.training import OptimizationConfig
from lfdm.data.sharded_clips import WINDOW_SHARDS
from lfdm.errors import UserError
from lfdm.training.batches import BatchRandomness, ShardOrder, StepSampler, micro_batches, sample_order, steps_per_epoch

CONFIG = OptimizationConfig(num_steps=10, batch_size=4, learning_rate=0.01)


@pytest.mark.parametrize("num_samples", [1, 5, 8])
def test_every_epoch_has_its_own_order_and_can_start_anywhere(num_samples: int) -> None:
    pairs = list(sample_order(3, 0, 4 * num_samples, num_samples))
    assert [position for position, _ in pairs] == list(range(4 * num_samples))
    epochs = [tuple(index for _, index in pairs[i * num_samples : (i + 1) * num_samples]) for i in range(4)]
    assert all(sorted(epoch) == list(range(num_samples)) for epoch in epochs)
    assert num_samples == 1 or len(set(epochs)) == 4
    for start, stop in ((0, 3), (2, 2), (num_samples - 1, num_samples + 1), (2 * num_samples + 1, 4 * num_samples)):
        assert list(sample_order(3, start, stop, num_samples)) == pairs[start:stop]
    assert num_samples == 1 or list(sample_order(4, 0, 4 * num_samples, num_samples)) != pairs


def test_processes_share_every_batch_without_overlap() -> None:
    def batches(rank: int, world: int) -> list[list[tuple[int, int]]]:
        return list(StepSampler(CONFIG, 7, 2, 6, rank=rank, world=world))

    alone = batches(0, 1)
    assert len(alone) == 4
    assert [pair for batch in alone for pair in batch] == list(sample_order(CONFIG.seed, 8, 24, 7))
    for first, second, batch in zip(batches(0, 2), batches(1, 2), alone, strict=True):
        assert len(first) == len(second) == 2
        assert sorted(first + second) == batch


@pytest.mark.parametrize(
    ("last_batch", "sizes"), [("join", [4, 4, 4, 4, 4, 4, 4]), ("drop", [4, 4, 4, 4, 4, 4, 4]), ("keep", [4, 4, 4, 2, 4, 4, 4])]
)
def test_epochs_repeat_the_clips_and_treat_the_last_batch_as_configured(last_batch: Any, sizes: list[int]) -> None:
    """Seven clips twice make 14 samples: three batches of 4, and 2 that are joined with the next epoch's, dropped or kept."""
    config = replace(CONFIG, epoch_repeats=2, last_batch=last_batch)
    batches = list(StepSampler(config, 7, 0, 7, rank=0, world=1))
    assert [len(batch) for batch in batches] == sizes
    assert steps_per_epoch(config, 7) == {"join": 3.5, "drop": 3, "keep": 4}[last_batch]
    positions = [position for batch in batches for position, _ in batch]
    assert (
        positions
        == {"join": [*range(28)], "drop": [*range(12), *range(14, 26), *range(28, 32)], "keep": [*range(26)]}[last_batch]
    )
    first = [index for batch in batches for position, index in batch if position < 14]
    counts = np.bincount(first, minlength=7)
    assert counts.max() == 2
    assert (counts.min() == 2) == (last_batch != "drop")
    assert sorted(first[:7]) != list(range(7))  # shuffled together, not one visit after the other
    for start in range(7):
        assert list(StepSampler(config, 7, start, 7, rank=0, world=1)) == batches[start:]


def test_impossible_batches_are_refused() -> None:
    with pytest.raises(UserError, match="batch_size must be at most an epoch's 7 samples with last_batch='drop'; got 8"):
        StepSampler(replace(CONFIG, batch_size=8, last_batch="drop"), 7, 0, 1, rank=0, world=1)
    with pytest.raises(UserError, match="2 processes cannot share a last batch of 3"):
        StepSampler(replace(CONFIG, last_batch="keep"), 7, 0, 1, rank=0, world=2)


@pytest.mark.parametrize(
    ("size", "micro", "sizes"), [(8, None, [8]), (8, 8, [8]), (8, 3, [2, 3, 3]), (7, 1, [1] * 7), (4, 3, [2, 2])]
)
def test_micro_batches_are_few_and_nearly_equal(size: int, micro: int | None, sizes: list[int]) -> None:
    slices = micro_batches(size, micro)
    assert [part.stop - part.start for part in slices] == sizes
    assert [index for part in slices for index in range(size)[part]] == list(range(size))


def test_random_numbers_do_not_depend_on_the_division_into_micro_batches() -> None:
    def sample(rows: slice) -> torch.Tensor:
        randomness = BatchRandomness(torch.Generator().manual_seed(3), 7, rows)
        first = randomness.sample(lambda size, generator: torch.rand(size, 2, generator=generator))
        return first + randomness.sample(lambda size, generator: torch.randn(size, 2, generator=generator))

    whole = sample(slice(0, 7))
    assert torch.equal(torch.cat([sample(rows) for rows in micro_batches(7, 3)]), whole)
    randomness = BatchRandomness.of_whole_batch(torch.Generator(), 7)
    assert torch.equal(randomness.sample(lambda size, _: torch.arange(size)), torch.arange(7))


SHARD_SIZES = [3, 1, 4, 2, 5, 3, 2, 4, 6, 1, 3, 2, 4, 5, 2, 3, 1, 2, 3, 4]
"""Three windows."""


@pytest.mark.parametrize("repeats", [1, 3])
def test_shards_are_shuffled_in_windows_and_an_order_can_start_anywhere(repeats: int) -> None:
    shard_of = np.repeat(np.arange(len(SHARD_SIZES)), SHARD_SIZES)
    visits = repeats * len(shard_of)
    pairs = list(ShardOrder(3, SHARD_SIZES, repeats)(0, 3 * visits))
    assert [position for position, _ in pairs] == list(range(3 * visits))
    epochs = [[index for _, index in pairs[i * visits : (i + 1) * visits]] for i in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    for epoch in epochs:
        assert np.bincount(epoch).tolist() == [repeats] * len(shard_of)
        seen = list(dict.fromkeys(shard_of[epoch].tolist()))
        for start in range(0, len(seen), WINDOW_SHARDS):  # one window ends before the next begins
            window = set(seen[start : start + WINDOW_SHARDS])
            places = [place for place, index in enumerate(epoch) if shard_of[index] in window]
            assert places == list(range(places[0], places[0] + len(places)))
            inside = shard_of[epoch][places].tolist()
            assert inside != sorted(inside, key=inside.index)  # mixed, not one shard after the other
    for start in (1, 17, visits - 1, visits, 2 * visits + 5):
        assert list(ShardOrder(3, SHARD_SIZES, repeats)(start, 3 * visits)) == pairs[start:]
    assert list(ShardOrder(4, SHARD_SIZES, repeats)(0, 3 * visits)) != pairs


def test_windows_are_announced_with_the_next_ones() -> None:
    announced: list[list[int]] = []
    order = ShardOrder(0, SHARD_SIZES, announce=lambda shards: announced.append(list(shards)))
    list(order(0, sum(SHARD_SIZES)))
    assert [len(shards) for shards in announced] == [16, 12, 4]
    assert announced[0][WINDOW_SHARDS:] == announced[1][:WINDOW_SHARDS]


def test_processes_share_the_batches_of_shards() -> None:
    def batches(rank: int, world: int) -> list[list[tuple[int, int]]]:
        order = ShardOrder(CONFIG.seed, SHARD_SIZES)
        return list(StepSampler(CONFIG, sum(SHARD_SIZES), 2, 30, rank=rank, world=world, shard_order=order))

    alone = batches(0, 1)
    assert [pair for batch in alone for pair in batch] == list(ShardOrder(CONFIG.seed, SHARD_SIZES)(8, 120))
    shares = [batches(rank, 4) for rank in range(4)]
    assert [sorted(pair for share in step for pair in share) for step in zip(*shares, strict=True)] == alone
