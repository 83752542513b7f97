"""Run folders: their layout and `config.json`, which decides whether a command may resume a run."""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lfdm.config.presets import Preset
from lfdm.config.serialization import from_json
from lfdm.config.video import Fit, SizeInput
from lfdm.errors import UserError
from lfdm.folders.files import check_parents, write_bytes
from lfdm.folders.model_folder import WEIGHTS_NAME, read_json
from lfdm.folders.sources import INDEX_NAME

CONFIG_NAME = "config.json"
CHECKPOINTS_DIR = "checkpoints"
SAMPLES_DIR = "samples"
STAGE1_NAME = "autoencoder"
"""Folder of the model in the checkpoints of a stage-1 run."""
_MAX_LEVELS = 3
"""Folders between a run and the model in its checkpoints: RUN/checkpoints/step-N/autoencoder."""
STATE_NAME = "state.json"
"""Written last into a checkpoint: a folder without it is incomplete."""
MODEL_DIR = "model"
"""Folder of a stage-2 run with the components that are not trained there: auto-encoder, condition, codec."""
FREE_TO_CHANGE = (
    "num_steps",
    "num_workers",
    "checkpoint_steps",
    "checkpoint_minutes",
    "keep_checkpoints",
    "log_steps",
    "sample_steps",
    "panel_inference_steps",
    "gradient_checkpointing",
    "micro_batch_size",
)
"""Settings that a resumed run may change: they affect the weights only by rounding, except for more `num_steps`."""


def find_checkpoints(run: Path) -> list[Path]:
    """List the complete checkpoints of a training run, oldest first."""
    return sorted(path for path in (run / CHECKPOINTS_DIR).glob("step-*") if (path / STATE_NAME).is_file())


def find_model(path: Path, name: str) -> Path:
    """Return the model folder that `path` refers to.

    That is the newest checkpoint's `name` of a run, the component `name` of a stage-2 run or pipeline folder, or `path` itself.

    Raises:
        FileNotFoundError: none of these exists.
    """
    checkpoints = find_checkpoints(path)
    candidates = [path, path / name, path / MODEL_DIR / name, *(checkpoint / name for checkpoint in checkpoints[-1:])]
    for folder in reversed(candidates):
        if (folder / WEIGHTS_NAME).is_file():
            return folder
    raise FileNotFoundError(
        f"{path} contains no {name}: it is neither a model folder, a pipeline folder nor a run with a checkpoint"
    )


def refuse_run(folder: Path, class_name: str) -> None:
    """Raise UserError if `folder` is a training run where the folder of one model is needed.

    The message names the models of its newest checkpoint.
    """
    checkpoints = find_checkpoints(folder)
    if checkpoints:
        models = sorted(str(weights.parent) for weights in checkpoints[-1].glob(f"*/{WEIGHTS_NAME}"))
        raise UserError(
            f"{folder} is a training run, not the folder of a {class_name}; its newest models are {', '.join(models)}"
        )
    if (folder / CONFIG_NAME).is_file() and "stage" in read_json(folder / CONFIG_NAME):
        raise UserError(f"{folder} is a training run without a checkpoint yet, not the folder of a {class_name}")


@dataclass(frozen=True)
class Stage1Layout:
    """A trained stage 1, and the settings that its own folder does not hold."""

    folder: Path
    image_size: SizeInput
    fit: Fit
    fps: float


def find_stage1(path: Path) -> Stage1Layout:
    """Find stage 1 in a run of either stage, one of its checkpoints or a pipeline folder (`path` may also be the model in these).

    Raises:
        FileNotFoundError: no such model.
        UserError: a model outside of a run or pipeline folder, whose image size is not known.
    """
    folder = find_model(path, STAGE1_NAME)
    for parent in folder.absolute().parents[:_MAX_LEVELS]:
        if (parent / INDEX_NAME).is_file():
            index = read_json(parent / INDEX_NAME)
            if all(name in index for name in ("image_size", "fit", "fps")):
                return Stage1Layout(folder, index["image_size"], index["fit"], index["fps"])
        elif (parent / CONFIG_NAME).is_file() and "preset" in (config := read_json(parent / CONFIG_NAME)):
            preset = from_json(Preset, config["preset"])
            return Stage1Layout(folder, preset.image_size, preset.fit, preset.fps)
    raise UserError(
        f"{folder} is an auto-encoder without its image size; give the training run or the pipeline folder it is from"
    )


