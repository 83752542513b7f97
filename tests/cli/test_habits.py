"""Options of every command, results for programs, colours and completion."""

import json
import os
import pty
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tyro

from lfdm.cli import COMMANDS
from lfdm.cli.console import Command, CommandTree, Group, binding
from lfdm.cli.settings_file import option_names
from lfdm.cli.text_forms import text_forms
from lfdm.config.presets import FLOW64, PRESETS, Preset
from lfdm.config.serialization import from_json, to_json
from lfdm.data.cache import open_cache
from lfdm.data.index import ClipRecord
from lfdm.data.video import write_video
from tests.command_line import Lfdm


def commands(tree: CommandTree = COMMANDS) -> Iterator[tuple[str, Command]]:
    for name, entry in tree.items():
        if isinstance(entry, Group):
            yield from ((f"{name} {inner}", command) for inner, command in commands(entry.commands))
        elif name == "flow64" or name not in PRESETS:
            yield name, entry


@pytest.mark.parametrize(("name", "command"), [pytest.param(*found, id=found[0]) for found in commands()])
def test_a_file_may_hold_every_option_of_a_command(name: str, command: Command) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        parser = tyro.extras.get_parser(binding(command), registry=text_forms(), prog=name)
    options = [action.option_strings[0] for action in parser._actions if action.option_strings and action.dest != "help"]
    assert sorted(f"--{option}" for option in option_names(command)) == sorted(options)


def test_the_command_line_wins_over_a_file(lfdm: Lfdm, model: Path, image: Path) -> None:
    Path("run.yaml").write_text(
        f"model: {model}\nnum_frames: 2\nnum-inference-steps: 1\nout: wave\npanel: [generated, flow]\nloop: true\nfps: null\n"
    )
    code, out, err = lfdm("generate", image, "wave", "--config", "run.yaml", "--num-frames", 3, "--no-loop")
    assert code == 0, err
    assert out.split()[:1] == ["wave"]
    assert len(list(Path("wave").glob("*.png"))) == 3
    assert lfdm("--config=run.yaml", "generate", image, "wave", "--overwrite")[0] == 0
    assert len(list(Path("wave").glob("*.png"))) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("num_frame: 2\nseed: 1\nfoo: {bar: 1}\n", "'num-frame', 'foo.bar'; did you mean 'num-frames'?"),
        ("- 2\n", "must hold options and their values"),
        ("a: [", "not a YAML or JSON file"),
        ("num_frames: many\n", "num-frames"),
    ],
)
def test_a_wrong_file_is_one_line(lfdm: Lfdm, image: Path, content: str, message: str) -> None:
    Path("run.yaml").write_text(content)
    code, out, err = lfdm("generate", image, "wave", "--config", "run.yaml")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_a_file_must_exist_and_be_named(lfdm: Lfdm, image: Path) -> None:
    for words in (["--config", "no-such.yaml"], ["--config"]):
        code, _, err = lfdm("generate", image, "wave", *words)
        assert (code, err.count("\n")) == (2, 1)
        assert words[-1] in err


def test_the_settings_of_a_run_are_a_file(lfdm: Lfdm, tiny_preset: Preset) -> None:
    Path("config.json").write_text(json.dumps({"stage": "autoencoder", "data": "x", "preset": to_json(tiny_preset)}))
    code, _, err = lfdm("train", "autoencoder", "flow64", "--data", "nothing", "--out", "run", "--config", "config.json")
    assert code == 2
    assert "nothing: no such data folder" in err, "all settings of the run are options"
    wrong = to_json(FLOW64) | {"image_size": [64, 7]}
    Path("config.json").write_text(json.dumps({"preset": wrong}))
    code, _, err = lfdm("train", "autoencoder", "flow64", "--data", "nothing", "--out", "run", "--config", "config.json")
    assert (code, err.count("\n")) == (2, 1)
    assert "size" in err


def test_settings_of_a_run_are_read_next_to_the_options_of_a_command(tiny_preset: Preset) -> None:
    assert from_json(Preset, to_json(tiny_preset)) == tiny_preset  # the options of `lfdm train` are a subclass of Preset


