"""`BasePipeline`: what a pipeline has apart from its call, with the names of diffusers: loading, saving, components, devices."""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack, cast

import torch
from torch import nn

from lfdm.autoencoder.convolution import channels_last_kernels
from lfdm.config.unsupported import missing_attribute, refuse_unknown
from lfdm.folders.components import Saved, check_device, check_load_options, check_safetensors
from lfdm.folders.files import expand_home
from lfdm.folders.run_folder import find_layout
from lfdm.folders.sources import HubOptions, UploadOptions, check_upload_options, find_folder, upload_folder
from lfdm.pipeline.card import read_about, write_card_files
from lfdm.pipeline.diffusers_bridge import DiffusersLoading
from lfdm.pipeline.folder import component_types, load_components, read_index, save_folder, setting_names

if TYPE_CHECKING:
    from tqdm import tqdm

    from lfdm.pipeline.pipeline import LatentFlowPipeline
    from lfdm.pipeline.result import LatentFlowOutput


class BasePipeline(Saved, DiffusersLoading):
    """Components, which are attributes of these names, and settings, which are in `config`; see `lfdm.pipeline.folder`."""

    def __init__(self) -> None:
        self._progress_bar_config: dict[str, Any] = {}
        self.about: dict[str, str] = {}
        """Texts for the model card, such as `license` and `data`; see `lfdm.pipeline.card`."""
        self.example: LatentFlowOutput | None = None
        """A result that the model card shows."""
        self.source: Path | None = None
        """Folder that the pipeline was loaded from."""

    @classmethod
    @torch.inference_mode(False)  # corrections of drags need gradients through weights and codec
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        variant: str | None = None,
        use_safetensors: bool | None = None,
        **hub: Unpack[HubOptions],
    ) -> Self:
        """Load a trained pipeline, models in evaluation mode.

        Args:
            name: bundled name, local pipeline folder, diffusion run folder (its newest averaged weights) or Hub
                repository. A bundled name wins over a folder of that name; `./name` means the folder.
            dtype: number format of the models; float32 by default. `torch_dtype` means the same.
            variant: reads weights named `diffusion_pytorch_model.<variant>.safetensors`.
            hub: see `lfdm.folders.sources.HubOptions`.

        Raises:
            UserError: an unknown name (the bundled ones are listed), option or setting, a device that cannot be used, a
                component class that is not allowed (see `lfdm.pipeline.folder`), or weights that do not match.
            FileNotFoundError: no such folder or file.
        """
        dtype, device = check_load_options(dtype, torch_dtype, use_safetensors), check_device(device)
        layout = find_layout(find_folder(name, **hub))
        classes, settings = read_index(layout.index, cls)
        pipe = cls(**load_components(layout, classes, dtype=dtype, device=device, variant=variant), **settings)
        pipe.about, pipe.source = read_about(layout.index), layout.index
        channels_last_kernels(pipe.components["unet"])  # a CPU would otherwise convert them in every step
        return pipe

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        half: bool = False,
        leave_out: Collection[str] = (),
        safe_serialization: bool = True,
        variant: str | None = None,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **upload: Unpack[UploadOptions],
    ) -> None:
        """Write the pipeline folder atomically, in safetensors and JSON, with a model card (see `lfdm.pipeline.card`).

        Args:
            half: store the networks in float16 (batch-norm statistics in float32).
            leave_out: components that are not written, such as the unet of a stage-2 run, which its checkpoints hold.
            variant: part of the weights' file names.
            push_to_hub: also upload the folder to the Hub repository `repo_id`, by default of the folder's name.
            upload: see `lfdm.folders.sources.UploadOptions`.

        Raises:
            UserError: the folder holds something else, a component has a class that could not be loaded again, or the
                upload fails.
        """
        check_safetensors("safe_serialization", safe_serialization)
        check_upload_options(upload, used=push_to_hub)
        folder = expand_home(folder)
        repository = repo_id or folder.resolve().name
        card_name = repository if push_to_hub else None
        save_folder(folder, self, half=half, variant=variant, leave_out=leave_out, card_name=card_name)
        if push_to_hub:
            upload_folder(folder, repository, **upload)

    def write_card(self, folder: Path, repository: str) -> None:
        """Write the model card of a saved folder for a Hub repository."""
        write_card_files(cast("LatentFlowPipeline", self), folder, source=self.source, name=repository)

    @classmethod
    def from_pipe(cls, pipeline: "BasePipeline", **changes: Any) -> Self:
        """Return a pipeline of the same components and settings, some of them changed.

        Raises:
            UserError: an unknown change, or one that does not fit the rest.
        """
        refuse_unknown("from_pipe", changes, pipeline.components)
        made = cls(**{**pipeline.components, **changes})
        made.set_progress_bar_config(**pipeline._progress_bar_config)
        made.about = dict(pipeline.about)
        return made

    @property
    def components(self) -> dict[str, Any]:
        """The components and the settings, so that `Pipeline(**pipe.components)` is the same pipeline."""
        return {name: getattr(self, name) for name in component_types(type(self))} | {
            name: self.config[name] for name in setting_names(type(self))
        }

    @property
    def parameters(self) -> dict[str, Any]:
        """Empty: the settings are part of `components`."""
        return {}

    def _networks(self) -> Iterator[Any]:
        return (component for component in self.components.values() if isinstance(component, nn.Module))

    @property
    def device(self) -> torch.device:
        """Device of the first network."""
        return next(self._networks()).device

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the first network."""
        return next(self._networks()).dtype

    @torch.inference_mode(False)
    def to(
        self,
        *targets: torch.device | torch.dtype | str | int,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Move and convert the networks and return the pipeline itself; `targets` are a device, a number format or both.

        Raises:
            UserError: a device that cannot be used.
        """
        for target in targets:
            if isinstance(target, torch.dtype):
                dtype = target
            else:
                device = target
        found = None if device is None else check_device(device)
        for network in self._networks():
            network.to(device=found, dtype=dtype)
        return self

    def set_progress_bar_config(self, **options: Any) -> None:
        """Set the options of the progress bar, which are those of `tqdm`, such as `disable` and `desc`."""
        self._progress_bar_config = options

    def progress_bar(self, total: int) -> "tqdm[Any]":
        """Return a progress bar of `total` steps, a context manager."""
        from tqdm.auto import tqdm

        return tqdm(total=total, **self._progress_bar_config)

    def __getattr__(self, name: str) -> Any:
        raise missing_attribute(self, name)

    def __repr__(self) -> str:
        parts = {name: type(getattr(self, name)).__name__ for name in component_types(type(self))}
        return f"{type(self).__name__} {json.dumps({**parts, **self.config}, indent=2, default=str)}"