@dataclass(frozen=True)
class ModelLayout:
    """Where the parts of a pipeline are: in a pipeline folder, or in a stage-2 run.

    RUN/model/                  a pipeline folder without the network that the run trains
    RUN/checkpoints/step-00001000/{unet, condition}/     averaged weights, a learned null condition; the newest are used
    """

    index: Path
    """The folder of model_index.json."""
    checkpoint: Path | None = None
    """The newest checkpoint of a run."""

    def component(self, name: str) -> Path:
        """Return the folder of a component, which may not exist."""
        if self.checkpoint is not None and (self.checkpoint / name).is_dir():
            return self.checkpoint / name
        return self.index / name


def find_layout(folder: Path) -> ModelLayout:
    """Find the parts of a pipeline in a pipeline folder or a stage-2 run.

    Raises:
        FileNotFoundError: neither, such as a stage-1 run, or a run without a checkpoint.
    """
    if (folder / INDEX_NAME).is_file():
        return ModelLayout(folder)
    model = folder / MODEL_DIR
    if not (model / INDEX_NAME).is_file():
        if _holds_stage1(folder):
            raise FileNotFoundError(
                f"{folder} is a stage-1 run: an auto-encoder, not a whole model; it can transfer motion but not generate any. "
                f"Train stage 2 from it with `lfdm train diffusion PRESET --autoencoder {folder}`, and give that run as the model"
            )
        raise FileNotFoundError(f"{folder} holds no model: neither {INDEX_NAME} nor {MODEL_DIR}/{INDEX_NAME} of a diffusion run")
    checkpoints = find_checkpoints(folder)
    if not checkpoints:
        raise FileNotFoundError(f"{folder} is a diffusion run without a checkpoint yet")
    return ModelLayout(model, checkpoints[-1])


def _holds_stage1(folder: Path) -> bool:
    try:
        return find_model(folder, STAGE1_NAME).is_dir()
    except FileNotFoundError:
        return False


def check_run(out: Path, config: dict[str, Any], *, free: Collection[str] = ()) -> None:
    """Raise what `prepare_run` raises, without writing anything; for use before costly work.

    Raises:
        UserError: the folder holds a run with other settings (the message lists the differences), or something else.
    """
    path = out / CONFIG_NAME
    check_parents(path.parent)
    if path.exists():
        differing = list(differences(read_json(path), json.loads(json.dumps(config)), free))
        if differing:
            raise UserError(f"{out} holds a run with other settings: {'; '.join(differing)}. Use them, or another --out")
    elif out.exists() and not (out.is_dir() and all(entry.name.startswith((".", CONFIG_NAME)) for entry in out.iterdir())):
        raise UserError(f"{out} exists and is not a run folder; choose another --out")


def prepare_run(out: Path, config: dict[str, Any], *, free: Collection[str] = ()) -> None:
    """Write `out`/config.json; to resume a run, all settings but `FREE_TO_CHANGE` and `free` must be the same.

    Args:
        config: JSON-typed settings, nested.
        free: dotted names of settings that may differ, including everything nested under them.

    Raises:
        UserError: the folder holds a run with other settings (the message lists the differences), or something else.
    """
    check_run(out, config, free=free)
    path, new = out / CONFIG_NAME, json.loads(json.dumps(config))
    if path.exists() and read_json(path) == new:
        return
    out.mkdir(parents=True, exist_ok=True)
    write_bytes(path, (json.dumps(new, indent=2) + "\n").encode())


def differences(old: object, new: object, free: Collection[str] = (), name: str = "") -> Iterator[str]:
    """Yield a line for each setting that differs, except for `FREE_TO_CHANGE` and the dotted names in `free`."""
    if name in free or name.rpartition(".")[2] in FREE_TO_CHANGE:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from differences(old.get(key), new.get(key), free, f"{name}.{key}" if name else key)
    elif old != new:
        yield f"{name} is {old!r} there, {new!r} here"
