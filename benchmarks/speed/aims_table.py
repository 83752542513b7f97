"""The table of aims: what was wanted, what was measured, and what is missing."""

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.experiment.tables import RESULTS_DIR, read_results, table
from benchmarks.speed import startup
from benchmarks.speed.calls_table import LARGER_CALL, LONG_CALL, PAPER_CALL, PREFIX, SHORT_CALL
from benchmarks.speed.records import Results

PUBLISHED_SECONDS = 48 * 60
"""The published system's time for a video of the paper's size, 1,000 steps on two cores."""
MET = "-"
WHY_SHORT = (
    "4 predictions and 16 decoded frames are 23 GFLOP, 0.18 s at the 130 GFLOP/s of one core's convolutions; the rest are norms, "
    "attention and copies"
)
WHY_LONG = (
    "network and decoding grow with the frames, and windows of 64 frames overlap; the learned codec samples once, its images are "
    "decoded one by one"
)
WHY_PAPER = (
    "4 predictions and decoding are 1,350 GFLOP; 1.9 s need 700 GFLOP/s, more than two of these cores have in float32 "
    "(with AMX in bfloat16: 4.55 s below)"
)
WHY_BFLOAT16 = (
    "AMX makes convolutions seven times as fast, so that norms, softmax, copies and small products take most of the time"
)
HEAD = ("what", "measured", "aim", "what is missing")
Line = tuple[str, str, str, str]


def render(devices: Sequence[Results], folder: Path = RESULTS_DIR) -> str:
    """Render the aims that stored results answer; calls take 4 predictions."""
    rows = [*_calls(folder), *_startup(devices), *_shares_of_peak(devices)]
    return f"## Aims\n\nCalls take 4 predictions of a distilled network.\n\n{table(HEAD, rows)}"


def _calls(folder: Path) -> Iterator[Line]:
    by_device = {results["device"]: results["seconds"] for results in read_results(folder, PREFIX)}
    one = next(calls for device, calls in by_device.items() if device.endswith("1 thread"))
    two = next(calls for device, calls in by_device.items() if device.endswith("2 threads"))
    codecs = read_results(folder, "codecs-")[0]["rows"]
    learned = next(row for name, row in codecs.items() if name.startswith("learned") and "call_16" in row)
    call, motion = (learned[f"{what}_128"] / learned[f"{what}_16"] for what in ("call", "motion"))

    def seconds(calls: dict[str, dict[str, list[float]]], name: str, steps: str = "4") -> float:
        return statistics.median(calls[name][steps])

    short = f"{seconds(one, SHORT_CALL):.2f} s; 1 prediction {seconds(one, SHORT_CALL, '1'):.2f} s"
    longer = f"{seconds(one, LONG_CALL) / seconds(one, SHORT_CALL):.1f}x; `learned64` {call:.1f}x, without images {motion:.1f}x"
    paper = f"{PUBLISHED_SECONDS / seconds(two, PAPER_CALL):.0f}x"
    yield f"{SHORT_CALL}, one core", short, "0.1 s", WHY_SHORT
    yield "128 frames against 16", longer, "4x; 1.25x", WHY_LONG
    yield (
        "motion of 64 frames, `learned64` against `flow64`",
        f"{learned['motion_64'] / codecs['frames']['motion_64']:.2f}x",
        "0.2x",
        MET,
    )
    yield f"{LARGER_CALL}, two cores", f"{seconds(two, LARGER_CALL):.2f} s", "0.5 s", MET
    yield f"{PAPER_CALL}, two cores, against its 48 minutes", paper, "1,500x", WHY_PAPER


def _startup(devices: Sequence[Results]) -> Iterator[Line]:
    for results in devices:
        if results.startup:
            for command, aim in (("from lfdm import LatentFlowPipeline", 0.3), ("lfdm generate, 1 step, 2 frames", 1.0)):
                above = startup.above_baseline(results.startup["processor_seconds"], command)
                yield f"`{command}`, above `import torch`", f"{above:+.2f} s", f"{aim} s", MET


def _shares_of_peak(devices: Sequence[Results]) -> Iterator[Line]:
    aims = {"unet_step": ("U-Net step", 25), "decode": ("decoding", 50)}
    for results in devices:
        rows = [row for row in results.rows if (row.preset, row.dtype, row.compiled) == ("flow64", "bfloat16", False)]
        for operation, (name, aim) in aims.items():
            same = [row for row in rows if row.operation == operation]
            if not same:
                continue
            largest = max(same, key=lambda row: row.batch)
            share = largest.share_of_convolution_peak("fast")
            where = f"{largest.batch} samples of {largest.preset} on {results.device}"
            measured = "-" if share is None else f"{100 * share:.0f} %"
            yield f"{name} in bfloat16, {where}: share of the convolution peak", measured, f"{aim} %", WHY_BFLOAT16
