"""Resumable lists of stages: each finished stage leaves a JSON file."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lfdm.errors import UserError
from lfdm.folders.files import write_bytes
from lfdm.folders.model_folder import read_json

STAGES_DIR = "stages"


class LeftOutError(Exception):
    """Raised by a stage that is not possible here, with the reason; it is tried again next time."""


@dataclass(frozen=True)
class Stage:
    """One piece of work whose result is kept."""

    name: str
    run: Callable[[], dict[str, Any]]
    """Do the work, resuming if it was stopped, and return JSON values."""
    needs: tuple[str, ...] = ()
    """Names of the stages whose results it reads."""
    group: str = ""
    """Name by which stages are selected together."""


class StageFolder:
    """The results of finished stages in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / STAGES_DIR

    def path(self, name: str) -> Path:
        """Return the file of a stage's result."""
        return self.folder / f"{name}.json"

    def done(self, name: str) -> bool:
        """Return whether the stage is finished."""
        return self.path(name).exists()

    def result(self, name: str) -> dict[str, Any]:
        """Return the result of a stage; UserError if it is not finished."""
        if not self.done(name):
            raise UserError(f"stage {name!r} is not finished; run it first")
        return read_json(self.path(name))["result"]

    def run(
        self,
        stages: Sequence[Stage],
        only: Sequence[str] = (),
        *,
        say: Callable[[str], None],
        after: Callable[[], None] = lambda: None,
    ) -> dict[str, str]:
        """Run unfinished stages in order; return the reasons of those left out, by name.

        Args:
            only: names of stages or groups to run; empty = all.
            say: prints one line of progress.
            after: called when a stage is finished.

        Raises:
            UserError: unknown name, or a needed stage that is neither selected nor finished.
        """
        known = {name for stage in stages for name in (stage.name, stage.group) if name}
        unknown = sorted(set(only) - known)
        if unknown:
            raise UserError(f"unknown stages {unknown}; known: {', '.join(sorted(known))}")
        left_out: dict[str, str] = {}
        for stage in stages:
            if self.done(stage.name) or (only and not {stage.name, stage.group} & set(only)):
                continue
            try:
                self._check_needs(stage, left_out)
                say(f"{stage.name}: begins")
                self._run(stage)
                after()
            except LeftOutError as reason:
                left_out[stage.name] = str(reason)
                say(f"{stage.name}: left out, {reason}")
        return left_out

    def _check_needs(self, stage: Stage, left_out: dict[str, str]) -> None:
        missing = [name for name in stage.needs if not self.done(name)]
        if any(name in left_out for name in missing):
            raise LeftOutError(next(left_out[name] for name in missing if name in left_out))
        if missing:
            raise UserError(f"stage {stage.name!r} needs {', '.join(missing)}; run them first (--only {' '.join(missing)})")

    def _run(self, stage: Stage) -> None:
        wall, processor = time.monotonic(), time.process_time()
        result = stage.run()
        record = {
            "result": result,
            "wall_seconds": round(time.monotonic() - wall, 1),
            "processor_seconds": round(time.process_time() - processor, 1),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        write_bytes(self.path(stage.name), (json.dumps(record, indent=2) + "\n").encode())
