"""Train and evaluate the rows of an ablation.

Every training has the run folder OUT/ROW and every evaluation a folder in OUT/evaluations; both resume.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.ablation.document import compare
from benchmarks.ablation.rows import (
    AS_SET,
    BASE,
    RAW_WEIGHTS,
    Row,
    SamplingRow,
    codec_rows,
    sampling_rows,
    seeded,
    stage1_rows,
    stage2_rows,
    together,
)
from benchmarks.ablation.stage1 import evaluate_autoencoder
from benchmarks.experiment.budget import TrainingClock, Trial, measure_steps, steps_within
from benchmarks.experiment.evaluation import evaluate_at_preset, shortened, training_clips
from benchmarks.experiment.stages import Stage, StageFolder
from benchmarks.experiment.tables import summarize
from benchmarks.speed.measuring import device_name
from lfdm.config.presets import Preset
from lfdm.config.serialization import to_json
from lfdm.data.cache import open_cache
from lfdm.data.index import labels
from lfdm.evaluation.generators import PipelineGenerator
from lfdm.evaluation.settings import EvaluationConfig
from lfdm.folders.files import file_sha256
from lfdm.folders.model_folder import WEIGHTS_NAME, load_exactly, read_json, read_tensors
from lfdm.folders.run_folder import find_checkpoints, find_layout, find_model, prepare_run
from lfdm.folders.sources import INDEX_NAME, find_folder
from lfdm.pipeline.pipeline import LatentFlowPipeline
from lfdm.training.checkpoint import TRAINING_NAME
from lfdm.training.encoded_clips import open_encoded_clips
from lfdm.training.stage1 import AutoencoderTask, train_autoencoder
from lfdm.training.stage2 import DiffusionTask, train_diffusion

MORE_SEEDS = (1, 2)
NUM_BEST = 2
TRIAL_CLIPS = 16
NUM_DIVERSITY_CLIPS = 128
"""Clips that are generated twice where codecs are compared: a motion latent can freeze."""
LATER_GROUPS = ("together", "seeds")
"""Groups whose rows depend on the results of stage 2."""


@dataclass(frozen=True, kw_only=True)
class AblationSettings:
    """Everything that determines the figures."""

    preset: Preset
    data: Path
    autoencoder: str
    budget_minutes: float
    evaluation: EvaluationConfig
    perceptual_weights: Path | None = None
    sampling_model: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return JSON values for the record of the run."""
        weights = str(self.perceptual_weights) if self.perceptual_weights is not None else None
        return {**to_json(self), "data": str(self.data), "perceptual_weights": weights}


