"""Which samples a step sees, and their random numbers: functions of seed and step, so that resuming needs no loader state."""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lfdm.config.training import OptimizationConfig
from lfdm.data.sharded_clips import WINDOW_SHARDS
from lfdm.errors import UserError


@dataclass(frozen=True, eq=False)
class BatchRandomness:
    """The random numbers of the samples `rows` of a batch.

    They are generated for the whole batch of all processes, so that they do not depend on its division among processes and
    into micro-batches.
    """

    generator: torch.Generator
    batch_size: int
    rows: slice
    step: int = 0
    """The step of training, from 0."""

    @classmethod
    def of_whole_batch(cls, generator: torch.Generator, batch_size: int, *, step: int = 0) -> "BatchRandomness":
        """Return the randomness of a batch that is computed at once by one process."""
        return cls(generator, batch_size, slice(0, batch_size), step)

    def sample(self, generate: Callable[[int, torch.Generator], Tensor]) -> Tensor:
        """Return this micro-batch's rows of `generate(batch_size, generator)`, a tensor (batch_size, ...)."""
        return generate(self.batch_size, self.generator)[self.rows]


def micro_batches(batch_size: int, micro_batch_size: int | None) -> list[slice]:
    """Divide a batch into the fewest slices of at most `micro_batch_size` samples, all nearly equal; None = one slice.

    >>> micro_batches(5, 3)
    [slice(0, 2, None), slice(2, 5, None)]
    """
    count = -(-batch_size // (micro_batch_size or batch_size))
    bounds = [batch_size * i // count for i in range(count + 1)]
    return [slice(*pair) for pair in itertools.pairwise(bounds)]


def shared_rows(rows: slice, rank: int, world: int) -> slice:
    """Return which rows of the whole batch are the `rows` of one process's share; row i of all belongs to process i % world.

    >>> shared_rows(slice(1, 3), 0, 2)
    slice(2, 6, 2)
    """
    return slice(rank + rows.start * world, rank + rows.stop * world, world)


def sample_order(seed: int, start: int, stop: int, num_samples: int) -> Iterator[tuple[int, int]]:
    """Yield (position, index) for the positions `start` to `stop` - 1; every epoch visits all samples in its own order.

    >>> sorted(index for _, index in sample_order(0, 6, 12, 6))
    [0, 1, 2, 3, 4, 5]
    """
    for position in range(start, stop):
        epoch, place = divmod(position, num_samples)
        yield position, int(_epoch_order(seed, epoch, num_samples)[place])


@functools.lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch, 1)).permutation(num_samples)


class ShardOrder:
    """Order of the clips of shards: a function of seed and position, so that training can resume anywhere.

    In every epoch the shards are shuffled and taken `WINDOW_SHARDS` at a time; the clips of such a window are shuffled, each as
    often as an epoch visits it. Only the clips of one window are in memory.

    Args:
        seed: of the training.
        shard_sizes: number of clips in each shard.
        repeats: visits of every clip in an epoch.
        announce: called with the shards of a window and those of the next one in its epoch when a window begins.
    """

    def __init__(
        self, seed: int, shard_sizes: Sequence[int], repeats: int = 1, announce: Callable[[Sequence[int]], None] | None = None
    ) -> None:
        self.seed, self.repeats, self.announce = seed, repeats, announce
        self.sizes: np.ndarray = np.asarray(shard_sizes)
        self._starts = np.cumsum(self.sizes) - self.sizes
        self._epoch: int | None = None
        self._window: tuple[int, int] | None = None

    def __call__(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield (position, index of the clip) for the positions `start` to `stop` - 1."""
        visits = int(self.sizes.sum()) * self.repeats
        for position in range(start, stop):
            epoch, place = divmod(position, visits)
            if epoch != self._epoch:
                self._epoch, self._shards = epoch, np.random.default_rng((self.seed, epoch, 1)).permutation(len(self.sizes))
                totals = np.add.reduceat(self.sizes[self._shards], range(0, len(self._shards), WINDOW_SHARDS))
                self._ends = np.cumsum(totals) * self.repeats
            window = int(np.searchsorted(self._ends, place, side="right"))
            if self._window != (epoch, window):
                self._window, self._clips = (epoch, window), self._shuffle_window(epoch, window)
            yield position, int(self._clips[place - self._ends[window]])

    def _shuffle_window(self, epoch: int, window: int) -> np.ndarray:
        first = window * WINDOW_SHARDS
        if self.announce is not None:
            self.announce(self._shards[first : first + 2 * WINDOW_SHARDS].tolist())
        shards = self._shards[first : first + WINDOW_SHARDS]
        clips = np.concatenate([int(self._starts[shard]) + np.arange(int(self.sizes[shard])) for shard in shards])
        return np.random.default_rng((self.seed, epoch, 2, window)).permutation(np.tile(clips, self.repeats))


def steps_per_epoch(config: OptimizationConfig, num_clips: int) -> float:
    """Return the steps of an epoch, which visits every clip `epoch_repeats` times; whole unless `last_batch` is `join`."""
    visits = num_clips * config.epoch_repeats
    if config.last_batch == "join":
        return visits / config.batch_size
    return visits // config.batch_size if config.last_batch == "drop" else -(-visits // config.batch_size)


class StepSampler:
    """One process's share of the batches of steps `start` to `stop` - 1, as lists of (position, index).

    Clips in shards have their `shard_order`; all others are shuffled together.

    Raises:
        UserError: an epoch is shorter than a batch (`last_batch='drop'`), or the processes cannot share a short batch.
    """

    def __init__(
        self,
        config: OptimizationConfig,
        num_samples: int,
        start: int,
        stop: int,
        *,
        rank: int,
        world: int,
        shard_order: ShardOrder | None = None,
    ) -> None:
        self.config, self.num_samples, self.steps = config, num_samples, range(start, stop)
        self.rank, self.world, self.shard_order = rank, world, shard_order
        visits = num_samples * config.epoch_repeats
        if config.last_batch == "drop" and visits < config.batch_size:
            raise UserError(
                f"batch_size must be at most an epoch's {visits} samples with last_batch='drop'; got {config.batch_size}"
            )
        if config.last_batch == "keep" and visits % config.batch_size % world:
            short = visits % config.batch_size
            raise UserError(f"last_batch must be 'join' or 'drop', as {world} processes cannot share a last batch of {short}")

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        visits = self.num_samples * self.config.epoch_repeats
        for step in self.steps:
            start, stop = self._positions(step, visits)
            if self.shard_order is None:
                pairs = sample_order(self.config.seed, start, stop, visits)
            else:
                pairs = self.shard_order(start, stop)
            yield [(position, visit % self.num_samples) for position, visit in pairs][self.rank :: self.world]

    def __len__(self) -> int:
        return len(self.steps)

    def _positions(self, step: int, visits: int) -> tuple[int, int]:
        """Return the first position of a step's batch and the one after its last."""
        size = self.config.batch_size
        if self.config.last_batch == "join":
            return step * size, (step + 1) * size
        epoch, batch = divmod(step, int(steps_per_epoch(self.config, self.num_samples)))
        start = epoch * visits + batch * size
        return start, min(start + size, (epoch + 1) * visits)
