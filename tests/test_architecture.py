"""The rules of docs/design.md, read from the syntax of the package: imports go one way, and every name has one home."""

import ast
import graphlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "lfdm"

ORDER = (
    ("errors",),
    ("config",),
    ("folders",),
    ("data", "motion"),
    ("visualize", "autoencoder", "denoiser", "condition"),
    ("diffusion",),
    ("pipeline",),
    ("published", "distributed", "export"),
    ("training",),
    ("evaluation",),
    ("web",),
    ("cli",),
)
"""A room may import from the levels before its own."""
LEVELS = {room: level for level, rooms in enumerate(ORDER) for room in rooms}


@dataclass(frozen=True)
class Import:
    """One imported name: `module` imports `name` of `source`; a module imported as a whole has the name ""."""

    module: str
    source: str
    name: str
    at_import: bool

    def __str__(self) -> str:
        return f"{self.module} imports {self.name or 'the module'} from {self.source}"


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports_of(module: str) -> Iterator[Import]:
    at_import = {id(node) for node in _run_at_import(MODULES[module])}
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lfdm":
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                source, name = (whole, "") if whole in MODULES else (node.module or "", alias.name)
                yield Import(module, source, name, id(node) in at_import)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "lfdm":
                    yield Import(module, alias.name, "", id(node) in at_import)


def _run_at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the statements that run when a module is imported: neither function bodies nor `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        checking = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not checking and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            yield from _run_at_import(node)


IMPORTS = [found for module in MODULES for found in imports_of(module)]


def test_every_room_has_a_level() -> None:
    alone = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert {*ROOMS, *alone} - {"assets"} == set(LEVELS)


def test_rooms_import_one_way() -> None:
    rooms = [(found, room_of(found.module), room_of(found.source)) for found in IMPORTS]
    wrong = [
        str(found)
        for found, room, source in rooms
        if room in LEVELS and source in LEVELS and room != source and LEVELS[source] >= LEVELS[room]
    ]
    assert wrong == []


def test_modules_form_no_circle() -> None:
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for found in IMPORTS:
        if found.at_import:
            graph[found.module].add(found.source)
    order = list(graphlib.TopologicalSorter(graph).static_order())  # a circle raises CycleError, which names it
    assert set(order) == set(MODULES)


def defined_names(module: str) -> set[str]:
    """Return the names that the module itself defines at its top level, in whatever branch."""
    names: set[str] = set()
    for node in _run_at_import(MODULES[module]):
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
    names |= {
        node.name for node in ast.walk(MODULES[module]) if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    }
    return names


def test_every_name_is_imported_from_where_it_is_defined() -> None:
    wrong = [
        str(found) for found in IMPORTS if found.name and found.source != "lfdm" and found.name not in defined_names(found.source)
    ]
    assert wrong == []


def test_private_names_stay_in_their_module() -> None:
    wrong = [str(found) for found in IMPORTS if found.name.startswith("_") and not found.name.startswith("__")]
    assert wrong == []


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "cli"])
def test_a_room_says_what_it_is_for_and_which_modules_are_public(room: str) -> None:
    tree = MODULES[f"lfdm.{room}"]
    assert ast.get_docstring(tree)
    public = public_modules(f"lfdm.{room}")
    unknown = [name for name in public if f"lfdm.{room}.{name}" not in MODULES]
    assert unknown == []
    assert list(imports_of(f"lfdm.{room}")) == []


def public_modules(package: str) -> list[str]:
    for node in MODULES[package].body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return []


def test_rooms_use_only_public_modules_of_each_other() -> None:
    wrong = []
    for found in IMPORTS:
        parts = found.source.split(".")
        room = room_of(found.source)
        if room in ROOMS and room not in ("cli", room_of(found.module)) and len(parts) > 2:
            public = public_modules(f"lfdm.{room}")
            if not {".".join(parts[2:]), parts[2]} & set(public):
                wrong.append(str(found))
    assert wrong == []
