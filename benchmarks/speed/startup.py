"""Measure how long imports and commands of `lfdm` take above importing torch.

    python -m benchmarks.speed startup

Every command runs in its own process, all of them in turns, with two clocks: that on the wall, and the processor time of the
process, which depends less on what else the machine does. Modules are compiled in the round that is not measured, as they are
when a package is installed, whatever the environment says about bytecode. Adds figures to `results/speed-<device>.json`.
"""

import os
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

BASELINE = "import torch"
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
    generate = (*cli, "generate", str(IMAGE), "wave", "--out", str(folder / "wave.mp4"), "--overwrite")
    return {
        "python": (sys.executable, "-c", ""),
        "lfdm --help": (*cli, "--help"),
        BASELINE: (sys.executable, "-c", "import torch"),
        "from lfdm import LatentFlowPipeline": (sys.executable, "-c", "from lfdm import LatentFlowPipeline"),
        "lfdm generate, 1 step, 2 frames": (*generate, "--num-inference-steps", "1", "--num-frames", "2"),
        "lfdm generate, 4 steps, 16 frames": generate,
        "from diffusers import DiffusionPipeline": (sys.executable, "-c", "from diffusers import DiffusionPipeline"),
    }


def measure(repeats: int, choose: Sequence[str] | None = None) -> dict[str, dict[str, list[float]]]:
    """Return the `seconds` and `processor_seconds` of every run by command (all, or those in `choose`).

    Raises:
        CalledProcessError: a command failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        chosen = {name: command for name, command in commands(Path(folder)).items() if choose is None or name in choose}
        seconds: dict[str, list[float]] = {name: [] for name in chosen}
        processor: dict[str, list[float]] = {name: [] for name in chosen}
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = str(Path(folder) / "bytecode")
        for turn in range(repeats + 1):
            for name, command in chosen.items():
                start, before = time.perf_counter(), _children_seconds()
                subprocess.run(command, check=True, capture_output=True, env=environment)
                if turn:
                    seconds[name].append(time.perf_counter() - start)
                    processor[name].append(_children_seconds() - before)
    return {"seconds": seconds, "processor_seconds": processor}


def _children_seconds() -> float:
    """Return the processor time of all child processes so far."""
    times = os.times()
    return times.children_user + times.children_system


def above_baseline(seconds: Mapping[str, Sequence[float]], name: str) -> float:
    """Return the median difference between a command and the baseline in the same turn."""
    return statistics.median(one - base for one, base in zip(seconds[name], seconds[BASELINE], strict=True))


def ratio_to_baseline(seconds: Mapping[str, Sequence[float]], name: str) -> float:
    """Return the median ratio of a command to the baseline in the same turn."""
    return statistics.median(one / base for one, base in zip(seconds[name], seconds[BASELINE], strict=True))


def run(options: Options) -> Path:
    """Measure, print and store; return the path of the results."""
    measured = measure(options.repeats)
    device = device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    path = results_path(device, options.out)
    results = Results.load(path) if path.exists() else Results(device=device)
    results.software = results.software or {"torch": torch.__version__}
    results.startup = {**measured, "load": os.getloadavg()[0]}
    results.save(path)
    for name, runs in measured["processor_seconds"].items():
        above = above_baseline(measured["processor_seconds"], name)
        text = f"{name}: {statistics.median(runs):.2f} s of processor time, {above:+.2f} s against {BASELINE!r}"
        Console().print(text, highlight=False)
    return path
