"""The whole evaluation on the held-out clips of one data set: `evaluate` of our models, `evaluate_generator` of any other."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from lfdm.config.diffusion import SchedulerName
from lfdm.config.video import Fit
from lfdm.data.cache import open_cache
from lfdm.data.index import CLIP_INDEX_NAME, ClipRecord, labels, read_index
from lfdm.data.progress import Progress
from lfdm.errors import UserError
from lfdm.evaluation.generation import judge_generation
from lfdm.evaluation.generators import PipelineGenerator, VideoGenerator
from lfdm.evaluation.loading import EvaluatedModel, check_fits, file_sha256, load_model, select_clips
from lfdm.evaluation.networks.judges import Judges, load_from_files, train_judges
from lfdm.evaluation.report.files import check_report_folder, finite, write_report
from lfdm.evaluation.report.shown import Shown, pick_shown
from lfdm.evaluation.run import EvaluationRun, HeldOutClips
from lfdm.evaluation.settings import EvaluationConfig
from lfdm.evaluation.stage1 import PerceptualDistance, judge_stage1
from lfdm.evaluation.store import BatchStore, StoredArrays

CACHE_DIR = "cache"
"""In the folder of results: what was generated and measured, clip by clip. May be deleted once the results are there."""
_PACKAGES = ("lfdm", "torch", "diffusers", "accelerate", "numpy", "scipy", "transformers")
_VERSION = 1
"""Of what is kept in `CACHE_DIR`."""


def evaluate(
    model: str | Path,
    data: str | Path,
    out: str | Path,
    config: EvaluationConfig | None = None,
    *,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    scheduler: SchedulerName | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Judge a model on held-out clips; writes results.json, report.html, contact-sheet.png and samples/, returns the results.

    A run that was stopped goes on where it was, from `out`/cache. Started by `accelerate launch`, all processes share the work,
    each on its own device. A figure that is not a number (nothing moved, no pixel counted) is None.

    Args:
        model: bundled name, pipeline folder, diffusion run or Hub repository; a stage-1 run or an auto-encoder folder gives
            the stage-1 figures alone.
        scheduler: sample with this one instead of the model's own.
        device: of a single process.

    Raises:
        UserError: no held-out clips, exact truth of another size than the model's, labels that the model does not know, a
            value that is not allowed, or an `out` that holds an evaluation with other settings.
        FileNotFoundError: no such model, data set or weights.
    """
    config = config or EvaluationConfig()
    if config.unconditional and guidance_scale is not None:
        raise UserError(f"guidance_scale must be left out with unconditional=True, where it has no effect; got {guidance_scale}")
    setting = _prepare(Path(data), Path(out), config, device, progress)
    evaluated = load_model(model, setting.held_out, device=setting.device)
    check_fits(evaluated, setting.chosen_records, setting.root, unconditional=config.unconditional)
    asked = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale, "scheduler": scheduler}
    given = [name for name, value in asked.items() if value is not None] + ["unconditional"] * config.unconditional
    if evaluated.pipeline is None and given:
        raise UserError(f"{', '.join(given)} must be left out: {model} is stage 1 alone, which generates nothing")
    generator = None
    if evaluated.pipeline is not None:
        generator = PipelineGenerator(
            evaluated.pipeline,
            name=str(model),
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            scheduler=scheduler,
            bf16=config.bf16,
        )
    sampling = {} if generator is None else generator.settings
    if config.unconditional:
        sampling.pop("guidance_scale", None)
    subject = _Subject(
        name=str(model),
        description={"weights_sha256": evaluated.weights_sha256, **_count_parameters(evaluated)},
        sampling=sampling,
        image_size=evaluated.image_size,
        fit=evaluated.fit,
        num_frames=evaluated.num_frames,
        fps=evaluated.fps,
    )
    return _evaluate(setting, subject, generator, evaluated)


