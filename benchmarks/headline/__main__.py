"""The paper's claim on data that anybody can have: motion in a latent flow space against pixels and frame latents, at equal cost.

    python -m benchmarks.headline --dataset puppets --out runs/headline-puppets
    python -m benchmarks.headline --dataset lpc --sheets Universal-LPC-spritesheet --out runs/headline-lpc

Makes the data, plans, trains and judges everything, and writes benchmarks/results/headline-DATASET.json and docs/headline.md. The
same command goes on where it was stopped. With `--only` it runs some stages alone (a method's name, or `plan`, `speed`), so that
several cores can share the work: run `--only plan` first.
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
    """Train and judge our method and the baselines; the same command resumes."""

    dataset: Literal["puppets", "lpc"]
    """Data."""
    out: Path
    """Folder of runs, evaluations and finished stages."""
    data: Path | None = None
    """Clip data set; by default OUT-data beside OUT, made first: 360 puppets, or 300 LPC characters."""
    sheets: Path | None = None
    """LPC sprite sheets, to make the LPC data from."""
    methods: tuple[str, ...] = ("ours", "vdm", "ldm", "copy", "nearest")
    """What is compared; vdm-folded is one more that can be asked for."""
    equal: Literal["time", "clips"] = "time"
    """Equal training time, or equally many clips seen by every diffusion network."""
    budget_minutes: float = 60.0
    """Training time of each method: processor minutes, or minutes where there is a GPU."""
    first_stage_share: float = 0.4
    """Part of it for the first of two stages."""
    clips_seen: int = 0
    """With equal='clips'."""
    num_clips: int | None = 320
    """Held-out clips that all are judged on."""
    only: tuple[str, ...] = ()
    """Methods or stages to run; by default all."""
    threads: int = 1
    """Threads of torch."""
    device: str = "cpu"
    """Of sampling and judging; training takes the GPU if there is one."""
    results: Path = RESULTS_DIR
    """Folder of stored results."""
    document: Path = field(default_factory=lambda: DOCUMENT)
    """The table of all stored results."""


def main() -> None:
    """Run the command line."""
    try:
        run_headline(tyro.cli(Headline, description=__doc__))
    except (UserError, OSError) as error:
        sys.exit(f"headline: {error}")


def run_headline(command: Headline) -> None:
    """Everything that the command asks for."""
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
    """The data set of the preset, made on the first call."""
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
