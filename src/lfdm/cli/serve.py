"""`lfdm serve`."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from lfdm.cli.options import DEFAULT_MODEL, open_pipeline
from lfdm.distributed.replica_settings import ReplicaSettings
from lfdm.errors import MissingExtraError, UserError
from lfdm.web.limits import MAX_JOBS, ServeLimits

if TYPE_CHECKING:
    from lfdm.distributed.serving import ReplicatedGenerator


def serve(
    *,
    model: str = DEFAULT_MODEL,
    host: str = "127.0.0.1",
    port: int = 7860,
    device: str | None = None,
    ray: str | None = None,
    update: bool = False,
    replicas: Annotated[ReplicaSettings, arg(name="")] = ReplicaSettings(),  # noqa: B008 - frozen
    limits: Annotated[ServeLimits, arg(name="")] = ServeLimits(),  # noqa: B008 - frozen
) -> None:
    """Serve a model as a web page and as an API for gradio_client.

    Args:
        model: Bundled name, pipeline folder, diffusion run folder or Hub repository.
        host: Address to listen at; 0.0.0.0 accepts everyone who can reach this machine.
        port: Port to listen at.
        device: cpu, cuda, cuda:1, ...; by default the GPU if there is one.
        ray: Make the videos on replicas of the model in a Ray cluster: auto (the one that runs on this machine) or HOST:PORT.
        update: Only change the model of the replicas, under running pages and without losing a request.
    """
    from lfdm.config.checks import check, check_integer

    check_integer("port", port, 1, 65535)
    try:
        from lfdm.web import server
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in ("gradio", "fastapi", "uvicorn", "starlette"):
            raise
        raise MissingExtraError("lfdm serve needs gradio: pip install 'lfdm[web]'") from error
    check(ray is not None or not update, "update", update, "left out without --ray")
    check(ray is not None or replicas == ReplicaSettings(), "replicas", replicas, "left out without --ray")
    if update:
        with _replicas(str(ray), model, replicas, keep=True):
            print(f"the replicas at {ray} hold {model} now")
        return
    with server.listen(host, port) as socket, ExitStack() as stack:
        pipe = open_pipeline(model, device)
        generator = None
        if ray is not None:
            generator = stack.enter_context(_replicas(ray, model, replicas))
            limits = replace(limits, num_jobs=max(limits.num_jobs, min(MAX_JOBS, replicas.max_replicas * replicas.batch_size)))
        print(f"serving {model} at http://{host}:{port}", flush=True)
        server.serve(model, pipe, limits, socket, generator)


@contextmanager
def _replicas(address: str, model: str, settings: ReplicaSettings, *, keep: bool = False) -> Iterator["ReplicatedGenerator"]:
    """Yield a generator of videos on replicas of a model; they end with the block unless `keep`."""
    from lfdm.distributed.ray_cluster import connected
    from lfdm.distributed.serving import deploy, find_replicas, remove_replicas

    with connected(address) as ray:
        if keep and find_replicas(ray) is None:
            raise UserError(f"update needs replicas that are running; start them with `lfdm serve --ray {address}`")
        generator = deploy(ray, model, settings)
        try:
            yield generator
        finally:
            if not keep:
                remove_replicas()
            generator.close()
