"""Commands that train models."""

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from tyro.conf import Positional, Suppress, arg

from lfdm.cli.console import Command, ProgressBars, Values, progress_bar
from lfdm.cli.options import DEFAULT_MODEL
from lfdm.cli.planning import plan_stage1, plan_stage2
from lfdm.cli.run_summary import describe_run
from lfdm.config.presets import Preset
from lfdm.config.sizes import SizeStage, parse_stages, suitable_preset
from lfdm.config.training import AdaptationConfig, FewStepsConfig
from lfdm.config.video import SizeSetting
from lfdm.data.corpora.shapes import find_common_shape
from lfdm.data.index import label_warnings

if TYPE_CHECKING:
    from lfdm.training.reports import Callbacks, RunSummary


@dataclass(frozen=True, kw_only=True)
class PresetOptions(Preset):
    """A preset as options. Its size is the option --size of the command, so that all is checked once that is known."""

    image_size: Annotated[SizeSetting, Suppress]

    def __post_init__(self) -> None:
        """Leave the checks to `preset`."""

    @classmethod
    def of(cls, preset: Preset) -> Self:
        """Return the options whose defaults are those of `preset`."""
        return cls(**_values(preset))

    def preset(self, size: SizeSetting | None) -> Preset:
        """Return the settings with a size, by default the preset's; UserError for settings that contradict each other."""
        sizes: dict[str, Any] = {} if size is None else {"image_size": size}
        return Preset(**_values(self) | sizes)


def _values(preset: Preset) -> dict[str, Any]:
    return {field.name: getattr(preset, field.name) for field in fields(preset)}


def autoencoder_training(preset: Preset) -> Command:
    """Return the command that trains stage 1 of `preset`."""

    def train_autoencoder(
        *,
        data: str,
        out: Path,
        size: SizeSetting | None = None,
        init: str | None = None,
        cache_gb: float | None = None,
        sizes: tuple[str, ...] = (),
        plan: bool = False,
        options: Annotated[PresetOptions, arg(name="")] = PresetOptions.of(preset),  # noqa: B008 - frozen
    ) -> Values | None:
        """Train stage 1 of PRESET; the same command resumes.

        Args:
            data: Clip data set, or folder or URL of shards (see `lfdm data shard`).
            out: Run folder, for checkpoints and logs.
            size: Height x width of frames, the same for both stages; by default the preset's short side and the clips' shape.
            init: Bundled name, or model, pipeline or run folder whose weights to start from; also of smaller images.
            cache_gb: Gigabytes of shards at a URL that are kept on the disk; by default 50.
            sizes: SIZE:STEPS of a training that grows, such as 64:1500 128:1000; smaller sizes train in OUT-SIZE.
            plan: Measure a few steps and check the clips instead: time, memory and warnings. Nothing is written.
        """
        stages = parse_stages(sizes)
        config = _with_size(options, data, size)
        if plan:
            return plan_stage1(config, data, out, init, stages)
        note = "" if replace(config, image_size=preset.image_size) == preset else "  (with the same model options)"
        return _train_autoencoder(config, data, out, init, cache_gb, stages, note)

    return _naming_preset(train_autoencoder, preset)


def train_suitable_autoencoder(
    *, data: str, out: Path, init: str | None = None, cache_gb: float | None = None, plan: bool = False
) -> Values | None:
    """Train stage 1 of the preset that suits the size of the clips; the same command resumes.

    Args:
        data: Clip data set, or folder or URL of shards (see `lfdm data shard`).
        out: Run folder, for checkpoints and logs.
        init: Bundled name, or model, pipeline or run folder whose weights to start from; also of smaller images.
        cache_gb: Gigabytes of shards at a URL that are kept on the disk; by default 50.
        plan: Measure a few steps and check the clips instead: time, memory and warnings. Nothing is written.
    """
    from lfdm.data.training_clips import find_clips

    preset, reason = suitable_preset([min(size) for size in find_clips(data, cache_gb).sizes()])
    sys.stderr.write(f"preset {preset.name}: {reason}\n")
    preset = _in_shape_of_clips(preset, data)
    if plan:
        return plan_stage1(preset, data, out, init, ())
    return _train_autoencoder(preset, data, out, init, cache_gb, (), "")


def _train_autoencoder(
    preset: Preset, data: str, out: Path, init: str | None, cache_gb: float | None, stages: Sequence[SizeStage], note: str
) -> Values | None:
    """Train stage 1 and print what to do next; `note` is a remark on the command of stage 2."""
    from lfdm.training import growing, stage1

    with progress_bar() as bars:
        callbacks = _callbacks(bars, data)
        if stages:
            checkpoint = growing.train_growing(preset, data, out, stages, init=init, cache_gb=cache_gb, **callbacks)
        else:
            checkpoint = stage1.train_autoencoder(preset, data, out, init=init, cache_gb=cache_gb, **callbacks)
    stage2 = _command("train diffusion", preset.name, data=data, autoencoder=out, out="RUN2") + note
    return _print_result(checkpoint, stage2, _command("evaluate", model=out, data=data, out="RESULTS"))


