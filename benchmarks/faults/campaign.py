"""The record of a campaign: what was tried and every failure. Stored as results/faults/NAME.json. Imports no torch."""

import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from benchmarks.experiment.tables import RESULTS_DIR, ROOT, write_results
from lfdm.errors import UserError
from lfdm.folders.model_folder import read_json

FAULTS_DIR = RESULTS_DIR / "faults"
MAX_SEEN = 600
"""Characters of an output or message that a failure keeps."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One case in which the promise was broken."""

    case: str
    """Input, so that the case can be repeated: the command, seed, file or request."""
    seen: str
    """Observation: exit code, message, first line of the traceback, what was lost."""


@dataclass(kw_only=True)
class Campaign:
    """Promise, cases and observations of one campaign. A row makes one and calls `expect` for every case."""

    name: str
    """Name of the campaign: kills, locks, ..."""
    promise: str
    """Promise to users, in one sentence."""
    aim: str
    """The figure that counts as success, in a few words."""
    counts: Counter[str] = field(default_factory=Counter)
    """Number of cases by kind."""
    failures: list[Failure] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    """Other measurements, by name with the unit: `peak memory, MB`."""
    notes: list[str] = field(default_factory=list)
    """Cases that were left out and why, in whole sentences."""
    seconds: float = 0.0
    command: str = ""
    machine: str = ""
    commit: str = ""
    date: str = ""

    def expect(self, kind: str, case: str, held: bool, seen: object = "") -> bool:
        """Count one case of `kind`; if the promise did not hold, keep `case` and what was `seen`. Return `held`."""
        self.counts[kind] += 1
        if not held:
            self.failures.append(Failure(case=f"{kind}: {case}", seen=shorten(str(seen))))
        return held

    @contextmanager
    def case(self, kind: str, case: str) -> Iterator[None]:
        """Count one case of `kind`; an exception of the block is its failure."""
        try:
            yield
        except Exception as error:
            self.expect(kind, case, False, f"{type(error).__name__}: {error}")
        else:
            self.expect(kind, case, True)

    def save(self, path: Path) -> None:
        """Write the JSON, atomically."""
        write_results({**asdict(self), "counts": dict(self.counts)}, path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a stored campaign; UserError if the file has other contents."""
        try:
            content = read_json(path)
            counts, failures = Counter(content.pop("counts")), [Failure(**one) for one in content.pop("failures")]
            return cls(counts=counts, failures=failures, **content)
        except (KeyError, TypeError) as error:
            raise UserError(f"{path} holds no campaign: {error}") from error


Run = Callable[..., Campaign]
"""The function `run` of a campaign's module; its keyword arguments are the options of the command."""


def shorten(text: str) -> str:
    """Return at most `MAX_SEEN` characters of `text`: its beginning and its end, where a traceback has its error."""
    text = text.strip()
    half = MAX_SEEN // 2
    return text if len(text) <= MAX_SEEN else f"{text[:half]} [...] {text[-half:]}"


def commit() -> str:
    """Return the abbreviated commit, with a plus sign if the package or the benchmarks are changed; empty outside of git."""
    try:
        name = subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "src", "benchmarks/faults"], cwd=ROOT, check=False)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return name.stdout.strip() + ("+" if changed.returncode else "")
