"""Model cards say what is known of a model, and nothing that was measured on other weights."""

import json
from pathlib import Path

import pytest
import torch

from lfdm.config.presets import Preset
from lfdm.errors import UserError
from lfdm.folders.sources import find_folder
from lfdm.pipeline.card import describe, read_about
from lfdm.pipeline.pipeline import LatentFlowPipeline
from lfdm.pipeline.quality import figures, is_of_weights, read_quality


@pytest.fixture
def pipe(tiny_preset: Preset) -> LatentFlowPipeline:
    pipe = LatentFlowPipeline.from_preset(tiny_preset, ["wave", "jump"])
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_card_states_labels_licence_and_use(pipe: LatentFlowPipeline, tmp_path: Path) -> None:
    pipe.about |= {"data": "my clips", "license": "cc-by-4.0"}
    pipe.save_pretrained(tmp_path / "mine")
    card = (tmp_path / "mine" / "README.md").read_text()
    header, _, text = card.removeprefix("---\n").partition("---\n")
    assert 'license: "cc-by-4.0"' in header.splitlines()
    assert "| labels | wave, jump |" in text
    assert "| data set | my clips |" in text
    assert "has not been measured" in text
    assert 'from_pretrained("mine")' in text
    again = LatentFlowPipeline.from_pretrained(tmp_path / "mine")
    assert again.about == pipe.about
    assert describe(again, {}) == describe(pipe, {})


def test_the_code_of_a_card_runs(pipe: LatentFlowPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pipe.save_pretrained("mine")
    code = Path("mine/README.md").read_text().partition("```python\n")[2].partition("```")[0]
    picture = pipe(torch.rand(3, 32, 32), "wave", num_frames=2, num_inference_steps=1).frames[0][0]
    picture.save("picture.png")  # pyright: ignore[reportAttributeAccessIssue] - an image
    exec(code, {})
    assert Path("video.gif").is_file()


def test_an_example_is_part_of_the_card(pipe: LatentFlowPipeline, tmp_path: Path) -> None:
    pipe.example = pipe(torch.rand(3, 32, 32), "wave", num_frames=2, num_inference_steps=1)
    pipe.save_pretrained(tmp_path / "mine")
    assert (tmp_path / "mine" / "example.gif").read_bytes().startswith(b"GIF89a")
    assert "](example.gif)" in (tmp_path / "mine" / "README.md").read_text()


def test_a_card_written_by_hand_is_kept(pipe: LatentFlowPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "mine")
    (tmp_path / "mine" / "README.md").write_text("My model.")
    pipe.save_pretrained(tmp_path / "mine")
    assert (tmp_path / "mine" / "README.md").read_text() == "My model."


def test_measured_quality_belongs_to_the_weights(tmp_path: Path) -> None:
    bundled = find_folder("puppets64")
    quality = read_quality(bundled)
    assert is_of_weights(quality, bundled)
    assert [figure.name for figure in figures(quality)][:2] == ["Action accuracy", "Reconstruction"]
    pipe = LatentFlowPipeline.from_pretrained("puppets64")
    pipe.save_pretrained(tmp_path / "same", half=True)
    assert json.loads((tmp_path / "same" / "evaluation.json").read_text()) == quality
    card = (tmp_path / "same" / "README.md").read_text()
    assert "| measured on | puppets, test clips, seed 0 |" in card
    assert "N = 256" in card
    with torch.no_grad():
        next(pipe.unet.parameters()).mul_(2)
    pipe.save_pretrained(tmp_path / "changed", half=True)
    assert not (tmp_path / "changed" / "evaluation.json").exists()
    assert "has not been measured" in (tmp_path / "changed" / "README.md").read_text()


def test_a_run_names_its_data(tmp_path: Path) -> None:
    (tmp_path / "run" / "model").mkdir(parents=True)
    settings = {"data": "/home/me/data/mine", "init": None, "preset": {"name": "flow64"}}
    (tmp_path / "run" / "config.json").write_text(json.dumps(settings))
    assert read_about(tmp_path / "run" / "model") == {"data": "mine", "preset": "flow64"}
    (tmp_path / "run" / "model" / "about.json").write_text('{"license": 1}')
    with pytest.raises(UserError, match="license must be a text"):
        read_about(tmp_path / "run" / "model")
