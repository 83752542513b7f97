"""Measure every operation against its textbook form and against the peak rates of the device.

    python -m benchmarks.speed operations             # all rows, the most important first; about 20 minutes on two cores
    python -m benchmarks.speed operations --only unet_step decode --sizes mug128 --batches 1
    python -m benchmarks.speed operations --resume    # continue a stopped run

Each row measures the fast form, the plain form (textbook/, same weights) and the peak rates of the device in turns, prints a line
per form and updates `results/speed-<device>.json`. Skipped forms are stored with the reason.
"""

import gc
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import diffusers
import numpy as np
import torch
from rich.console import Console

from benchmarks.experiment.tables import RESULTS_DIR
from benchmarks.speed.measuring import (
    CPU_PROBLEMS,
    CUDA_PROBLEMS,
    QUICK_PROBLEMS,
    Peaks,
    available_bytes,
    device_name,
    measure_peaks,
    measure_together,
)
from benchmarks.speed.models import Models, benchmark_preset
from benchmarks.speed.records import PLAIN, Results, Row, Variant, results_path
from benchmarks.speed.workloads import OPERATIONS
from lfdm.errors import UserError
from lfdm.training.optimization import uses_bf16

DType = Literal["float32", "bfloat16"]
Compilation = Literal["eager", "compiled"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
COMPILED_OPERATIONS = ("unet_step", "decode", "extract", "stage2_step", "guidance_step", "stage1_step")
"""The other operations are made of these."""
MEMORY_SHARE = 0.6
"""Share of free memory above which a call is not started, since allocators hold half as much again."""
QUICK_DIR = Path("runs/speed-quick")


@dataclass(kw_only=True)
class Options:
    """Options of the measurement."""

    only: tuple[str, ...] = tuple(OPERATIONS)
    """Operations to measure."""
    sizes: tuple[str, ...] = ("mug128", "flow64")
    """Presets; `tiny` is a miniature for tests."""
    batches: tuple[int, ...] = (1, 8)
    dtypes: tuple[DType, ...] = ("float32", "bfloat16")
    compilation: tuple[Compilation, ...] = ("eager", "compiled")
    repeats: int = 7
    """Rounds of a row; in each one every form runs once."""
    budget_seconds: float = 30.0
    """Seconds after which no further round of a row begins; one is always measured."""
    limit_seconds: float = 60.0
    """Seconds of one run, estimated from the smallest batch, above which a form is skipped."""
    minutes: float = 25.0
    """Minutes after which no further row begins; `--resume` continues."""
    peak_seconds: float = 0.4
    """Seconds for each peak rate before and after every row."""
    threads: int | None = None
    """Processor threads; torch's default if omitted."""
    device: str | None = None
    """Device; cuda if available, otherwise cpu."""
    out: Path = RESULTS_DIR
    """Folder of the JSON file."""
    resume: bool = False
    """Measure only missing rows; otherwise the selected rows are measured again. Other rows in the file are kept."""
    quick: bool = False
    """Run everything in miniature within seconds, by default into runs/speed-quick; its figures mean nothing."""


def run(options: Options) -> Path:
    """Measure the rows, print them and store them; return the path of the results.

    Raises:
        UserError: an unknown operation or preset.
    """
    options = _quick(options) if options.quick else options
    unknown = [name for name in options.only if name not in OPERATIONS]
    if unknown:
        raise UserError(f"unknown operation {', '.join(unknown)}; allowed: {', '.join(OPERATIONS)}")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with tempfile.TemporaryDirectory() as folder:
        return _measure_all(options, device, Path(folder))


def _quick(options: Options) -> Options:
    dtypes: tuple[DType, ...] = ("float32",)
    compilation: tuple[Compilation, ...] = ("eager",)
    only = tuple(
        name for name in options.only if name not in ("generate_10", "generate_20")
    )  # longer than `generate_4`, otherwise the same
    return replace(
        options,
        out=QUICK_DIR if options.out == RESULTS_DIR else options.out,
        only=only,
        sizes=("tiny",),
        batches=(1,),
        dtypes=dtypes,
        compilation=compilation,
        repeats=1,
        budget_seconds=5.0,
        peak_seconds=0.01,
    )


def planned_rows(options: Options) -> Iterator[Row]:
    """Yield empty rows, the most important first: eager float32 at batch 1, then larger batches, then the rest."""
    for compilation in options.compilation:
        for dtype in options.dtypes:
            for batch in options.batches:
                for size in options.sizes:
                    for operation in options.only:
                        compiled = compilation == "compiled"
                        if not compiled or (operation in COMPILED_OPERATIONS and batch == options.batches[0]):
                            yield Row(operation=operation, preset=size, batch=batch, dtype=dtype, compiled=compiled)


def _measure_all(options: Options, device: torch.device, folder: Path) -> Path:
    path = results_path(device_name(device), options.out)
    results = Results.load(path) if path.exists() else Results(device=device_name(device))
    if not options.resume:
        selected = {row.key for row in planned_rows(options)}
        results.rows = [row for row in results.rows if row.key not in selected]
    software = {"torch": torch.__version__, "diffusers": diffusers.__version__, "numpy": np.__version__}
    if results.rows and results.software != software:
        raise UserError(f"{path} keeps rows of {results.software}; these would be of {software}: measure all rows, or give --out")
    results.software = software
    console = Console()
    console.print(f"{results.device}, torch {torch.__version__}; results in {path}")
    end = time.monotonic() + 60 * options.minutes
    models: Models | None = None
    for row in planned_rows(options):
        if options.resume and results.find(row.key) is not None:
            continue
        if time.monotonic() > end:
            console.print(f"{options.minutes:g} minutes are over; --resume goes on with {row.name}")
            break
        reason = _unsupported(row, device)
        if reason:
            row.variants = {"fast": Variant(skipped=reason), PLAIN: Variant(skipped=reason)}
        else:
            if models is None or not _match(models, row):
                models = None  # free memory before the next ones are built
                where = folder / row.preset
                models = Models(benchmark_preset(row.preset), device, where, dtype=DTYPES[row.dtype], compiled=row.compiled)
            _measure(row, models, results, options)
        results.put(row)
        results.save(path)
        _print_row(console, row)
    return path


def _match(models: Models, row: Row) -> bool:
    return (models.preset.name, models.dtype, models.compiled) == (row.preset, DTYPES[row.dtype], row.compiled)


def _unsupported(row: Row, device: torch.device) -> str:
    if row.dtype == "bfloat16" and not uses_bf16("auto", device):
        return "this device does not compute in bfloat16"
    return ""


def _measure(row: Row, models: Models, results: Results, options: Options) -> None:
    """Fill a row; forms that fail or would take too much are skipped with the reason."""
    gc.collect()  # free the models of the row before
    calls = OPERATIONS[row.operation].build(models, row.batch)
    one = results.smallest(row)
    for name in list(calls):
        reason = _too_much(row, name, one, options, models.device)
        if reason:
            row.variants[name] = Variant(skipped=reason)
            del calls[name]
    compiled = [name for name in calls if row.compiled and name != PLAIN]
    before = _peaks(models, options)
    try:
        for name in compiled:
            calls[name]()  # compiles
        timings = measure_together(
            calls, models.device, repeats=options.repeats, budget=options.budget_seconds, uncounted=compiled
        )
    except (RuntimeError, MemoryError) as error:  # no compiler, not enough memory
        line = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        row.variants |= {name: Variant(skipped=line[:200]) for name in calls}
        return
    peaks = _best(before, _peaks(models, options))
    row.matmul_peak, row.convolution_peak = peaks.matmul, peaks.convolution
    for name, timing in timings.items():
        row.variants[name] = Variant(seconds=timing.seconds, gflop=timing.gflop, peak_bytes=timing.peak_bytes)
    if row.compiled:
        _count_as_eager(row, results.find((row.operation, row.preset, row.batch, row.dtype, False)))


def _peaks(models: Models, options: Options) -> Peaks:
    problems = CUDA_PROBLEMS if models.device.type == "cuda" else CPU_PROBLEMS
    if options.quick:
        problems = QUICK_PROBLEMS
    return measure_peaks(models.device, models.dtype, problems, seconds=options.peak_seconds)


def _best(one: Peaks, other: Peaks) -> Peaks:
    return Peaks(max(one.matmul, other.matmul), max(one.convolution, other.convolution))


def _count_as_eager(row: Row, eager: Row | None) -> None:
    """Take the arithmetic of compiled forms from the eager row, since torch cannot count it."""
    for name, variant in row.variants.items():
        if name != PLAIN and variant.seconds:
            variant.gflop = eager.variants[name].gflop if eager is not None and name in eager.variants else None


def _too_much(row: Row, name: str, one: Row | None, options: Options, device: torch.device) -> str:
    """Return why a form is too expensive, estimated from the row of the smallest batch; empty if it is not."""
    if one is None or name not in one.variants or not one.variants[name].seconds:
        return ""
    factor, measured = row.batch / one.batch, one.variants[name]
    if factor * measured.median > options.limit_seconds:
        return f"about {factor * measured.median:.0f} s a run ({factor:g} times batch {one.batch})"
    available = available_bytes(device)
    if measured.peak_bytes and available and factor * measured.peak_bytes > MEMORY_SHARE * available:
        return f"about {factor * measured.peak_bytes / 1e9:.0f} GB of memory ({factor:g} times batch {one.batch})"
    return ""


def _print_row(console: Console, row: Row) -> None:
    for name, variant in row.variants.items():
        if variant.skipped:
            console.print(f"{row.name} {name}: skipped, {variant.skipped}", highlight=False, soft_wrap=True)
            continue
        parts = [f"{variant.median:.4g} s ({len(variant.seconds)} runs)"]
        ratio, share = row.ratio(name), row.share_of_convolution_peak(name)
        if name != PLAIN and ratio is not None:
            parts.append(f"{ratio:.2f}x plain")
        if share is not None:
            parts.append(f"{share:.0%} of the convolution peak")
        if variant.peak_bytes is not None:
            parts.append(f"{variant.peak_bytes / 1e6:.0f} MB")
        console.print(f"{row.name} {name}: {', '.join(parts)}", highlight=False, soft_wrap=True)
