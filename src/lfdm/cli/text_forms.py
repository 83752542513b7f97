"""How paths and sizes are read from a command line. Imports neither torch nor diffusers."""

from pathlib import Path

from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from lfdm.config.video import Size, SizeSetting, training_size
from lfdm.errors import UserError
from lfdm.folders.files import expand_home


def text_forms() -> ConstructorRegistry:
    """Return a tyro registry of paths, in which ~ is replaced (shells leave it in --out=~/x and in quotes), and of sizes."""
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def path_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Path] | None:
        if info.type is not Path:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="PATH",
            instance_from_str=lambda words: expand_home(words[0]),
            is_instance=lambda value: isinstance(value, Path),
            str_from_instance=lambda path: [str(path)],
        )

    @registry.primitive_rule
    def size_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[SizeSetting] | None:
        if info.type not in (SizeSetting, SizeSetting | None):
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="HxW",
            instance_from_str=lambda words: _parse_size(words[0]),
            is_instance=lambda value: value is None or isinstance(value, int | tuple),
            str_from_instance=lambda size: ["None" if size is None else str(Size.parse(size))],
        )

    return registry


def _parse_size(text: str) -> SizeSetting:
    """Return a size; ValueError, which tyro reports with the option's name, for any other text."""
    try:
        return training_size(text).setting
    except UserError as error:
        raise ValueError(str(error)) from None
