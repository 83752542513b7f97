"""Generation of an evaluation's videos on a Ray cluster, by the actors that batches of videos use."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeAlias

import numpy as np

from lfdm.distributed.ray_cluster import MAX_DEATHS, ActorPool, Work, connected
from lfdm.errors import UserError
from lfdm.evaluation.generators import VideoGenerator
from lfdm.evaluation.store import Arrays

GeneratorInputs: TypeAlias = tuple[list[np.ndarray], list[str] | None, list[int]]
"""Images (H, W, 3) uint8, labels and seeds of a `VideoGenerator`."""


class ClusterGenerator:
    """A `VideoGenerator` on a cluster, whose workers hold one generator each.

    Args:
        address: `auto` or HOST:PORT.
        make: called with a device on a worker's machine.
    """

    def __init__(self, name: str, address: str, make: Callable[[str], VideoGenerator], cpus_per_worker: int = 1) -> None:
        self.name, self.address, self.make, self.cpus_per_worker = name, address, make, cpus_per_worker

    def work(
        self, work: Callable[..., Arrays], batches: dict[int, list[int]], inputs: Callable[[list[int]], GeneratorInputs]
    ) -> Iterator[tuple[int, Arrays]]:
        """Yield number and arrays of each batch when it is done: `work(generator, *inputs(batch))` on a worker.

        Raises:
            UserError: no cluster at the address, or a batch over which workers die again and again.
        """
        deaths: dict[int, int] = {}
        with connected(self.address) as ray:
            pool = ActorPool[int](ray, partial(_bind, self.make, work), lambda b: inputs(batches[b]), self.cpus_per_worker)
            for b, arrays, death in pool.run(batches):
                if death is None:
                    yield b, arrays
                    continue
                deaths[b] = deaths.get(b, 0) + 1
                if deaths[b] == MAX_DEATHS:
                    reason = " ".join(str(death).split())
                    raise UserError(f"{MAX_DEATHS} workers died over a batch ({reason}); try a smaller batch_size") from death
                pool.waiting.appendleft(b)


def _bind(make: Callable[[str], VideoGenerator], work: Callable[..., Arrays], device: str) -> Work:
    generator = make(device)
    return lambda inputs: work(generator, *inputs)
