"""The document of full-size frames."""

from benchmarks.full_size import DOCUMENT, RESULTS, render
from lfdm.folders.model_folder import read_json


def test_the_document_is_what_the_stored_results_render_to() -> None:
    assert DOCUMENT.read_text() == render(read_json(RESULTS))
