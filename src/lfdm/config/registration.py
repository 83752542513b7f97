"""Objects that remember the arguments of their constructor as `config`, as those of diffusers do, and store them as JSON.

diffusers' own `ConfigMixin` does the same; importing it takes several times as long as importing torch.
"""

import functools
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, NoReturn, ParamSpec, Self, TypeVar

from lfdm.errors import UserError

CLASS_KEY = "_class_name"
"""Entry of every configuration with the name of the class."""

ObjectT = TypeVar("ObjectT", bound="Configured")
Parameters = ParamSpec("Parameters")


class Config(dict[str, Any]):
    """A configuration that cannot be changed in place; entries are also attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the configuration has no entry {name!r}; it has {list(self)}") from None

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("a configuration cannot be changed in place; call register_to_config(name=value) of its object")

    __setitem__ = __delitem__ = __setattr__ = __delattr__ = __ior__ = _refuse
    pop = popitem = update = setdefault = clear = _refuse  # type: ignore[assignment]

    def __reduce__(self) -> tuple[type[Self], tuple[dict[str, Any]]]:
        return type(self), (dict(self),)  # the default would set the entries of a copy one by one


class Configured:
    """Base of classes whose constructor is decorated with `register_to_config`."""

    @property
    def config(self) -> Config:
        """The arguments of the constructor, defaults included, and the name of the class as `_class_name`."""
        return self._config

    def register_to_config(self, **changes: Any) -> None:
        """Add entries to `config` or replace them."""
        before = getattr(self, "_config", {CLASS_KEY: type(self).__name__})
        self._config = Config({**before, **changes})

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **changes: Any) -> Self:
        """Construct an object with the arguments in `config`, some of them changed; entries that begin with _ are ignored.

        Raises:
            UserError: an entry or change that the class does not take.
        """
        arguments = {name: value for name, value in {**config, **changes}.items() if not name.startswith("_")}
        unknown = sorted(arguments.keys() - argument_names(cls))
        if unknown:
            raise UserError(f"{cls.__name__} has no settings {unknown}; it takes {sorted(argument_names(cls))}")
        return cls(**arguments)

    def to_json_string(self) -> str:
        """Return the configuration as JSON."""
        return json.dumps(self.config, indent=2, sort_keys=True) + "\n"

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"


def argument_names(cls: type) -> set[str]:
    """Return the names of the arguments of a constructor."""
    return set(inspect.signature(cls.__init__).parameters) - {"self"}


def register_to_config(
    init: Callable[Concatenate[ObjectT, Parameters], None],
) -> Callable[Concatenate[ObjectT, Parameters], None]:
    """Decorate the `__init__` of a `Configured` class: its arguments are `self.config` before it runs.

    Keyword arguments that begin with _ are dropped, so that a whole configuration can be given as arguments.
    """
    signature = inspect.signature(init)

    @functools.wraps(init)
    def registered(self: ObjectT, *args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        for name in [name for name in kwargs if name.startswith("_")]:
            del kwargs[name]
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        _, *arguments = bound.arguments.items()
        self.register_to_config(**dict(arguments))
        init(self, *args, **kwargs)

    return registered
