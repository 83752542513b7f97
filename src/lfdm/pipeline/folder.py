"""Finding, strictly reading and writing pipeline folders: `model_index.json` and a folder per component, in diffusers' layout.

FOLDER/model_index.json     component classes and the pipeline's settings
FOLDER/{autoencoder, unet, condition, motion_codec, scheduler}/
RUN/model/                  of a stage-2 run: the same without `unet`
RUN/checkpoints/step-00001000/{unet, condition}/     averaged weights, a learned null condition; the newest are used
"""

import difflib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.condition.encoder import ConditionEncoder
from lfdm.denoiser.unet3d import MotionUNet3D
from lfdm.errors import UserError
from lfdm.folders.files import check_holds_only, replace_folder
from lfdm.folders.model_folder import CONFIG_NAME, read_json
from lfdm.folders.run_folder import MODEL_DIR, find_checkpoints
from lfdm.folders.sources import INDEX_NAME
from lfdm.motion.codec import MotionCodec

SCHEDULER_CONFIG_NAME = "scheduler_config.json"

MODEL_CLASSES: Mapping[str, type[Any]] = {
    "autoencoder": LatentFlowAutoencoder,
    "unet": MotionUNet3D,
    "condition": ConditionEncoder,
    "motion_codec": MotionCodec,
}
"""Every component but the scheduler, which is one of diffusers' own."""
COMPONENTS = (*MODEL_CLASSES, "scheduler")
FOLDER_ENTRIES = (INDEX_NAME, *COMPONENTS)
"""What a pipeline folder holds."""


def resolve_parts(folder: Path) -> dict[str, Path]:
    """The folder of every component, of a pipeline folder or of a stage-2 run; key `index` is where its index is.

    Raises:
        FileNotFoundError: neither, or a run without a checkpoint.
    """
    if (folder / INDEX_NAME).is_file():
        return {"index": folder} | {name: folder / name for name in COMPONENTS}
    model = folder / MODEL_DIR
    if not (model / INDEX_NAME).is_file():
        raise FileNotFoundError(f"{folder} holds no model: neither {INDEX_NAME} nor {MODEL_DIR}/{INDEX_NAME} of a diffusion run")
    checkpoints = find_checkpoints(folder)
    if not checkpoints:
        raise FileNotFoundError(f"{folder} is a diffusion run without a checkpoint yet")
    newest = checkpoints[-1]
    return {"index": model, **{name: newest / name if (newest / name).is_dir() else model / name for name in COMPONENTS}}


def read_settings(folder: Path, allowed: set[str]) -> dict[str, Any]:
    """The pipeline's settings in model_index.json, after its component classes have been checked by name.

    Raises:
        UserError: a component class that is not ours or a diffusers scheduler, a missing component, or an unknown key.
    """
    path = folder / INDEX_NAME
    index = {key: value for key, value in read_json(path).items() if not key.startswith("_")}
    missing = [name for name in COMPONENTS if name not in index]
    if missing:
        raise UserError(f"{path} misses the components {missing}")
    for name, cls in MODEL_CLASSES.items():
        expected = ["lfdm", cls.__name__]
        if index.pop(name) != expected:
            raise UserError(f"{path}: component {name!r} must be {expected}; nothing else is loaded")
    _check_scheduler_name(path, index.pop("scheduler"))
    for key in index:
        if key not in allowed:
            near = difflib.get_close_matches(key, allowed, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {sorted(allowed)}"
            raise UserError(f"{path}: unknown key {key!r}; {hint}")
    return index


def _check_scheduler_name(path: Path, value: object) -> str:
    """The class name of a diffusers scheduler, judged from names alone: nothing is imported for an unknown one."""
    library, name = value if isinstance(value, list) and len(value) == 2 else (None, None)
    if library != "diffusers" or not (isinstance(name, str) and name.endswith("Scheduler") and name in dir(diffusers.schedulers)):
        raise UserError(f"{path}: the scheduler must be a scheduler class of diffusers; got {value!r}")
    return name


def load_scheduler(folder: Path) -> SchedulerMixin:
    """A diffusers scheduler from its folder; UserError for another class or settings it does not take."""
    path = folder / SCHEDULER_CONFIG_NAME
    config = read_json(path)
    name = _check_scheduler_name(path, ["diffusers", config.get("_class_name")])
    cls = getattr(diffusers.schedulers, name)
    if not (inspect.isclass(cls) and issubclass(cls, SchedulerMixin)):
        raise UserError(f"{path}: diffusers cannot offer {name} here (is a package that it needs missing?)")
    arguments = {key: value for key, value in config.items() if not key.startswith("_")}
    unknown = sorted(set(arguments) - set(inspect.signature(cls.__init__).parameters))
    if unknown:
        raise UserError(f"{path} has keys that {name} does not take: {unknown}")
    try:
        return cls(**arguments)
    except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError) as error:
        raise UserError(f"{path} describes no {name}: {error}") from error


def _without_foreign_settings(scheduler: Any) -> Any:
    """The scheduler as its own settings make it: `from_config` of another one leaves that one's in it."""
    cls = type(scheduler)
    own = inspect.signature(cls.__init__).parameters
    return cls(**{name: value for name, value in scheduler.config.items() if name in own})


def load_components(parts: Mapping[str, Path], *, dtype: torch.dtype, device: torch.device | str) -> dict[str, Any]:
    """Every component from its folder, models in evaluation mode.

    Raises:
        FileNotFoundError: a missing folder or file.
        UserError: unknown settings, or weights that do not fit.
    """
    components: dict[str, Any] = {"scheduler": load_scheduler(parts["scheduler"])}
    for name, cls in MODEL_CLASSES.items():
        if not (parts[name] / CONFIG_NAME).is_file():
            raise FileNotFoundError(f"no component {name}: {parts[name] / CONFIG_NAME} is missing")
        options = {} if cls is MotionCodec else {"dtype": dtype, "device": device}
        components[name] = cls.from_pretrained(parts[name], **options)
    return components


def save_folder(folder: Path, components: Mapping[str, Any], settings: Mapping[str, Any], *, half: bool) -> None:
    """Write a pipeline folder whole; its index names every component, also one that is left out of `components`.

    Args:
        half: store both networks in float16 (batch-norm statistics in float32).

    Raises:
        UserError: the folder holds something else, also beside a model, or the scheduler is not one of diffusers.
    """
    check_holds_only(folder, FOLDER_ENTRIES, "a model folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / INDEX_NAME).exists():
        raise UserError(f"{folder} exists and is not a whole model folder: {INDEX_NAME} is missing; choose another name")
    scheduler = type(components["scheduler"])
    if not scheduler.__module__.startswith("diffusers."):
        raise UserError(f"only schedulers of diffusers can be saved; got {scheduler.__module__}.{scheduler.__name__}")
    index = {
        "_class_name": "LatentFlowPipeline",
        "_diffusers_version": diffusers.__version__,
        **{name: ["lfdm", cls.__name__] for name, cls in MODEL_CLASSES.items()},
        "scheduler": ["diffusers", scheduler.__name__],
        **settings,
    }

    def write(temporary: Path) -> None:
        for name, component in components.items():
            options = {"half": half} if name in ("autoencoder", "unet") else {}
            kept = _without_foreign_settings(component) if name == "scheduler" else component
            kept.save_pretrained(temporary / name, **options)
        (temporary / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")

    replace_folder(folder, write)