class Ablation:
    """An ablation in the folder `out`."""

    def __init__(self, settings: AblationSettings, out: Path, *, device: str = "cpu") -> None:
        self.settings, self.out, self.device = settings, out, device
        self.folder = StageFolder(out)
        self.stage1_rows = stage1_rows(settings.preset, settings.perceptual_weights)
        self.stage2_rows = stage2_rows(settings.preset)
        self.codec_rows = codec_rows(settings.preset)
        self.sampling_rows = self._sampling_rows()

    def stages(self) -> list[Stage]:
        """Return the stages known so far; `together` and `seeds` follow when all stage-2 rows are evaluated."""
        stages = [Stage("plan-stage2", self.plan_stage2, group="stage2")]
        stages += [stage for row in self.stage2_rows for stage in self._stage2_stages(row, "stage2")]
        trained = (f"train-{BASE}",)
        stages.append(Stage(f"evaluate-{RAW_WEIGHTS}", self.evaluate_raw_weights, trained, "stage2"))
        stages += [stage for row in self.together_rows() for stage in self._stage2_stages(row, "together")]
        stages += [stage for row in self.seed_rows() for stage in self._stage2_stages(row, "seeds")]
        stages.append(Stage("plan-codec", self.plan_codec, group="codec"))
        stages += [stage for row in self.codec_rows for stage in self._stage2_stages(row, "codec")]
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
        plan = "plan-codec" if group == "codec" else "plan-stage2"
        return [
            Stage(train, lambda: self.train_stage2(row, self.num_steps(row, plan)), (plan,), group),
            Stage(judged, lambda: self.evaluate_stage2(row), (train,), group),
        ]

    def together_rows(self) -> list[Row]:
        """Return one row with every change that beat the base row; none before all rows are evaluated."""
        base, *others = [row for row in self.stage2_rows if row.against == BASE]
        distances = self._distances()
        better = [
            row for row in others if compare(distances.get(row.name), distances.get(BASE), more_is_better=False) == "better"
        ]
        return together(base, sorted(better, key=lambda row: distances[row.name]["value"]))

    def seed_rows(self) -> list[Row]:
        """Return the two best stage-2 rows with other seeds; none before all rows are evaluated."""
        distances = self._distances()
        judged = [row for row in self.stage2_rows if row.name in distances]
        best = sorted(judged, key=lambda row: distances[row.name]["value"])[:NUM_BEST]
        return [seeded(row, seed) for row in best for seed in MORE_SEEDS]

    def _distances(self) -> dict[str, dict[str, Any]]:
        """Return the distance of every stage-2 row; empty before all rows are evaluated."""
        if not all(self.folder.done(f"evaluate-{row.name}") for row in self.stage2_rows):
            return {}
        found = {row.name: self.folder.result(f"evaluate-{row.name}")["distance"] for row in self.stage2_rows}
        return {name: distance for name, distance in found.items() if distance is not None}

    # ---------------------------------------------------------------------------------------------------------- stage 2

    def plan_stage2(self) -> dict[str, Any]:
        """Plan the steps of the base row; rows with smaller batches take proportionally more steps."""
        seconds = self._measure_steps([self.stage2_rows[0]])[BASE]
        return {"step_seconds": seconds, "num_steps": steps_within(60 * self.settings.budget_minutes, seconds, what="a row")}

    def plan_codec(self) -> dict[str, Any]:
        """Plan the steps of every row that compares codecs for equal time."""
        seconds, budget = self._measure_steps(self.codec_rows), 60 * self.settings.budget_minutes
        return {
            "step_seconds": seconds,
            "num_steps": {name: steps_within(budget, value, what=name) for name, value in seconds.items()},
        }

    def _measure_steps(self, rows: Sequence[Row]) -> dict[str, float]:
        """Return the seconds of a step of each row, which share stage 1."""
        preset, data = self.settings.preset, self.settings.data
        clips = training_clips(preset, data)
        with tempfile.TemporaryDirectory(dir=self.out) as scratch:
            few = open_cache(data, clips.records[:TRIAL_CLIPS], preset.size, preset.fit, scratch)
            trials = []
            for row in rows:
                training = row.preset.diffusion_training
                pipeline = LatentFlowPipeline.from_preset(row.preset, labels(clips.records))
                encoded = open_encoded_clips(pipeline.autoencoder, few, training)
                trials.append(Trial(row.name, DiffusionTask(pipeline, training, few, encoded), training.optimization))
            return measure_steps(trials)

    def num_steps(self, row: Row, plan: str) -> int:
        """Return the steps of a row that `plan` found; rows of stage 2 see the same number of clips."""
        planned = self.folder.result(plan)["num_steps"]
        if isinstance(planned, dict):
            return planned[row.name]
        num_clips = planned * self.settings.preset.diffusion_training.optimization.batch_size
        return num_clips // row.preset.diffusion_training.optimization.batch_size

    def train_stage2(self, row: Row, num_steps: int) -> dict[str, Any]:
        """Train one row."""
        settings = self.settings
        preset = shortened(row.preset, "diffusion_training", num_steps)
        clock = TrainingClock(self.out / row.name)
        train_diffusion(preset, settings.data, settings.autoencoder, self.out / row.name, report=clock)
        return {"seconds": clock.seconds, "num_steps": num_steps}

    def evaluate_stage2(self, row: Row) -> dict[str, Any]:
        """Evaluate one row with the sampling settings of its preset."""
        run = self.out / row.name
        diversity = NUM_DIVERSITY_CLIPS if row in self.codec_rows else 0
        return self._evaluate(row.name, PipelineGenerator(self._load(run), name=row.name), run, num_diversity_clips=diversity)

    def evaluate_raw_weights(self) -> dict[str, Any]:
        """Evaluate the base row with its last weights instead of their average."""
        run = self.out / BASE
        pipeline = self._load(run)
        path = find_checkpoints(run)[-1] / TRAINING_NAME
        tensors = read_tensors(path)
        weights = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
        load_exactly(pipeline.unet, weights, str(path))
        return self._evaluate(RAW_WEIGHTS, PipelineGenerator(pipeline, name=RAW_WEIGHTS), run, raw_weights=True)

    def evaluate_sampling(self, row: SamplingRow) -> dict[str, Any]:
        """Evaluate other sampling settings on the base row's model or the given one."""
        generator = PipelineGenerator(
            self._load(self._sampling_folder()),
            name=row.name,
            guidance_scale=row.guidance_scale,
            num_inference_steps=row.num_inference_steps,
            sampler=row.sampler,
        )
        return self._evaluate(row.name, generator, self._sampling_folder())

    def _sampling_rows(self) -> list[SamplingRow]:
        """Return the sampling rows; a given model also gets a row with its own settings."""
        if self.settings.sampling_model is None:
            config = self.settings.preset.diffusion
            return sampling_rows(config.guidance_scale)
        layout = find_layout(self._sampling_folder())
        own = float(read_json(layout.index / INDEX_NAME)["guidance_scale"])
        rows = sampling_rows(own, AS_SET)
        return [SamplingRow(AS_SET, "as the model is set", AS_SET), *rows]

    def _sampling_folder(self) -> Path:
        model = self.settings.sampling_model
        return find_folder(model) if model is not None else self.out / BASE

    def _load(self, folder: Path) -> LatentFlowPipeline:
        pipeline = LatentFlowPipeline.from_pretrained(folder, device=self.device)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _evaluate(
        self, name: str, generator: PipelineGenerator, run: Path, *, num_diversity_clips: int = 0, **more: Any
    ) -> dict[str, Any]:
        settings = self.settings
        description = {"unet_sha256": file_sha256(find_model(run, "unet") / WEIGHTS_NAME), **generator.settings, **more}
        results = evaluate_at_preset(
            generator,
            settings.preset,
            settings.data,
            self.out / "evaluations" / name,
            replace(settings.evaluation, num_diversity_clips=num_diversity_clips),
            description,
            device=self.device,
        )
        return {**summarize(results), "seconds_per_video": results["generation"]["seconds_per_video"], "data": results["data"]}

    # ---------------------------------------------------------------------------------------------------------- stage 1

    def plan_stage1(self) -> dict[str, Any]:
        """Plan the steps of every stage-1 row for equal time."""
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
        """Train one row."""
        num_steps = self.folder.result("plan-stage1")["num_steps"][row.name]
        preset = shortened(row.preset, "autoencoder_training", num_steps)
        run = self.out / f"stage1-{row.name}"
        clock = TrainingClock(run)
        train_autoencoder(preset, self.settings.data, run, report=clock)
        return {"seconds": clock.seconds, "num_steps": num_steps}

    def evaluate_stage1(self, row: Row) -> dict[str, Any]:
        """Evaluate stage 1 of one row on held-out clips."""
        name = f"stage1-{row.name}"
        out = self.out / "evaluations" / name
        settings = self.settings
        return evaluate_autoencoder(self.out / name, row.preset, settings.data, out, settings.evaluation, device=self.device)

    # ---------------------------------------------------------------------------------------------------------- results

    def collect(self) -> dict[str, Any]:
        """Return the finished rows by group, each group with its settings."""
        members: dict[str, Sequence[Row | SamplingRow]] = {
            "stage2": self.stage2_rows,
            "together": self.together_rows(),
            "seeds": self.seed_rows(),
            "codec": self.codec_rows,
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
        """Return the hash of the weights shared by a group (stage 1, or the sampled U-Net); None if every row has its own."""
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
    """Run the selected stages and return the results of all finished rows."""
    prepare_run(out, settings.to_json())
    ablation = Ablation(settings, out, device=device)
    stages = ablation.stages()
    early = tuple(name for name in only if name not in LATER_GROUPS)
    if early or not only:
        ablation.folder.run(stages, early, say=say)
    later = LATER_GROUPS if not only else tuple(name for name in only if name in LATER_GROUPS)
    ablation.folder.run([stage for stage in ablation.stages() if stage.group in later], say=say)
    return ablation.collect()
