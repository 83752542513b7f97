"""The rows of an ablation, trained and judged: the stages of `ablation`.

Every training has a run folder OUT/NAME, named as its row, and every evaluation one in OUT/evaluations; both go on where an
earlier call was stopped.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.ablation.document import compare
from benchmarks.ablation.judging import judge_autoencoder
from benchmarks.ablation.rows import (
    AS_SET,
    BASE,
    RAW_WEIGHTS,
    Row,
    SamplingRow,
    sampling_rows,
    seeded,
    stage1_rows,
    stage2_rows,
    together,
)
from benchmarks.experiment.budget import TrainingClock, Trial, measure_steps, steps_within
from benchmarks.experiment.judging import judge, shortened, training_clips
from benchmarks.experiment.stages import Stage, StageFolder
from benchmarks.experiment.tables import summarize
from benchmarks.speed.measuring import device_name
from lfdm.config.presets import Preset
from lfdm.config.serialization import to_json
from lfdm.data.cache import open_cache
from lfdm.data.index import labels
from lfdm.diffusion.process import predicted_by
from lfdm.evaluation.generators import PipelineGenerator
from lfdm.evaluation.loading import file_sha256
from lfdm.evaluation.settings import EvaluationConfig
from lfdm.folders.model_folder import WEIGHTS_NAME, load_exactly, read_json, read_tensors
from lfdm.folders.run_folder import find_checkpoints, find_layout, find_model, prepare_run
from lfdm.folders.sources import INDEX_NAME, find_folder
from lfdm.pipeline.folder import load_scheduler
from lfdm.pipeline.pipeline import LatentFlowPipeline
from lfdm.training.checkpoint import TRAINING_NAME
from lfdm.training.motion_cache import open_motion_cache
from lfdm.training.stage1 import AutoencoderTask, train_autoencoder
from lfdm.training.stage2 import DiffusionTask, train_diffusion

MORE_SEEDS = (1, 2)
NUM_BEST = 2
TRIAL_CLIPS = 16
LATER_GROUPS = ("together", "seeds")
"""Groups of rows that follow from those of stage 2."""


@dataclass(frozen=True, kw_only=True)
class AblationSettings:
    """All that decides the figures."""

    preset: Preset
    data: Path
    autoencoder: str
    budget_minutes: float
    evaluation: EvaluationConfig
    perceptual_weights: Path | None = None
    sampling_model: str | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON values, for the record."""
        weights = str(self.perceptual_weights) if self.perceptual_weights is not None else None
        return {**to_json(self), "data": str(self.data), "perceptual_weights": weights}


