"""Lets `DiffusionPipeline.from_pretrained` of diffusers load our folders, without importing diffusers here.

diffusers looks up the class that model_index.json names among its own attributes, asks it which arguments its constructor
takes, and loads every component whose class derives from what the component's package calls `ModelMixin`.
"""

import inspect
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any, ClassVar

import lfdm
from lfdm.diffusion.schedulers import MotionScheduler
from lfdm.errors import UserError
from lfdm.folders.components import Component
from lfdm.folders.sources import INDEX_NAME
from lfdm.pipeline.folder import component_types, find_classes, setting_names

LIBRARY = "diffusers"


class DiffusersLoading:
    """The part of a pipeline class that `DiffusionPipeline.from_pretrained` uses; it reads as strictly as our own."""

    _load_connected_pipes: ClassVar[bool] = False
    _optional_components: ClassVar[list[str]] = []

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        offer_to_diffusers(cls)

    @classmethod
    def extract_init_dict(cls, index: Mapping[str, Any], **options: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Return the entries of model_index.json, then what is not used of them and of `options`: nothing.

        Raises:
            UserError: an unknown option or entry, a missing component, or a component class that is not allowed.
        """
        if options:
            raise UserError(
                f"{sorted(options)} are no options of {cls.__name__}; load it with lfdm.{cls.__name__}.from_pretrained"
            )
        entries = {name: value for name, value in index.items() if not name.startswith("_")}
        find_classes(INDEX_NAME, entries, cls)
        return entries, {}, {}

    @classmethod
    def _get_signature_types(cls) -> dict[str, tuple[Any, ...]]:
        """Leave checks of the components' classes to `extract_init_dict`."""
        return dict.fromkeys((*component_types(cls), *setting_names(cls)), (inspect.Signature.empty,))


def offer_to_diffusers(cls: type) -> None:
    """Make a class an attribute of diffusers, at once or when diffusers is imported."""
    setattr(lfdm, "ModelMixin", Component)  # noqa: B010 - only diffusers asks for it
    if LIBRARY in sys.modules:
        setattr(sys.modules[LIBRARY], cls.__name__, cls)
    else:
        sys.meta_path.insert(0, _WhenImported(cls))


class _WhenImported(MetaPathFinder):
    """Waits for the import of diffusers, to which it then adds a class."""

    def __init__(self, cls: type) -> None:
        self.cls = cls

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        del path, target
        if fullname != LIBRARY:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_add(module: ModuleType) -> None:
                execute(module)
                setattr(sys.modules[LIBRARY], self.cls.__name__, self.cls)

            spec.loader.exec_module = execute_and_add
        return spec


offer_to_diffusers(MotionScheduler)  # so that `from_config` of its schedulers knows which settings are ours, and warns of none
