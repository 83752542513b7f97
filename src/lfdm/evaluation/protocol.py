"""The whole evaluation of one model on the held-out clips of one data set: `evaluate`."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import torch

from lfdm.config import MAX_GUIDANCE_SCALE
from lfdm.data.clips import INDEX_NAME, ClipRecord, labels, open_cache, read_index
from lfdm.diffusion import PredictionType, SchedulerName, make_scheduler
from lfdm.evaluation.classifier import ClassifierTraining
from lfdm.evaluation.judging import Evaluation, Progress, judge_generation, judge_stage1, reporter, train_judge
from lfdm.evaluation.loading import EvaluatedModel, check_fits, file_sha256, load_model, select_clips
from lfdm.evaluation.report import check_report_folder, finite, write_report
from lfdm.pipeline import LatentFlowPipeline
from lfdm.settings import check_integer, check_number


def evaluate(
    model: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    num_clips: int | None = None,
    seed: int = 0,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    scheduler: SchedulerName | None = None,
    unconditional: bool = False,
    batch_size: int = 8,
    num_diversity_clips: int = 128,
    num_ceiling_clips: int = 128,
    classifier: ClassifierTraining | None = None,
    device: torch.device | str = "cpu",
    bf16: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Judge a model on held-out clips; writes results.json, contact-sheet.png and samples/ into `out`, returns the results.

    A figure that is not a number (nothing moved, no pixel counted) is None.

    Args:
        model: bundled name, pipeline folder, diffusion run or Hub repository; a stage-1 run or an auto-encoder folder gives
            the stage-1 figures alone.
        num_clips: how many held-out clips, whole subjects drawn by `seed`; None = all.
        seed: of the drawn clips and of the videos: clip i gets the noise of seed + i.
        scheduler: sample with this one instead of the model's own.
        unconditional: generate with the null condition; what needs the label asked for is left out.
        num_diversity_clips: how many clips are generated a second time, by another seed.
        num_ceiling_clips: on how many clips the ceilings of scores 1 and 2 are computed.
        classifier: how the action classifier is trained; it is kept beside the data's cache.
        bf16: run the networks under bfloat16 autocast.

    Raises:
        ValueError: no held-out clips, exact truth of another size than the model's, labels that the model does not know, or
            a value that is not allowed.
        FileNotFoundError: no such model or data set.
    """
    root, started = Path(data), time.monotonic()
    check_integer("batch_size", batch_size, 1, 10_000)
    if unconditional and guidance_scale is not None:
        raise ValueError(f"guidance_scale must be left out with unconditional=True, where it has no effect; got {guidance_scale}")
    for name, value, low in (
        ("seed", seed, 0),
        ("num_clips", num_clips, 1),
        ("num_ceiling_clips", num_ceiling_clips, 1),
        ("num_diversity_clips", num_diversity_clips, 0),
    ):
        check_integer(name, low if value is None else value, low, 2**31)
    check_report_folder(Path(out))
    records = read_index(root)
    held_out = [record for record in records if record.split == "test"]
    chosen = select_clips(records, num_clips, seed, where=str(root))
    evaluated = load_model(model, held_out, device=device)
    check_fits(evaluated, [held_out[i] for i in chosen], root, unconditional=unconditional)
    pipe = evaluated.pipeline
    sampling = _settle_sampling(pipe, num_inference_steps, guidance_scale, scheduler) if pipe is not None else {}
    if unconditional:
        sampling.pop("guidance_scale", None)

    size, fit = evaluated.image_size, evaluated.fit
    cache = open_cache(root, held_out, size, fit, progress=reporter(progress, "decoding held-out clips"))
    run = Evaluation(evaluated, root, cache, chosen, batch_size, torch.device(device), bf16, progress, unconditional)
    with torch.inference_mode():
        stage1, flows = judge_stage1(run, num_ceiling_clips)
    generation, examples = None, []
    if pipe is None:
        run.left_out["generation"] = "the model is stage 1 alone"
    else:
        judge = None if unconditional else train_judge(run, records, classifier)
        with torch.inference_mode():
            generation, examples = judge_generation(run, pipe, judge, flows, sampling, num_diversity_clips, seed)
    results = {
        "model": {"name": str(model), "weights_sha256": evaluated.weights_sha256, **_count_parameters(evaluated)},
        "data": _describe_data(root, run.records),
        "settings": {
            "num_clips": len(chosen),
            "num_frames": evaluated.num_frames,
            "image_size": size,
            "fit": fit,
            **({"scheduler": type(pipe.scheduler).__name__} if pipe is not None else {}),
            **sampling,
            "unconditional": unconditional,
            "seed": seed,
            "batch_size": batch_size,
            "device": str(device),
            "bf16": bf16,
        },
        "stage1": stage1,
        "generation": generation,
        "left_out": run.left_out,
        "versions": {name: version(name) for name in ("lfdm", "torch", "diffusers", "numpy")},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 1),
    }
    results = finite(results)
    write_report(Path(out), results, examples, fps=evaluated.fps)
    return results


def _settle_sampling(
    pipe: LatentFlowPipeline, steps: int | None, scale: float | None, scheduler: SchedulerName | None
) -> dict[str, Any]:
    """The sampling arguments of every call of `pipe`, its own where none are given; sets another scheduler if asked to."""
    if scheduler is not None:
        pipe.scheduler = _other_scheduler(pipe, scheduler)
    steps = pipe.config["num_inference_steps"] if steps is None else steps
    scale = pipe.config["guidance_scale"] if scale is None else scale
    return {
        "num_inference_steps": check_integer("num_inference_steps", steps, 1, pipe.scheduler.config.num_train_timesteps),
        "guidance_scale": check_number("guidance_scale", scale, low=0, high=MAX_GUIDANCE_SCALE),
    }


def _other_scheduler(pipe: LatentFlowPipeline, name: SchedulerName) -> Any:
    if name not in get_args(SchedulerName):
        raise ValueError(f"scheduler must be one of {', '.join(get_args(SchedulerName))}; got {name!r}")
    config = pipe.scheduler.config
    kind: PredictionType = "velocity" if config.prediction_type == "flow_prediction" else config.prediction_type
    return make_scheduler(name, prediction_type=kind, paper=bool(config.get("thresholding", False)))


def _describe_data(root: Path, records: Sequence[ClipRecord]) -> dict[str, Any]:
    return {
        "folder": str(root),
        "index_sha256": file_sha256(root / INDEX_NAME),
        "split": "test",
        "num_clips": len(records),
        "num_subjects": len({record.subject for record in records}),
        "labels": labels(records),
    }


def _count_parameters(model: EvaluatedModel) -> dict[str, Any]:
    networks = {"autoencoder": model.autoencoder} | ({"unet": model.pipeline.unet} if model.pipeline is not None else {})
    return {"num_parameters": {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}}
