"""The measurement of exported models with fewer bits."""

from benchmarks.export_types import DOCUMENT, RESULTS, render
from lfdm.folders.model_folder import read_json


def test_the_document_shows_the_stored_results() -> None:
    assert render(read_json(RESULTS)) in DOCUMENT.read_text()
