"""Read pipeline folders strictly and write them atomically, in diffusers' layout.

FOLDER/model_index.json     component classes and the pipeline's settings
FOLDER/{autoencoder, unet, condition, motion_codec, scheduler}/

Components are the positional parameters of the pipeline's `__init__`, settings its keyword-only ones.
"""

import difflib
import inspect
import json
import typing
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from torch import nn

import lfdm
from lfdm.config.checks import check_integer
from lfdm.config.registration import CLASS_KEY, argument_names
from lfdm.diffusion.schedulers import SCHEDULER_CONFIG_NAME, MotionScheduler
from lfdm.errors import UserError
from lfdm.folders.components import Component
from lfdm.folders.files import check_holds_only, replace_folder
from lfdm.folders.model_folder import CONFIG_NAME, build_from_config, read_config, read_json, weights_name
from lfdm.folders.run_folder import ModelLayout
from lfdm.folders.sources import CARD_NAME, INDEX_NAME
from lfdm.pipeline.card import CARD_ENTRIES, kept_card, write_card_files

MAX_TRAIN_TIMESTEPS = 100_000
"""Most noise levels of a scheduler of diffusers; models have 1000."""


def component_types(pipeline: type) -> dict[str, type]:
    """Return the annotated class of every component of a pipeline class; Any stands for a scheduler, ours or of diffusers."""
    hints = typing.get_type_hints(pipeline.__init__)
    parameters = inspect.signature(pipeline.__init__).parameters.values()
    names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "self"]
    return {name: MotionScheduler if hints[name] is Any else hints[name] for name in names}


def setting_names(pipeline: type) -> list[str]:
    """Return the names of the settings of a pipeline class."""
    return sorted(p.name for p in inspect.signature(pipeline.__init__).parameters.values() if p.kind is p.KEYWORD_ONLY)


def folder_entries(pipeline: type) -> tuple[str, ...]:
    """Return the names of the entries of a pipeline folder."""
    return (INDEX_NAME, *component_types(pipeline), *CARD_ENTRIES)


def read_index(folder: Path, pipeline: type) -> tuple[dict[str, type[Any]], dict[str, Any]]:
    """Read model_index.json: the classes of the components, and the pipeline's settings.

    Raises:
        UserError: a missing component, a component class that is not allowed (see `_loadable_classes`), or an unknown key.
    """
    path = folder / INDEX_NAME
    index = {key: value for key, value in read_json(path).items() if not key.startswith("_")}
    classes = find_classes(path, index, pipeline)
    return classes, {key: value for key, value in index.items() if key not in classes}


