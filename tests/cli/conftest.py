"""Run command lines in an empty folder, with a tiny model and image."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lfdm.cli import COMMANDS
from lfdm.cli.console import run
from lfdm.config.presets import Preset
from lfdm.pipeline.pipeline import LatentFlowPipeline

Lfdm = Callable[..., tuple[int, str, str]]
LABELS = ("raise arms", "wave")


@pytest.fixture
def lfdm(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Lfdm:
    """Run a command line in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run(COMMANDS, [str(argument) for argument in arguments], "test")
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def model(tiny_preset: Preset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    LatentFlowPipeline.from_preset(tiny_preset, LABELS).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "person.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    return path