def evaluate_generator(
    generator: VideoGenerator,
    data: str | Path,
    out: str | Path,
    config: EvaluationConfig | None = None,
    *,
    image_size: int,
    fit: Fit,
    num_frames: int,
    fps: float,
    description: dict[str, Any],
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Judge anything that generates videos exactly as `evaluate` judges generation, with the same files.

    Args:
        generator: makes `num_frames` frames of `image_size`.
        fit: how clips of other shapes are fitted.
        fps: of written videos.
        description: JSON values that tell this generator from every other (SHA-256 of weights, number of parameters,
            sampling steps, ...): `out` goes on with what was generated only under the same description.
        device: of the networks that judge, in a single process; the generator has its own.

    Raises:
        UserError: as `evaluate`.
        FileNotFoundError: no such data set or weights.
    """
    config = config or EvaluationConfig()
    setting = _prepare(Path(data), Path(out), config, device, progress)
    subject = _Subject(
        name=generator.name,
        description=description,
        sampling={},
        image_size=image_size,
        fit=fit,
        num_frames=num_frames,
        fps=fps,
    )
    return _evaluate(setting, subject, generator, None)


@dataclass(frozen=True, kw_only=True)
class _Setting:
    """Where and on what is judged; everything checked, nothing written."""

    root: Path
    out: Path
    config: EvaluationConfig
    records: list[ClipRecord]
    chosen: list[int]
    state: PartialState
    device: torch.device
    progress: Progress | None

    @property
    def held_out(self) -> list[ClipRecord]:
        return [record for record in self.records if record.split == "test"]

    @property
    def chosen_records(self) -> list[ClipRecord]:
        held_out = self.held_out
        return [held_out[i] for i in self.chosen]


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """What is judged, as far as the record goes."""

    name: str
    description: dict[str, Any]
    sampling: dict[str, Any]
    image_size: int
    fit: Fit
    num_frames: int
    fps: float


def _prepare(root: Path, out: Path, config: EvaluationConfig, device: torch.device | str, progress: Progress | None) -> _Setting:
    check_report_folder(out)
    records = read_index(root)
    chosen = select_clips(records, config.num_clips, config.seed, where=str(root))
    state = PartialState(cpu=torch.device(device).type == "cpu")
    return _Setting(
        root=root,
        out=out,
        config=config,
        records=records,
        chosen=chosen,
        state=state,
        device=torch.device(device) if state.num_processes == 1 else torch.device(str(state.device)),
        progress=progress if state.is_main_process else None,
    )


def _evaluate(
    setting: _Setting, subject: _Subject, generator: VideoGenerator | None, evaluated: EvaluatedModel | None
) -> dict[str, Any]:
    started, config, state = time.monotonic(), setting.config, setting.state
    perceptual = PerceptualDistance.load(config.perceptual_weights, setting.device) if config.perceptual_weights else None
    judges = load_from_files(config, setting.device) if generator is not None else Judges()
    with state.main_process_first():  # the others find the cache that the first one makes
        cache = open_cache(
            setting.root,
            setting.held_out,
            subject.image_size,
            subject.fit,
            progress=setting.progress,
        )
    recorded = _record(setting, subject, perceptual)
    store = BatchStore(
        setting.out / CACHE_DIR,
        _flatten(recorded) | {"data.clips": cache.folder.name, "version": _VERSION},
        batch_size=config.batch_size,
        state=state,
        progress=setting.progress,
    )
    clips = HeldOutClips(setting.root, cache, setting.chosen, subject.num_frames)
    run = EvaluationRun(clips, store, setting.device, config.bf16, config.unconditional)
    stage1 = measured = None
    if evaluated is not None:
        stage1, measured = judge_stage1(run, evaluated.autoencoder, config.num_ceiling_clips, perceptual)
    generation, shown = None, None
    if generator is None:
        run.left_out["generation"] = "the model is stage 1 alone"
    else:
        generation, shown = _generation(run, setting, subject, generator, judges, measured)
    results = finite(
        recorded
        | {
            "judging": config.judging(),
            "stage1": stage1,
            "generation": generation,
            "left_out": run.left_out,
            "versions": _versions(),
            "num_processes": state.num_processes,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - started, 1),
        }
    )
    if state.is_main_process:
        write_report(setting.out, results, shown, fps=subject.fps)
    state.wait_for_everyone()
    return results


def _generation(
    run: EvaluationRun,
    setting: _Setting,
    subject: _Subject,
    generator: VideoGenerator,
    judges: Judges,
    real: StoredArrays | None,
) -> tuple[dict[str, Any], Shown]:
    config = setting.config
    with setting.state.main_process_first():
        train_judges(judges, run, setting.records, config, fit=subject.fit, progress=setting.progress)
    results, judged = judge_generation(
        run,
        generator,
        judges,
        real,
        seed=config.seed,
        num_diversity_clips=config.num_diversity_clips,
        allow_small=config.allow_small,
    )
    return results, pick_shown(run, judged)


def _record(setting: _Setting, subject: _Subject, perceptual: PerceptualDistance | None) -> dict[str, Any]:
    """What results.json says was done, of all that decides the figures."""
    return {
        "model": {"name": subject.name, **subject.description},
        "data": _describe_data(setting.root, setting.chosen_records),
        "settings": setting.config.deciding()
        | {
            "num_clips": len(setting.chosen),
            "num_frames": subject.num_frames,
            "image_size": subject.image_size,
            "fit": subject.fit,
            **subject.sampling,
            "device": setting.device.type,
            "perceptual_weights_sha256": perceptual.sha256 if perceptual is not None else None,
        },
    }


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """One level, keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return json.loads(json.dumps(flat))


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # of an extra that is not installed
            continue
    return found


def _describe_data(root: Path, records: Sequence[ClipRecord]) -> dict[str, Any]:
    return {
        "name": root.resolve().name,
        "index_sha256": file_sha256(root / CLIP_INDEX_NAME),
        "split": "test",
        "num_clips": len(records),
        "num_subjects": len({record.subject for record in records}),
        "labels": labels(records),
    }


def _count_parameters(model: EvaluatedModel) -> dict[str, Any]:
    networks = {"autoencoder": model.autoencoder} | ({"unet": model.pipeline.unet} if model.pipeline is not None else {})
    return {"num_parameters": {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}}
