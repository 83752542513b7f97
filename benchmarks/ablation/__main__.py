"""Measure the value of each choice of our recipe, one change at a time.

    python -m benchmarks.ablation --dataset puppets --data data/puppets --autoencoder runs/stage1 --out runs/ablation

Stage-2 rows share the given stage 1 and its cached motion, sampling rows share `--sampling-model` (by default the base row's
model), and stage-1 rows train for equal time. The same command resumes. `--only` selects stages or groups (`stage2`, `together`,
`seeds`, `codec`, `sampling`, `stage1`); when several processes share a group, first let one of them finish `--only plan-stage2`
(or `plan-stage1`). Writes all finished rows to benchmarks/results/ablation-DATASET.json and docs/ablation.md. Groups without a
finished row here are kept as stored, so that groups can be measured separately.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

from benchmarks.ablation.ablation import AblationSettings, ablate
from benchmarks.ablation.document import render, with_earlier_groups
from benchmarks.experiment.tables import RESULTS_DIR, write_results
from lfdm.config.presets import get_preset
from lfdm.errors import UserError
from lfdm.evaluation.settings import EvaluationConfig

DOCUMENT = Path("docs/ablation.md")


@dataclass(frozen=True, kw_only=True)
class Ablate:
    """Options of the ablation; the same command resumes."""

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
    """VGG-16 (safetensors) or VGG-19 (torchvision) for the row with a perceptual loss; without it the row is skipped."""
    sampling_model: str | None = None
    """Bundled name, pipeline or run folder for the sampling rows, such as a fully trained model; by default the base row's."""
    num_clips: int | None = 480
    """Number of held-out clips for every evaluation."""
    only: tuple[str, ...] = ()
    """Stages or groups to run; by default all."""
    threads: int = 1
    """Number of torch threads."""
    device: str = "cpu"
    """Device for sampling and evaluation; training uses the GPU if there is one."""
    results: Path = RESULTS_DIR
    """Folder of stored results."""
    document: Path = DOCUMENT
    """Markdown file for the tables of all stored results."""


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
        command.document.write_text(render(command.results))
    except (UserError, OSError) as error:
        sys.exit(f"ablation: {error}")


if __name__ == "__main__":
    main()
