"""`lfdm new`: a folder for a project of one's own clips."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from lfdm.cli.console import Values
from lfdm.config.presets import PRESETS
from lfdm.errors import UserError
from lfdm.folders.files import replacing_folder

MAKEFILE = """\
# make prepare    clips/ -> data/          make train       data/ -> runs/
# make generate   pictures/ -> videos/     make evaluate    runs/evaluation/report.html
# Settings are in prepare.yaml, stage1.yaml, stage2.yaml, generate.yaml and evaluate.yaml; LABEL=... chooses the action.
LFDM ?= lfdm
PRESET ?= {preset}
LABEL ?=

.PHONY: prepare train generate evaluate

prepare:
\t$(LFDM) data folder clips --out data --config prepare.yaml

data/clips.csv:
\t$(MAKE) prepare

train: data/clips.csv
\t$(LFDM) train autoencoder $(PRESET) --data data --out runs/stage1 --config stage1.yaml
\t$(LFDM) train diffusion $(PRESET) --data data --autoencoder runs/stage1 --out runs/stage2 --config stage2.yaml

generate:
\t@test -n "$(LABEL)" || {{ echo "say which action: make generate LABEL=wave"; exit 2; }}
\tfor picture in pictures/*; do name=$$(basename "$$picture"); \\
\t$(LFDM) generate "$$picture" "$(LABEL)" --model runs/stage2 --out "videos/$(LABEL)-$${{name%.*}}.mp4" \\
\t--overwrite --config generate.yaml || exit; done

evaluate: data/clips.csv
\t$(LFDM) evaluate --model runs/stage2 --data data --out runs/evaluation --config evaluate.yaml
"""
README = """\
# {name}

1. Put clips into `clips/<label>/<person>/` and pictures to animate into `pictures/`.
2. `make prepare` makes the data set; `make train` trains both stages, and continues when repeated.
3. `make generate LABEL=<label>` animates every picture; `make evaluate` measures the model on people held out from training.

Settings are in the yaml files. Their names are the options of the commands (`lfdm data folder --help`,
`lfdm train autoencoder {preset} --help`, ...). A run keeps its settings: after changing them, train into another folder or
delete the old run.
"""
SETTINGS = {
    "prepare.yaml": "# options of lfdm data folder\n# size: 64x64\n# clip_seconds: 2\ntest_fraction: 0.2\n",
    "stage1.yaml": "# options of lfdm train autoencoder\nautoencoder_training:\n  optimization:\n    seed: 0\n",
    "stage2.yaml": "# options of lfdm train diffusion\ndiffusion_training:\n  optimization:\n    seed: 0\n",
    "generate.yaml": "# options of lfdm generate\nseed: 0\n",
    "evaluate.yaml": "# options of lfdm evaluate\nseed: 0\n",
}


def new(name: Annotated[Path, Positional, arg(metavar="NAME")], *, preset: str = "flow64") -> Values:
    """Make a folder for a project of your own clips, with settings and a Makefile: prepare, train, generate and evaluate.

    Args:
        name: New folder.
        preset: Configuration of the trainings; `lfdm info` lists them.
    """
    if preset not in PRESETS:
        raise UserError(f"preset must be one of {', '.join(PRESETS)}; got {preset!r}")
    if name.exists():
        raise UserError(f"{name} exists; choose a new folder")
    files = {
        "Makefile": MAKEFILE.format(preset=preset),
        "README.md": README.format(name=name.resolve().name, preset=preset),
        ".gitignore": "clips/\ndata/\nruns/\nvideos/\n",
        **SETTINGS,
    }
    with replacing_folder(name) as folder:
        for file, text in files.items():
            (folder / file).write_text(text)
        for place in ("clips", "pictures"):
            (folder / place).mkdir()
    print(name)
    return {"project": name}
