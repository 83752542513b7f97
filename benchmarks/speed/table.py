"""Render the performance tables from the stored results: calls in the README, all rows in docs/performance.md.

python -m benchmarks.speed tables            # print both
python -m benchmarks.speed tables --update   # write them
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.experiment.tables import RESULTS_DIR, ROOT, table
from benchmarks.speed import aims_table, calls_table, scaling_table, startup
from benchmarks.speed.records import PLAIN, Results, Row, Variant
from lfdm.config.video import Size
from lfdm.errors import UserError

README, DOCUMENT = ROOT / "README.md", ROOT / "docs" / "performance.md"
START, END = "<!-- performance: rendered by python -m benchmarks.speed tables -->", "<!-- end of performance -->"
DTYPES = ("float32", "bfloat16")
FORMS = {
    ("unet_step", "fast"): "U-Net step",
    ("guidance_step", "fast"): "guidance step",
    ("encode", "fast"): "encode the image",
    ("decode", "fast"): "decode all frames",
    ("extract", "fast"): "extract all frames' motion",
    ("generate_4", "fast"): "generate, 4 steps",
    ("generate_10", "fast"): "generate, 10 steps",
    ("generate_20", "fast"): "generate, 20 steps",
    ("stage2_step", "fast"): "stage-2 training step, cached motion",
    ("stage2_step", "checkpointed"): "the same with activation checkpointing",
    ("stage2_step", "uncached"): "stage-2 training step, motion estimated",
    ("stage1_step", "fast"): "stage-1 training step",
}
OPERATIONS = tuple(dict.fromkeys(operation for operation, _ in FORMS))
HEAD = (
    "what",
    "type",
    "time",
    "plain",
    "ratio",
    "to float32 plain",
    "GFLOP/s",
    "of the convolution peak",
    "of the matmul peak",
    "memory",
)
DOCUMENT_HEAD = """# Performance

Rendered from `benchmarks/results/speed-*.json` by `python -m benchmarks.speed tables --update`.
[log.md](log.md) has the trials behind these figures.

