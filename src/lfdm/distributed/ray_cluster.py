"""Batches on the machines of a Ray cluster: actors hold the model, and work of one that dies is done by another."""

import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from lfdm.distributed.job import Batch, BatchRunner
from lfdm.distributed.results import Result
from lfdm.distributed.worker import BatchSettings, VideoWorker
from lfdm.errors import MissingExtraError, UserError

logger = logging.getLogger(__name__)

TaskT = TypeVar("TaskT")
Work = Callable[[Any], Any]
"""Function that a worker calls with the input of a task; it is made once for each worker, on the worker's machine."""

MAX_DEATHS = 3
"""Workers that may die over a batch before it is halved, and over a single request before it counts as failed."""
CONNECT_SECONDS = 10.0
"""Time that a cluster has to answer."""


@dataclass
class _Task:
    batch: Batch
    deaths: int = 0


def import_ray() -> Any:
    """Return the module `ray`; MissingExtraError if it is not installed.

    Ray does not connect or start a cluster by itself at the first call: only `connected` does.
    """
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # read when ray is imported
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
        with connected(address) as ray:
            yield from Scheduler(ray, settings, cpus_per_worker).run(batches)

    return run


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Give the module `ray`, connected to the cluster at `auto` or HOST:PORT.

    Raises:
        UserError: no cluster there.
        MissingExtraError: Ray is not installed.
    """
    ray = import_ray()
    _check_address(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, ValueError) as error:
        raise UserError(f"--ray {address}: no Ray cluster there ({error}); start one with `ray start --head`") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Raise UserError if nothing listens at HOST:PORT or at what `auto` stands for, which Ray would try for minutes."""
    place = _running_cluster() if address == "auto" else address
    if place is None:
        return  # Ray says that there is none
    host, _, port = place.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"--ray must be auto or HOST:PORT; got {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"--ray {address}: no Ray cluster there ({error}); start one with `ray start --head`") from error


def deaths(ray: Any) -> tuple[type[Exception], ...]:
    """Return the errors of Ray for the task of a worker that died; one that was ended to free memory has an error of its own."""
    return ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError


class ActorPool(Generic[TaskT]):
    """Actors that work on tasks, one per GPU, or per `cpus_per_worker` cores where there is none. One that dies is replaced.

    Args:
        make_work: called with a device on a worker's machine; returns what the worker does with the input of a task.
        input_of: returns the input of a task, which is sent to a worker.

    Raises:
        UserError: none of the cluster's machines can hold a worker.
    """

    def __init__(
        self, ray: Any, make_work: Callable[[str], Work], input_of: Callable[[TaskT], Any], cpus_per_worker: int
    ) -> None:
        self.ray, self.make_work, self.input_of = ray, make_work, input_of
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
        self.waiting: deque[TaskT] = deque()
        """Tasks without a worker; whoever iterates over `run` may put tasks back."""
        self.running: dict[Any, tuple[Any, TaskT | None]] = {}
        """By the reference that Ray will resolve: actor, and its task (None while it starts)."""

    def run(self, tasks: Iterable[TaskT]) -> Iterator[tuple[TaskT, Any, Exception | None]]:
        """Yield each task with its result as soon as it is done, or with the error of the worker that died over it.

        Raises:
            Exception: what a worker raises.
        """
        self.waiting.extend(tasks)
        for _ in range(min(self.num_workers, len(self.waiting))):
            self._start_worker()
        while self.waiting or any(task is not None for _, task in self.running.values()):
            done, _ = self.ray.wait(list(self.running), num_returns=1)
            actor, task = self.running.pop(done[0])
            try:
                result = self.ray.get(done[0])
            except deaths(self.ray) as error:
                self._start_worker()
                if task is not None:
                    logger.warning("a worker died (%s); its task is done by another one", type(error).__name__)
                    yield task, None, error
                continue
            except self.ray.exceptions.RayTaskError as error:
                raise error.as_instanceof_cause() from None
            if task is not None:
                yield task, result, None
            if self.waiting:
                waiting = self.waiting.popleft()
                self.running[actor.work.remote(self.input_of(waiting))] = (actor, waiting)

    def _start_worker(self) -> None:
        actor = self.ray.remote(**self.resources)(_Worker).remote(self.make_work, self.device, self.threads)
        self.running[actor.ready.remote()] = (actor, None)


class Scheduler:
    """Makes batches with actors; those over which workers die again and again are halved."""

    def __init__(self, ray: Any, settings: BatchSettings, cpus_per_worker: int) -> None:
        self.pool = ActorPool[_Task](ray, partial(_make_videos, settings), lambda task: task.batch, cpus_per_worker)

    def run(self, batches: Sequence[Batch]) -> Iterator[Sequence[Result]]:
        """Yield the results of batches as they are done."""
        for task, results, death in self.pool.run([_Task(batch) for batch in batches]):
            if death is None:
                yield results
            else:
                yield from self._after_death(task, death)

    def _after_death(self, task: _Task, error: Exception) -> Iterator[Sequence[Result]]:
        """Put a task back; halved or failed where workers die over it again and again."""
        task.deaths += 1
        lacks_memory = "memory" in str(error).lower()
        requests, wanted = task.batch.requests, task.batch.wanted
        if task.deaths < MAX_DEATHS and not (lacks_memory and len(requests) > 1):
            self.pool.waiting.appendleft(task)
        elif len(requests) > 1:
            half = len(requests) // 2
            for part in (requests[half:], requests[:half]):
                missing = [one.key for one in part if one.key in wanted]
                if missing:
                    self.pool.waiting.appendleft(_Task(Batch(part, missing)))
        else:
            reason = f"{task.deaths} workers died over it: {' '.join(str(error).split())}"
            yield [Result(key, error=reason) for key in wanted]


def _make_videos(settings: BatchSettings, device: str) -> Work:
    worker = VideoWorker(settings, device)
    return lambda batch: worker.make(batch.requests, batch.wanted)


class _Worker:
    """A Ray actor that works on tasks."""

    def __init__(self, make_work: Callable[[str], Work], device: str, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._work = make_work(device)

    def ready(self) -> None:
        """Return once what the work needs is loaded."""

    def work(self, task: Any) -> Any:
        """Work on the input of a task."""
        return self._work(task)


def _running_cluster() -> str | None:
    """Return the address that a cluster on this machine has left, perhaps before it died; None if there is none."""
    if "RAY_ADDRESS" in os.environ:
        return os.environ["RAY_ADDRESS"]
    file = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")
    return file.read_text().strip() if file.is_file() else None
