"""Run every command and every Python block of README, tutorials and how-to pages, page by page, with short trainings."""

import functools
import importlib
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import lfdm.cli
import lfdm.evaluation.protocol  # before its settings are replaced
from lfdm.cli.console import run
from lfdm.config.presets import PRESETS
from lfdm.config.training import OptimizationConfig, with_num_steps
from lfdm.data.puppets.data_set import render_clip
from lfdm.data.sprite_sheets import write_sheet
from lfdm.data.video import write_video
from lfdm.evaluation.settings import ClassifierTraining, EvaluationConfig

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
TESTED_ELSEWHERE = ("## Reproduce the paper", "## In the browser")
"""Sections of the README that tests/test_reproduce_the_paper.py and tests/web/test_client.py run."""
DOCS = ROOT / "docs"
PAGES = [
    README,
    *sorted((DOCS / "tutorials").glob("*.md")),
    *sorted((DOCS / "how-to").glob("*.md")),
    *(DOCS / name for name in ("control.md", "sprites.md", "training.md")),
]
"""Of the other pages tests/export runs export.md and tests/test_reproduce_the_paper.py paper.md; scaling.md needs a cluster and a
bucket, results.md hours."""
RUNS_BEFORE = (
    "lfdm train autoencoder flow64 --data data/mine --out runs/stage1",
    "lfdm train diffusion flow64 --data data/mine --autoencoder runs/stage1 --out runs/stage2",
)
"""What training.md goes on from: the commands of the README."""
NOT_RUN = ("pip install ", "git clone ", "make ", "lfdm serve", "torchrun ")
"""Commands that install or do not end: tests/web serves, and tests/training/test_processes.py starts several processes."""
SHORTER = {
    "train autoencoder flow256": "--sizes 64:2 256:2 --autoencoder-training.optimization.batch-size 2",
    "train autoencoder": "--autoencoder-training.optimization.num-steps 2",
    "train diffusion": "--diffusion-training.optimization.num-steps 2 --diffusion-training.optimization.warmup-steps 0",
    "train few-steps": "--optimization.num-steps 2 --optimization.batch-size 2 --optimization.warmup-steps 0",
    "adapt": "--optimization.num-steps 2 --optimization.batch-size 2",
    "evaluate": "--num-clips 2 --num-diversity-clips 1 --classifier.num-steps 2 --classifier.batch-size 8 "
    "--frame-network.num-steps 2 --frame-network.batch-size 8",
    "data puppets --out data/free": "--num-subjects 2 --num-takes 1 --num-workers 1 --free-motion 0.2",
    "data puppets": "--num-subjects 6 --num-takes 1 --num-workers 1",
    "demo": "--panel generated",
}
"""Options that a test appends to a command; those that a page gives come before and lose."""
LABELS, PEOPLE = ("wave", "jump", "bow"), ("anna", "ben", "cleo")


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Yield the language and the text of every block of commands or of Python."""
    sections = re.split(r"^(?=## )", page.read_text(), flags=re.MULTILINE)
    text = "".join(section for section in sections if not section.startswith(TESTED_ELSEWHERE))
    yield from re.findall(r"^```(bash|python)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(block: str) -> list[str]:
    """Return the commands of a block, continued lines joined."""
    lines = block.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


@pytest.fixture
def short_trainings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let every preset train two steps of two samples, and judges two steps of eight."""

    def short(optimization: OptimizationConfig) -> OptimizationConfig:
        return replace(with_num_steps(optimization, 2), batch_size=2, micro_batch_size=None, num_workers=0, log_steps=1)

    for name, preset in PRESETS.items():
        stage1, stage2 = preset.autoencoder_training, preset.diffusion_training
        shorter = replace(
            preset,
            autoencoder_training=replace(stage1, optimization=short(stage1.optimization)),
            diffusion_training=replace(stage2, optimization=short(stage2.optimization)),
        )
        monkeypatch.setitem(PRESETS, name, shorter)
    judges = ClassifierTraining(num_steps=2, batch_size=8)
    short_evaluation = functools.partial(EvaluationConfig, classifier=judges, frame_network=judges, num_diversity_clips=1)
    monkeypatch.setattr("lfdm.evaluation.settings.EvaluationConfig", short_evaluation)  # for blocks of Python
    importlib.reload(lfdm.cli)
    yield
    monkeypatch.undo()
    importlib.reload(lfdm.cli)


