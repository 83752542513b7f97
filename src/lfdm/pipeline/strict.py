"""`StrictPipeline`: loading, saving and uploading a pipeline with the options of diffusers, but strictly."""

import inspect
from collections.abc import Collection
from pathlib import Path
from typing import Any, NoReturn, Self, Unpack

import diffusers
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from lfdm.errors import UserError
from lfdm.folders.files import expand_home
from lfdm.folders.model_folder import check_load_options, check_safetensors
from lfdm.folders.run_folder import find_layout
from lfdm.folders.sources import HubOptions, find_folder, upload_folder
from lfdm.pipeline.folder import component_types, load_components, read_index, save_folder, setting_names, subclasses


class StrictPipeline(DiffusionPipeline):
    """Replaces the loading and saving of `DiffusionPipeline`; see `lfdm.pipeline.folder` for what a folder holds."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        setattr(diffusers, cls.__name__, cls)  # where `DiffusionPipeline.from_pretrained` looks up the class of a folder

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride] - strict: ignores no option
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
            UserError: an unknown name (the bundled ones are listed), option or setting, a component class that is not
                allowed (see `lfdm.pipeline.folder`), or weights that do not match.
            FileNotFoundError: no such folder or file.
        """
        dtype = check_load_options(dtype, torch_dtype, use_safetensors)
        layout = find_layout(find_folder(name, **hub))
        classes, settings = read_index(layout.index, cls)
        return cls(**load_components(layout, classes, dtype=dtype, device=device, variant=variant), **settings)

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride] - strict: ignores no option
        self,
        folder: str | Path,
        *,
        half: bool = False,
        leave_out: Collection[str] = (),
        safe_serialization: bool = True,
        variant: str | None = None,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        token: str | None = None,
    ) -> None:
        """Write the pipeline folder atomically, in safetensors and JSON.

        Args:
            half: store the networks in float16 (batch-norm statistics in float32).
            leave_out: components that are not written, such as the unet of a stage-2 run, which its checkpoints hold.
            variant: part of the weights' file names.
            push_to_hub: also upload the folder to the Hub repository `repo_id`, by default of the folder's name.

        Raises:
            UserError: the folder holds something else, or a component has a class that could not be loaded again.
        """
        check_safetensors("safe_serialization", safe_serialization)
        save_folder(expand_home(folder), self, half=half, variant=variant, leave_out=leave_out)
        if push_to_hub:
            upload_folder(expand_home(folder), repo_id, token)

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

    @classmethod
    def extract_init_dict(cls, *_: object, **__: object) -> NoReturn:
        """Refuse `DiffusionPipeline.from_pretrained`, which would load our models without the checks of `from_pretrained`."""
        raise UserError(f"this is a model of lfdm: load it with lfdm.{cls.__name__}.from_pretrained")

    @classmethod
    def _get_signature_types(cls) -> dict[str, tuple[Any, ...]]:
        """Let diffusers' `from_pipe` accept subclasses of the annotated component types, too."""
        types = super()._get_signature_types()
        return {
            name: (*kinds, *(one for kind in kinds if inspect.isclass(kind) for one in subclasses(kind)))
            for name, kinds in types.items()
        }
