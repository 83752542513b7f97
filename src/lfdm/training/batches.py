"""Which samples a step sees: a pure function of seed and step, so that a resumed run needs no state of the loader."""

import functools
from collections.abc import Iterator

import numpy as np

from lfdm.config.training import OptimizationConfig
from lfdm.errors import UserError


def sample_order(seed: int, start: int, stop: int, num_samples: int) -> Iterator[tuple[int, int]]:
    """(position, index) of the samples from position `start` on: every epoch visits all in an order of its own.

    >>> sorted(index for _, index in sample_order(0, 6, 12, 6))
    [0, 1, 2, 3, 4, 5]
    """
    for position in range(start, stop):
        epoch, place = divmod(position, num_samples)
        yield position, int(_epoch_order(seed, epoch, num_samples)[place])


@functools.lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch, 1)).permutation(num_samples)


def steps_per_epoch(config: OptimizationConfig, num_clips: int) -> float:
    """Steps in which an epoch visits every clip `epoch_repeats` times; a whole number unless `last_batch` is `join`."""
    visits = num_clips * config.epoch_repeats
    if config.last_batch == "join":
        return visits / config.batch_size
    return visits // config.batch_size if config.last_batch == "drop" else -(-visits // config.batch_size)


class StepSampler:
    """The batches of the steps from `start` to `stop` - 1 as (position, index) pairs: one process's share of each.

    Raises:
        UserError: epochs too short for one batch (`last_batch='drop'`), or a short batch that the processes cannot share.
    """

    def __init__(self, config: OptimizationConfig, num_samples: int, start: int, stop: int, *, rank: int, world: int) -> None:
        self.config, self.num_samples, self.steps = config, num_samples, range(start, stop)
        self.rank, self.world = rank, world
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
            pairs = sample_order(self.config.seed, *self._positions(step, visits), visits)
            yield [(position, visit % self.num_samples) for position, visit in pairs][self.rank :: self.world]

    def __len__(self) -> int:
        return len(self.steps)

    def _positions(self, step: int, visits: int) -> tuple[int, int]:
        """First position of a step's batch, and the one after its last."""
        size = self.config.batch_size
        if self.config.last_batch == "join":
            return step * size, (step + 1) * size
        epoch, batch = divmod(step, int(steps_per_epoch(self.config, self.num_samples)))
        start = epoch * visits + batch * size
        return start, min(start + size, (epoch + 1) * visits)
