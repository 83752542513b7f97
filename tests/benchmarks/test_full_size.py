"""The document of full-size frames."""

from benchmarks.full_size import DOCUMENT, render_document


def test_the_document_is_what_the_stored_results_render_to() -> None:
    assert DOCUMENT.read_text() == render_document()
