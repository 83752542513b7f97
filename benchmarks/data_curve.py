"""Measure how much data a model needs: one recipe on more and more clips, and on more and more subjects.

    lfdm data puppets --out data/curve --num-subjects 120 --test-fraction 0.1667 --seed 11
    python -m benchmarks.data_curve --dataset puppets --data data/curve --autoencoder puppets64 --out runs/data-curve

Every row trains both stages, or stage 2 with one --autoencoder, on part of the training clips and is evaluated on held-out
clips, by one classifier. Rows of clips have all labels equally often; rows of subjects have all clips of some subjects; each part
contains the smaller ones. A row is trained twice: for equal steps (those of the preset, or --num-steps), and for equal epochs
(those of the largest row). Every training has a run folder. The same command goes on after it was stopped, at any time;
`--only` selects rows such as clips-100-steps, so that several machines can share them. After every row it writes
benchmarks/results/data-curve-DATASET.json, docs/how-much-data.md with a figure, and, for puppets, what `--plan` reads.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro

from benchmarks.experiment.evaluation import shortened
from benchmarks.experiment.stages import Stage, StageFolder
from benchmarks.experiment.tables import RESULTS_DIR, number, read_results, summarize, table, with_interval, write_results
from benchmarks.speed.measuring import device_name
from lfdm.config.presets import PRESETS, Preset, get_preset
from lfdm.data.index import ClipRecord, link_clips, read_index
from lfdm.errors import UserError
from lfdm.evaluation.protocol import evaluate
from lfdm.evaluation.settings import EvaluationConfig
from lfdm.folders.files import replace_folder
from lfdm.training.expectation import CURVE_PATH
from lfdm.training.stage1 import train_autoencoder
from lfdm.training.stage2 import train_diffusion

CLIPS = (25, 50, 100, 200, 400, 800)
SUBJECTS = (5, 10, 20, 40)
DOCUMENT = Path("docs/how-much-data.md")

INTRODUCTION = """# How much data?

