"""The README's performance section, rendered from the stored results alone.

python benchmarks/performance_table.py            # print it
python benchmarks/performance_table.py --update   # write it between the README's two markers
"""

import argparse
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from records import PLAIN, RESULTS_DIR, Results, Row, Variant

README = Path(__file__).parent.parent / "README.md"
START, END = "<!-- performance: rendered by benchmarks/performance_table.py -->", "<!-- end of performance -->"
SHOWN_BATCH = 1
FORMS = {
    ("stage2_step", "fast"): "stage-2 training step, cached motion",
    ("stage2_step", "checkpointed"): "the same with activation checkpointing",
    ("stage2_step", "uncached"): "stage-2 training step, motion estimated",
    ("stage1_step", "fast"): "stage-1 training step",
    ("unet_step", "fast"): "U-Net step",
    ("guidance_step", "fast"): "guidance step",
    ("encode", "fast"): "encode the image",
    ("decode", "fast"): "decode all frames",
    ("extract", "fast"): "extract all frames' motion",
    ("generate_4", "fast"): "generate, 4 steps",
    ("generate_10", "fast"): "generate, 10 steps",
    ("generate_20", "fast"): "generate, 20 steps",
}
HEAD = (
    "what",
    "preset",
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


def render(results: Results) -> str:
    """One device's section: a table of batch 1, then training and start-up where measured."""
    versions = ", ".join(f"{name} {version}" for name, version in results.software.items() if name == "torch")
    lines = [f"**{results.device}** ({versions}), batch {SHOWN_BATCH}:", ""]
    lines += _table(HEAD, [cells for row in results.rows if row.batch == SHOWN_BATCH for cells in _row_cells(row, results)])
    return "\n".join([*lines, *_throughput_lines(results), *_startup_lines(results)]) + "\n"


def _row_cells(row: Row, results: Results) -> Iterator[Sequence[str]]:
    plain = row.variants.get(PLAIN)
    in_float32 = results.find((row.operation, row.preset, row.batch, "float32", False))
    reference = None if in_float32 is None else in_float32.variants.get(PLAIN)
    for name, variant in row.variants.items():
        if name == PLAIN or not variant.seconds:
            continue
        kind = row.dtype + (", compiled" if row.compiled else "")
        yield (
            FORMS.get((row.operation, name), f"{row.operation}, {name}"),
            row.preset,
            kind,
            _time(variant),
            _time(plain) if plain is not None else "",
            _number(row.ratio(name), ".1f", "x"),
            _number(reference.median / variant.median if reference is not None and reference.seconds else None, ".1f", "x"),
            _number(row.rate(name), ".0f"),
            _number(_percent(row.share_of_convolution_peak(name)), ".0f", " %"),
            _number(_percent(row.share_of_matmul_peak(name)), ".0f", " %"),
            _number(None if variant.peak_bytes is None else variant.peak_bytes / 1e6, ".0f", " MB"),
        )


def _time(variant: Variant) -> str:
    if not variant.seconds:
        return "not run"
    text = f"{1e3 * variant.median:.3g} ms" if variant.median < 1 else f"{variant.median:.3g} s"
    return text + (" (1 run)" if len(variant.seconds) == 1 else "")


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else format(value, form) + unit


def _throughput_lines(results: Results) -> list[str]:
    if not results.throughput:
        return []
    rows = []
    for entry in results.throughput:
        waits = entry["synchronisations_per_step"]
        rows.append(
            (
                f"{entry['stage']}, {entry['preset']}, {entry['image_size']}x{entry['image_size']}",
                str(entry["batch"]),
                f"{entry['steps_per_second']:.3g}",
                f"{100 * entry['share_waiting_for_loader']:.1f} %",
                "not applicable" if waits is None else f"{waits:.2f}",
            )
        )
    head = ("training", "batch", "steps/s", "waiting for the loader", "host synchronisations per step")
    return ["", *_table(head, rows)]


def _startup_lines(results: Results) -> list[str]:
    if not results.startup:
        return []
    rows = [(f"`{name}`", f"{statistics.median(runs):.2f} s") for name, runs in results.startup["seconds"].items()]
    return ["", *_table(("start-up", "time"), rows)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def render_all(folder: Path = RESULTS_DIR) -> str:
    """The sections of all devices, by file name; empty without results."""
    return "\n".join(render(Results.load(path)) for path in sorted(folder.glob("speed-*.json")))


def between_markers(readme: str) -> str:
    """What stands between the two markers; ValueError if they are not there once each, in order."""
    before, start, rest = readme.partition(START + "\n")
    middle, end, after = rest.partition(END)
    if not (start and end) or START in rest or END in before + after:
        raise ValueError(f"the README must hold the lines {START!r} and {END!r} once each, in this order")
    return middle


def updated(readme: str, section: str) -> str:
    """The README with `section` between its markers."""
    return readme.replace(f"{START}\n{between_markers(readme)}{END}", f"{START}\n{section}{END}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="write README.md instead of printing")
    section = render_all()
    if parser.parse_args().update:
        README.write_text(updated(README.read_text(), section))
    else:
        print(section)


if __name__ == "__main__":
    main()
