"""Replicas of a model on a Ray cluster, behind Ray Serve: requests are batched, and the model can be changed while they run."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lfdm.distributed.ray_cluster import deaths
from lfdm.distributed.replica_settings import ReplicaSettings
from lfdm.errors import MissingExtraError, UserError
from lfdm.pipeline.pipeline import LatentFlowPipeline
from lfdm.pipeline.result import LatentFlowOutput

logger = logging.getLogger(__name__)

APP = "lfdm"
"""Name of the application in Ray Serve."""
WAIT_SECONDS = 0.05
"""Time that the first request of a batch waits for others."""
DRAIN_SECONDS = 600.0
"""Time that a replica that is replaced has for its last requests."""
REPLICA_TRIES = 3
"""Replicas that may die over a request."""
_DESCRIBED = ("labels", "image_size", "num_frames", "fps", "fit")


class ReplicatedGenerator:
    """Makes one video like a call of `LatentFlowPipeline`, on one of the replicas; safe in several threads."""

    def __init__(self, ray: Any, handle: Any) -> None:
        self._ray, self._handle = ray, handle
        self._generate = handle.generate  # connects here: threads that did so at once would each leave a router behind

    def __call__(
        self,
        image: np.ndarray,
        condition: Any = None,
        *,
        generator: int = 0,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_decode: Callable[[int], Any] | None = None,
        **options: Any,
    ) -> LatentFlowOutput:
        """Return the video of `image` (H, W, 3) uint8; callbacks are not called, since it is made elsewhere.

        Raises:
            UserError: what the pipeline does not allow.
            RuntimeError: any other error of a replica.
        """
        del callback_on_step_end, callback_on_decode
        error, output = self._call_replica((image, condition, generator, options))
        if error is not None:
            raise error
        return output

    def _call_replica(self, request: tuple[Any, ...]) -> Any:
        """Return the answer of a replica; a replica that dies is replaced by another one."""
        for _ in range(1, REPLICA_TRIES):
            try:
                return self._generate.remote(request).result()
            except deaths(self._ray):
                logger.warning("a replica died; its request is sent to another one")
        return self._generate.remote(request).result()

    def describe(self) -> dict[str, Any]:
        """Return what the clients of a model rely on: labels, size, length, rate and fit."""
        return self._handle.describe.remote().result()

    def close(self) -> None:
        """End Ray Serve's threads of this process, which would go on calling the cluster after the connection has ended."""
        self._handle.shutdown()


def deploy(ray: Any, model: str, settings: ReplicaSettings) -> ReplicatedGenerator:
    """Start replicas of `model`, or let replicas of another model be replaced by them, one after the other.

    Requests that run are finished by the old replicas; no request is lost. Returns when the new ones answer.

    Raises:
        UserError: replicas of a model with other labels, sizes or lengths are running, whose clients would break.
        MissingExtraError: Ray is installed without Ray Serve.
    """
    serve = import_serve()
    gpu = ray.cluster_resources().get("GPU", 0) > 0
    running = find_replicas(ray)
    if running is not None:
        _check_alike(running.describe(), describe_model(LatentFlowPipeline.from_pretrained(model)))
    deployment = serve.deployment(
        name="videos",
        ray_actor_options={"num_gpus": 1} if gpu else {"num_cpus": settings.cpus_per_worker},
        max_ongoing_requests=2 * settings.batch_size,
        autoscaling_config={
            "min_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": settings.batch_size,
        },
        graceful_shutdown_timeout_s=DRAIN_SECONDS,
        health_check_period_s=10,
    )(_replica_class(serve, settings.batch_size))
    serve.start(proxy_location="Disabled")  # pages call the replicas themselves
    device, threads = ("cuda", 1) if gpu else ("cpu", settings.cpus_per_worker)
    handle = serve.run(deployment.bind(model, device, threads), name=APP, route_prefix=None)
    return ReplicatedGenerator(ray, handle)


