"""`lfdm serve`."""

from typing import Annotated

from tyro.conf import arg

from lfdm.cli.options import DEFAULT_MODEL, open_pipeline
from lfdm.errors import MissingExtraError
from lfdm.web.limits import ServeLimits


def serve(
    *,
    model: str = DEFAULT_MODEL,
    host: str = "127.0.0.1",
    port: int = 7860,
    device: str | None = None,
    limits: Annotated[ServeLimits, arg(name="")] = ServeLimits(),  # noqa: B008 - frozen
) -> None:
    """Serve a model as a web page and as an API for gradio_client.

    Args:
        model: Bundled name, pipeline folder, diffusion run folder or Hub repository.
        host: Address to listen at; 0.0.0.0 accepts everyone who can reach this machine.
        port: Port to listen at.
        device: cpu, cuda, cuda:1, ...; by default the GPU if there is one.
    """
    from lfdm.config.checks import check_integer

    check_integer("port", port, 1, 65535)
    try:
        from lfdm.web import server
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in ("gradio", "fastapi", "uvicorn", "starlette"):
            raise
        raise MissingExtraError("lfdm serve needs gradio: pip install 'lfdm[web]'") from error
    with server.listen(host, port) as socket:
        pipe = open_pipeline(model, device)
        print(f"serving {model} at http://{host}:{port}", flush=True)
        server.serve(model, pipe, limits, socket)
