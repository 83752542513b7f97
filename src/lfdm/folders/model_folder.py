"""Read the files of a model folder strictly: `config.json` and `diffusion_pytorch_model.safetensors`."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from lfdm.config.registration import CLASS_KEY, argument_names
from lfdm.config.serialization import SettingsT, from_json
from lfdm.errors import UserError
from lfdm.folders.file_kinds import check_downloaded
from lfdm.folders.texts import read_whole

ModelT = TypeVar("ModelT")

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; FileNotFoundError or UserError with the path if there is none."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    data = read_whole(path)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:  # ValueError: also for bytes that are no text, and numbers of 5000 digits
        raise UserError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object; got {type(value).__name__}")
    return value


def weights_name(variant: str | None) -> str:
    """Return the file name of a variant of the weights, as diffusers names it."""
    return WEIGHTS_NAME if variant is None else WEIGHTS_NAME.replace(".safetensors", f".{variant}.safetensors")


def read_config(path: Path, cls: type) -> dict[str, Any]:
    """Read the constructor arguments of `cls` from a JSON file; UserError for another class or unknown keys."""
    config = read_json(path)
    if config.get(CLASS_KEY, cls.__name__) != cls.__name__:
        raise UserError(f"{path.parent} holds a {config[CLASS_KEY]}; a {cls.__name__} is needed")
    arguments = {name: value for name, value in config.items() if not name.startswith("_")}
    allowed = argument_names(cls)
    unknown = sorted(set(arguments) - allowed)
    if unknown:
        raise UserError(f"{path} has unknown keys {unknown}; {cls.__name__} takes {sorted(allowed)}")
    return arguments


def checked_settings(cls: type[SettingsT], config: Mapping[str, Any]) -> SettingsT:
    """Convert a model's registered arguments to settings of type `cls`; UserError names the first wrong one."""
    return from_json(cls, {name: value for name, value in config.items() if not name.startswith("_")})


def build_from_config(path: Path, cls: Callable[..., ModelT], arguments: Mapping[str, Any]) -> ModelT:
    """Construct a `cls` with the arguments stored in a file; UserError naming the file if it does not accept them."""
    try:
        return cls(**arguments)
    except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError) as error:
        raise UserError(f"{path} has values that {getattr(cls, '__name__', cls)} does not accept: {error}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file; UserError with the path if it is damaged."""
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}")
    check_downloaded(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is not a readable safetensors file: {error}") from None


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Read the shapes of the tensors of a safetensors file from its header; raises as `read_tensors`."""
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}")
    check_downloaded(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except (SafetensorError, RuntimeError) as error:  # RuntimeError: larger than the memory
        raise UserError(f"{path} is not a readable safetensors file: {error}") from None


def check_shapes(module: nn.Module, shapes: Mapping[str, tuple[int, ...]], origin: str) -> None:
    """Raise UserError listing the missing, unexpected and misshapen names of tensors for `module`."""
    own = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    missing = sorted(set(own) - set(shapes))
    unexpected = sorted(set(shapes) - set(own))
    common = sorted(set(own) & set(shapes))
    misshapen = [f"{name} {shapes[name]}, needs {own[name]}" for name in common if shapes[name] != own[name]]
    if missing or unexpected or misshapen:
        raise UserError(
            f"{origin} does not match {type(module).__name__}: missing {missing}, unexpected {unexpected}, misshapen {misshapen}"
        )


def load_exactly(module: nn.Module, tensors: dict[str, Tensor], origin: str) -> None:
    """Copy `tensors` into `module`; UserError as `check_shapes`."""
    check_shapes(module, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, origin)
    module.load_state_dict(tensors)
