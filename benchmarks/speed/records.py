"""Stored measurements, one JSON file per device: the source of the performance tables.

Imports no torch, so that rendering is quick.
"""

import json
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from benchmarks.experiment.tables import RESULTS_DIR
from lfdm.errors import UserError

PLAIN = "plain"


@dataclass(kw_only=True)
class Variant:
    """One form of an operation: measured, or skipped for a reason."""

    seconds: list[float] = field(default_factory=list)
    """Seconds of every run."""
    gflop: float | None = None
    """Arithmetic of one run in 10^9 operations."""
    peak_bytes: int | None = None
    """Peak memory above the level before the run."""
    skipped: str = ""
    """Reason for not measuring it."""

    @property
    def median(self) -> float:
        ordered, middle = sorted(self.seconds), len(self.seconds) // 2
        return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


@dataclass(kw_only=True)
class Row:
    """One operation at one size: its forms, measured in turns, and the peak rates (GFLOP/s) at that time."""

    operation: str
    preset: str
    batch: int
    dtype: str
    compiled: bool = False
    matmul_peak: float | None = None
    convolution_peak: float | None = None
    variants: dict[str, Variant] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, int, str, bool]:
        return self.operation, self.preset, self.batch, self.dtype, self.compiled

    @property
    def name(self) -> str:
        return "/".join((self.operation, self.preset, str(self.batch), self.dtype, "compiled" if self.compiled else "eager"))

    @property
    def useful_gflop(self) -> float | None:
        """Arithmetic of the fast form: what the operation needs."""
        fast = self.variants.get("fast")
        return None if fast is None else fast.gflop

    def rate(self, variant: str) -> float | None:
        """Return useful GFLOP/s: arithmetic of the fast form over the time of this form."""
        measured = self.variants[variant]
        if not measured.seconds or self.useful_gflop is None:
            return None
        return self.useful_gflop / measured.median

    def share_of_convolution_peak(self, variant: str) -> float | None:
        rate = self.rate(variant)
        return None if rate is None or not self.convolution_peak else rate / self.convolution_peak

    def share_of_matmul_peak(self, variant: str) -> float | None:
        rate = self.rate(variant)
        return None if rate is None or not self.matmul_peak else rate / self.matmul_peak

    def ratio(self, variant: str) -> float | None:
        """Return the speed-up over the plain form of the same row."""
        plain, measured = self.variants.get(PLAIN), self.variants[variant]
        if plain is None or not plain.seconds or not measured.seconds:
            return None
        return plain.median / measured.median


@dataclass(kw_only=True)
class Results:
    """All rows of one device."""

    device: str
    software: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    throughput: list[dict[str, Any]] = field(default_factory=list)
    startup: dict[str, Any] = field(default_factory=dict)

    def find(self, key: tuple[str, str, int, str, bool]) -> Row | None:
        return next((row for row in self.rows if row.key == key), None)

    def smallest(self, row: Row) -> Row | None:
        """Return the eager row of the same operation, preset and dtype at the smallest batch below that of `row`."""
        kind = (row.operation, row.preset, row.dtype, False)
        smaller = [
            other
            for other in self.rows
            if (other.operation, other.preset, other.dtype, other.compiled) == kind and other.batch < row.batch
        ]
        return min(smaller, key=lambda other: other.batch, default=None)

    def put(self, row: Row) -> None:
        """Add a row, or replace the one of the same key in its place."""
        for index, old in enumerate(self.rows):
            if old.key == row.key:
                self.rows[index] = row
                return
        self.rows.append(row)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file; UserError if it has other contents."""
        try:
            content = json.loads(path.read_text())
            rows = [_row(entry) for entry in content.pop("rows")]
            return cls(rows=rows, **content)
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise UserError(f"{path} holds no results of this benchmark: {error}") from error

    def save(self, path: Path) -> None:
        """Write atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {**asdict(self), "rows": [asdict(row) for row in self.rows]}
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(content, indent=1) + "\n")
        temporary.replace(path)


def _row(entry: dict[str, Any]) -> Row:
    entry = dict(entry)
    variants = {name: Variant(**variant) for name, variant in entry.pop("variants").items()}
    return Row(variants=variants, **entry)


def results_path(device: str, folder: Path = RESULTS_DIR) -> Path:
    """Return the path of `speed-<device>.json`."""
    return folder / f"speed-{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}.json"
