"""Generated parts of the site: commands from the parsers, presets from the settings, Python pages from the public modules."""

import ast
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import griffe
import tyro
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

from lfdm.cli import COMMANDS
from lfdm.cli.console import PROGRAM, CommandTree, Group, binding
from lfdm.cli.text_forms import text_forms
from lfdm.config.presets import PRESETS, Preset
from lfdm.config.video import Size

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "lfdm"
PROJECT_PAGES = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md", "security.md": "SECURITY.md"}
REMOTE_SCRIPT, LOCAL_SCRIPT = "https://unpkg.com/iframe-worker/shim", "javascripts/iframe-worker.js"
FULLY_SHOWN_PRESET = "flow64"
"""The preset whose training commands are listed; those of the others differ only in their defaults."""
NO_DEFAULT = re.compile(r" ?\((?:default: (?P<value>.*?)|(?P<required>required))\)$", re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the page of every room to the navigation, after the page about Python."""
    sections = {name: pages for section in config.nav or [] for name, pages in section.items()}
    python = next(entry["Python"] for entry in sections["Reference"] if "Python" in entry)
    python.extend(f"reference/api/{room}.md" for room in rooms())
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are written elsewhere or generated; PluginError names public names without a docstring."""
    undocumented = list(undocumented_names())
    if undocumented:
        raise PluginError(f"public names without a docstring: {', '.join(undocumented)}")
    for page, source in PROJECT_PAGES.items():
        files.append(File.generated(config, page, content=project_page(ROOT / source)))
    for room in rooms():
        files.append(File.generated(config, f"reference/api/{room}.md", content=room_page(room)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - mkdocs' signature
    """Fill in the generated parts of a page."""
    if page.file.src_uri == "reference/commands.md":
        return markdown.replace("<!-- commands -->", "\n\n".join(command_sections(COMMANDS, (PROGRAM,))))
    if page.file.src_uri == "reference/presets.md":
        return markdown.replace("<!-- presets -->", preset_tables())
    return markdown


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:  # noqa: ARG001 - mkdocs' signature
    """Load the script that searches pages opened from the disk from the site instead of from another server."""
    return output.replace(REMOTE_SCRIPT, get_relative_url(LOCAL_SCRIPT, page.url))


def on_post_template(output_content: str, template_name: str, config: MkDocsConfig) -> str:  # noqa: ARG001
    """Do the same for the page of unknown addresses, which is served from a root."""
    return output_content.replace(REMOTE_SCRIPT, f"/{LOCAL_SCRIPT}")


def project_page(source: Path) -> str:
    """Return a file of the project's root as a page: links into docs/ become links of the site, others plain text."""
    text = re.sub(r"\]\(docs/", "](", source.read_text())
    names = {name: page for page, name in PROJECT_PAGES.items()}
    return re.sub(r"\]\((\w+\.md)\)", lambda link: f"]({names.get(link[1], 'index.md')})", text)


# ------------------------------------------------------------------------------------------------------------ Python


def rooms() -> list[str]:
    """Return the rooms whose modules programs may import, and the modules that are no room."""
    packages = [path.parent.name for path in PACKAGE.glob("*/__init__.py") if public_modules(path)]
    return sorted({*packages, *(path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("_"))})


def public_modules(init: Path) -> list[str]:
    """Return the `__all__` of a package."""
    for node in ast.parse(init.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return []


def room_page(room: str) -> str:
    """Return the page of a room, for mkdocstrings."""
    init = PACKAGE / room / "__init__.py"
    if not init.exists():
        return f"# lfdm.{room}\n\n::: lfdm.{room}\n    options: {{show_root_heading: false, show_root_toc_entry: false}}\n"
    about = ast.get_docstring(ast.parse(init.read_text())) or ""
    return "\n\n".join([f"# lfdm.{room}", about, *(f"::: lfdm.{room}.{name}" for name in public_modules(init))]) + "\n"


def undocumented_names() -> Iterator[str]:
    """Yield public modules, classes, functions and methods without a docstring of their own or of a base class."""
    package = griffe.load("lfdm", search_paths=[str(ROOT / "src")])
    for room in rooms():
        init = PACKAGE / room / "__init__.py"
        names = [f"{room}.{name}" for name in public_modules(init)] if init.exists() else [room]
        for name in names:
            found = package[name]
            if not found.has_docstring:
                yield found.path
            yield from _undocumented_members(found)


def _undocumented_members(parent: griffe.Object) -> Iterator[str]:
    for name, member in parent.members.items():
        if name.startswith("_") or member.is_alias or not (member.is_class or member.is_function):
            continue
        inherited = isinstance(parent, griffe.Class) and any(name in base.members for base in parent.mro())
        if not (member.has_docstring or inherited):
            yield member.path
        if isinstance(member, griffe.Class):
            yield from _undocumented_members(member)


# ---------------------------------------------------------------------------------------------------------- commands


def command_sections(tree: CommandTree, words: tuple[str, ...]) -> Iterator[str]:
    """Yield a section for every command, from its parser."""
    shown = {name: entry for name, entry in tree.items() if name not in PRESETS or name == FULLY_SHOWN_PRESET}
    for name, entry in shown.items():
        if isinstance(entry, Group):
            yield f"## {' '.join((*words, name))}\n\n{entry.help}"
            yield from command_sections(entry.commands, (*words, name))
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # tyro has no other way to a parser
            parser = tyro.extras.get_parser(binding(entry), registry=text_forms(), prog=" ".join((*words, name)))
        yield f"{'##' if len(words) == 1 else '###'} {parser.prog}\n\n{parser.description or ''}\n\n{option_table(parser)}"


def option_table(parser: Any) -> str:
    """Return a table of the arguments and options of a command; `parser` is tyro's own copy of argparse's."""
    rows = []
    for action in (action for group in parser._action_groups for action in group._group_actions):
        if action.dest == "help":
            continue
        text = " ".join((action.help or "").split())
        default = NO_DEFAULT.search(text)
        value = "" if default is None else "required" if default["required"] else f"`{default['value'] or ' '}`"
        name = action.option_strings[0] if action.option_strings else ""
        metavar = action.metavar if isinstance(action.metavar, str) else " ".join(action.metavar or ())
        rows.append((f"`{f'{name} {metavar}'.strip()}`", NO_DEFAULT.sub("", text), "" if value == "`None`" else value))
    return markdown_table(("option", "meaning", "default"), rows)


# ----------------------------------------------------------------------------------------------------------- presets


def preset_tables() -> str:
    """Return one table of our presets and one of the published ones."""
    ours = {name: preset for name, preset in PRESETS.items() if name.startswith("flow")}
    published = {name: preset for name, preset in PRESETS.items() if name not in ours}
    return f"## Our recipe\n\n{preset_table(ours)}\n\n## The paper's recipes\n\n{preset_table(published)}"


def preset_table(presets: Mapping[str, Preset]) -> str:
    """Return a table of all settings of some presets."""
    columns = [dict(flat_settings(preset)) for preset in presets.values()]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [(f"`{name}`", *(f"`{column[name]}`" if name in column else "" for column in columns)) for name in names]
    return markdown_table(("setting", *(f"`{name}`" for name in presets)), rows)


def flat_settings(settings: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted names of all settings with their values, as options name them."""
    assert is_dataclass(settings)
    for field in fields(settings):
        value, name = getattr(settings, field.name), f"{prefix}{field.name}".replace("_", "-")
        if is_dataclass(value):
            yield from flat_settings(value, f"{name}.")
        elif name == "image-size":
            yield "size", str(Size.parse(value))
        elif name != "name":
            yield name, " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def markdown_table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in lines)