Rendered by `python -m benchmarks.data_curve`: one recipe trained on more and more clips, and on more and more subjects, and
evaluated on subjects of whom no training has seen anything. *Equal steps* costs every row the same; *equal epochs* shows every
clip of every row equally often, so that small rows are trained shortly. Rows of clips draw them from all training subjects, with
all labels equally often; rows of subjects have all clips of some. Action accuracy is the share of generated videos whose
requested action a classifier recognises; identity, the share whose subject a network recognises.
"""

Unit = Literal["clips", "subjects"]
Regime = Literal["steps", "epochs"]


@dataclass(frozen=True)
class Row:
    """A model of the curve."""

    unit: Unit
    count: int
    regime: Regime
    num_clips: int
    stage1_steps: int
    """0 for rows that share a stage 1."""
    stage2_steps: int

    @property
    def name(self) -> str:
        """Name of its stages and folders."""
        return f"{self.unit}-{self.count}-{self.regime}"


def order_clips(records: Sequence[ClipRecord], seed: int = 0) -> list[ClipRecord]:
    """Return clips in a random order whose first n clips, for any n, have all labels about equally often."""
    rng, by_label = np.random.default_rng(seed), dict[str, list[ClipRecord]]()
    for index in rng.permutation(len(records)):
        by_label.setdefault(records[index].label, []).append(records[index])
    rounds = zip_longest(*(by_label[label] for label in sorted(by_label)))
    return [record for record in chain.from_iterable(rounds) if record is not None]


def choose_clips(records: Sequence[ClipRecord], unit: Unit, count: int, seed: int = 0) -> list[ClipRecord]:
    """Return `count` training clips, or those of `count` training subjects; a larger count contains those of a smaller one."""
    train = [record for record in records if record.split == "train"]
    if unit == "clips":
        return order_clips(train, seed)[:count]
    subjects = sorted({record.subject for record in train})
    chosen = {subjects[index] for index in np.random.default_rng(seed).permutation(len(subjects))[:count]}
    return [record for record in train if record.subject in chosen]


def plan_rows(
    records: Sequence[ClipRecord], preset: Preset, clips: Sequence[int], subjects: Sequence[int], *, share_stage1: bool = False
) -> list[Row]:
    """Return the rows that the data set is large enough for, those of equal steps first.

    Raises:
        UserError: a data set too small for any row.
    """
    train = [record for record in records if record.split == "train"]
    available = {"clips": len(train), "subjects": len({record.subject for record in train})}
    least = {"clips": len({record.label for record in train}), "subjects": 1}  # evaluation needs every label
    stages = (preset.autoencoder_training, preset.diffusion_training)
    steps = [stage.optimization.num_steps for stage in stages]
    if share_stage1:
        steps[0] = 0
    rows: list[Row] = []
    units: tuple[tuple[Unit, Sequence[int]], ...] = (("clips", clips), ("subjects", subjects))
    for unit, counts in units:
        sizes = {
            count: len(choose_clips(records, unit, count)) for count in sorted(counts) if least[unit] <= count <= available[unit]
        }
        for count, size in sizes.items():
            share = size / max(sizes.values())
            rows.append(Row(unit, count, "steps", size, *steps))
            if share < 1:
                rows.append(Row(unit, count, "epochs", size, *(max(round(num * share), min(num, 1)) for num in steps)))
    if not rows:
        raise UserError(f"the data set has {available['clips']} training clips of {available['subjects']} subjects; no row fits")
    return sorted(rows, key=lambda row: row.regime, reverse=True)


class DataCurve:
    """A curve in the folder `out`."""

    def __init__(
        self,
        data: Path,
        out: Path,
        preset: Preset,
        rows: Sequence[Row],
        evaluation: EvaluationConfig,
        device: torch.device,
        autoencoder: str | None = None,
    ) -> None:
        self.data, self.out, self.preset, self.rows, self.autoencoder = data, out, preset, rows, autoencoder
        self.evaluation, self.device = evaluation, device
        self.folder = StageFolder(out)

    def stages(self) -> Iterator[Stage]:
        """Yield the stages of all rows."""
        for row in self.rows:
            first, second = f"stage1-{row.name}", f"stage2-{row.name}"
            if self.autoencoder is None:
                yield Stage(first, lambda row=row: self.train_stage1(row), group=row.name)
            needs = (first,) if self.autoencoder is None else ()
            yield Stage(second, lambda row=row: self.train_stage2(row), needs, row.name)
            yield Stage(f"evaluate-{row.name}", lambda row=row: self.evaluate(row), (second,), row.name)

    def row_data(self, row: Row) -> Path:
        """Return the data set of a row, which rows of the same clips share."""
        folder = self.out / "data" / f"{row.unit}-{row.count}"
        if not folder.is_dir():
            chosen = choose_clips(read_index(self.data), row.unit, row.count)
            replace_folder(folder, lambda temporary: link_clips(self.data, temporary, chosen))
        return folder

    def train_stage1(self, row: Row) -> dict[str, Any]:
        """Train stage 1 of a row."""
        preset = shortened(self.preset, "autoencoder_training", row.stage1_steps)
        train_autoencoder(preset, self.row_data(row), self.out / "stage1" / row.name)
        return {"num_steps": row.stage1_steps}

    def train_stage2(self, row: Row) -> dict[str, Any]:
        """Train stage 2 of a row."""
        preset = shortened(self.preset, "diffusion_training", row.stage2_steps)
        autoencoder = self.autoencoder or self.out / "stage1" / row.name
        train_diffusion(preset, self.row_data(row), autoencoder, self.out / "stage2" / row.name)
        return {"num_steps": row.stage2_steps}

    def evaluate(self, row: Row) -> dict[str, Any]:
        """Evaluate a row on the held-out clips of the whole data set."""
        out = self.out / "evaluations" / row.name
        return summarize(evaluate(self.out / "stage2" / row.name, self.data, out, self.evaluation, device=self.device))

    def results(self) -> list[dict[str, Any]]:
        """Return the finished rows."""
        done = [row for row in self.rows if self.folder.done(f"evaluate-{row.name}")]
        return [vars(row) | self.folder.result(f"evaluate-{row.name}") for row in done]


def render(results: Sequence[dict[str, Any]]) -> str:
    """Return the page with a table of every stored data set and regime."""
    text = INTRODUCTION
    for result in results:
        fixed = f"; stage 1 of all rows is that of {result['autoencoder']}" if result["autoencoder"] else ""
        title = f"\n## {result['dataset']}: preset {result['preset']}, {result['device']}{fixed}\n\n"
        header = ["training data", "trained for equal", "clips", "steps, stage 1 / 2", "action accuracy", "distance", "identity"]
        rows = [
            [
                f"{row['count']} {row['unit']}",
                row["regime"],
                str(row["num_clips"]),
                f"{row['stage1_steps']} / {row['stage2_steps']}",
                number(row["action_accuracy"], 3),
                with_interval(row["distance"]),
                number(row["identity"], 3),
            ]
            for row in result["rows"]
        ]
        text += title + table(header, rows) + f"\n![Accuracy and identity by training data]({figure_path(result['dataset'])})\n"
    return text


def figure_path(dataset: str) -> Path:
    """Return the path of a figure relative to the page."""
    return Path("images") / f"how-much-data-{dataset}.png"


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw action accuracy and identity against the number of clips and of subjects."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, unit in zip(axes, ("clips", "subjects"), strict=True):
        for measure, marker in (("action_accuracy", "o"), ("identity", "s")):
            for regime, line in (("steps", "-"), ("epochs", ":")):
                rows = [row for row in result["rows"] if (row["unit"], row["regime"]) == (unit, regime)]
                known = [(row["count"], row[measure]) for row in rows if row[measure] is not None]
                if known:
                    axis.plot(*zip(*known, strict=True), line + marker, label=f"{measure.replace('_', ' ')}, equal {regime}")
        axis.set(xlabel=f"training {unit}", xscale="log", ylim=(0, 1.02))
        counts = sorted({row["count"] for row in result["rows"] if row["unit"] == unit})
        axis.set_xticks(counts, [str(count) for count in counts])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Options; the same command resumes."""

    dataset: str
    """Name of the data set, for the results."""
    data: Path
    """Clip data set."""
    out: Path
    """Folder of runs, evaluations and finished stages."""
    autoencoder: str | None = None
    """Stage 1 of all rows, which then cost stage 2 only; by default each row trains its own."""
    preset: str = "flow64"
    """Configuration of all rows."""
    clips: tuple[int, ...] = CLIPS
    """Numbers of training clips."""
    subjects: tuple[int, ...] = SUBJECTS
    """Numbers of training subjects."""
    num_steps: int | None = None
    """Steps of stage 1 and of stage 2 in rows of equal steps; by default the preset's."""
    num_clips: int | None = 256
    """Held-out clips of every evaluation."""
    only: tuple[str, ...] = ()
    """Rows or stages to run; by default all."""
    threads: int = 1
    """Number of torch threads."""
    device: str = "cpu"
    """Device of evaluations; trainings use the GPU if there is one."""
    results: Path = RESULTS_DIR
    """Folder of stored results."""
    document: Path = DOCUMENT
    """Markdown file for the tables of all stored results, next to `images`."""
    expectations: Path = CURVE_PATH
    """File of the curve that `lfdm train --plan` reads, written for the data set `puppets`."""


