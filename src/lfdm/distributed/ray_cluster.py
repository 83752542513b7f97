"""Batches on the machines of a Ray cluster: actors hold the model, and work of one that dies is done by another."""

import logging
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lfdm.distributed.job import Batch, BatchRunner
from lfdm.distributed.results import Result
from lfdm.distributed.worker import BatchSettings, VideoWorker
from lfdm.errors import MissingExtraError, UserError

logger = logging.getLogger(__name__)

MAX_DEATHS = 3
"""Workers that may die over a batch before it is halved, and over a single request before it counts as failed."""
CONNECT_SECONDS = 10.0
"""Time that a cluster has to answer."""


@dataclass
class _Task:
    batch: Batch
    deaths: int = 0


def import_ray() -> Any:
    """Return the module `ray`; MissingExtraError if it is not installed."""
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("--ray needs Ray: pip install 'lfdm[scale]'") from error
    return ray


def run_on_ray(address: str, cpus_per_worker: int = 1) -> BatchRunner:
    """Return a runner that makes batches on a cluster, one worker per GPU, or per `cpus_per_worker` cores where there is none.

    Folders of models, images and results must be readable on all machines: URLs, or a shared disk.

    Args:
        address: `auto` for the running cluster of this machine, or HOST:PORT.

    The runner raises:
        UserError: no cluster at the address, or none of its machines can hold a worker.
    """

    def run(settings: BatchSettings, batches: Sequence[Batch]) -> Iterator[Sequence[Result]]:
        if not batches:
            return
        ray = import_ray()
        _check_address(address)
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        except (ConnectionError, ValueError) as error:
            raise UserError(f"--ray {address}: no Ray cluster there ({error}); start one with `ray start --head`") from error
        try:
            yield from Scheduler(ray, settings, cpus_per_worker).run(batches)
        finally:
            ray.shutdown()

    return run


def _check_address(address: str) -> None:
    """Raise UserError if nothing listens at HOST:PORT, which Ray would try for minutes; `auto` is left to Ray."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"--ray must be auto or HOST:PORT; got {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"--ray {address}: no Ray cluster there ({error}); start one with `ray start --head`") from error


class Scheduler:
    """Hands batches to actors. An actor that dies is replaced, and its batch goes to the next free one."""

    def __init__(self, ray: Any, settings: BatchSettings, cpus_per_worker: int) -> None:
        self.ray, self.settings = ray, settings
        total = ray.cluster_resources()
        gpus = int(total.get("GPU", 0))
        self.resources = {"num_gpus": 1} if gpus else {"num_cpus": cpus_per_worker}
        self.num_workers = gpus or int(total.get("CPU", 0)) // max(1, cpus_per_worker)
        if cpus_per_worker < 1 or self.num_workers < 1:
            raise UserError(
                f"--cpus-per-worker must be from 1 to the cluster's {total.get('CPU', 0):g} cores; got {cpus_per_worker}"
            )
        self.device = "cuda" if gpus else "cpu"
        self.threads = cpus_per_worker
        self.waiting: deque[_Task] = deque()
        self.running: dict[Any, tuple[Any, _Task | None]] = {}
        """By the reference that Ray will resolve: actor, and its task (None while it loads the model)."""

    def run(self, batches: Sequence[Batch]) -> Iterator[Sequence[Result]]:
        """Yield the results of batches as they are done."""
        self.waiting.extend(_Task(batch) for batch in batches)
        for _ in range(min(self.num_workers, len(batches))):
            self._start_worker()
        while self.waiting or any(task is not None for _, task in self.running.values()):
            done, _ = self.ray.wait(list(self.running), num_returns=1)
            actor, task = self.running.pop(done[0])
            try:
                results = self.ray.get(done[0])
            except self.ray.exceptions.RayActorError as error:
                yield from self._after_death(task, error)
                continue
            except self.ray.exceptions.RayTaskError as error:  # the worker could not be made: an error of the model
                raise error.as_instanceof_cause() from None
            if task is not None:
                yield results
            self._give_work(actor)

    def _start_worker(self) -> None:
        worker = self.ray.remote(**self.resources)(_Worker)
        actor = worker.remote(self.settings, self.device, self.threads)
        self.running[actor.ready.remote()] = (actor, None)

    def _give_work(self, actor: Any) -> None:
        if self.waiting:
            task = self.waiting.popleft()
            self.running[actor.make.remote(task.batch)] = (actor, task)

    def _after_death(self, task: _Task | None, error: Exception) -> Iterator[Sequence[Result]]:
        """Replace a worker that died and put its task back; halved or failed where workers die over it again and again."""
        self._start_worker()
        if task is None:
            return
        logger.warning("a worker died (%s); its batch is made by another one", type(error).__name__)
        task.deaths += 1
        lacks_memory = "memory" in str(error).lower()
        requests, wanted = task.batch.requests, task.batch.wanted
        if task.deaths < MAX_DEATHS and not (lacks_memory and len(requests) > 1):
            self.waiting.appendleft(task)
        elif len(requests) > 1:
            half = len(requests) // 2
            for part in (requests[half:], requests[:half]):
                missing = [one.key for one in part if one.key in wanted]
                if missing:
                    self.waiting.appendleft(_Task(Batch(part, missing)))
        else:
            reason = f"{task.deaths} workers died over it: {' '.join(str(error).split())}"
            yield [Result(key, error=reason) for key in wanted]


class _Worker:
    """A `VideoWorker` as a Ray actor."""

    def __init__(self, settings: BatchSettings, device: str, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.worker = VideoWorker(settings, device)

    def ready(self) -> None:
        """Return once the model is loaded."""

    def make(self, batch: Batch) -> list[Result]:
        """Make a batch."""
        return self.worker.make(batch.requests, batch.wanted)
