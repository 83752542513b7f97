"""Batch jobs on a Ray cluster of three simulated machines. Slow: several processes."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from lfdm.distributed.job import Batch, run_batch, run_here
from lfdm.distributed.ray_cluster import run_on_ray
from lfdm.distributed.requests import Row, VideoRequest
from lfdm.distributed.results import Result
from lfdm.distributed.worker import BatchSettings
from lfdm.errors import UserError

pytestmark = pytest.mark.slow
ray = pytest.importorskip("ray")

NUM_REQUESTS = 300
Machines = tuple[str, Callable[[], Any]]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machines]:
    """Three machines of one core: (address, function that takes one of them away)."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")
    options: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={**options, "include_dashboard": False})
    others = [cluster.add_node(**options) for _ in range(2)]
    try:
        yield str(cluster.address), lambda: cluster.remove_node(others[0])
    finally:
        ray.shutdown()
        cluster.shutdown()


def rows_of(count: int) -> list[Row]:
    names = ("a", "b", "c")
    requests = [
        VideoRequest(image=f"{names[i % 3]}.png", condition=("wave", "jump")[i % 2], seed=i, num_inference_steps=1)
        for i in range(count)
    ]
    return [Row(i, request, {}) for i, request in enumerate(requests, 1)]


def settings_of(model: Path, pictures: Path, out: str) -> BatchSettings:
    return BatchSettings(model=str(model), out=str(pictures / out), base=str(pictures), batch_size=4)


def kill_a_worker() -> None:
    """Kill one process that makes videos, once there is one."""
    for _ in range(600):
        workers = [entry for entry in Path("/proc").glob("[0-9]*") if b"_Worker" in _command(entry)]
        if workers:
            os.kill(int(workers[0].name), signal.SIGKILL)
            return
        time.sleep(0.05)
    raise AssertionError("no worker ran")


def _command(entry: Path) -> bytes:
    try:
        return (entry / "cmdline").read_bytes()
    except OSError:
        return b""


def test_a_killed_worker_and_a_lost_machine_lose_no_request(
    model: Path, pictures: Path, cluster: tuple[str, Callable[[], None]]
) -> None:
    address, remove_machine = cluster
    rows = rows_of(NUM_REQUESTS)
    run_batch(rows, settings_of(model, pictures, "here"), run_here("cpu"))
    made: list[int] = []

    def disturbed(settings: BatchSettings, batches: Sequence[Batch]) -> Iterator[Sequence[Result]]:
        for results in run_on_ray(address)(settings, batches):
            made.append(len(results))
            if len(made) == 10:
                kill_a_worker()
            if len(made) == 30:
                threading.Thread(target=remove_machine, daemon=True).start()
            yield results

    summary = run_batch(rows, settings_of(model, pictures, "ray"), disturbed)
    assert (summary.videos, summary.failed) == (NUM_REQUESTS, 0)
    assert sum(made) == NUM_REQUESTS
    videos = sorted((pictures / "here").glob("*.mp4"))
    assert len(videos) == NUM_REQUESTS
    assert sorted(path.name for path in (pictures / "ray").glob("*.mp4")) == [path.name for path in videos]
    assert [path.name for path in videos if path.read_bytes() != (pictures / "ray" / path.name).read_bytes()] == []


def test_what_is_no_cluster_is_one_line(model: Path, pictures: Path) -> None:
    for address, words in (("127.0.0.1:1", "no Ray cluster"), ("somewhere", "HOST:PORT"), ("auto", "no Ray cluster")):
        with pytest.raises(UserError, match=words):
            run_batch(rows_of(1), settings_of(model, pictures, "out"), run_on_ray(address))
