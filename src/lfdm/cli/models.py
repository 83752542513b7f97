"""Commands that train, adapt, import and measure models."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from lfdm.cli.console import ProgressBars, progress_bar
from lfdm.cli.options import DEFAULT_MODEL, pick_device
from lfdm.config.diffusion import SchedulerName
from lfdm.config.presets import Preset
from lfdm.config.training import AdaptationConfig
from lfdm.errors import UserError
from lfdm.evaluation.settings import EvaluationConfig

if TYPE_CHECKING:
    from lfdm.training.reports import StepReport


def autoencoder_training(preset: Preset) -> Callable[..., None]:
    """The command that trains stage 1 of `preset`."""

    def train_autoencoder(
        *, data: Path, out: Path, init: str | None = None, config: Annotated[Preset, arg(name="")] = preset
    ) -> None:
        """Train stage 1; the same command resumes.

        Args:
            data: clip data set.
            out: run folder, for checkpoints and logs.
            init: bundled name, or model, pipeline or run folder whose weights to start from.
        """
        from lfdm.training import stage1

        with progress_bar() as update:
            print(stage1.train_autoencoder(config, data, out, init=init, report=_reporter(update), progress=update))

    return _naming_preset(train_autoencoder, preset)


def diffusion_training(preset: Preset) -> Callable[..., None]:
    """The command that trains stage 2 of `preset`."""

    def train_diffusion(
        *,
        data: Path,
        autoencoder: str,
        out: Path,
        init: str | None = None,
        config: Annotated[Preset, arg(name="")] = preset,
    ) -> None:
        """Train stage 2; the same command resumes.

        Args:
            data: clip data set.
            autoencoder: bundled name, or stage-1 run, model or pipeline folder.
            out: run folder, for checkpoints and logs; can be given to --model.
            init: bundled name, or U-Net, pipeline or run folder whose weights to start from; labels that it knows keep
                their embeddings.
        """
        from lfdm.training import stage2

        with progress_bar() as update:
            trained = stage2.train_diffusion(config, data, autoencoder, out, init=init, report=_reporter(update), progress=update)
            print(trained)

    return _naming_preset(train_diffusion, preset)


def _naming_preset(command: Callable[..., None], preset: Preset) -> Callable[..., None]:
    """`command` with the preset in its help text."""
    size = f"{preset.image_size}x{preset.image_size}, {preset.num_frames} frames"
    command.__doc__ = (command.__doc__ or "").replace(";", f" of {preset.name} ({size});", 1)
    return command


def _reporter(update: ProgressBars) -> Callable[["StepReport"], None]:
    def report(step: "StepReport") -> None:
        loss = step.metrics.get("loss", float("nan"))
        update("training", step.step, step.num_steps, note=f"loss {loss:.4f}, {step.steps_per_second:.2f} steps/s")

    return report


def adapt(
    *,
    data: Path,
    out: Path,
    model: str = DEFAULT_MODEL,
    config: Annotated[AdaptationConfig, arg(name="")] = AdaptationConfig(),  # noqa: B008 - frozen
) -> None:
    """Adapt a model's decoder to the images of a new domain, motion kept; the same command resumes.

    Args:
        data: clip data set of the new domain; labels play no part.
        out: run folder, and in the end a pipeline folder that can be given to --model.
        model: bundled name, pipeline folder, diffusion run folder or Hub repository.
    """
    from lfdm.training import adaptation

    with progress_bar() as update:
        print(adaptation.adapt(model, data, out, config, report=_reporter(update), progress=update))


def evaluate(
    *,
    data: Path,
    out: Path,
    model: str = DEFAULT_MODEL,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    scheduler: SchedulerName | None = None,
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
        scheduler: by default the model's.
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
            scheduler=scheduler,
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
