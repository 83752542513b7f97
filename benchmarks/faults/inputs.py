"""Wrong input: generated command lines, damaged files and calls of the Python interface."""

import json
import os
import shutil
import socket
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from benchmarks.faults.calls import calls, evaluate
from benchmarks.faults.campaign import Campaign
from benchmarks.faults.commands import PREPARATION, damaged_files, words
from benchmarks.faults.damage import apply
from benchmarks.faults.samples import write_samples
from benchmarks.faults.trial import MAX_MEGABYTES, MAX_SECONDS, Ending, run_call, run_words
from lfdm.errors import UserError
from lfdm.pipeline.pipeline import LatentFlowPipeline

_ALL_CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much, HealthCheck.large_base_example]
Case = dict[str, Any]
"""JSON: `words` of a command line, perhaps with `damages` of a `file`; or a `call`."""


def run(
    num_cases: int = 2000, seed: int = 0, only: tuple[int, ...] = (), repeat: str | None = None, num_workers: int = 4
) -> Campaign:
    """Try wrong input.

    Args:
        num_cases: Number of cases.
        seed: Seed of the cases. The same seed, number and version of Hypothesis give the same cases.
        only: Numbers of the cases to run, as failures name them; by default all.
        repeat: One case as JSON, as failures have it, to run instead.
        num_workers: Cases at a time.
    """
    campaign = Campaign(
        name="inputs",
        promise=f"No input ends in a traceback, takes for over {MAX_SECONDS} s or {MAX_MEGABYTES} MB above the idle process.",
        aim="0 tracebacks, hangs and excesses of memory",
    )
    os.environ["HF_HUB_OFFLINE"] = "1"  # names of the Hub must not be looked up
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        port = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        samples = Path(folder) / "samples"
        prepare(samples)
        names = sorted(path.relative_to(samples).as_posix() for path in samples.rglob("*") if path.is_file())
        cases = [json.loads(repeat)] if repeat is not None else make_cases(names, num_cases, seed)
        pipe = LatentFlowPipeline.from_pretrained(samples / "model")
        pipe.set_progress_bar_config(disable=True)
        peak, slowest, refused = 0.0, 0.0, 0
        chosen = [(index, case) for index, case in enumerate(cases) if not only or index in only]

        def attempt(numbered: tuple[int, Case]) -> Ending:
            return try_case(*numbered, samples=samples, pipe=pipe, port=port)

        pool = stack.enter_context(ThreadPoolExecutor(num_workers))
        for (index, case), ending in zip(chosen, pool.map(attempt, chosen), strict=True):
            held = campaign.expect(_kind(case), f"{index}: {json.dumps(case)}", not ending.fault(), ending.fault())
            if not held:
                print(f"{index}: {json.dumps(case)}\n{ending.fault()}\n", flush=True)
            peak, slowest, refused = max(peak, ending.megabytes), max(slowest, ending.seconds), refused + ending.refused
    campaign.figures = {
        "seed": seed,
        "refused": refused,
        "most memory, MB": round(peak),
        "most processor time, s": round(slowest, 1),
    }
    return campaign


def prepare(samples: Path) -> None:
    """Write the samples, and the results of short trainings and an evaluation."""
    write_samples(samples)
    for line in PREPARATION:
        ending = run_words(line.split(), samples)
        if ending.code:
            raise UserError(f"the valid command {line!r} fails: {ending.output}")


def make_cases(names: Sequence[str], num_cases: int, seed: int) -> list[Case]:
    """Draw cases: two fifths command lines, two fifths damaged files, one fifth calls."""
    cases: list[Case] = []
    line, file, call = words(), damaged_files(list(names)), calls()

    @seeded(seed)
    @settings(max_examples=num_cases, phases=[Phase.generate], database=None, deadline=None, suppress_health_check=_ALL_CHECKS)
    @given(st.one_of(line, line, file, file, call))
    def draw(case: Case) -> None:
        cases.append(case)

    draw()
    return cases


def try_case(index: int, case: Case, *, samples: Path, pipe: LatentFlowPipeline, port: int) -> Ending:
    """Run one case in its own copy of the samples; `port` is in use."""
    folder = samples.with_name(f"case-{index}")
    shutil.copytree(samples, folder)
    try:
        for damage in case.get("damages", ()):
            apply(folder / case["file"], damage)
        if "call" in case:
            return run_call(lambda: evaluate(case["call"], pipe), folder)
        # a command line of Linux is bytes without zeros; half a surrogate pair stands for a byte that is no text
        port_words = ["--port", str(port)] if case["words"][:1] == ["serve"] else []  # else it would serve
        line = [os.fsdecode(word.encode("utf-8", "surrogatepass")).replace("\0", "") for word in case["words"]] + port_words
        return run_words([word.replace("{taken}", str(port)) for word in line], folder)
    finally:
        shutil.rmtree(folder)


def _kind(case: Case) -> str:
    if "call" in case:
        return "call " + case["call"].partition("(")[0]
    group = " ".join(case["words"][:2]) if case["words"][:1] in (["data"], ["train"]) else "".join(case["words"][:1])
    return f"file .{case['file'].rpartition('.')[2]}" if "file" in case else f"lfdm {group[:20]}"
