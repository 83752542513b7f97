"""`lfdm completion`: a script that completes commands, options and choices in a shell."""

import contextlib
import io
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union

import tyro
from tyro.conf import Positional, arg, subcommand

from lfdm.cli.console import PROGRAM, Command, CommandTree, Group
from lfdm.cli.text_forms import text_forms

Shell = Literal["bash", "zsh", "fish"]


def completion_command(tree: Callable[[], CommandTree]) -> Command:
    """Return the command that prints the script for all commands of `tree()`."""

    def completion(shell: Annotated[Shell, Positional, arg(metavar="SHELL")]) -> None:
        """Print a script that completes commands, options and choices.

        bash: `source <(lfdm completion bash)` in ~/.bashrc. zsh: `lfdm completion zsh > ~/.zfunc/_lfdm`. fish: `lfdm completion
        fish > ~/.config/fish/completions/lfdm.fish`.

        Args:
            shell: bash, zsh or fish.
        """
        words = ["--tyro-write-completion", shell, "-"]
        with contextlib.redirect_stdout(io.StringIO()) as script:
            try:
                tyro.cli(_union(tree()), prog=PROGRAM, args=words, registry=text_forms())
            except SystemExit as stop:
                if stop.code:
                    raise
        print(_repaired(script.getvalue()), end="")

    return completion


def _repaired(script: str) -> str:
    """Return tyro's script without the parts that make shells list wrong words, or none.

    Line breaks within descriptions would begin a candidate of their own. fish passes its program to Python as one argument, which
    is longer than Linux allows (128 KiB) with this many options.
    """
    script = re.sub(r"^COMPLETION_SPEC = .*", lambda line: re.sub(r"\\+n", " ", line[0]), script, flags=re.MULTILINE)
    return script.replace('$python_cmd -c "$pycode" $words', 'printf %s "$pycode" | $python_cmd - $words')


def _union(tree: CommandTree) -> Any:
    """Return a type from which tyro makes one subcommand for every entry."""
    return Union[tuple(Annotated[Any, subcommand(name=name, constructor=_constructor(entry))] for name, entry in tree.items())]  # noqa: UP007 - of a tuple


def _constructor(entry: "Command | Group") -> Command:
    if not isinstance(entry, Group):
        return entry

    def group(command: Any) -> None: ...

    group.__doc__ = entry.help
    group.__annotations__ = {"command": Annotated[_union(entry.commands), arg(name="")]}
    return group
