"""Measure the time until a command of `lfdm` does something, against importing diffusers.

    python -m benchmarks.speed startup

Commands run in their own processes, in turns. Adds figures to `results/speed-<device>.json`.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

import lfdm
from benchmarks.experiment.tables import RESULTS_DIR
from benchmarks.speed.measuring import device_name
from benchmarks.speed.records import Results, results_path

BASELINE = "import diffusers"
IMAGE = Path(lfdm.__file__).parent / "assets/puppets64/images/puppet-1.png"


@dataclass(kw_only=True)
class Options:
    """Options of the measurement."""

    repeats: int = 5
    """Measured rounds, after one that is not; every command runs once per round."""
    out: Path = RESULTS_DIR
    """Folder of the JSON file."""


def commands(folder: Path) -> Mapping[str, Sequence[str]]:
    """Return the commands by name, run with this interpreter."""
    cli = (sys.executable, "-m", "lfdm")
    generate = (
        "generate",
        str(IMAGE),
        "wave",
        "--num-inference-steps",
        "1",
        "--num-frames",
        "2",
        "--out",
        str(folder / "wave.gif"),
        "--overwrite",
    )
    return {
        "python": (sys.executable, "-c", ""),
        "lfdm --help": (*cli, "--help"),
        BASELINE: (sys.executable, "-c", "from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler"),
        "lfdm generate, 1 step, 2 frames": (*cli, *generate),
    }


def measure(repeats: int, choose: Sequence[str] | None = None) -> dict[str, list[float]]:
    """Return the seconds of every run by command (all, or those in `choose`).

    Raises:
        CalledProcessError: a command failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        chosen = {name: command for name, command in commands(Path(folder)).items() if choose is None or name in choose}
        seconds: dict[str, list[float]] = {name: [] for name in chosen}
        for turn in range(repeats + 1):
            for name, command in chosen.items():
                start = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True)
                if turn:
                    seconds[name].append(time.perf_counter() - start)
    return seconds


def run(options: Options) -> Path:
    """Measure, print and store; return the path of the results."""
    seconds = measure(options.repeats)
    device = device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    path = results_path(device, options.out)
    results = Results.load(path) if path.exists() else Results(device=device)
    results.startup = {"seconds": seconds}
    results.save(path)
    baseline = statistics.median(seconds[BASELINE])
    for name, runs in seconds.items():
        median = statistics.median(runs)
        Console().print(f"{name}: {median:.2f} s ({median - baseline:+.2f} s against {BASELINE!r})", highlight=False)
    return path
