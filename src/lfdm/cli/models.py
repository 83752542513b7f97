"""Commands that evaluate, export and import models."""

from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

from lfdm.cli.console import Values, progress_bar
from lfdm.cli.options import DEFAULT_MODEL, open_pipeline, pick_device
from lfdm.config.diffusion import SamplerName
from lfdm.errors import UserError
from lfdm.evaluation.settings import EvaluationConfig


def evaluate(
    *,
    data: Path,
    out: Path,
    model: str = DEFAULT_MODEL,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    sampler: SamplerName | None = None,
    device: str | None = None,
    ray: str | None = None,
    cpus_per_worker: int = 1,
    config: Annotated[EvaluationConfig, arg(name="")] = EvaluationConfig(),  # noqa: B008 - frozen
) -> Values | None:
    """Measure a model on held-out clips and write results.json and report.html; the same command resumes.

    Args:
        data: Clip data set.
        out: Folder for the results.
        model: Bundled name, pipeline folder, run folder (of either stage) or Hub repository.
        num_inference_steps: Sampling steps; by default the model's.
        guidance_scale: Classifier-free guidance; by default the model's.
        sampler: Sampler; by default the model's.
        device: cpu, cuda, cuda:1, ...; by default the GPU if there is one. Under `accelerate launch`, each process has its own.
        ray: Make the videos on a Ray cluster: auto (the one that runs on this machine) or HOST:PORT.
        cpus_per_worker: Cores of each worker on a cluster without GPUs.
    """
    from accelerate import PartialState

    from lfdm.evaluation import protocol

    with progress_bar() as update:
        results = protocol.evaluate(
            model,
            data,
            out,
            config,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            sampler=sampler,
            device=pick_device(device),
            ray=ray,
            cpus_per_worker=cpus_per_worker,
            progress=update,
        )
    if not PartialState().is_main_process:
        return None
    _print_summary(results)
    print(out / "results.json")
    print(out / "report.html")
    return results


def _print_summary(results: dict[str, Any]) -> None:
    """Print the figures as tables, and the figures left out."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from lfdm.evaluation.report import tables as page_tables

    console = Console()
    for title, heads, rows in page_tables.summary(results):
        table = Table(*heads, title=title, title_justify="left")
        for row in rows:
            table.add_row(*(escape(cell) for cell in row))  # brackets in names are not markup
        console.print(table)
    for figure, reason in results["left_out"].items():
        console.print(f"left out: {figure} ({reason})", markup=False, highlight=False)


def export(
    *,
    out: Path,
    model: str = DEFAULT_MODEL,
    format: Literal["onnx", "torch"] = "onnx",  # noqa: A002 - the option's name
    dtype: Literal["float32", "float16"] = "float32",
) -> Values:
    """Export a model's networks for use without lfdm or without PyTorch.

    The folder holds encoder, denoiser, decoder and motion predictor, and pipeline.json with labels, codec and noise schedule.
    `lfdm.export.runtime.OnnxPipeline` runs it with NumPy and ONNX Runtime.

    Args:
        out: Folder; an export in it is replaced.
        model: Bundled name, pipeline folder, diffusion run folder or Hub repository.
        format: onnx, or torch for programs of torch.export.
        dtype: Number format in which ONNX files store weights; float16 halves their size. They compute in float32.
    """
    from lfdm.export.exporting import export_pipeline

    paths = export_pipeline(open_pipeline(model, "cpu"), out, form=format, weights=dtype)
    for path in paths:
        print(path)
    return {"files": paths}


def import_(
    *,
    out: Path,
    preset: str | None = None,
    autoencoder: Path | None = None,
    diffusion: Path | None = None,
    labels: str | None = None,
    text_encoder: str | None = None,
) -> Values:
    """Import published checkpoints, or embed labels for an imported model.

    With both files, OUT is a model for --model. With one, the other can be imported into OUT later; the auto-encoder is enough
    for `train diffusion --autoencoder` and `train autoencoder --init`.

    Args:
        out: Folder to write, or to which --labels are added.
        preset: Configuration of the files: mug128, mhad128 or natops128.
        autoencoder: RegionMM.pth, or a stage-1 checkpoint of MRAA to start trainings from.
        diffusion: flowdiff.pth.
        labels: mug128, mhad128 or natops128 for the labels of that data set, a text file with one label per line, or a
            comma-separated list. Needs transformers and the text encoder.
        text_encoder: Folder or Hub name of the text encoder; by default that of the training (bert-base-cased).
    """
    from lfdm.published.importing import add_labels, import_released, parse_labels

    if labels is None and text_encoder is not None:
        raise UserError(f"--text-encoder embeds --labels; got {text_encoder} without labels")
    new_labels = parse_labels(labels) if labels is not None else ()
    if preset is not None:
        imported = import_released(preset, out, autoencoder=autoencoder, diffusion=diffusion)
        print(out)
        if imported.has_diffusion and not (new_labels or imported.labels):
            print(f"no label embeddings yet; `lfdm import --labels {preset} --out {out}` adds them (until then: tensors or None)")
    elif autoencoder or diffusion or not new_labels:
        raise UserError("give --preset (mug128, mhad128 or natops128) with the files to import, or --labels")
    known = list(add_labels(out, new_labels, text_encoder).labels) if new_labels else None
    if known is not None:
        print(f"labels: {', '.join(known)}")
    return {"model": out, "labels": known}
