"""Run docs/paper.md command by command, on a miniature copy of MUG and tiny published checkpoints."""

import importlib
import json
import re
import runpy
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import lfdm.cli
from lfdm.cli.console import run
from lfdm.config.presets import PRESETS
from lfdm.config.training import OptimizationConfig, with_num_steps
from lfdm.data.index import read_index
from lfdm.data.video import read_video

ROOT = Path(__file__).parent.parent
TINY: dict[str, Any] = runpy.run_path(str(ROOT / "tests" / "golden" / "released" / "make.py"))
TAKES = [(subject, label) for subject in ("008", "017", "001", "006") for label in ("happiness", "anger")]


def commands(text: str) -> list[str]:
    """Return the `lfdm` commands of the first bash block in `text`."""
    found = re.search(r"```bash\n(.*?)```", text, re.DOTALL)
    assert found
    return [line for line in found[1].splitlines() if line.startswith("lfdm ")]


def paper_commands() -> list[str]:
    """Return the commands of docs/paper.md."""
    return commands((ROOT / "docs" / "paper.md").read_text())


@pytest.fixture
def tiny_mug128(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Replace `mug128` on the command line by the tiny configuration of the golden checkpoints, with three sampling steps."""

    def short(optimization: OptimizationConfig) -> OptimizationConfig:
        return replace(with_num_steps(optimization, 2), batch_size=2, num_workers=0, log_steps=1)

    tiny = TINY["PRESETS"]["mug"]
    stage1, stage2 = tiny.autoencoder_training, tiny.diffusion_training
    tiny = replace(
        tiny,
        name="mug128",
        autoencoder_training=replace(stage1, optimization=short(stage1.optimization), perceptual_scales=2),
        diffusion_training=replace(stage2, optimization=short(stage2.optimization)),
        diffusion=replace(tiny.diffusion, num_inference_steps=3, text_encoder=str(tiny_bert)),
    )
    monkeypatch.setitem(PRESETS, "mug128", tiny)
    importlib.reload(lfdm.cli)
    yield
    monkeypatch.undo()
    importlib.reload(lfdm.cli)


@pytest.fixture
def user_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vgg19: Callable[[Path, tuple[int, ...]], Path]) -> None:
    """Write the files that the commands read, and make their folder the working directory."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for number, (subject, label) in enumerate(TAKES):
        for root in (Path("MUG_DIR"), Path("faces")):
            folder = root / (f"{subject}/{label}/take000" if root.name == "MUG_DIR" else f"{label}/{subject}/take000")
            folder.mkdir(parents=True)
            for frame in range(5):
                coarse = np.roll(np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8), frame, axis=1)
                Image.fromarray(coarse.repeat(8, axis=0).repeat(8, axis=1)).save(folder / f"{frame:04}.png")
    Image.fromarray(rng.integers(0, 256, (80, 64, 3), dtype=np.uint8)).save("face.png")
    TINY["write_checkpoints"](TINY["networks"]("mug"), tmp_path)
    vgg19(tmp_path / "vgg19-dcbb9e9d.pth", (4, 4, 4, 4, 4))
    assert run(lfdm.cli.COMMANDS, ["data", "folder", "faces", "--out", "data/faces", "--size", "64"], "") == 0


def test_readme_shows_commands_of_the_paper_page() -> None:
    section = (ROOT / "README.md").read_text().partition("## Reproduce the paper")[2]
    shown = commands(section)
    assert len(shown) >= 5
    assert set(shown) <= set(paper_commands())


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_mug128", "user_files")
def test_every_command_of_the_paper_page_works(capsys: pytest.CaptureFixture[str]) -> None:
    lines = paper_commands()
    assert {shlex.split(line)[1] for line in lines} == {"data", "import", "generate", "evaluate", "train", "adapt"}
    for line in lines:
        command = shlex.split(line)[1:]
        if command[0] == "adapt":
            command += ["--optimization.num-steps", "2"]
        code = run(lfdm.cli.COMMANDS, command, "")
        assert code == 0, f"{line}: {capsys.readouterr().err}"

    assert len(read_index("data/mug")) == len(TAKES)
    assert {record.label for record in read_index("data/mug")} == {"happiness", "anger"}
    for name in ("happiness.mp4", "any.mp4"):
        assert read_video(name).shape == (4, 64, 64, 3)
    for folder in ("runs/mug-published", "runs/mug2-evaluation"):
        generation = json.loads(Path(folder, "results.json").read_text())["generation"]
        assert generation is not None
    adapted = json.loads(Path("models/faces/model_index.json").read_text())
    assert adapted["unet"] == ["lfdm", "MotionUNet3D"]
