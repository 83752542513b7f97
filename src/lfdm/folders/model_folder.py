"""Strict reading and whole writing of model folders (`config.json` and `diffusion_pytorch_model.safetensors`)."""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from lfdm.config.checks import check_arguments
from lfdm.config.serialization import SettingsT, from_json
from lfdm.errors import UserError
from lfdm.folders.files import check_holds_only, replace_folder

ModelT = TypeVar("ModelT")

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; `FileNotFoundError` or `UserError` with the path otherwise."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        value = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object; got {type(value).__name__}")
    return value


def read_config(folder: Path, cls: type) -> dict[str, Any]:
    """The constructor arguments of `cls` stored in a folder, refusing another class and keys it does not take."""
    config = read_json(folder / CONFIG_NAME)
    if config.get("_class_name", cls.__name__) != cls.__name__:
        raise UserError(f"{folder} holds a {config['_class_name']}; a {cls.__name__} is needed")
    arguments = {name: value for name, value in config.items() if not name.startswith("_")}
    allowed = set(inspect.signature(cls.__init__).parameters) - {"self"}
    unknown = sorted(set(arguments) - allowed)
    if unknown:
        raise UserError(f"{folder / CONFIG_NAME} has unknown keys {unknown}; {cls.__name__} takes {sorted(allowed)}")
    return arguments


def checked_settings(cls: type[SettingsT], config: Mapping[str, Any]) -> SettingsT:
    """A model's registered arguments as the settings of type `cls`, which check them; UserError names the first bad one."""
    return from_json(cls, {name: value for name, value in config.items() if not name.startswith("_")})


def build_from_config(folder: Path, cls: type[ModelT]) -> ModelT:
    """A `cls` with the constructor arguments stored in a folder; UserError naming the file where it takes no such values."""
    path, arguments = folder / CONFIG_NAME, read_config(folder, cls)
    try:
        check_arguments(cls, arguments)
        return cls(**arguments)
    except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError) as error:
        raise UserError(f"{path} describes no {cls.__name__}: {error}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; `UserError` with the path where it is damaged."""
    if not path.is_file():
        raise FileNotFoundError(f"no weights {path}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is not a readable safetensors file: {error}") from None


def load_exactly(module: nn.Module, tensors: dict[str, Tensor], origin: str) -> None:
    """Copy `tensors` into `module`; raises UserError with the lists of missing, unexpected and misshapen names."""
    own = module.state_dict()
    missing = sorted(set(own) - set(tensors))
    unexpected = sorted(set(tensors) - set(own))
    misshapen = [
        f"{name} {tuple(tensors[name].shape)}, needs {tuple(own[name].shape)}"
        for name in sorted(set(own) & set(tensors))
        if tensors[name].shape != own[name].shape
    ]
    if missing or unexpected or misshapen:
        raise UserError(
            f"{origin} does not fit {type(module).__name__}: missing {missing}, unexpected {unexpected}, misshapen {misshapen}"
        )
    module.load_state_dict(tensors)


class StrictLoading:
    """Replaces the loading of diffusers' `ModelMixin`, which fills in what does not fit."""

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Self:
        """A model in evaluation mode from a local folder, safetensors alone.

        Raises:
            FileNotFoundError: no such folder or file.
            UserError: an unknown configuration key, or weights with missing, unexpected or misshapen names.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f"no model folder {folder}")
        model = build_from_config(folder, cls)
        assert isinstance(model, nn.Module)
        load_exactly(model, read_tensors(folder / WEIGHTS_NAME), str(folder / WEIGHTS_NAME))
        nn.Module.to(model, device=device, dtype=dtype)  # diffusers' own `to` warns of every dtype
        return model.eval()

    def save_pretrained(self, folder: str | Path, *, half: bool = False) -> None:
        """Write the model folder whole. `half` stores float16 weights, batch-norm statistics in float32.

        Raises:
            UserError: the folder holds anything else than such a model, which would be lost.
        """
        assert isinstance(self, nn.Module)
        check_holds_only(Path(folder), (CONFIG_NAME, WEIGHTS_NAME), "a model folder")
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        if half:
            tensors = {
                name: value.half() if value.is_floating_point() and "running_" not in name else value
                for name, value in tensors.items()
            }

        def write(temporary: Path) -> None:
            (temporary / WEIGHTS_NAME).write_bytes(save(tensors))
            (temporary / CONFIG_NAME).write_text(self.to_json_string())  # type: ignore[attr-defined]

        replace_folder(Path(folder), write)
