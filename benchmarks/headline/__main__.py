"""Compare motion in a latent flow space with pixels and frame latents, at equal cost, on data that anybody can make.

    python -m benchmarks.headline --dataset puppets --out runs/headline-puppets
    python -m benchmarks.headline --dataset lpc --sheets Universal-LPC-spritesheet --out runs/headline-lpc

Makes the data, plans, trains and evaluates all methods, and writes benchmarks/results/headline-DATASET.json and docs/headline.md.
The same command resumes. `--only` selects stages (names of methods, `plan`, `speed`), so that several processes can share the
work: run `--only plan` first.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import tyro

from benchmarks.experiment.tables import RESULTS_DIR, read_results, write_results
from benchmarks.headline.comparison import compare
from benchmarks.headline.document import render
from benchmarks.headline.methods import ComparisonSettings
from lfdm.config.presets import get_preset
from lfdm.data.index import CLIP_INDEX_NAME
from lfdm.data.puppets.data_set import write_puppets
from lfdm.data.sprites import write_lpc
from lfdm.errors import UserError
from lfdm.evaluation.settings import EvaluationConfig

DOCUMENT = Path("docs/headline.md")


@dataclass(frozen=True, kw_only=True)
class Headline:
    """Options of the comparison; the same command resumes."""

    dataset: Literal["puppets", "lpc"]
    """Data set to make, and name of the results."""
    out: Path
    """Folder of runs, evaluations and finished stages."""
    data: Path | None = None
    """Clip data set; by default OUT-data, made on the first call: 360 puppets or 300 LPC characters."""
    sheets: Path | None = None
    """Folder of LPC sprite sheets, needed to make the LPC data."""
    methods: tuple[str, ...] = ("ours", "vdm", "ldm", "copy", "nearest")
    """Methods to compare; `vdm-folded` is also available."""
    equal: Literal["time", "clips"] = "time"
    """Equal training time, or an equal number of clips seen by every diffusion network."""
    budget_minutes: float = 60.0
    """Training time of each method: processor minutes, or minutes where there is a GPU."""
    first_stage_share: float = 0.4
    """Share of it for the first of two stages."""
    clips_seen: int = 0
    """Clips per diffusion network with equal='clips'."""
    num_clips: int | None = 320
    """Number of held-out clips for every evaluation."""
    only: tuple[str, ...] = ()
    """Methods or stages to run; by default all."""
    threads: int = 1
    """Number of torch threads."""
    device: str = "cpu"
    """Device for sampling and evaluation; training uses the GPU if there is one."""
    results: Path = RESULTS_DIR
    """Folder of stored results."""
    document: Path = field(default_factory=lambda: DOCUMENT)
    """Markdown file for the tables of all stored results."""


def main() -> None:
    """Run the command line."""
    try:
        run_headline(tyro.cli(Headline, description=__doc__))
    except (UserError, OSError) as error:
        sys.exit(f"headline: {error}")


def run_headline(command: Headline) -> None:
    """Make the data, run the selected stages and write the results."""
    torch.set_num_threads(command.threads)
    data = command.data if command.data is not None else _make_data(command)
    settings = ComparisonSettings(
        preset=get_preset("flow64"),
        data=data,
        methods=command.methods,
        equal=command.equal,
        budget_minutes=command.budget_minutes,
        first_stage_share=command.first_stage_share,
        clips_seen=command.clips_seen,
        evaluation=EvaluationConfig(num_clips=command.num_clips, num_diversity_clips=0),
    )
    comparison = compare(settings, command.out, command.only, device=command.device, say=_say)
    if comparison is not None:
        results = {"dataset": command.dataset, **comparison}
        _say(render([results]))
        name = command.dataset if command.equal == "time" else f"{command.dataset}-equal-clips"
        write_results(results, command.results / f"headline-{name}.json")
        command.document.write_text(render(read_results(command.results, "headline-")))


def _make_data(command: Headline) -> Path:
    """Return the data set, made on the first call."""
    folder = command.out.with_name(f"{command.out.name}-data")
    if (folder / CLIP_INDEX_NAME).is_file():
        return folder
    _say(f"making {folder}")
    if command.dataset == "puppets":
        write_puppets(folder, num_subjects=360, num_takes=2, test_fraction=1 / 6)
    elif command.sheets is None:
        raise UserError("--sheets (a folder of LPC sprite sheets) or --data must be given for lpc")
    else:
        write_lpc(command.sheets, folder, num_characters=300)
    return folder


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
