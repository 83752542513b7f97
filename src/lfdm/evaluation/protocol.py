"""The whole evaluation on the held-out clips of a data set: `evaluate` for our models, `evaluate_generator` for any other."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from lfdm.config.diffusion import SamplerName
from lfdm.config.video import Fit, Size, SizeInput
from lfdm.data.cache import open_cache
from lfdm.data.index import CLIP_INDEX_NAME, ClipRecord, labels, read_index
from lfdm.data.progress import Progress
from lfdm.errors import UserError
from lfdm.evaluation.cluster import ClusterGenerator
from lfdm.evaluation.generation import measure_generation
from lfdm.evaluation.generators import PipelineGenerator, VideoGenerator
from lfdm.evaluation.loading import EvaluatedModel, check_clips, load_model, select_clips
from lfdm.evaluation.networks.evaluation_networks import EvaluationNetworks, add_trained_networks, load_from_files
from lfdm.evaluation.report.examples import choose_examples
from lfdm.evaluation.report.files import check_report_folder, finite, write_report
from lfdm.evaluation.run import EvaluationRun, HeldOutClips
from lfdm.evaluation.settings import EvaluationConfig
from lfdm.evaluation.stage1 import PerceptualDistance, measure_stage1
from lfdm.evaluation.store import BatchStore
from lfdm.folders.files import expand_home, file_sha256
from lfdm.folders.lock import locked
from lfdm.pipeline.pipeline import LatentFlowPipeline

CACHE_DIR = "cache"
"""Folder of generated clips and intermediate results; it may be deleted once results.json is written."""
_PACKAGES = ("lfdm", "torch", "diffusers", "accelerate", "numpy", "transformers")
_VERSION = 2
"""Version of the content of `CACHE_DIR`."""


def evaluate(
    model: str | Path,
    data: str | Path,
    out: str | Path,
    config: EvaluationConfig | None = None,
    *,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    sampler: SamplerName | None = None,
    device: torch.device | str = "cpu",
    ray: str | None = None,
    cpus_per_worker: int = 1,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Evaluate a model, write results.json, report.html, contact-sheet.png and samples/ to `out`, and return the results.

    A stopped evaluation resumes from `out`/cache. Under `accelerate launch` all processes share the work, each on its own device.
    A figure that is not a number (nothing moved, no pixel counted) is None.

    Args:
        model: bundled name, pipeline folder, diffusion run or Hub repository; a stage-1 run or an auto-encoder folder gives
            only the stage-1 figures.
        sampler: replaces the model's own.
        device: used by a single process.
        ray: make the videos on a Ray cluster, `auto` or HOST:PORT, which finds the model where this process does.
        cpus_per_worker: cores of each worker on a cluster without GPUs.

    Raises:
        UserError: no held-out clips, exact motion of another size than the model's, labels that the model does not know, a
            value that is not allowed, an `out` that holds an evaluation with other settings, or another process that uses it.
        FileNotFoundError: no such model, data set or weights.
    """
    config = config or EvaluationConfig()
    options = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale, "sampler": sampler}
    options = {name: value for name, value in options.items() if value is not None}
    if config.unconditional and guidance_scale is not None:
        raise UserError(f"guidance_scale must be left out with unconditional=True, where it has no effect; got {guidance_scale}")
    context = _prepare(expand_home(data), expand_home(out), config, device, progress)
    evaluated = load_model(model, context.held_out, device=context.device)
    check_clips(evaluated, context.chosen_records, context.root, unconditional=config.unconditional)
    if ray is not None and (evaluated.pipeline is None or context.state.num_processes > 1):
        reason = "only stage 1" if evaluated.pipeline is None else f"evaluated by {context.state.num_processes} processes"
        raise UserError(f"ray must be left out, as {model} is {reason}; got {ray!r}")
    generator, sampling = _generator_and_settings(str(model), evaluated, config, options)
    subject = _Subject(
        name=str(model),
        description={"weights_sha256": evaluated.weights_sha256, "num_parameters": evaluated.num_parameters},
        sampling=sampling,
        image_size=evaluated.image_size,
        fit=evaluated.fit,
        num_frames=evaluated.num_frames,
        fps=evaluated.fps,
    )
    if ray is not None:
        make = partial(_make_generator, str(model), bf16=config.bf16, **options)
        generator = ClusterGenerator(str(model), ray, make, cpus_per_worker)
    with locked(context.out, hold=context.state.is_main_process):
        return _evaluate(context, subject, generator, evaluated)


def _generator_and_settings(
    model: str, evaluated: EvaluatedModel, config: EvaluationConfig, options: dict[str, Any]
) -> tuple[VideoGenerator | None, dict[str, Any]]:
    """Return the generator of a whole pipeline, None for stage 1, and the sampling settings to report."""
    if evaluated.pipeline is None:
        given = [*options, *(["unconditional"] if config.unconditional else [])]
        if given:
            raise UserError(f"{', '.join(given)} must be left out: {model} is only stage 1, which generates nothing")
        return None, {}
    generator = PipelineGenerator(evaluated.pipeline, name=model, bf16=config.bf16, **options)
    unused = ("guidance_scale",) if config.unconditional else ()
    return generator, {name: value for name, value in generator.settings.items() if name not in unused}


