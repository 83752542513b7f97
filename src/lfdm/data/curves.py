"""Smooth curves over time, from which rendered motion is made."""

from dataclasses import dataclass
from typing import Self

import numpy as np

_SECONDS = (0.35, 1.1)
"""Duration of a movement from one random value to the next."""


def ease(time: np.ndarray | float, duration: np.ndarray | float) -> np.ndarray:
    """Rise smoothly (smoothstep) from 0 at time 0 to 1 at `duration`, constant outside."""
    x = np.clip(time / duration, 0, 1)
    return x * x * (3 - 2 * x)


@dataclass(frozen=True, eq=False)
class Wander:
    """A curve that moves from one random value to the next; it never leaves the interval of its values."""

    begins: np.ndarray
    """(k,) seconds at which the movements begin, increasing from 0."""
    durations: np.ndarray
    values: np.ndarray
    """(k + 1,): the first value, and those that the movements lead to."""

    @classmethod
    def sample(
        cls,
        start: float,
        limits: tuple[float, float],
        seconds: float,
        rng: np.random.Generator,
        durations: tuple[float, float] = _SECONDS,
    ) -> Self:
        """Sample a curve that begins with `start` and then takes random values within `limits` until `seconds`."""
        begins, spans, values = list[float](), list[float](), [start]
        begin = 0.0
        while begin < seconds:
            values.append(rng.uniform(*limits))
            spans.append(rng.uniform(*durations))
            begins.append(begin)
            begin += spans[-1]
        return cls(np.array(begins), np.array(spans), np.array(values))

    def __call__(self, time: np.ndarray | float) -> np.ndarray:
        """Return the values at times in seconds, of the shape of `time`."""
        time = np.asarray(time, np.float64)[..., None]
        return self.values[0] + (np.diff(self.values) * ease(time - self.begins, self.durations)).sum(-1)