*Plain* is the textbook form with the same weights, measured in turns with ours. *Ratio* is the speed-up over the plain form in
the same dtype, *to float32 plain* that over the plain form in float32. GFLOP/s count the arithmetic that our form needs; peak
rates were measured in the same minute. Memory is the peak of a call above weights and, in training, gradients, optimizer state
and average.
"""


# -------------------------------------------------------------------------------------------------------- the document


def render_full(devices: Sequence[Results]) -> str:
    """Render every stored row of every device, and training and start-up where measured."""
    parts = [DOCUMENT_HEAD, calls_table.render(), aims_table.render(devices), scaling_table.render()]
    return "\n".join([*parts, *(_section(results) for results in devices)])


def _section(results: Results) -> str:
    parts = [f"## {results.device}\n\n{_versions(results)}\n"]
    for preset, batch in sorted({(row.preset, row.batch) for row in results.rows}):
        rows = [row for row in results.rows if (row.preset, row.batch) == (preset, batch)]
        rows.sort(key=lambda row: (row.compiled, DTYPES.index(row.dtype), OPERATIONS.index(row.operation)))
        cells = [cells for row in rows for cells in _row_cells(row, results)]
        if cells:
            parts.append(f"### {preset}, batch {batch}\n\n{table(HEAD, cells)}")
    return "\n".join([*parts, *_throughput(results), *_startup(results)])


def _row_cells(row: Row, results: Results) -> Iterator[Sequence[str]]:
    plain = row.variants.get(PLAIN)
    for name, variant in row.variants.items():
        if name == PLAIN or not variant.seconds:
            continue
        yield (
            FORMS.get((row.operation, name), f"{row.operation}, {name}"),
            row.dtype + (", compiled" if row.compiled else ""),
            _time(variant),
            _time(plain) if plain is not None else "",
            _number(row.ratio(name), ".1f", "x"),
            _number(_float32_ratio(row, variant, results), ".1f", "x"),
            _number(row.rate(name), ".0f"),
            _number(_percent(row.share_of_convolution_peak(name)), ".0f", " %"),
            _number(_percent(row.share_of_matmul_peak(name)), ".0f", " %"),
            _number(None if variant.peak_bytes is None else variant.peak_bytes / 1e6, ".0f", " MB"),
        )


def _throughput(results: Results) -> list[str]:
    if not results.throughput:
        return []
    rows = []
    for entry in results.throughput:
        waits = entry["synchronisations_per_step"]
        rows.append(
            (
                f"{entry['stage']}, {entry['preset']}, {Size.parse(entry['image_size'])}"
                + (", gradient checkpointing" if entry["gradient_checkpointing"] else ""),
                str(entry["batch"]),
                f"{entry['steps_per_second']:.3g}",
                f"{100 * entry['share_waiting_for_loader']:.1f} %",
                "not applicable" if waits is None else f"{waits:.2f}",
            )
        )
    head = ("stage", "batch", "steps/s", "waiting for the loader", "host synchronisations per step")
    return [f"### Training\n\n{table(head, rows)}"]


def _startup(results: Results) -> list[str]:
    """Render the time of every command, and its processor time against that of importing torch in the same turns."""
    measured = results.startup
    if not measured:
        return []
    processor, rows = measured["processor_seconds"], []
    for name, runs in measured["seconds"].items():
        above, ratio = startup.above_baseline(processor, name), startup.ratio_to_baseline(processor, name)
        used = statistics.median(processor[name])
        rows.append((f"`{name}`", f"{statistics.median(runs):.2f} s", f"{used:.2f} s", f"{above:+.2f} s", f"{ratio:.2f}x"))
    heads = ("command", "time", "processor time", "above `import torch`", "ratio to `import torch`")
    conditions = (
        f"Load average of the machine: {measured['load']:.0f}. The last two columns compare processor time in the same turn."
    )
    return [f"### Start-up\n\n{conditions}\n\n{table(heads, rows)}"]


# ------------------------------------------------------------------------------------------------------- parts of both


def _versions(results: Results) -> str:
    return ", ".join(f"{name} {version}" for name, version in results.software.items() if name == "torch")


def _float32_ratio(row: Row, variant: Variant, results: Results) -> float | None:
    """Return the speed-up over the eager plain form in float32."""
    in_float32 = results.find((row.operation, row.preset, row.batch, "float32", False))
    plain = None if in_float32 is None else in_float32.variants.get(PLAIN)
    return plain.median / variant.median if plain is not None and plain.seconds else None


def _time(variant: Variant) -> str:
    if not variant.seconds:
        return "not run"
    text = f"{1e3 * variant.median:.3g} ms" if variant.median < 1 else f"{variant.median:.3g} s"
    return text + (" (1 run)" if len(variant.seconds) == 1 else "")


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else format(value, form) + unit


def read_devices(folder: Path = RESULTS_DIR) -> list[Results]:
    """Read the results of all devices, in order of file name."""
    return [Results.load(path) for path in sorted(folder.glob("speed-*.json"))]


def between_markers(readme: str) -> str:
    """Return the text between the two markers; UserError unless each appears once, in order."""
    before, start, rest = readme.partition(START + "\n")
    middle, end, after = rest.partition(END)
    if not (start and end) or START in rest or END in before + after:
        raise UserError(f"the README must hold the lines {START!r} and {END!r} once each, in this order")
    return middle


def updated(readme: str, section: str) -> str:
    """Replace the text between the markers of the README by `section`."""
    return readme.replace(f"{START}\n{between_markers(readme)}{END}", f"{START}\n{section}{END}")


@dataclass(kw_only=True)
class Options:
    """Options of the tables."""

    update: bool = False
    """Write README.md and docs/performance.md instead of printing."""


def run(options: Options) -> None:
    """Render the tables."""
    devices = read_devices()
    if options.update:
        README.write_text(updated(README.read_text(), calls_table.render_short()))
        DOCUMENT.write_text(render_full(devices))
    else:
        print(calls_table.render_short(), render_full(devices), sep="\n")
