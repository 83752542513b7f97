"""Provoke faults in large numbers and store what was seen: one campaign per command.

    python -m benchmarks.faults kills      # SIGKILL at random times
    python -m benchmarks.faults locks      # two runs in one folder
    python -m benchmarks.faults disk       # full and read-only disks, limits on sizes
    python -m benchmarks.faults inputs     # wrong command lines and mutated files
    python -m benchmarks.faults files      # hostile files
    python -m benchmarks.faults data       # broken clips and caches
    python -m benchmarks.faults server     # hostile requests, many users, hours
    python -m benchmarks.faults numbers    # NaN, overflow and underflow in training
    python -m benchmarks.faults table      # render docs/reliability.md from results/faults/*.json

Each writes benchmarks/results/faults/NAME.json and exits with 1 if the promise was broken. A campaign is a module of this package
with a function `run`, whose keyword arguments are the options (`python -m benchmarks.faults NAME --help`) and which returns a
`Campaign`.
"""

import importlib
import shlex
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import tyro

from benchmarks.experiment.machine import machine
from benchmarks.faults import table
from benchmarks.faults.campaign import FAULTS_DIR, Run, commit
from lfdm.errors import UserError

CAMPAIGNS = ("kills", "locks", "disk", "inputs", "files", "data", "server", "numbers")


def run_campaign(name: str, arguments: list[str], results: Path = FAULTS_DIR) -> int:
    """Run one campaign, store it in `results` and return the number of failures."""
    run: Run = importlib.import_module(f"benchmarks.faults.{name}").run
    started = time.monotonic()
    campaign = tyro.cli(run, prog=f"python -m benchmarks.faults {name}", args=arguments)
    campaign.seconds = round(time.monotonic() - started, 1)
    campaign.command = shlex.join(["python", "-m", "benchmarks.faults", name, *arguments])
    campaign.machine, campaign.commit, campaign.date = machine(), commit(), datetime.now(UTC).date().isoformat()
    campaign.save(results / f"{name}.json")
    print(table.render_one(campaign))
    return len(campaign.failures)


def main() -> None:
    """Run the command line."""
    name, *arguments = sys.argv[1:] or ["--help"]
    try:
        if name == "table":
            table.write()
        elif name in CAMPAIGNS:
            sys.exit(1 if run_campaign(name, arguments) else 0)
        else:
            print(__doc__)
            sys.exit(0 if name in ("-h", "--help") else 2)
    except UserError as error:
        sys.exit(f"faults: {error}")


if __name__ == "__main__":
    main()
