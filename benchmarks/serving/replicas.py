"""`lfdm serve --ray` next to `lfdm serve`: waiting times and videos a minute, and requests during a change of the model.

    python -m benchmarks.serving.replicas                    # renders docs/scaling.md, too
    python -m benchmarks.serving.replicas --parts            # only that

It starts a Ray cluster of one machine of its own. Other work of the machine slows all figures down but the processor time.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import torch

from benchmarks.experiment.tables import RESULTS_DIR, ROOT, number, table, write_results
from benchmarks.serving.load import REQUEST, load
from benchmarks.serving.server import GENERATE, Server, call, running_server
from benchmarks.speed.measuring import device_name
from lfdm.data.video import read_video
from lfdm.distributed.ray_cluster import import_ray
from lfdm.folders.files import write_bytes
from lfdm.folders.model_folder import read_json
from lfdm.folders.sources import bundled_images
from lfdm.pipeline.pipeline import LatentFlowPipeline

START, END = "<!-- replicas: rendered by python -m benchmarks.serving.replicas -->", "<!-- end of replicas -->"
MODEL = "puppets64"
CORES = 2
"""Cores that the cluster has by its own account, and most replicas."""
OPTIONS = ["--min-replicas", "1", "--max-replicas", str(CORES), "--batch-size", "4"]
VIDEO = {**REQUEST, "num_inference_steps": 4, "guidance_scale": 2.0}
"""The bundled model's own settings: 16 frames, 4 steps."""
SHORT = {**GENERATE, "num_inference_steps": 1, "seed": 3}
"""The video of every request during a change: 4 frames, one step."""


@contextmanager
def own_cluster() -> Iterator[str]:
    """Run a Ray cluster of one machine for the block, and give its address."""
    import_ray()
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_memory_monitor_refresh_ms": "0", "RAY_worker_niceness": "0"}
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": CORES, "include_dashboard": False})
    try:
        yield str(cluster.address)
    finally:
        cluster.shutdown()


def core_seconds() -> float:
    """Return the processor time of the server and all processes of the cluster, which are children of this one."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Return median, 95th percentile and maximum."""
    cuts = statistics.quantiles(seconds, n=20, method="inclusive")
    return {"p50": round(cuts[9], 2), "p95": round(cuts[18], 2), "longest": round(max(seconds), 2)}


def measure_load(server: Server, users: int, seconds: float) -> dict[str, Any]:
    """Put a server under load from `users`, who each wait for their video before they ask for the next one."""
    with httpx.Client(base_url=server.url, timeout=300) as client:
        for _ in range(2):
            call(client, "generate", VIDEO)  # what is loaded on first use
    began, used = time.monotonic(), core_seconds()
    record = load(server, users, seconds, VIDEO)
    used, took, videos = core_seconds() - used, time.monotonic() - began, len(record.seconds)
    figures = {
        "videos": videos,
        "seconds": round(took, 1),
        "errors": record.errors,
        "videos_a_minute": round(60 * videos / took, 1),
    }
    return {**figures, "latency_seconds": percentiles(record.seconds), "core_seconds_per_video": round(used / videos, 2)}


def change_model(folder: Path) -> tuple[Path, list[np.ndarray]]:
    """Write a model of other weights, and return its folder and the frames of `SHORT` by both models."""
    pipe = LatentFlowPipeline.from_pretrained(MODEL)
    frames = []
    for changed in (False, True):
        if changed:
            torch.manual_seed(0)
            for weights in pipe.unet.parameters():
                torch.nn.init.normal_(weights, std=0.1)
            pipe.save_pretrained(folder / "changed")
        frames.append(_frames(pipe))
    return folder / "changed", frames


def _frames(pipe: LatentFlowPipeline) -> np.ndarray:
    options: dict[str, Any] = {"num_inference_steps": 1, "guidance_scale": 1.0, "num_frames": SHORT["num_frames"]}
    made = pipe(bundled_images(MODEL)[0], SHORT["label"], generator=SHORT["seed"], output_type="uint8", **options)
    return np.asarray(made.frames)[0].astype(int)


