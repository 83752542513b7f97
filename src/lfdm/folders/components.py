"""The parts that a pipeline is saved of: `Component`, which is one JSON file, and `Model`, which has weights as well.

Folders have the layout of diffusers; they are read strictly and written atomically.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self, Unpack

import torch
from safetensors.torch import save
from torch import Tensor, nn

from lfdm.config.registration import Configured
from lfdm.errors import UserError
from lfdm.folders.files import check_holds_only, expand_home, replace_folder
from lfdm.folders.model_folder import (
    CONFIG_NAME,
    build_from_config,
    check_shapes,
    load_exactly,
    read_config,
    read_shapes,
    read_tensors,
    weights_name,
)
from lfdm.folders.run_folder import refuse_run
from lfdm.folders.sources import HubOptions, UploadOptions, check_upload_options, find_folder, upload_folder, write_model_card

MAX_REASON = 200
"""Torch's errors for devices that it lacks list all of its backends, in over a thousand characters."""


class Saved(Configured):
    """Something that is saved as a folder, and can be uploaded as one."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the folder whole."""
        raise NotImplementedError

    def write_card(self, folder: Path, repository: str) -> None:
        """Write the model card of a saved folder for a Hub repository."""
        write_model_card(folder, type(self).__name__, repository)

    def push_to_hub(
        self, repo_id: str, *, safe_serialization: bool = True, variant: str | None = None, **upload: Unpack[UploadOptions]
    ) -> str:
        """Upload to a Hub repository, which is created if needed, with a model card if it has none.

        Args:
            safe_serialization, variant: as for `save_pretrained`.
            upload: see `lfdm.folders.sources.UploadOptions`.

        Returns:
            The address of the commit.

        Raises:
            UserError: the Hub cannot be reached or refuses.
        """
        check_safetensors("safe_serialization", safe_serialization)
        check_upload_options(upload, used=True)
        options = {} if variant is None else {"variant": variant}
        with TemporaryDirectory() as parent:
            folder = Path(parent) / "model"
            self.save_pretrained(folder, **options)
            self.write_card(folder, repo_id)
            return upload_folder(folder, repo_id, **upload)


class Component(Saved):
    """A part of a pipeline that consists of its configuration."""

    config_name = CONFIG_NAME

    @classmethod
    def from_pretrained(cls, name: str | Path, *, subfolder: str | None = None) -> Self:
        """Load from a local folder, a bundled model or a Hub repository.

        Args:
            name: see `lfdm.folders.sources.find_folder`.
            subfolder: the component's folder in it, such as `motion_codec`.

        Raises:
            FileNotFoundError: no such folder or file.
            UserError: a training run, another class, unknown keys or values that are not allowed.
        """
        folder = find_folder(name) / (subfolder or "")
        refuse_run(folder, cls.__name__)
        path = folder / cls.config_name
        return build_from_config(path, cls, read_config(path, cls))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the folder whole; UserError if it holds anything else."""
        check_holds_only(expand_home(folder), (self.config_name,), f"the folder of a {type(self).__name__}")
        replace_folder(expand_home(folder), self._write_config)

    def _write_config(self, folder: Path) -> None:
        (folder / self.config_name).write_text(self.to_json_string())


class Model(Component, nn.Module):
    """A network that is saved with its configuration."""

    def __repr__(self) -> str:
        return nn.Module.__repr__(self)

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the first weight."""
        return next(self._weights()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the first weight."""
        return next(self._weights()).device

    def _weights(self) -> Iterator[Tensor]:
        return (tensor for tensor in chain(self.parameters(), self.buffers()) if tensor.is_floating_point())

    @classmethod
    @torch.inference_mode(False)  # the weights of a caller in inference mode could have no gradients later
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
            UserError: a training run, an unknown option or configuration key, a device that cannot be used, or weights with
                missing, unexpected or misshapen names.
        """
        dtype, device = check_load_options(dtype, torch_dtype, use_safetensors), check_device(device)
        folder = find_folder(name, **hub) / (subfolder or "")
        weights = folder / weights_name(variant)
        with torch.device("meta"):  # no memory is filled for a configuration that does not fit the weights
            check_shapes(super().from_pretrained(folder), read_shapes(weights), str(weights))
        with _building_in(dtype):
            model = super().from_pretrained(folder)
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
        **upload: Unpack[UploadOptions],
    ) -> None:
        """Write the model folder atomically.

        Args:
            half: store float16 weights, batch-norm statistics in float32.
            safe_serialization: as in diffusers; must be True.
            variant: part of the weights' file name.
            push_to_hub: also upload the folder to the Hub repository `repo_id`, by default of the folder's name.
            upload: see `lfdm.folders.sources.UploadOptions`.

        Raises:
            UserError: the folder holds anything else than such a model, which would be lost, or the upload fails.
        """
        check_safetensors("safe_serialization", safe_serialization)
        check_upload_options(upload, used=push_to_hub)
        folder = expand_home(folder)
        check_holds_only(folder, (self.config_name, weights_name(variant)), "a model folder")
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        if half:
            tensors = {
                name: value.half() if value.is_floating_point() and "running_" not in name else value
                for name, value in tensors.items()
            }

        def write(temporary: Path) -> None:
            (temporary / weights_name(variant)).write_bytes(save(tensors))
            self._write_config(temporary)

        replace_folder(folder, write)
        if push_to_hub:
            upload_folder(folder, repo_id or folder.resolve().name, **upload)


def check_load_options(
    dtype: torch.dtype | None, torch_dtype: torch.dtype | None, use_safetensors: bool | None = None
) -> torch.dtype:
    """Return the requested number format, float32 by default; `torch_dtype` is diffusers' older name of `dtype`."""
    if dtype is not None and torch_dtype is not None:
        raise UserError(f"dtype and torch_dtype mean the same: give one of them; got {dtype} and {torch_dtype}")
    chosen = torch_dtype if dtype is None else dtype
    chosen = torch.float32 if chosen is None else chosen
    if not isinstance(chosen, torch.dtype) or not chosen.is_floating_point:
        raise UserError(f"dtype must be a torch.dtype of floating point such as torch.float16; got {chosen!r}")
    check_safetensors("use_safetensors", use_safetensors)
    return chosen


@contextmanager
def _building_in(dtype: torch.dtype) -> Iterator[None]:
    """Build networks in a number format, so that weights in half precision never have a float32 copy."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(usual)


def check_safetensors(name: str, value: bool | None) -> None:
    """Raise UserError for a request to read or write weights in another format."""
    if value is False:
        raise UserError(f"{name} must be True: weights are only read and written as safetensors; got False")


def check_device(device: torch.device | str | int) -> torch.device:
    """Return `device`; UserError if this machine or this installation of torch does not have it."""
    try:
        found = torch.device(device)
        torch.zeros(1, device=found)
    except (RuntimeError, AssertionError, ImportError, TypeError) as error:
        lines = str(error).splitlines()
        reason = lines[0] if lines and len(lines[0]) < MAX_REASON else "this installation of torch does not support it"
        others = "cpu or cuda" if torch.cuda.is_available() else "cpu"
        raise UserError(f"device {str(device)[:MAX_REASON]!r} cannot be used here ({reason}); try {others}") from None
    return found


def has_fast_bfloat16(device: torch.device) -> bool:
    """Return whether bfloat16 is faster than float32 on a device: GPUs that have it, CPUs with matrix instructions (AMX) for it.

    On a CPU that only has vector instructions for it (avx512_bf16), sampling takes as long as in float32; without any, ten times
    as long.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_amx_tile_supported() and torch.cpu._is_avx512_bf16_supported()
