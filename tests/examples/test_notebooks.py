"""Execute the notebooks of examples/, each in a folder of its own."""

import os
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext", reason="needs jupytext: pip install 'lfdm[dev]'")
nbclient = pytest.importorskip("nbclient", reason="needs nbclient: pip install 'lfdm[dev]'")

NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_results(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(path.parents[1] / "src"), os.environ.get("PYTHONPATH", "")]))
    notebook = jupytext.read(path)
    nbclient.NotebookClient(
        notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", []) if output.output_type == "execute_result"]
    kinds = {kind for output in shown for kind in output.data}
    assert kinds & {"text/html", "image/png", "image/gif"}, kinds
    streams = "".join(out.text for cell in notebook.cells for out in cell.get("outputs", []) if out.output_type == "stream")
    bars = {"own_clips": ("training: 100%", "loss "), "report": ("100%",)}.get(path.stem, ())
    assert [text for text in bars if text not in streams] == []  # without ipywidgets, tqdm draws bars as text
