"""The scheduler of a cluster, with a stand-in for Ray whose workers die over some requests."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from lfdm.distributed.job import Batch
from lfdm.distributed.ray_cluster import MAX_DEATHS, Scheduler
from lfdm.distributed.requests import VideoRequest
from lfdm.distributed.results import Result
from lfdm.distributed.worker import BatchSettings
from lfdm.errors import UserError


class ActorDiedError(Exception):
    """What Ray raises for the task of a process that has ended."""


class NoMemoryError(Exception):
    """What Ray raises for the task of a process that it has ended because the machine's memory was full."""


class TaskError(Exception):
    """What Ray raises for an exception in a task."""

    def as_instanceof_cause(self) -> Exception:
        return UserError(str(self))


class StandIn:
    """As much of Ray as the scheduler uses; tasks run when their results are fetched.

    Args:
        kills: returns of a batch the error of the worker that dies over it, None = none does.
        load_error: what loading the model raises.
    """

    exceptions = SimpleNamespace(RayActorError=ActorDiedError, OutOfMemoryError=NoMemoryError, RayTaskError=TaskError)

    def __init__(self, kills: Any = lambda _: None, load_error: str | None = None) -> None:
        self.kills, self.load_error, self.sizes = kills, load_error, []

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def remote(self, **_: object) -> Any:
        return lambda _: SimpleNamespace(remote=lambda *_: self._actor())

    def _actor(self) -> Any:
        return SimpleNamespace(
            ready=SimpleNamespace(remote=lambda: self._load), work=SimpleNamespace(remote=lambda batch: lambda: self._make(batch))
        )

    def _load(self) -> None:
        if self.load_error is not None:
            raise TaskError(self.load_error)

    def _make(self, batch: Batch) -> list[Result]:
        self.sizes.append(len(batch.requests))
        if (error := self.kills(batch)) is not None:
            raise error
        return [Result(key, f"{key}.mp4") for key in batch.wanted]

    def wait(self, references: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        return references[:num_returns], references[num_returns:]

    def get(self, reference: Any) -> Any:
        return reference()


def run(ray: StandIn, batches: Sequence[Batch]) -> dict[str, Result]:
    scheduler = Scheduler(ray, BatchSettings(model="m", out="o"), cpus_per_worker=1)
    return {result.key: result for results in scheduler.run(batches) for result in results}


def batch_of(*seeds: int) -> Batch:
    requests = [VideoRequest(image="a.png", seed=seed) for seed in seeds]
    return Batch(requests, [one.key for one in requests])


def has_seed(batch: Batch, seed: int) -> bool:
    return any(request.seed == seed for request in batch.requests)


def test_a_batch_that_kills_its_workers_is_halved_down_to_the_request_that_does_it() -> None:
    ray = StandIn(kills=lambda batch: ActorDiedError("the process ended") if has_seed(batch, 2) else None)
    results = run(ray, [batch_of(0, 1, 2, 3), batch_of(4)])
    failed = [result for result in results.values() if result.file is None]
    assert len(results) == 5
    assert [result.key for result in failed] == [VideoRequest(image="a.png", seed=2).key]
    assert failed[0].error == f"{MAX_DEATHS} workers died over it: the process ended"


def test_a_batch_that_fills_the_memory_is_halved_at_once() -> None:
    ray = StandIn(kills=lambda batch: NoMemoryError("killed: low on memory") if len(batch.requests) > 2 else None)
    assert all(result.file for result in run(ray, [batch_of(0, 1, 2, 3)]).values())
    assert ray.sizes == [4, 2, 2]


def test_only_wanted_videos_of_a_halved_batch_are_made() -> None:
    ray = StandIn(kills=lambda batch: NoMemoryError("low on memory") if len(batch.requests) > 2 else None)
    whole = batch_of(0, 1, 2, 3)
    assert list(run(ray, [Batch(whole.requests, whole.wanted[3:])])) == whole.wanted[3:]


def test_a_model_that_cannot_be_loaded_ends_the_job() -> None:
    with pytest.raises(UserError, match="no such model"):
        run(StandIn(load_error="no such model"), [batch_of(0)])


def test_more_cores_than_the_cluster_has_are_refused() -> None:
    with pytest.raises(UserError, match="from 1 to the cluster's 2 cores; got 3"):
        Scheduler(StandIn(), BatchSettings(model="m", out="o"), cpus_per_worker=3)
