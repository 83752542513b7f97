"""Read model folders strictly and write them atomically: `config.json` and `diffusion_pytorch_model.safetensors`."""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TypeVar, Unpack

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from lfdm.config.serialization import SettingsT, from_json
from lfdm.errors import UserError
from lfdm.folders.files import check_holds_only, expand_home, replace_folder
from lfdm.folders.sources import HubOptions, find_folder, upload_folder

ModelT = TypeVar("ModelT")

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; FileNotFoundError or UserError with the path if there is none."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        value = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object; got {type(value).__name__}")
    return value


def weights_name(variant: str | None) -> str:
    """Return the file name of a variant of the weights, as diffusers names it."""
    return WEIGHTS_NAME if variant is None else WEIGHTS_NAME.replace(".safetensors", f".{variant}.safetensors")


def read_config(folder: Path, cls: type) -> dict[str, Any]:
    """Read the constructor arguments of `cls` from a folder; UserError for another class or unknown keys."""
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
    """Convert a model's registered arguments to settings of type `cls`; UserError names the first wrong one."""
    return from_json(cls, {name: value for name, value in config.items() if not name.startswith("_")})


def build_from_config(folder: Path, cls: type[ModelT]) -> ModelT:
    """Construct a `cls` with the arguments stored in a folder; UserError naming the file if it does not accept them."""
    path, arguments = folder / CONFIG_NAME, read_config(folder, cls)
    try:
        return cls(**arguments)
    except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError) as error:
        raise UserError(f"{path} has values that {cls.__name__} does not accept: {error}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file; UserError with the path if it is damaged."""
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is not a readable safetensors file: {error}") from None


def load_exactly(module: nn.Module, tensors: dict[str, Tensor], origin: str) -> None:
    """Copy `tensors` into `module`; UserError lists missing, unexpected and misshapen names."""
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
            f"{origin} does not match {type(module).__name__}: missing {missing}, unexpected {unexpected}, misshapen {misshapen}"
        )
    module.load_state_dict(tensors)


def check_load_options(
    dtype: torch.dtype | None, torch_dtype: torch.dtype | None, use_safetensors: bool | None = None
) -> torch.dtype:
    """Return the requested number format, float32 by default; `torch_dtype` is diffusers' older name of `dtype`."""
    if dtype is not None and torch_dtype is not None:
        raise UserError(f"dtype and torch_dtype mean the same: give one of them; got {dtype} and {torch_dtype}")
    chosen = dtype or torch_dtype or torch.float32
    if not isinstance(chosen, torch.dtype):
        raise UserError(f"dtype must be a torch.dtype such as torch.float16; got {chosen!r}")
    check_safetensors("use_safetensors", use_safetensors)
    return chosen


def check_safetensors(name: str, value: bool | None) -> None:
    """Raise UserError for a request to read or write weights in another format."""
    if value is False:
        raise UserError(f"{name} must be True: weights are only read and written as safetensors; got False")


class StrictLoading:
    """Replaces the loading of diffusers' `ModelMixin`, which initialises weights that are missing instead of refusing them."""

    to: Any = nn.Module.to
    """torch's own: the one of `ModelMixin` warns about every conversion of the number format."""

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        subfolder: str | None = None,
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        variant: str | None = None,
        use_safetensors: bool | None = None,
        **hub: Unpack[HubOptions],
    ) -> Self:
        """Load a model in evaluation mode from safetensors.

        Args:
            name: local folder, bundled model or Hub repository; a pipeline holds its models in subfolders.
            subfolder: the model's folder in it, such as `autoencoder`.
            dtype: number format; float32 by default. `torch_dtype` means the same.
            variant: reads `diffusion_pytorch_model.<variant>.safetensors`.
            hub: see `HubOptions`.

        Raises:
            FileNotFoundError: no such folder or file.
            UserError: an unknown option or configuration key, or weights with missing, unexpected or misshapen names.
        """
        dtype = check_load_options(dtype, torch_dtype, use_safetensors)
        folder = find_folder(name, **hub) / (subfolder or "")
        model = build_from_config(folder, cls)
        assert isinstance(model, nn.Module)
        weights = folder / weights_name(variant)
        load_exactly(model, read_tensors(weights), str(weights))
        return model.to(device=device, dtype=dtype).eval()

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        half: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        token: str | None = None,
    ) -> None:
        """Write the model folder atomically.

        Args:
            half: store float16 weights, batch-norm statistics in float32.
            safe_serialization: as in diffusers; must be True.
            variant: part of the weights' file name.
            push_to_hub: also upload the folder to the Hub repository `repo_id`, by default of the folder's name.

        Raises:
            UserError: the folder holds anything else than such a model, which would be lost.
        """
        check_safetensors("safe_serialization", safe_serialization)
        assert isinstance(self, nn.Module)
        check_holds_only(expand_home(folder), (CONFIG_NAME, weights_name(variant)), "a model folder")
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        if half:
            tensors = {
                name: value.half() if value.is_floating_point() and "running_" not in name else value
                for name, value in tensors.items()
            }

        def write(temporary: Path) -> None:
            (temporary / weights_name(variant)).write_bytes(save(tensors))
            (temporary / CONFIG_NAME).write_text(self.to_json_string())  # type: ignore[attr-defined]

        replace_folder(expand_home(folder), write)
        if push_to_hub:
            upload_folder(expand_home(folder), repo_id, token)
