"""A new project: its Makefile prepares, trains, generates and evaluates."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lfdm.cli.new import SETTINGS
from lfdm.data.puppets.data_set import render_clip
from lfdm.data.video import read_video, write_video
from tests.command_line import Lfdm

SHORT = {
    "stage1.yaml": {"autoencoder_training": {"optimization": {"num_steps": 2, "batch_size": 2, "warmup_steps": 0}}},
    "stage2.yaml": {"diffusion_training": {"optimization": {"num_steps": 2, "batch_size": 2, "warmup_steps": 0}}},
    "generate.yaml": {"num_frames": 3, "num_inference_steps": 1},
    "evaluate.yaml": {
        "num_clips": 1,
        "num_diversity_clips": 0,
        "num_inference_steps": 1,
        "classifier": {"num_steps": 1, "batch_size": 2},
        "frame_network": {"num_steps": 1, "batch_size": 2},
    },
}


def test_a_project_is_made_once(lfdm: Lfdm) -> None:
    assert lfdm("new", "mine") == (0, "mine\n", "")
    assert {path.name for path in Path("mine").iterdir()} >= {"Makefile", "README.md", "clips", "pictures", *SETTINGS}
    code, _, err = lfdm("new", "mine")
    assert (code, err.count("\n")) == (2, 1)
    code, _, err = lfdm("new", "other", "--preset", "flow65")
    assert code == 2
    assert "flow65" in err
    assert not Path("other").exists()


def test_every_file_of_settings_holds_options_of_its_command(lfdm: Lfdm) -> None:
    lfdm("new", "mine")
    commands = {
        "prepare.yaml": ["data", "folder", "nothing", "--out", "data"],
        "stage1.yaml": ["train", "autoencoder", "flow64", "--data", "nothing", "--out", "one"],
        "stage2.yaml": ["train", "diffusion", "flow64", "--data", "nothing", "--autoencoder", "one", "--out", "two"],
        "generate.yaml": ["generate", "nothing.png", "wave"],
        "evaluate.yaml": ["evaluate", "--data", "nothing", "--out", "results"],
    }
    assert commands.keys() == SETTINGS.keys()
    for file, command in commands.items():
        code, _, err = lfdm(*command, "--config", f"mine/{file}")
        assert code == 2
        assert "nothing" in err, err


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_the_targets_of_a_project_work(lfdm: Lfdm) -> None:
    lfdm("new", "mine")
    project = Path("mine")
    for i, person in enumerate(("anna", "ben")):
        for label in ("wave", "jump"):
            folder = project / "clips" / label / person
            folder.mkdir(parents=True)
            write_video(folder / "IMG 1.mp4", render_clip(i, label, 0, num_frames=18, truth=False).frames, fps=8)
    picture = Path(__file__).parents[2] / "src" / "lfdm" / "assets" / "puppets64" / "images" / "puppet-1.png"
    shutil.copy(picture, project / "pictures" / "my self.png")
    for file, settings in SHORT.items():
        (project / file).write_text(yaml.safe_dump(settings))
    (project / "prepare.yaml").write_text("test_fraction: 0.5\n")

    def make(*words: str) -> subprocess.CompletedProcess[str]:
        command = ["make", f"LFDM={sys.executable} -m lfdm", *words]
        return subprocess.run(command, cwd=project, env={**os.environ}, capture_output=True, text=True, check=False)

    for words in (["prepare"], ["train"], ["generate", "LABEL=wave"], ["evaluate"]):
        done = make(*words)
        assert done.returncode == 0, f"{words}: {done.stderr[-2000:]}"
    assert read_video(project / "videos" / "wave-my self.mp4").shape[0] == 3
    assert (project / "runs" / "evaluation" / "report.html").is_file()
    assert make("generate").returncode == 2
