"""Commands that evaluate and import models."""

from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from lfdm.cli.console import progress_bar
from lfdm.cli.options import DEFAULT_MODEL, pick_device
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
    config: Annotated[EvaluationConfig, arg(name="")] = EvaluationConfig(),  # noqa: B008 - frozen
) -> None:
    """Measure a model on held-out clips: results.json and report.html; the same command resumes.

    Args:
        data: clip data set.
        out: folder for the results.
        model: bundled name, pipeline folder, run folder (of either stage) or Hub repository.
        num_inference_steps: sampling steps; by default the model's.
        guidance_scale: by default the model's.
        sampler: by default the model's.
        device: cpu, cuda, cuda:1, ...; the GPU if there is one. Under `accelerate launch` every process has its own.
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
            progress=update,
        )
    if PartialState().is_main_process:
        _print_summary(results)
        print(out / "results.json")
        print(out / "report.html")


def _print_summary(results: dict[str, Any]) -> None:
    """The figures as tables, and what was left out."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from lfdm.evaluation.report import tables as page_tables

    console = Console()
    for title, heads, rows in page_tables.summary(results):
        table = Table(*heads, title=title, title_justify="left")
        for row in rows:
            table.add_row(*(escape(cell) for cell in row))  # the brackets of FVD[puppets-classifier] are no markup
        console.print(table)
    for figure, reason in results["left_out"].items():
        console.print(f"left out: {figure} ({reason})", markup=False, highlight=False)


def import_(
    *,
    out: Path,
    preset: str | None = None,
    autoencoder: Path | None = None,
    diffusion: Path | None = None,
    labels: str | None = None,
    text_encoder: str | None = None,
) -> None:
    """Import published checkpoints; embed the labels that a model can be asked for.

    With both files OUT can be given to --model. With one it holds that half, and the other can be imported into it later;
    the auto-encoder alone can be given to `train diffusion --autoencoder` and `train autoencoder --init`.

    Args:
        out: the folder that is written, or that --labels are added to.
        preset: what the files were trained as: mug128, mhad128 or natops128.
        autoencoder: RegionMM.pth, or a stage-1 checkpoint of MRAA to start trainings from.
        diffusion: flowdiff.pth.
        labels: mug128, mhad128 or natops128 for that data set's labels, a text file with one label per line, or a comma list.
            Needs transformers and the text model once.
        text_encoder: folder or Hub name of the text model; by default the one that the model was trained with
            (bert-base-cased).
    """
    from lfdm.published.importing import add_labels, import_released, parse_labels

    if labels is None and text_encoder is not None:
        raise UserError(f"--text-encoder embeds --labels; got {text_encoder} without labels")
    wanted = parse_labels(labels) if labels is not None else ()
    if preset is not None:
        imported = import_released(preset, out, autoencoder=autoencoder, diffusion=diffusion)
        print(out)
        if imported.has_diffusion and not (wanted or imported.labels):
            print(f"no label embeddings yet; `lfdm import --labels {preset} --out {out}` adds them (until then: tensors or None)")
    elif autoencoder or diffusion or not wanted:
        raise UserError("give --preset (mug128, mhad128 or natops128) with the files to import, or --labels")
    if wanted:
        print(f"labels: {', '.join(add_labels(out, wanted, text_encoder).labels)}")