class Ablation:
    """An ablation in the folder `out`."""

    def __init__(self, settings: AblationSettings, out: Path, *, device: str = "cpu") -> None:
        self.settings, self.out, self.device = settings, out, device
        self.folder = StageFolder(out)
        self.stage1_rows = stage1_rows(settings.preset, settings.perceptual_weights)
        self.stage2_rows = stage2_rows(settings.preset)
        self.sampling_rows = self._sampling_rows()

    def stages(self) -> list[Stage]:
        """Every stage that is known now: what is better together, and other seeds, once all stage-2 rows are judged."""
        stages = [Stage("plan-stage2", self.plan_stage2, group="stage2")]
        stages += [stage for row in self.stage2_rows for stage in self._stage2_stages(row, "stage2")]
        trained = (f"train-{BASE}",)
        stages.append(Stage(f"evaluate-{RAW_WEIGHTS}", self.evaluate_raw_weights, trained, "stage2"))
        stages += [stage for row in self.together_rows() for stage in self._stage2_stages(row, "together")]
        stages += [stage for row in self.seed_rows() for stage in self._stage2_stages(row, "seeds")]
        needs = trained if self.settings.sampling_model is None else ()
        stages += [
            Stage(f"evaluate-{row.name}", lambda row=row: self.evaluate_sampling(row), needs, "sampling")
            for row in self.sampling_rows
        ]
        stages.append(Stage("plan-stage1", self.plan_stage1, group="stage1"))
        for row in self.stage1_rows:
            name = f"stage1-{row.name}"
            stages.append(Stage(f"train-{name}", lambda row=row: self.train_stage1(row), ("plan-stage1",), "stage1"))
            stages.append(Stage(f"evaluate-{name}", lambda row=row: self.evaluate_stage1(row), (f"train-{name}",), "stage1"))
        return stages

    def _stage2_stages(self, row: Row, group: str) -> list[Stage]:
        train, judged = f"train-{row.name}", f"evaluate-{row.name}"
        return [
            Stage(train, lambda: self.train_stage2(row), ("plan-stage2",), group),
            Stage(judged, lambda: self.evaluate_stage2(row), (train,), group),
        ]

    def together_rows(self) -> list[Row]:
        """All that made the base row better, in one row; none before all are judged."""
        base, *others = [row for row in self.stage2_rows if row.against == BASE]
        distances = self._distances()
        better = [
            row for row in others if compare(distances.get(row.name), distances.get(BASE), more_is_better=False) == "better"
        ]
        return together(base, sorted(better, key=lambda row: distances[row.name]["value"]))

    def seed_rows(self) -> list[Row]:
        """The two best stage-2 rows from other seeds; none before all are judged."""
        distances = self._distances()
        judged = [row for row in self.stage2_rows if row.name in distances]
        best = sorted(judged, key=lambda row: distances[row.name]["value"])[:NUM_BEST]
        return [seeded(row, seed) for row in best for seed in MORE_SEEDS]

    def _distances(self) -> dict[str, dict[str, Any]]:
        """That of every stage-2 row that has one; empty before all are judged."""
        if not all(self.folder.done(f"evaluate-{row.name}") for row in self.stage2_rows):
            return {}
        found = {row.name: self.folder.result(f"evaluate-{row.name}")["distance"] for row in self.stage2_rows}
        return {name: distance for name, distance in found.items() if distance is not None}

    # ---------------------------------------------------------------------------------------------------------- stage 2

    def plan_stage2(self) -> dict[str, Any]:
        """Steps of every stage-2 row: the network is the same in all. Fewer clips per step are as many more steps."""
        preset, data = self.settings.preset, self.settings.data
        clips = training_clips(preset, data)
        with tempfile.TemporaryDirectory(dir=self.out) as scratch:
            few = open_cache(data, clips.records[:TRIAL_CLIPS], preset.image_size, preset.fit, scratch)
            pipeline = LatentFlowPipeline.from_preset(preset, labels(clips.records))
            task = DiffusionTask(pipeline, preset, few, open_motion_cache(pipeline.autoencoder, few))
            seconds = measure_steps([Trial(BASE, task, preset.diffusion_training.optimization)])[BASE]
        return {"step_seconds": seconds, "num_steps": steps_within(60 * self.settings.budget_minutes, seconds, what="a row")}

    def train_stage2(self, row: Row) -> dict[str, Any]:
        """One row's training."""
        settings = self.settings
        num_clips = self.folder.result("plan-stage2")["num_steps"] * settings.preset.diffusion_training.optimization.batch_size
        num_steps = num_clips // row.preset.diffusion_training.optimization.batch_size
        preset = shortened(row.preset, "diffusion_training", num_steps)
        clock = TrainingClock(self.out / row.name)
        train_diffusion(preset, settings.data, settings.autoencoder, self.out / row.name, report=clock)
        return {"seconds": clock.seconds, "num_steps": num_steps}

    def evaluate_stage2(self, row: Row) -> dict[str, Any]:
        """One row judged as its preset samples."""
        run = self.out / row.name
        return self._judge(row.name, PipelineGenerator(self._load(run), name=row.name), run)

    def evaluate_raw_weights(self) -> dict[str, Any]:
        """The base row with the weights of its last step instead of their average."""
        run = self.out / BASE
        pipeline = self._load(run)
        path = find_checkpoints(run)[-1] / TRAINING_NAME
        tensors = read_tensors(path)
        weights = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
        load_exactly(pipeline.unet, weights, str(path))
        return self._judge(RAW_WEIGHTS, PipelineGenerator(pipeline, name=RAW_WEIGHTS), run, raw_weights=True)

    def evaluate_sampling(self, row: SamplingRow) -> dict[str, Any]:
        """The base row's model, or the one given, sampled in another way."""
        generator = PipelineGenerator(
            self._load(self._sampling_folder()),
            name=row.name,
            guidance_scale=row.guidance_scale,
            num_inference_steps=row.num_inference_steps,
            scheduler=row.scheduler,
        )
        return self._judge(row.name, generator, self._sampling_folder())

    def _sampling_rows(self) -> list[SamplingRow]:
        """The ways of sampling that differ from the model's own; a model that is given has a row for its own way, too."""
        if self.settings.sampling_model is None:
            config = self.settings.preset.diffusion
            return sampling_rows(config.guidance_scale, config.prediction_type)
        layout = find_layout(self._sampling_folder())
        own = float(read_json(layout.index / INDEX_NAME)["guidance_scale"])
        rows = sampling_rows(own, predicted_by(load_scheduler(layout.component("scheduler"))), AS_SET)
        return [SamplingRow(AS_SET, "as the model is set", AS_SET), *rows]

    def _sampling_folder(self) -> Path:
        model = self.settings.sampling_model
        return find_folder(model) if model is not None else self.out / BASE

    def _load(self, folder: Path) -> LatentFlowPipeline:
        pipeline = LatentFlowPipeline.from_pretrained(folder, device=self.device)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _judge(self, name: str, generator: PipelineGenerator, run: Path, **more: Any) -> dict[str, Any]:
        settings = self.settings
        description = {"unet_sha256": file_sha256(find_model(run, "unet") / WEIGHTS_NAME), **generator.settings, **more}
        results = judge(
            generator,
            settings.preset,
            settings.data,
            self.out / "evaluations" / name,
            settings.evaluation,
            description,
            device=self.device,
        )
        return {**summarize(results), "seconds_per_video": results["generation"]["seconds_per_video"], "data": results["data"]}

    # ---------------------------------------------------------------------------------------------------------- stage 1

    def plan_stage1(self) -> dict[str, Any]:
        """Steps of every stage-1 row in the same time."""
        preset = self.settings.preset
        clips = training_clips(preset, self.settings.data)
        trials = []
        for row in self.stage1_rows:
            model = LatentFlowPipeline.from_preset(row.preset, ()).autoencoder
            task = AutoencoderTask(model, row.preset.autoencoder_training, clips)
            trials.append(Trial(row.name, task, row.preset.autoencoder_training.optimization))
        seconds = measure_steps(trials)
        budget = 60 * self.settings.budget_minutes
        return {
            "step_seconds": seconds,
            "num_steps": {name: steps_within(budget, value, what=name) for name, value in seconds.items()},
        }

    def train_stage1(self, row: Row) -> dict[str, Any]:
        """One row's training."""
        num_steps = self.folder.result("plan-stage1")["num_steps"][row.name]
        preset = shortened(row.preset, "autoencoder_training", num_steps)
        run = self.out / f"stage1-{row.name}"
        clock = TrainingClock(run)
        train_autoencoder(preset, self.settings.data, run, report=clock)
        return {"seconds": clock.seconds, "num_steps": num_steps}

    def evaluate_stage1(self, row: Row) -> dict[str, Any]:
        """One row's figures on held-out clips."""
        name = f"stage1-{row.name}"
        out = self.out / "evaluations" / name
        settings = self.settings
        return judge_autoencoder(self.out / name, row.preset, settings.data, out, settings.evaluation, device=self.device)

    # ---------------------------------------------------------------------------------------------------------- results

    def collect(self) -> dict[str, Any]:
        """The rows that are finished, by group, each group with all that decided it."""
        members: dict[str, Sequence[Row | SamplingRow]] = {
            "stage2": self.stage2_rows,
            "together": self.together_rows(),
            "seeds": self.seed_rows(),
            "sampling": self.sampling_rows,
            "stage1": self.stage1_rows,
        }
        finished: dict[str, list[dict[str, Any]]] = {}
        for group, rows in members.items():
            prefix = "stage1-" if group == "stage1" else ""
            found = [self._collect_row(row, prefix) for row in rows if self.folder.done(f"evaluate-{prefix}{row.name}")]
            finished[group] = found
        if self.folder.done(f"evaluate-{RAW_WEIGHTS}"):
            raw = {"name": RAW_WEIGHTS, "title": "weights of the last step, not averaged", "against": BASE}
            finished["stage2"].append(raw | self.folder.result(f"evaluate-{RAW_WEIGHTS}"))
        about = {"settings": self.settings.to_json(), "machine": device_name(torch.device(self.device))}
        groups = {
            group: {**about, "weights_sha256": self._hash_shared(group), "rows": rows} for group, rows in finished.items() if rows
        }
        return {"groups": groups}

    def _hash_shared(self, group: str) -> str | None:
        """Of the weights that the rows of a group share: stage 1, or the U-Net that is sampled; None where each has its own."""
        if group == "stage1":
            return None
        if group == "sampling":
            return file_sha256(find_model(self._sampling_folder(), "unet") / WEIGHTS_NAME)
        return file_sha256(find_model(find_folder(self.settings.autoencoder), "autoencoder") / WEIGHTS_NAME)

    def _collect_row(self, row: Row | SamplingRow, prefix: str) -> dict[str, Any]:
        described: dict[str, Any] = {"name": row.name, "title": row.title, "against": row.against}
        if self.folder.done(f"train-{prefix}{row.name}"):
            described["training"] = self.folder.result(f"train-{prefix}{row.name}")
        return described | self.folder.result(f"evaluate-{prefix}{row.name}")


def ablate(
    settings: AblationSettings,
    out: Path,
    only: tuple[str, ...] = (),
    *,
    device: str = "cpu",
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run the stages that are asked for; the results of all rows that are finished."""
    prepare_run(out, settings.to_json())
    ablation = Ablation(settings, out, device=device)
    stages = ablation.stages()
    asked = tuple(name for name in only if name not in LATER_GROUPS)
    if asked or not only:
        ablation.folder.run(stages, asked, say=say)
    later = LATER_GROUPS if not only else tuple(name for name in only if name in LATER_GROUPS)
    ablation.folder.run([stage for stage in ablation.stages() if stage.group in later], say=say)
    return ablation.collect()