def _make_generator(model: str, device: str, **options: Any) -> PipelineGenerator:
    """Load a generator on a worker of a cluster."""
    pipe = LatentFlowPipeline.from_pretrained(model, device=device)
    pipe.set_progress_bar_config(disable=True)
    return PipelineGenerator(pipe, name=model, **options)


def evaluate_generator(
    generator: VideoGenerator,
    data: str | Path,
    out: str | Path,
    config: EvaluationConfig | None = None,
    *,
    image_size: SizeInput,
    fit: Fit,
    num_frames: int,
    fps: float,
    description: dict[str, Any],
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Evaluate any generator of videos exactly as `evaluate` evaluates generation, with the same files.

    Args:
        generator: makes `num_frames` frames of `image_size`.
        fit: how clips of other shapes are fitted.
        fps: frame rate of written videos.
        description: JSON values that identify this generator (SHA-256 of weights, number of parameters, sampling steps, ...):
            `out` resumes only under the same description.
        device: used by the measuring networks of a single process; the generator chooses its own.

    Raises:
        UserError: as `evaluate`.
        FileNotFoundError: no such data set or weights.
    """
    context = _prepare(expand_home(data), expand_home(out), config or EvaluationConfig(), device, progress)
    subject = _Subject(
        name=generator.name,
        description=description,
        sampling={},
        image_size=Size.parse(image_size, "image_size"),
        fit=fit,
        num_frames=num_frames,
        fps=fps,
    )
    with locked(context.out, hold=context.state.is_main_process):
        return _evaluate(context, subject, generator, None)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Context:
    """Data, output folder and devices of an evaluation, checked."""

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
    """The evaluated model or generator as results.json describes it."""

    name: str
    description: dict[str, Any]
    sampling: dict[str, Any]
    image_size: Size
    fit: Fit
    num_frames: int
    fps: float


def _prepare(root: Path, out: Path, config: EvaluationConfig, device: torch.device | str, progress: Progress | None) -> _Context:
    check_report_folder(out)
    records = read_index(root)
    chosen = select_clips(records, config.num_clips, config.seed, where=str(root))
    state = PartialState(cpu=torch.device(device).type == "cpu")
    return _Context(
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
    context: _Context, subject: _Subject, generator: VideoGenerator | ClusterGenerator | None, evaluated: EvaluatedModel | None
) -> dict[str, Any]:
    started, config, state = time.monotonic(), context.config, context.state
    perceptual = PerceptualDistance.load(config.perceptual_weights, context.device) if config.perceptual_weights else None
    networks = load_from_files(config, context.device) if generator is not None else EvaluationNetworks()
    with state.main_process_first():  # the other processes find the cache that the first one builds
        cache = open_cache(context.root, context.held_out, subject.image_size, subject.fit, progress=context.progress)
    description = _describe(context, subject, perceptual)
    store = BatchStore(
        context.out / CACHE_DIR,
        _flatten(description) | {"data.clips": cache.folder.name, "version": _VERSION},
        batch_size=config.batch_size,
        state=state,
        progress=context.progress,
    )
    clips = HeldOutClips(context.root, cache, context.chosen, subject.num_frames)
    run = EvaluationRun(clips, store, context.device, config.bf16, config.unconditional)
    stage1 = real = generation = examples = None
    if evaluated is not None:
        stage1, real = measure_stage1(run, evaluated.autoencoder, config.num_ceiling_clips, perceptual)
    if generator is None:
        run.left_out["generation"] = "the model is only stage 1"
    else:
        with state.main_process_first():
            add_trained_networks(networks, run, context.records, config, fit=subject.fit, progress=context.progress)
        generation, generated = measure_generation(run, generator, networks, real, config)
        examples = choose_examples(run, generated)
    results = finite(
        description
        | {
            "networks": config.network_settings(),
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
        write_report(context.out, results, examples, fps=subject.fps)
    state.wait_for_everyone()
    return results


def _describe(context: _Context, subject: _Subject, perceptual: PerceptualDistance | None) -> dict[str, Any]:
    """Return model, data and settings for results.json: everything that determines the figures."""
    return {
        "model": {"name": subject.name, **subject.description},
        "data": _describe_data(context.root, context.chosen_records),
        "settings": context.config.generation_settings()
        | {
            "num_clips": len(context.chosen),
            "num_frames": subject.num_frames,
            "image_size": subject.image_size.setting,
            "fit": subject.fit,
            **subject.sampling,
            "device": context.device.type,
            "perceptual_weights_sha256": perceptual.sha256 if perceptual is not None else None,
        },
    }


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested dicts to one level of JSON values, keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return json.loads(json.dumps(flat))


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # belongs to an extra that is not installed
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
