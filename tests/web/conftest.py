"""A real server of the bundled model, in a process of its own."""

from collections.abc import Iterator

import pytest

pytest.importorskip("gradio", reason="needs gradio: pip install 'lfdm[web]'")

from benchmarks.serving.server import Server, running_server

KEEP_SECONDS = 15
LIMITS = "--queue-size 4 --upload-megabytes 2 --image-megapixels 2 --clip-megapixels 10 --clip-frames 40 --clip-seconds 10"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`lfdm serve` with small limits, so that tests reach them. Afterwards its log must be clean and its folder gone."""
    folder = tmp_path_factory.mktemp("served")
    with running_server(folder, [*LIMITS.split(), "--keep-seconds", str(KEEP_SECONDS)]) as running:
        yield running
    assert "Traceback" not in running.log.read_text()
    assert not running.storage.exists()
