"""Train our method and the baselines on the same clips under one budget, and evaluate them alike.

Every training has the run folder OUT/STAGE and every evaluation a folder in OUT/evaluations; both resume.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.experiment.budget import TrainingClock
from benchmarks.experiment.evaluation import evaluate_at_preset, training_clips
from benchmarks.experiment.stages import LeftOutError, Stage, StageFolder
from benchmarks.experiment.tables import summarize
from benchmarks.headline.baselines.clip_diffusion import MODEL_NAME, load_denoiser, train_latents, train_pixels
from benchmarks.headline.baselines.frame_autoencoder import train_frame_autoencoder
from benchmarks.headline.baselines.generators import ClipDiffusionGenerator, CopyGenerator, NearestMotionGenerator
from benchmarks.headline.methods import TRAININGS, ComparisonSettings, is_first_stage
from benchmarks.headline.planning import missing_package, plan_comparison
from lfdm.evaluation.generators import PipelineGenerator, VideoGenerator
from lfdm.folders.files import file_sha256
from lfdm.folders.model_folder import WEIGHTS_NAME
from lfdm.folders.run_folder import find_model, prepare_run
from lfdm.pipeline.pipeline import LatentFlowPipeline
from lfdm.training.stage1 import train_autoencoder
from lfdm.training.stage2 import train_diffusion

PLAN = "plan"
SPEED = "speed"
SPEED_BATCHES = (1, 8)
SPEED_ROUNDS = 3


class Comparison:
    """A comparison in the folder `out`."""

    def __init__(self, settings: ComparisonSettings, out: Path, *, device: str = "cpu") -> None:
        self.settings, self.out, self.device = settings, out, device
        self.folder = StageFolder(out)

    def stages(self) -> list[Stage]:
        """Return the stages: plan, trainings, evaluations, speed; a training that methods share appears once."""
        methods = self.settings.methods
        stages = [Stage(PLAN, lambda: plan_comparison(self.settings, self.out))]
        for name in self.settings.trainings():
            first = name.replace("-unet", "-autoencoder")
            needs = (PLAN,) if first == name else (PLAN, first)
            method = next(method for method in methods if name in TRAININGS[method])
            stages.append(Stage(name, lambda name=name: self.train(name), needs, method))
        for method in methods:
            needs = (PLAN, *TRAININGS[method])
            stages.append(Stage(f"evaluate-{method}", lambda method=method: self.evaluate(method), needs, method))
        whole = missing_package() is None
        timed = [method for method in methods if whole or all(name.startswith("ours") for name in TRAININGS[method])]
        return [*stages, Stage(SPEED, self.measure_speed, needs=tuple(f"evaluate-{method}" for method in timed))]

    # ------------------------------------------------------------------------------------------------------ training

    def train(self, name: str) -> dict[str, Any]:
        """Run one training; return its seconds, steps, and clips (or pairs, in a first stage) seen."""
        if not name.startswith("ours"):
            _need_package()
        num_steps = self.folder.result(PLAN)["num_steps"][name]
        run = self.out / name
        report = TrainingClock(run)
        self._training(name, run, report, num_steps)()
        return {"seconds": report.seconds, "num_steps": num_steps, "seen": num_steps * self.settings.batch_size(name)}

    def _training(self, name: str, run: Path, report: TrainingClock, num_steps: int) -> Callable[[], Path]:
        settings, data = self.settings, self.settings.data
        preset = settings.with_steps(name, num_steps)
        denoiser = settings.denoiser(name)
        if name == "ours-autoencoder":
            return lambda: train_autoencoder(preset, data, run, report=report)
        if name == "ours-unet":
            return lambda: train_diffusion(preset, data, self.out / "ours-autoencoder", run, report=report)
        if name == "ldm-autoencoder":
            return lambda: train_frame_autoencoder(settings.baselines.frames, preset, data, run, report=report)
        assert denoiser is not None
        if name == "ldm-unet":
            return lambda: train_latents(denoiser, preset, data, self.out / "ldm-autoencoder", run, report=report)
        return lambda: train_pixels(denoiser, preset, data, run, report=report)

    # ---------------------------------------------------------------------------------------------------- generating

    def generator(self, method: str) -> VideoGenerator:
        """Load a trained method as a generator; LeftOutError if its package is missing."""
        preset = self.settings.preset
        if method == "copy":
            return CopyGenerator(preset.num_frames)
        if method in ("ours", "nearest"):
            pipeline = LatentFlowPipeline.from_pretrained(self.out / "ours-unet", device=self.device)
            pipeline.set_progress_bar_config(disable=True)
            if method == "ours":
                return PipelineGenerator(pipeline, name="ours")
            return NearestMotionGenerator(pipeline, training_clips(preset, self.settings.data), num_frames=preset.num_frames)
        _need_package()
        first, last = TRAININGS[method][0], TRAININGS[method][-1]
        denoiser, space = load_denoiser(self.out / last, self.out / first if first != last else None, device=self.device)
        return ClipDiffusionGenerator.from_preset(method, denoiser, space, preset)

    def evaluate(self, method: str) -> dict[str, Any]:
        """Evaluate one method in OUT/evaluations/METHOD."""
        settings = self.settings
        sampling = settings.preset.diffusion
        return evaluate_at_preset(
            self.generator(method),
            settings.preset,
            settings.data,
            self.out / "evaluations" / method,
            settings.evaluation,
            {
                "weights_sha256": self._hash_weights(method),
                "num_inference_steps": sampling.num_inference_steps,
                "guidance_scale": sampling.guidance_scale,
                "scheduler": sampling.sampler,
            },
            device=self.device,
        )

    def _hash_weights(self, method: str) -> dict[str, str]:
        hashes = {}
        for name in TRAININGS[method]:
            part = MODEL_NAME if self.settings.denoiser(name) is not None else "autoencoder" if is_first_stage(name) else "unet"
            hashes[name] = file_sha256(find_model(self.out / name, part) / WEIGHTS_NAME)
        return hashes

    def measure_speed(self) -> dict[str, Any]:
        """Measure wall seconds per video of every evaluated method, in batches of 1 and 8: medians over rounds in turn."""
        settings = self.settings
        methods = [method for method in settings.methods if self.folder.done(f"evaluate-{method}")]
        generators = {method: self.generator(method) for method in methods}
        clips = training_clips(settings.preset, settings.data)
        images = [clips.clip(i % len(clips))[0] for i in range(max(SPEED_BATCHES))]
        names = [clips.records[i % len(clips)].label for i in range(max(SPEED_BATCHES))]
        seconds: dict[str, dict[str, list[float]]] = {method: {str(b): [] for b in SPEED_BATCHES} for method in methods}
        for generator in generators.values():
            generator(images[:1], names[:1], [0])  # warm up
        for _ in range(SPEED_ROUNDS):
            for b in SPEED_BATCHES:
                for method, generator in generators.items():
                    started = time.perf_counter()
                    generator(images[:b], names[:b], list(range(b)))
                    seconds[method][str(b)].append((time.perf_counter() - started) / b)
        return {
            "seconds_per_video": {m: {b: median(values) for b, values in rows.items()} for m, rows in seconds.items()},
            "device": torch.cuda.get_device_name() if self.device.startswith("cuda") else "cpu",
            "num_threads": torch.get_num_threads(),
        }


def _need_package() -> None:
    reason = missing_package()
    if reason is not None:
        raise LeftOutError(reason)


def compare(
    settings: ComparisonSettings,
    out: Path,
    only: tuple[str, ...] = (),
    *,
    device: str = "cpu",
    say: Callable[[str], None] = print,
) -> dict[str, Any] | None:
    """Run the selected stages; return the results once every stage is finished or left out."""
    prepare_run(out, settings.to_json())
    comparison = Comparison(settings, out, device=device)
    stages = comparison.stages()
    left_out = comparison.folder.run(stages, only, say=say)
    missing = [stage.name for stage in stages if not comparison.folder.done(stage.name) and stage.name not in left_out]
    if missing:
        say(f"to be done: {', '.join(missing)}")
        return None
    return collect(comparison, left_out)


def collect(comparison: Comparison, left_out: dict[str, str]) -> dict[str, Any]:
    """Collect the results of a finished comparison."""
    settings, folder = comparison.settings, comparison.folder
    plan, speed = folder.result(PLAN), folder.result(SPEED)
    rows = {m: _row(comparison, m) for m in settings.methods if folder.done(f"evaluate-{m}")}
    for method, row in rows.items():
        row["seconds_per_video"] = speed["seconds_per_video"].get(method)
        row["parameters"] = plan["parameters"].get(method)
    example = folder.result("evaluate-ours")
    mark_converged(rows, example["settings"]["num_clips"], len(example["data"]["labels"]))
    return {
        "settings": settings.to_json(),
        "distance_name": rows["ours"]["distance_name"],
        "rows": rows,
        "left_out": left_out,
        "plan": plan,
        "speed": {key: value for key, value in speed.items() if key != "seconds_per_video"},
        "data": example["data"],
        "real_action_accuracy": example["generation"].get("action_accuracy", {}).get("real_held_out"),
        "evaluation": example["settings"],
        "versions": example["versions"],
    }


def mark_converged(rows: dict[str, dict[str, Any]], num_clips: int, num_labels: int) -> None:
    """Set `converged` of every row: closer to real clips than copying, and class accuracy above guessing.

    Still clips look alike to an action classifier, so that beating the copy is not enough. Guessing scores 1 / `num_labels` or,
    if higher, the copy's accuracy (always the same answer, with unequal label counts). It is beaten if it lies below the 95 %
    interval (normal) for `num_clips` clips. None if unknown.
    """
    limit = rows["copy"]["distance"]
    guessing = max(1 / num_labels, rows["copy"]["action_accuracy"] or 0.0)
    for method, row in rows.items():
        row["converged"] = None
        if method == "copy" or limit is None or row["distance"] is None:
            continue
        row["converged"] = row["distance"]["value"] < limit["value"]
        accuracy = row["action_accuracy"]
        if accuracy is not None:
            margin = 1.96 * math.sqrt(accuracy * (1 - accuracy) / num_clips)
            row["converged"] = row["converged"] and accuracy - margin > guessing


def _row(comparison: Comparison, method: str) -> dict[str, Any]:
    names = [name for name in TRAININGS[method] if method != "nearest" or is_first_stage(name)]  # it does not use the U-Net
    trainings = {name: comparison.folder.result(name) for name in names}
    last = next((values for name, values in trainings.items() if not is_first_stage(name)), None)
    return {
        **summarize(comparison.folder.result(f"evaluate-{method}")),
        "trainings": trainings,
        "training_seconds": sum(values["seconds"] for values in trainings.values()) if trainings else None,
        "clips_seen": last["seen"] if last is not None else None,
    }