def measure(options: Measure, preset: Preset, evaluation: EvaluationConfig) -> None:
    """Train and evaluate the selected rows that are not finished, and write what is."""
    if options.num_steps is not None:
        for training in ("autoencoder_training", "diffusion_training"):
            preset = shortened(preset, training, options.num_steps)
    records, shared = read_index(options.data), options.autoencoder is not None
    rows = plan_rows(records, preset, options.clips, options.subjects, share_stage1=shared)
    device = torch.device(options.device)
    curve = DataCurve(options.data, options.out, preset, rows, evaluation, device, options.autoencoder)
    description = {"dataset": options.dataset, "preset": preset.name, "autoencoder": options.autoencoder}
    description |= {"device": device_name(device), "num_labels": len({record.label for record in records})}
    write = partial(store, curve, description, options)
    curve.folder.run(list(curve.stages()), options.only, say=lambda line: print(line, flush=True), after=write)
    write()


def store(curve: DataCurve, description: dict[str, Any], options: Measure) -> None:
    """Write the finished rows as JSON, table and figure; without any, nothing."""
    if not (finished := curve.results()):
        return
    result = description | {"rows": finished}
    write_results(result, options.results / f"data-curve-{options.dataset}.json")
    options.document.write_text(render(read_results(options.results, "data-curve-")))
    draw(result, options.document.parent / figure_path(options.dataset))
    if options.dataset == "puppets":
        kept = ("unit", "count", "regime", "action_accuracy")
        rows = [{name: row[name] for name in kept} for row in finished]
        write_results({"num_labels": result["num_labels"], "rows": rows}, options.expectations)


def main() -> None:
    """Run the command line."""
    options = tyro.cli(Measure, description=__doc__)
    torch.set_num_threads(options.threads)
    try:
        if options.preset not in PRESETS:
            raise UserError(f"preset must be one of {', '.join(PRESETS)}; got {options.preset!r}")
        measure(options, get_preset(options.preset), EvaluationConfig(num_clips=options.num_clips, num_diversity_clips=0))
    except (UserError, OSError) as error:
        sys.exit(f"data_curve: {error}")


if __name__ == "__main__":
    main()
