"""What each choice of our own recipe is worth: one change at a time, with the evaluation as judge.

    python -m benchmarks.ablation --dataset puppets --data data/puppets --autoencoder runs/stage1 --out runs/ablation

Stage-2 rows share the stage 1 that is given and its cached motion; sampling rows share the base row's model, or the one given
as `--sampling-model`; stage-1 rows train for the same time each. The same command goes on where it was stopped. `--only` runs
some stages or groups alone (`stage2`, `together`, `seeds`, `sampling`, `stage1`); where several processes share the rows of a
group, let one of them finish `--only plan-stage2` (or `plan-stage1`) first. Writes benchmarks/results/ablation-DATASET.json and
docs/ablation.md with all rows that are finished; a group of which none is finished here stays as an earlier run left it, so
that groups can be measured apart from each other.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

from benchmarks.ablation.ablation import AblationSettings, ablate
from benchmarks.ablation.document import render, with_earlier_groups
from benchmarks.experiment.tables import RESULTS_DIR, read_results, write_results
from lfdm.config.presets import get_preset
from lfdm.errors import UserError
from lfdm.evaluation.settings import EvaluationConfig

DOCUMENT = Path("docs/ablation.md")


@dataclass(frozen=True, kw_only=True)
class Ablate:
    """Train and judge one change at a time; the same command resumes."""

    dataset: Literal["puppets", "lpc"]
    """Name of the data set, for the results."""
    data: Path
    """Clip data set."""
    autoencoder: str
    """Bundled name, or stage-1 run, model or pipeline folder, that all stage-2 rows share."""
    out: Path
    """Folder of runs, evaluations and finished stages."""
    budget_minutes: float = 25.0
    """Training time of every row: processor minutes, or minutes where there is a GPU."""
    perceptual_weights: Path | None = None
    """VGG-16 (safetensors) or VGG-19 (torchvision) for the row with a perceptual loss, which is left out without."""
    sampling_model: str | None = None
    """Bundled name, pipeline or run folder that the sampling rows share, fully trained say; by default the base row's model."""
    num_clips: int | None = 480
    """Held-out clips that all are judged on."""
    only: tuple[str, ...] = ()
    """Stages or groups to run; by default all."""
    threads: int = 1
    """Threads of torch."""
    device: str = "cpu"
    """Of sampling and judging; training takes the GPU if there is one."""
    results: Path = RESULTS_DIR
    """Folder of stored results."""
    document: Path = DOCUMENT
    """The tables of all stored results."""


def main() -> None:
    """Run the command line."""
    command = tyro.cli(Ablate, description=__doc__)
    torch.set_num_threads(command.threads)
    try:
        settings = AblationSettings(
            preset=get_preset("flow64"),
            data=command.data,
            autoencoder=command.autoencoder,
            budget_minutes=command.budget_minutes,
            evaluation=EvaluationConfig(num_clips=command.num_clips, num_diversity_clips=0),
            perceptual_weights=command.perceptual_weights,
            sampling_model=command.sampling_model,
        )
        results = {"dataset": command.dataset, **ablate(settings, command.out, command.only, device=command.device)}
        stored = command.results / f"ablation-{command.dataset}.json"
        write_results(with_earlier_groups(results, stored), stored)
        command.document.write_text(render(read_results(command.results, "ablation-")))
    except (UserError, OSError) as error:
        sys.exit(f"ablation: {error}")


if __name__ == "__main__":
    main()
