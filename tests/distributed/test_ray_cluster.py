"""Batch jobs on a Ray cluster of three simulated machines. Slow: several processes."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lfdm.config.presets import Preset
from lfdm.distributed.job import Batch, run_batch, run_here
from lfdm.distributed.ray_cluster import connected, import_ray, run_on_ray
from lfdm.distributed.replica_settings import ReplicaSettings
from lfdm.distributed.requests import Row, VideoRequest
from lfdm.distributed.results import Result
from lfdm.distributed.serving import deploy, find_replicas, remove_replicas
from lfdm.distributed.worker import BatchSettings
from lfdm.errors import MissingExtraError, UserError
from lfdm.evaluation.protocol import evaluate
from lfdm.evaluation.settings import ClassifierTraining, EvaluationConfig
from lfdm.pipeline.pipeline import LatentFlowPipeline

pytestmark = pytest.mark.slow
try:
    ray = import_ray()
except MissingExtraError as error:
    pytest.skip(str(error), allow_module_level=True)

NUM_REQUESTS = 300
Machines = tuple[str, Callable[[], Any]]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Machines]:
    """Three machines of one core: (address, function that takes one of them away)."""
    from ray.cluster_utils import Cluster

    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # 15 by default, with which other work of this machine starves them
    options: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={**options, "include_dashboard": False})
    others = [cluster.add_node(**options) for _ in range(2)]
    try:
        yield str(cluster.address), lambda: cluster.remove_node(others[0])
    finally:
        ray.shutdown()
        cluster.shutdown()
        monkeypatch.undo()


def rows_of(count: int) -> list[Row]:
    names = ("a", "b", "c")
    requests = [
        VideoRequest(image=f"{names[i % 3]}.png", condition=("wave", "jump")[i % 2], seed=i, num_inference_steps=1)
        for i in range(count)
    ]
    return [Row(i, request, {}) for i, request in enumerate(requests, 1)]


def settings_of(model: Path, pictures: Path, out: str) -> BatchSettings:
    return BatchSettings(model=str(model), out=str(pictures / out), base=str(pictures), batch_size=4)


def kill_a_process(title: bytes) -> None:
    """Kill one process with `title` in its name, once there is one."""
    for _ in range(600):
        workers = [entry for entry in Path("/proc").glob("[0-9]*") if title in _command(entry)]
        if workers:
            os.kill(int(workers[0].name), signal.SIGKILL)
            return
        time.sleep(0.05)
    raise AssertionError(f"no process {title!r} ran")


def _command(entry: Path) -> bytes:
    try:
        return (entry / "cmdline").read_bytes()
    except OSError:
        return b""


def test_what_is_no_cluster_is_one_line(model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for address, words in (("127.0.0.1:1", "no Ray cluster"), ("somewhere", "HOST:PORT"), ("auto", "no Ray cluster")):
        with pytest.raises(UserError, match=words):
            run_batch(rows_of(1), settings_of(model, pictures, "out"), run_on_ray(address))
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")  # of a cluster that died
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(UserError, match="no Ray cluster"):
        run_batch(rows_of(1), settings_of(model, pictures, "out"), run_on_ray("auto"))


def test_an_evaluation_on_a_cluster_gives_the_same_figures(
    model: Path, puppets_dir: Path, tmp_path: Path, cluster: Machines
) -> None:
    training = ClassifierTraining(num_steps=2, batch_size=4)
    config = EvaluationConfig(batch_size=2, num_diversity_clips=2, allow_small=True, classifier=training, frame_network=training)
    here, there = (
        evaluate(model, puppets_dir, tmp_path / str(ray), config, num_inference_steps=2, ray=ray) for ray in (None, cluster[0])
    )
    for results in (here, there):
        del results["generation"]["seconds_per_video"], results["seconds"], results["date"]
    assert here == there
    with pytest.raises(UserError, match="only stage 1"):
        evaluate(model / "autoencoder", puppets_dir, tmp_path / "stage1", config, ray=cluster[0])


def test_no_request_is_lost_while_the_model_changes(model: Path, tiny_preset: Preset, tmp_path: Path, cluster: Machines) -> None:
    """Every answer is that of the old or of the new model, and the last ones are those of the new."""
    pytest.importorskip("ray.serve", reason="needs Ray Serve: pip install 'lfdm[scale]'")
    other = tmp_path / "other"
    changed = LatentFlowPipeline.from_preset(tiny_preset, ("jump", "wave"))
    for weights in changed.unet.parameters():
        torch.nn.init.normal_(weights, std=0.1)
    changed.save_pretrained(other)
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    options: dict[str, Any] = {"num_inference_steps": 1, "output_type": "uint8"}
    pipes = [LatentFlowPipeline.from_pretrained(folder) for folder in (model, other)]
    expected = [np.asarray(pipe(image, "wave", generator=3, **options).frames).astype(int) for pipe in pipes]
    assert np.abs(expected[0] - expected[1]).max() > 2
    settings = ReplicaSettings(max_replicas=2, batch_size=4)
    ended, answers, errors = threading.Event(), [], []
    with connected(cluster[0]) as ray:
        generator = deploy(ray, str(model), settings)

        def ask() -> None:
            while not ended.is_set():
                try:
                    frames = np.asarray(generator(image, "wave", generator=3, **options).frames).astype(int)
                    answers.append(int(np.argmin([np.abs(frames - one).max() for one in expected])))
                except Exception as error:
                    errors.append(error)

        clients = [threading.Thread(target=ask) for _ in range(3)]
        for client in clients:
            client.start()
        while len(answers) < 10 and not errors:
            time.sleep(0.05)
        deploy(ray, str(other), settings)
        after = len(answers)
        while len(answers) < after + 20 and not errors:
            time.sleep(0.05)
        ended.set()
        for client in clients:
            client.join()
        assert errors == []
        assert set(answers[:10]) == {0}
        assert set(answers[-10:]) == {1}
        with pytest.raises(UserError, match="dance"):
            generator(image, "dance", **options)
        with pytest.raises(UserError, match="must have the labels"):
            deploy(ray, "puppets64", settings)
        remove_replicas()
        assert find_replicas(ray) is None
        generator.close()
    time.sleep(1)  # a thread of Ray Serve that goes on would connect again
    assert not ray.is_initialized()


def test_a_replica_that_is_killed_in_mid_request_loses_none(
    model: Path, cluster: Machines, caplog: pytest.LogCaptureFixture
) -> None:
    """The only replica has all requests when it dies: all are made by the next one."""
    pytest.importorskip("ray.serve", reason="needs Ray Serve: pip install 'lfdm[scale]'")
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    options: dict[str, Any] = {"num_inference_steps": 1, "output_type": "uint8"}
    answers: list[np.ndarray] = []
    with connected(cluster[0]) as ray, ThreadPoolExecutor(3) as clients:
        generator = deploy(ray, str(model), ReplicaSettings(max_replicas=1, batch_size=2))
        requests = [clients.submit(generator, image, "wave", generator=3, **options) for _ in range(30)]
        for count, request in enumerate(requests):
            answers.append(np.asarray(request.result().frames).astype(int))
            if count == 5:
                kill_a_process(b"ServeReplica:lfdm")
        remove_replicas()
        generator.close()
    assert len(answers) == 30
    assert max(np.abs(answer - answers[0]).max() for answer in answers) <= 2  # batches round differently
    assert "a replica died" in caplog.text


def test_a_killed_worker_and_a_lost_machine_lose_no_request(model: Path, pictures: Path, cluster: Machines) -> None:
    address, remove_machine = cluster
    rows = rows_of(NUM_REQUESTS)
    run_batch(rows, settings_of(model, pictures, "here"), run_here("cpu"))
    made: list[int] = []

    def disturbed(settings: BatchSettings, batches: Sequence[Batch]) -> Iterator[Sequence[Result]]:
        for results in run_on_ray(address)(settings, batches):
            made.append(len(results))
            if len(made) == 10:
                kill_a_process(b"_Worker")
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