def find_classes(path: Path | str, index: Mapping[str, Any], pipeline: type) -> dict[str, type[Any]]:
    """Return the classes of the components that the entries of the file `path` refer to.

    Raises:
        UserError: see `read_index`.
    """
    types, settings = component_types(pipeline), setting_names(pipeline)
    missing = [name for name in types if name not in index]
    if missing:
        raise UserError(f"{path} misses the components {missing}")
    for key in index:
        if key not in types and key not in settings:
            near = difflib.get_close_matches(key, settings, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {settings}"
            raise UserError(f"{path}: unknown key {key!r}; {hint}")
    return {name: _find_class(path, name, index[name], base) for name, base in types.items()}


def _find_class(path: Path | str, name: str, entry: object, base: type) -> type[Any]:
    """Return the class that an index entry `[library, class name]` refers to."""
    allowed = _loadable_classes(base)
    key = tuple(entry) if isinstance(entry, list) and all(isinstance(part, str) for part in entry) else ()
    if key in allowed:
        return allowed[key]
    if base is MotionScheduler and len(key) == 2 and key[0] == "diffusers":
        return _diffusers_scheduler(path, key[1])
    known = ", ".join(str(list(known)) for known in allowed if known[0] != "diffusers")
    known += " or a scheduler class of diffusers" if base is MotionScheduler else ""
    raise UserError(f"{path}: component {name!r} must be one of: {known}; got {entry!r}")


def _loadable_classes(base: type) -> dict[tuple[str, ...], type[Any]]:
    """Return the kinds of `base` that a folder may name: those that `lfdm` exports, and subclasses that are already imported.

    A file never causes an import: a class of your own can be loaded once your program has imported it.
    """
    exported = (getattr(lfdm, name) for name in lfdm.__all__)
    kinds = [cls for cls in exported if inspect.isclass(cls) and issubclass(cls, base)]
    return {_index_entry(cls): cls for cls in (*kinds, *subclasses(base)) if not inspect.isabstract(cls)}


def subclasses(base: type) -> Iterator[type]:
    """Yield all imported subclasses of a class."""
    for cls in base.__subclasses__():
        yield cls
        yield from subclasses(cls)


def _index_entry(cls: type) -> tuple[str, str]:
    if getattr(lfdm, cls.__name__, None) is cls:
        return "lfdm", cls.__name__
    return "diffusers" if cls.__module__.startswith("diffusers.") else cls.__module__, cls.__name__


def _diffusers_scheduler(path: Path | str, name: object) -> type[Any]:
    """Return a scheduler class of diffusers by name; nothing is imported for an unknown one."""
    import diffusers
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

    if not (isinstance(name, str) and name.endswith("Scheduler") and name in dir(diffusers.schedulers)):
        raise UserError(f"{path}: the scheduler must be a scheduler class of diffusers; got {name!r}")
    cls = getattr(diffusers.schedulers, name)
    if not (inspect.isclass(cls) and issubclass(cls, SchedulerMixin)):
        raise UserError(f"{path}: diffusers does not provide {name} here; a package that it needs may be missing")
    return cls


def load_scheduler(folder: Path) -> Any:
    """Load a scheduler from its folder; UserError for a class that is not allowed or settings that it does not take."""
    path = folder / SCHEDULER_CONFIG_NAME
    name = read_json(path).get(CLASS_KEY)
    known = {cls.__name__: cls for cls in _loadable_classes(MotionScheduler).values()}
    cls = known.get(str(name)) or _diffusers_scheduler(path, name)
    arguments = read_config(path, cls)
    if "num_train_timesteps" in arguments:  # diffusers computes a table of them at once
        check_integer(f"{path}: num_train_timesteps", arguments["num_train_timesteps"], 1, MAX_TRAIN_TIMESTEPS)
    return build_from_config(path, cls, arguments)


def load_components(layout: ModelLayout, classes: Mapping[str, type[Any]], **options: Any) -> dict[str, Any]:
    """Load every component from its folder, models in evaluation mode; `options` are those of the models' `from_pretrained`.

    Raises:
        FileNotFoundError: a missing folder or file.
        UserError: unknown settings, or weights that do not match.
    """
    components: dict[str, Any] = {}
    for name, cls in classes.items():
        folder = layout.component(name)
        if not issubclass(cls, Component) or issubclass(cls, MotionScheduler):
            components[name] = load_scheduler(folder)
            continue
        if not (folder / CONFIG_NAME).is_file():
            raise FileNotFoundError(f"no component {name}: {folder / CONFIG_NAME} is missing")
        components[name] = cast("Any", cls).from_pretrained(folder, **(options if issubclass(cls, nn.Module) else {}))
    return components


def save_folder(
    folder: Path,
    pipeline: Any,
    *,
    half: bool = False,
    variant: str | None = None,
    leave_out: Collection[str] = (),
    card_name: str | None = None,
) -> None:
    """Write a pipeline folder atomically; its index names every component, also those that are left out.

    A whole folder gets a model card; one that was written by hand is kept.

    Args:
        card_name: how the card's example loads the model, by default by the name of the folder.
        half: store the networks in float16 (batch-norm statistics in float32).
        variant: part of the weights' file names.

    Raises:
        UserError: the folder holds something else, or a component has a class that could not be loaded again.
    """
    types = component_types(type(pipeline))
    check_holds_only(folder, folder_entries(type(pipeline)), "a model folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / INDEX_NAME).exists():
        raise UserError(f"{folder} exists and is not a complete model folder: {INDEX_NAME} is missing; choose another name")
    others = [path for path in folder.glob("*/*.safetensors") if path.name != weights_name(variant)]
    if others:
        raise UserError(f"{folder} holds weights of another variant, {others[0].name}; choose another name")
    components: dict[str, Any] = {name: _uncompiled(getattr(pipeline, name)) for name in types}
    for name, component in components.items():
        entry = _index_entry(type(component))
        of_diffusers = types[name] is MotionScheduler and entry[0] == "diffusers"
        if entry not in _loadable_classes(types[name]) and not of_diffusers:
            raise UserError(f"component {name!r} has a class that could not be loaded again: {'.'.join(entry)}")
    index = {
        CLASS_KEY: "LatentFlowPipeline",
        **{name: list(_index_entry(type(component))) for name, component in components.items()},
        **{name: pipeline.config[name] for name in setting_names(type(pipeline))},
    }

    def write(temporary: Path) -> None:
        for name, component in components.items():
            if name in leave_out:
                continue
            # the condition stays in float32: it is small, and it is compared with other tables
            options = {"half": half and name != "condition", "variant": variant} if isinstance(component, nn.Module) else {}
            stored = component if isinstance(component, Component) else _without_foreign_settings(component)
            stored.save_pretrained(temporary / name, **options)
        (temporary / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")
        if not leave_out:
            write_card_files(pipeline, temporary, source=pipeline.source, name=card_name or folder.resolve().name)
            if own_card is not None:
                (temporary / CARD_NAME).write_text(own_card)

    own_card = kept_card(folder)
    replace_folder(folder, write)


def _uncompiled(component: Any) -> Any:
    """Return the network that `torch.compile` has wrapped."""
    return getattr(component, "_orig_mod", component)


def _without_foreign_settings(scheduler: Any) -> Any:
    """Return the scheduler without the settings that `from_config` of another class left in its configuration."""
    own = argument_names(type(scheduler))
    return type(scheduler)(**{name: value for name, value in scheduler.config.items() if name in own})
