"""Options of every command: `--json`, `--traceback`, `--quiet` and `--config FILE`. Imports neither torch nor diffusers."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lfdm.errors import UserError
from lfdm.folders.files import expand_home

CONFIG_OPTION = "--config"
TRACEBACK_VARIABLE = "LFDM_TRACEBACK"


@dataclass(frozen=True)
class CommonOptions:
    """Options of every command, anywhere on the command line."""

    traceback: bool
    """Show the traceback of the user's errors, too: `--traceback` or LFDM_TRACEBACK=1."""
    quiet: bool
    """Print nothing on stderr but errors: `--quiet`."""
    json: bool
    """Print the result as one JSON object instead of text: `--json`."""
    config: Path | None
    """File of options, over which the command line wins: `--config FILE`."""


def split_common(arguments: Sequence[str]) -> tuple[CommonOptions, list[str]]:
    """Return the options of every command, and the other words; UserError for `--config` without a file."""
    config, words, rest = None, [], iter(arguments)
    for word in rest:
        if word == CONFIG_OPTION or word.startswith(f"{CONFIG_OPTION}="):
            name = word.partition("=")[2] or next(rest, "")
            if not name:
                raise UserError(f"{CONFIG_OPTION} must be followed by a YAML or JSON file")
            config = expand_home(name)
        elif word not in ("--traceback", "--quiet", "--json"):
            words.append(word)
    traceback = "--traceback" in arguments or os.environ.get(TRACEBACK_VARIABLE, "0") not in ("", "0")
    return CommonOptions(traceback, "--quiet" in arguments, "--json" in arguments, config), words