def diffusion_training(preset: Preset) -> Command:
    """Return the command that trains stage 2 of `preset`."""

    def train_diffusion(
        *,
        data: str,
        autoencoder: str,
        out: Path,
        size: SizeSetting | None = None,
        init: str | None = None,
        cache_gb: float | None = None,
        plan: bool = False,
        options: Annotated[PresetOptions, arg(name="")] = PresetOptions.of(preset),  # noqa: B008 - frozen
    ) -> Values | None:
        """Train stage 2 of PRESET; the same command resumes.

        Args:
            data: Clip data set, or folder or URL of shards (see `lfdm data shard`).
            autoencoder: Bundled name, or stage-1 run, model or pipeline folder.
            out: Run folder, for checkpoints and logs; later a model for --model.
            size: Height x width of frames, the same for both stages; by default the preset's short side and the clips' shape.
            init: Bundled name, or U-Net, pipeline or run folder whose weights to start from, and the embeddings of its labels.
            cache_gb: Gigabytes of shards at a URL that are kept on the disk; by default 50.
            plan: Measure a few steps and check the clips instead: time, memory and warnings. Nothing is written.
        """
        from lfdm.training import stage2

        config = _with_size(options, data, size)
        if plan:
            return plan_stage2(config, data, autoencoder, out, init)
        with progress_bar() as bars:
            checkpoint = stage2.train_diffusion(
                config, data, autoencoder, out, init=init, cache_gb=cache_gb, **_callbacks(bars, data)
            )
        return _print_result(checkpoint, *_uses_of(out, data))

    return _naming_preset(train_diffusion, preset)


def _with_size(options: PresetOptions, data: str, size: SizeSetting | None) -> Preset:
    """Return the settings with the size of --size or, without it, the shape of the training clips."""
    return _in_shape_of_clips(options.preset(None), data) if size is None else options.preset(size)


def _in_shape_of_clips(config: Preset, data: str) -> Preset:
    """Return the settings with the shape of the training clips and the same short side.

    A shape that the preset's networks can only have roughly is not taken: such clips are fitted to the preset's size.

    Raises:
        UserError: clips of several shapes.
    """
    from lfdm.data.training_clips import find_clips

    found = find_common_shape(find_clips(data).sizes(), min(config.size), may_differ=False, multiple=config.side_multiple)
    if found.size == config.size or not found.size.has_shape_of(found.shape):
        return config
    return replace(config, image_size=found.size.setting)


def _naming_preset(command: Command, preset: Preset) -> Command:
    """Return `command` with the preset in its help text."""
    size = f"{preset.name} ({preset.size}, {preset.num_frames} frames)"
    command.__doc__ = (command.__doc__ or "").replace("PRESET", size)
    return command


def adapt(
    *,
    data: str,
    out: Path,
    model: str = DEFAULT_MODEL,
    cache_gb: float | None = None,
    config: Annotated[AdaptationConfig, arg(name="")] = AdaptationConfig(),  # noqa: B008 - frozen
) -> Values | None:
    """Adapt a model's decoder to images of a new domain, without changing its motion; the same command resumes.

    Args:
        data: Clip data set of the new domain, or folder or URL of shards; labels are not used.
        out: Run folder, in the end a pipeline folder for --model.
        model: Bundled name, pipeline folder, diffusion run folder or Hub repository.
        cache_gb: Gigabytes of shards at a URL that are kept on the disk; by default 50.
    """
    from lfdm.training import adaptation

    with progress_bar() as bars:
        adapted = adaptation.adapt(model, data, out, config, cache_gb=cache_gb, **_callbacks(bars))
    return _print_result(adapted, *_uses_of(out, data))


def train_few_steps(
    model: Annotated[str, Positional, arg(metavar="MODEL")],
    *,
    data: str,
    out: Path,
    cache_gb: float | None = None,
    config: Annotated[FewStepsConfig, arg(name="")] = FewStepsConfig(),  # noqa: B008 - frozen
) -> Values | None:
    """Distill stage 2 of a model, so that it makes videos in one to four steps; the same command resumes.

    Args:
        model: Bundled name, diffusion run folder, pipeline folder or Hub repository to learn from.
        data: Clip data set, best that of stage 2, whose motion cache is then used; or folder or URL of its shards.
        out: Run folder, for checkpoints and logs; later a model for --model.
        cache_gb: Gigabytes of shards at a URL that are kept on the disk; by default 50.
    """
    from lfdm.training import few_steps

    with progress_bar() as bars:
        checkpoint = few_steps.train_few_steps(model, data, out, config, cache_gb=cache_gb, **_callbacks(bars, data))
    return _print_result(checkpoint, *_uses_of(out, data))


def _callbacks(bars: ProgressBars, data: str | None = None) -> "Callbacks":
    """Return the callbacks of a training that show it on the terminal, with warnings about the labels of `data`."""
    from lfdm.training.reports import show_steps

    return {"report": show_steps(bars), "summary": _show_summary(bars, data), "progress": bars}


def _show_summary(bars: ProgressBars, data: str | None = None) -> "Callable[[RunSummary], None]":
    def summarize(summary: "RunSummary") -> None:
        bars.print(describe_run(summary))
        if data is not None and summary.seconds_left is None:  # at the start
            from lfdm.data.training_clips import find_clips

            source = find_clips(data)
            for warning in label_warnings(source.split_labels("train"), source.split_labels("test")):
                bars.print(f"warning: {warning}")

    return summarize


def _uses_of(model: Path, data: str) -> tuple[str, ...]:
    """Return commands that use a trained model."""
    return _command("generate", "IMAGE", "LABEL", model=model), _command("evaluate", model=model, data=data, out="RESULTS")


def _command(name: str, *words: str, **options: str | Path) -> str:
    given = [word for option, value in options.items() for word in (f"--{option}", shlex.quote(str(value)))]
    return " ".join(["lfdm", name, *words, *given])


def _print_result(path: Path, *next_commands: str) -> Values | None:
    """Print the result on stdout and what to do with it on stderr, once for all processes, and return both."""
    from accelerate import PartialState

    if not PartialState().is_main_process:
        return None
    print(path)
    sys.stderr.write("".join(f"next: {command}\n" for command in next_commands))
    return {"model": path, "next": next_commands}
