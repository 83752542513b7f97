"""Put `lfdm serve` under load from many users: errors, waiting times, memory, temporary files.

    python -m benchmarks.serving

Each user sends the next request as soon as the last video arrives. Afterwards the queue is filled and one more request is sent.
"""

import argparse
import json
from pathlib import Path

from benchmarks.experiment.tables import RESULTS_DIR
from benchmarks.serving.load import measure


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--queue-size", type=int, default=32)
    parser.add_argument("--out", type=Path, default=RESULTS_DIR / "serve-load.json")
    arguments = parser.parse_args()
    result = measure(arguments.users, arguments.seconds, arguments.queue_size)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