@pytest.fixture
def readers_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write what the pages take for granted (clips, pictures, sheets), and make their folder the working directory."""
    monkeypatch.chdir(tmp_path)
    rows, number = [], 1
    for i, person in enumerate(PEOPLE):
        for label in LABELS:
            clip = render_clip(i, label, 0, size=(112, 64), num_frames=20, fps=8, truth=False)
            path = Path("my_clips", label, person, f"IMG_{number:04}.mp4")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(path, clip.frames, fps=8)
            rows.append(f"{path.relative_to('my_clips')},{label},{person}")
            number += 1
    Path("labels.csv").write_text("\n".join(["path,label,subject", *rows]) + "\n")
    for name in ("footage", "other_clips", "recordings"):
        Path(name).symlink_to("my_clips")
    bundled = ROOT / "src" / "lfdm" / "assets" / "puppets64" / "images"
    for name in ("src", "examples"):
        Path(name).symlink_to(ROOT / name)
    Path("requests.csv").write_text("image,condition\nphoto.png,wave\n")
    Image.new("L", (64, 64), 255).save("mask.png")
    for name, source in (("puppet", 1), ("other", 2), ("photo", 3)):
        Image.open(bundled / f"puppet-{source}.png").save(f"{name}.png")
    for name in ("clip", "driving"):
        write_video(f"{name}.mp4", render_clip(5, "wave", 0, truth=False).frames, fps=8)
    write_sprites()
    assert run(lfdm.cli.COMMANDS, ["data", "folder", "my_clips", "--out", "data/mine"], "") == 0


def write_sprites() -> None:
    """Write a sprite with alpha, and three sheets of three rows of four cells."""
    rng = np.random.default_rng(0)
    sprite = np.zeros((64, 64, 4), np.uint8)
    sprite[16:56, 24:40] = np.concatenate((rng.integers(0, 4, (40, 16, 3)) * 60, np.full((40, 16, 1), 255)), axis=2)
    for name in ("hero", "sprite"):
        Image.fromarray(sprite).save(f"{name}.png")
    Path("sheets").mkdir()
    for name in ("knight", "orc", "elf"):
        rows = [
            np.concatenate([np.roll(sprite, shift, axis=1) for shift in range(0, 4 * step, step)], axis=1) for step in (1, 2, 3)
        ]
        Image.fromarray(np.concatenate(rows)).save(f"sheets/{name}.png")
        write_sheet(f"tagged/{name}.json", np.stack([sprite, np.roll(sprite, 2, axis=1)]), fps=8)


@pytest.mark.slow
@pytest.mark.usefixtures("short_trainings", "readers_files")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.stem}")
def test_every_command_and_every_python_block_of_a_page_works(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    found = list(blocks(page))
    assert found
    for line in RUNS_BEFORE if page.name == "training.md" else ():
        run_command(line, capsys)
    for language, block in found:
        if language == "python":
            exec(compile(block, str(page), "exec"), names)
            continue
        for line in commands(block):
            run_command(line, capsys)


def run_command(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Run one line of a page, with options that make it shorter."""
    if line.startswith(NOT_RUN):
        return
    words = shlex.split(line, comments=True)
    if words[0] != "lfdm":
        subprocess.run(words, check=True)
        return
    more = next((options for name, options in SHORTER.items() if " ".join(words[1:]).startswith(name)), "")
    code = run(lfdm.cli.COMMANDS, [*words[1:], *shlex.split(more)], "")
    assert code == 0, f"{line}: {capsys.readouterr().err}"
