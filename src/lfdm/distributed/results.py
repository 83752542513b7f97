"""The manifest of a batch, which says what was done, in the folder of its videos."""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any

from lfdm.distributed.requests import Row, VideoRequest, import_parquet
from lfdm.errors import UserError
from lfdm.folders.remote import StoredFolder

MANIFEST = "manifest.jsonl"
SETTINGS = "batch.json"
SAVE_SECONDS = 10.0
"""Time between two writes of the manifest; work of that time is done again after a kill."""


@dataclass(frozen=True)
class Result:
    """Outcome of a request."""

    key: str
    """`VideoRequest.key`."""
    file: str | None = None
    """Name of the video in the folder; None if there is none."""
    seconds: float | None = None
    """Share of the time that its batch took."""
    error: str | None = None
    """Why there is no video."""


@dataclass
class Manifest:
    """Requests and what became of them, one JSON object a line: `row`, `request`, `file`, `seconds`, `error`."""

    folder: StoredFolder
    rows: Sequence[Row]
    results: dict[str, Result] = field(default_factory=dict)
    """By key of the request."""
    _saved: float = field(default_factory=time.monotonic)

    def read(self) -> None:
        """Take over what an earlier run has made of these requests."""
        wanted = {row.request.key for row in self.rows if row.request is not None}
        for line in (self.folder.read(MANIFEST) or b"").decode().splitlines():
            record = json.loads(line)
            if record["file"] is not None and (key := VideoRequest(**record["request"]).key) in wanted:
                self.results[key] = Result(key, record["file"], record["seconds"])

    def missing(self, batch: Sequence[VideoRequest]) -> list[str]:
        """Return the keys of requests of a batch that have no video yet."""
        return [one.key for one in batch if (result := self.results.get(one.key)) is None or result.file is None]

    def add(self, results: Iterable[Result]) -> None:
        """Add results, and save the manifest from time to time."""
        self.results |= {result.key: result for result in results}
        if time.monotonic() >= self._saved + SAVE_SECONDS:
            self.save()

    def records(self) -> list[dict[str, Any]]:
        """Return the manifest in the order of the table; requests without a result are not in it."""
        records = []
        for row in self.rows:
            if row.request is None:
                records.append({"row": row.number, "request": row.values, "file": None, "seconds": None, "error": row.error})
            elif (result := self.results.get(row.request.key)) is not None:
                outcome = {"file": result.file, "seconds": result.seconds, "error": result.error}
                records.append({"row": row.number, "request": asdict(row.request), **outcome})
        return records

    def save(self) -> None:
        """Write the manifest."""
        lines = [json.dumps(record, ensure_ascii=False, default=str) for record in self.records()]
        self.folder.write(MANIFEST, "".join(f"{line}\n" for line in lines).encode())
        self._saved = time.monotonic()

    def save_parquet(self) -> None:
        """Write the manifest as a Parquet file, too, with the request's fields as columns."""
        import pyarrow

        records = [
            {**one["request"], **{name: one[name] for name in ("row", "file", "seconds", "error")}} for one in self.records()
        ]
        with self.folder.writing(str(PurePosixPath(MANIFEST).with_suffix(".parquet"))) as path:
            import_parquet().write_table(pyarrow.Table.from_pylist(records), path)


def check_settings(folder: StoredFolder, settings: Mapping[str, Any]) -> None:
    """Write the settings of a new batch; raise UserError if the folder holds a batch with other ones."""
    before = folder.read(SETTINGS)
    if before is None:
        folder.write(SETTINGS, json.dumps(dict(settings), indent=2).encode())
        return
    stored = json.loads(before)
    for name, value in settings.items():
        if stored.get(name) != value:
            raise UserError(f"{folder.url} holds a batch with {name} {stored.get(name)!r}; got {value!r}; choose another --out")