def test_quiet_prints_results_and_errors_only(lfdm: Lfdm, image: Path) -> None:
    words = ["data", "puppets", "--out", "data", "--num-subjects", 2, "--num-takes", 1, "--num-frames", 2, "--size", 32]
    assert lfdm(*words, "--num-workers", 1, "--quiet") == (0, "data/clips.csv\n", "")
    code, out, err = lfdm("--quiet", "generate", image, "wave", "--model", "nowhere")
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_results_for_programs_are_one_json_object(lfdm: Lfdm, model: Path, image: Path) -> None:
    code, out, _ = lfdm("info", "--json")
    assert code == 0
    assert "puppets64" in json.loads(out)["bundled models"]
    code, out, _ = lfdm("info", "--model", model, "--json")
    assert json.loads(out)["labels"] == "raise arms, wave"
    options = ["--model", model, "--num-inference-steps", 1]
    code, out, _ = lfdm("generate", image, "wave", *options, "--num-videos", 2, "--panel", "source", "--out", "a.gif", "--json")
    assert code == 0
    assert sorted(json.loads(out)["files"]) == ["a-0-panel.gif", "a-0.gif", "a-1-panel.gif", "a-1.gif"]
    write_video("driving.avi", np.zeros((3, 32, 32, 3), np.uint8), fps=8)
    code, out, _ = lfdm("--json", "transfer", image, "driving.avi", "--model", model, "--out", "b.gif")
    assert json.loads(out) == {"files": ["b.gif"]}
    words = "data puppets --out data --num-subjects 2 --num-takes 1 --size 32 --num-frames 3 --num-workers 1"
    code, out, _ = lfdm(*words.split(), "--json")
    found = json.loads(out)
    assert (found["data"], found["train"], found["test"], found["subjects"], found["clips"]["wave"]) == ("data", 8, 8, 2, 2)
    code, out, _ = lfdm("new", "project", "--json")
    assert json.loads(out) == {"project": "project"}


def test_failed_requests_are_counted_for_programs_and_json_is_refused_without_a_result(lfdm: Lfdm, model: Path) -> None:
    Path("requests.csv").write_text("image,condition\nnowhere.png,wave\n")
    code, out, err = lfdm("batch", "requests.csv", "--out", "videos", "--model", model, "--json", "--quiet")
    assert (code, json.loads(out)["failed"], err.count("\n")) == (2, 1, 1)
    for command in (["completion", "bash"], ["serve", "--model", model]):
        code, out, err = lfdm(*command, "--json")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "--json" in err


def test_help_has_colours_only_without_no_color() -> None:
    def help_on_a_terminal(**variables: str) -> bytes:
        ours, theirs = pty.openpty()
        environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm", **variables}
        with subprocess.Popen([sys.executable, "-m", "lfdm", "info", "--help"], stdout=theirs, stderr=theirs, env=environment):
            os.close(theirs)
            text = b""
            while True:
                try:
                    text += os.read(ours, 1 << 16)
                except OSError:  # the other end is closed
                    os.close(ours)
                    return text

    assert b"\x1b[" in help_on_a_terminal()
    plain = help_on_a_terminal(NO_COLOR="1")
    assert b"--model" in plain
    assert b"\x1b[" not in plain


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_commands_options_and_choices(lfdm: Lfdm, shell: str) -> None:
    code, script, err = lfdm("completion", shell)
    assert (code, err) == (0, "")
    for word in ("generate", "puppets", "autoencoder", "flow512", "num-inference-steps", "unlabelled"):
        assert word in script, word


def test_bash_completes(lfdm: Lfdm) -> None:
    Path("completion.bash").write_text(lfdm("completion", "bash")[1])
    line = (
        "source completion.bash; COMP_WORDS=(lfdm data fo); COMP_CWORD=2; "
        'complete -p lfdm | sed "s/.*-F \\([^ ]*\\).*/\\1/" > name; $(cat name); echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["folder"], done.stderr


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish: apt-get install fish")
def test_fish_completes_words_and_nothing_of_descriptions(lfdm: Lfdm) -> None:
    Path("lfdm.fish").write_text(lfdm("completion", "fish")[1])

    def complete(line: str) -> list[str]:
        done = subprocess.run(
            ["fish", "-c", f"source lfdm.fish; complete -C '{line}'"], capture_output=True, text=True, check=True
        )
        return [candidate.split("\t")[0] for candidate in done.stdout.splitlines()]

    assert complete("lfdm data fo") == ["folder"]
    assert all(word.startswith("-") for word in complete("lfdm generate a.png wave --"))


ZSH = """
zmodload zsh/zpty; zpty z zsh -f -i
zpty -w z 'PS1=; fpath=($PWD $fpath); autoload -Uz compinit; compinit -u -D; bindkey "^I" complete-word; echo re""ady'
while zpty -r z line; do [[ $line == *ready* ]] && break; done
zpty -w -n z 'lfdm data fo'$'\t'
while zpty -r z line '*folder*'; do break; done; print -r -- $line
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh: apt-get install zsh")
def test_zsh_completes(lfdm: Lfdm) -> None:
    Path("_lfdm").write_text(lfdm("completion", "zsh")[1])
    done = subprocess.run(["zsh", "-f", "-c", ZSH], capture_output=True, text=True, check=False, timeout=120)
    assert "lfdm data folder" in done.stdout, done.stdout + done.stderr


def test_caches_are_in_lfdm_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, puppets_dir: Path, puppet_records: list[ClipRecord]
) -> None:
    monkeypatch.setenv("LFDM_HOME", str(tmp_path / "home"))
    cache = open_cache(puppets_dir, puppet_records[:2], 32, "pad")
    assert cache.folder.parent == tmp_path / "home" / "cache"
