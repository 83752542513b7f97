"""The three frame samplers of the published system, as pure functions."""

import numpy as np

from lfdm.config.training import FrameSampler
from lfdm.errors import UserError


def uniform_indices(n: int, num: int) -> np.ndarray:
    """Spread `num` frame indices evenly over a clip of `n` frames, ends included; a shorter clip repeats its last frame.

    >>> uniform_indices(10, 4).tolist(), uniform_indices(3, 5).tolist()
    ([0, 3, 6, 9], [0, 1, 2, 2, 2])
    """
    _check_counts(n, num)
    if n < num:
        return np.minimum(np.arange(num), n - 1)
    return np.linspace(0, n - 1, num).astype(np.int64)


def random_indices(n: int, num: int, rng: np.random.Generator) -> np.ndarray:
    """Move each inner one of the uniform indices by less than the gap to its neighbours, then sort."""
    indices = uniform_indices(n, num)
    gaps = np.maximum(np.diff(indices) - 1, 0)
    indices[1:-1] += rng.integers(-gaps[:-1], gaps[1:], endpoint=True)
    return np.sort(indices)


def very_random_indices(n: int, num: int, rng: np.random.Generator) -> np.ndarray:
    """Sample `num` sorted indices with replacement from a clip of `n` frames, the first forced to 0."""
    _check_counts(n, num)
    indices = np.sort(rng.integers(0, n, num))
    indices[0] = 0
    return indices


def sample_indices(name: FrameSampler, n: int, num: int, rng: np.random.Generator) -> np.ndarray:
    """Return `num` indices into a clip of `n` frames by the sampler `name`: (num,) int64, sorted."""
    if name == "uniform":
        return uniform_indices(n, num)
    return {"random": random_indices, "very_random": very_random_indices}[name](n, num, rng)


def _check_counts(n: int, num: int) -> None:
    if n < 1 or num < 1:
        raise UserError(f"frame counts must be at least 1, got a clip of {n} and {num} to sample")