class Clients:
    """Users who ask for `num_requests` videos in all, and what they got: the old model's (0), the new one's (1), an error."""

    def __init__(self, server: Server, num_requests: int, users: int, expected: list[np.ndarray]) -> None:
        self.server, self.num_requests, self.expected = server, num_requests, expected
        self.answers: list[int] = []
        self.seconds: list[float] = []
        self.errors: list[str] = []
        self._begun, self._lock = 0, threading.Lock()
        self.threads = [threading.Thread(target=self._call_replica) for _ in range(users)]

    def _call_replica(self) -> None:
        with httpx.Client(base_url=self.server.url, timeout=300) as client:
            while self._next():
                started = time.monotonic()
                try:
                    answer = call(client, "generate", SHORT)
                    frames = read_video(answer.data["videos"][0]["file"]["path"]).astype(int)
                    step = frames.shape[1] // self.expected[0].shape[1]  # the page enlarges videos
                    frames = frames[:, step // 2 :: step, step // 2 :: step]
                    self.answers.append(int(np.argmin([np.abs(frames - one).mean() for one in self.expected])))
                    self.seconds.append(time.monotonic() - started)
                except Exception as error:
                    self.errors.append(repr(error))

    def _next(self) -> bool:
        with self._lock:
            self._begun += 1
            return self._begun <= self.num_requests


def measure_change(server: Server, address: str, folder: Path, num_requests: int, users: int) -> dict[str, Any]:
    """Send `num_requests` and change the model after a fifth of them, by `lfdm serve --update`."""
    changed, expected = change_model(folder)
    clients = Clients(server, num_requests, users, expected)
    for thread in clients.threads:
        thread.start()
    while len(clients.answers) + len(clients.errors) < num_requests / 5:
        time.sleep(0.05)
    before, started = len(clients.answers), time.monotonic()
    update = [sys.executable, "-m", "lfdm", "serve", "--ray", address, "--update", "--model", str(changed), *OPTIONS]
    subprocess.run(update, check=True, capture_output=True)
    took, during = time.monotonic() - started, len(clients.answers) - before
    for thread in clients.threads:
        thread.join()
    answers = {
        "old_model": clients.answers.count(0),
        "new_model": clients.answers.count(1),
        "last_20_new": clients.answers[-20:] == [1] * 20,
    }
    return {
        "requests": num_requests,
        "errors": clients.errors,
        **answers,
        "change_seconds": round(took, 1),
        "answered_during_change": during,
        "latency_seconds": percentiles(clients.seconds) if clients.seconds else None,
    }


@contextmanager
def replicas(folder: Path) -> Iterator[tuple[Server, str]]:
    """Serve from replicas of a cluster for the block, and give the server and the cluster's address."""
    with own_cluster() as address, running_server(folder, ["--model", MODEL, "--ray", address, *OPTIONS]) as server:
        yield server, address


def measure_loads(root: Path, users: int, seconds: float, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Measure both ways to serve in turns; the cluster runs only in its own ones."""
    rows: dict[str, list[dict[str, Any]]] = {"one process": [], "replicas": []}
    for turn in range(rounds):
        for kind, found in rows.items():
            folder = root / f"{kind.split()[0]}-{turn}"
            folder.mkdir()
            if kind == "replicas":
                with replicas(folder) as (server, _):
                    found.append(measure_load(server, users, seconds))
            else:
                with running_server(folder, ["--model", MODEL]) as server:
                    found.append(measure_load(server, users, seconds))
            print(kind, found[-1], flush=True)
    return rows


def render(results: dict[str, Any]) -> str:
    """Return the tables of docs/scaling.md."""
    header = ["", "videos a minute", "waiting time, median", "95th percentile"]
    rows = []
    for kind, found in results["load"].items():
        best = max(found, key=lambda one: one["videos_a_minute"])  # other jobs slow the others down
        waits = [f"{number(best['latency_seconds'][name])} s" for name in ("p50", "p95")]
        rows.append([kind, number(best["videos_a_minute"], 1), *waits])
    change, users, turns = results["change"], results["users"], len(results["load"]["replicas"])
    where = f"{results['cpu']}, {results['cores']} core for servers and users, {users} users"
    text = f"{where}, `{MODEL}`, 16 frames, 4 steps; the best of {turns} turns:\n\n"
    waits = [number(change["latency_seconds"][name]) for name in ("p50", "p95", "longest")]
    return (
        f"{text}{table(header, rows)}\n"
        f"During a change of the model (`--update`, {change['change_seconds']:.0f} s while other jobs shared the core), "
        f"{change['requests']} requests of {users} users for short videos: {len(change['errors'])} errors, "
        f"{change['old_model']} answers of the old model and {change['new_model']} of the new one; waiting time {waits[0]} s "
        f"(median), {waits[1]} s (95th percentile), at most {waits[2]} s.\n"
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--out", type=Path, default=RESULTS_DIR / "serve-replicas.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "scaling.md")
    parser.add_argument("--parts", nargs="*", default=["load", "change"], help="what is measured anew; nothing: only render")
    arguments = parser.parse_args()
    results = read_json(arguments.out) if arguments.out.exists() else {}
    with tempfile.TemporaryDirectory(prefix="lfdm-replicas-") as name:
        machine = {"cpu": device_name(torch.device("cpu")), "cores": len(os.sched_getaffinity(0)), "options": OPTIONS}
        results |= {**machine, "users": arguments.users} if arguments.parts else {}
        if "load" in arguments.parts:
            results["load"] = measure_loads(Path(name), arguments.users, arguments.seconds, arguments.rounds)
        if "change" in arguments.parts:
            with replicas(Path(name)) as (server, address):
                results["change"] = measure_change(server, address, Path(name), arguments.requests, arguments.users)
    write_results(results, arguments.out)
    page = arguments.page.read_text()
    before, after = page.partition(START)[0], page.partition(END)[2]
    write_bytes(arguments.page, f"{before}{START}\n{render(read_json(arguments.out))}{END}{after}".encode())


if __name__ == "__main__":
    main()