def find_replicas(ray: Any) -> ReplicatedGenerator | None:
    """Return the running replicas, None if there are none."""
    serve = import_serve()
    applications = serve.status().applications
    return ReplicatedGenerator(ray, serve.get_app_handle(APP)) if APP in applications else None


def remove_replicas() -> None:
    """End all replicas."""
    import_serve().delete(APP)


def import_serve() -> Any:
    """Return the module `ray.serve`; MissingExtraError if it cannot be imported."""
    try:
        from ray import serve
    except ImportError as error:
        raise MissingExtraError("--ray needs Ray Serve: pip install 'lfdm[scale]'") from error
    return serve


def describe_model(pipe: LatentFlowPipeline) -> dict[str, Any]:
    """Return what the clients of a model rely on."""
    config = {name: pipe.config[name] for name in ("num_frames", "fps", "fit")}
    return {"labels": list(pipe.condition.labels), "image_size": list(pipe.size), **config}


def _check_alike(old: dict[str, Any], new: dict[str, Any]) -> None:
    for name in _DESCRIBED:
        if old[name] != new[name]:
            raise UserError(f"model must have the {name} of the model that is served, {old[name]}; got {new[name]}")


def make_videos(pipe: Any, requests: Sequence[tuple[Any, ...]]) -> list[tuple[UserError | RuntimeError | None, Any]]:
    """Make a video for each request (image, condition, seed, options), those of equal options and picture shapes together.

    Returns an error or an output for each.
    """
    groups: dict[str, list[int]] = {}
    for place, (image, condition, _, options) in enumerate(requests):
        shared = {name: value for name, value in options.items() if not isinstance(value, np.ndarray)}
        single = place if len(shared) < len(options) or options.get("output_size") == "native" else -1
        groups.setdefault(repr((image.shape, condition is None, sorted(shared.items()), single)), []).append(place)
    results: list[tuple[UserError | RuntimeError | None, Any]] = [(None, None)] * len(requests)
    for places in groups.values():
        images, conditions, seeds, _ = zip(*(requests[place] for place in places), strict=True)
        labels: Any = None if conditions[0] is None else list(conditions)
        try:
            output = pipe(list(images), labels, generator=list(seeds), **requests[places[0]][3])
            for row, place in enumerate(places):
                results[place] = None, _sample(output, row)
        except UserError as error:
            if len(places) == 1:
                results[places[0]] = error, None
            else:  # one request is not allowed; the others are
                for place, result in zip(places, (make_videos(pipe, [requests[place]])[0] for place in places), strict=True):
                    results[place] = result
        except Exception as error:
            logger.error("an error in lfdm", exc_info=error)
            for place in places:
                results[place] = RuntimeError(f"{type(error).__name__}: {error}"), None
    return results


def _sample(output: LatentFlowOutput, row: int) -> LatentFlowOutput:
    part = slice(row, row + 1)
    frames, warped = np.asarray(output.frames)[part], np.asarray(output.warped)[part]
    return replace(output, frames=frames, warped=warped, motion=output.motion.samples(row, row + 1))


def _replica_class(serve: Any, batch_size: int) -> type:
    """Return the class of a replica; Ray Serve's decorators are not available where it is not installed."""

    class Replica:
        """Holds a model."""

        def __init__(self, model: str, device: str, threads: int) -> None:
            import torch

            torch.set_num_threads(threads)
            self.pipe = LatentFlowPipeline.from_pretrained(model, device=device)
            self.pipe.set_progress_bar_config(disable=True)

        @serve.batch(max_batch_size=batch_size, batch_wait_timeout_s=WAIT_SECONDS)
        async def generate(self, requests: list[tuple[Any, ...]]) -> list[Any]:
            """Make videos in a thread, so that health checks are answered meanwhile."""
            return await asyncio.to_thread(make_videos, self.pipe, requests)

        def describe(self) -> dict[str, Any]:
            """Return what clients rely on."""
            return describe_model(self.pipe)

        def check_health(self) -> None:
            """Raise where the device does not work any more, which lets Ray Serve replace the replica."""
            import torch

            torch.ones(1, device=self.pipe.device).add_(1).item()

    return Replica
