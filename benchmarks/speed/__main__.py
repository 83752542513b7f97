"""Measure the speed of operations, training and start-up.

    python -m benchmarks.speed operations      # every operation against its textbook form; about 20 minutes on two cores
    python -m benchmarks.speed training        # throughput of both training stages
    python -m benchmarks.speed startup         # time until a command does something
    python -m benchmarks.speed scaling         # cost and memory by size, flow64 to flow512
    python -m benchmarks.speed calls           # whole calls with ordinary and distilled networks
    python -m benchmarks.speed tables --update # render README's table and docs/performance.md from results/speed-*.json

`python -m benchmarks.speed operations --help` lists the options of a command.
"""

import sys

import tyro

from benchmarks.speed import calls, operations, scaling, startup, table, training
from lfdm.errors import UserError

COMMANDS = {
    "operations": operations.run,
    "training": training.run,
    "startup": startup.run,
    "scaling": scaling.run,
    "calls": calls.run,
    "tables": table.run,
}


def main() -> None:
    """Run the command line."""
    try:
        tyro.extras.subcommand_cli_from_dict(
            {name: tyro.conf.configure(tyro.conf.OmitArgPrefixes)(command) for name, command in COMMANDS.items()},
            description=__doc__,
        )
    except UserError as error:
        sys.exit(f"speed: {error}")


if __name__ == "__main__":
    main()
