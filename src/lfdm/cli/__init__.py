"""The command line, `lfdm`. Imports neither torch nor diffusers before a command runs."""

import sys

from lfdm.cli.batch import batch
from lfdm.cli.checking import data_check
from lfdm.cli.completion import completion_command
from lfdm.cli.console import CommandTree, Group, run_process
from lfdm.cli.data_sets import data_characters, data_corpus, data_folder, data_lpc, data_puppets, data_sprites
from lfdm.cli.info import info
from lfdm.cli.models import evaluate, export, import_
from lfdm.cli.new import new
from lfdm.cli.serve import serve
from lfdm.cli.shards import data_shard
from lfdm.cli.track import track
from lfdm.cli.training import adapt, autoencoder_training, diffusion_training, train_few_steps, train_suitable_autoencoder
from lfdm.cli.videos import demo, generate, transfer
from lfdm.config.presets import PRESETS

COMMANDS: CommandTree = {
    "demo": demo,
    "generate": generate,
    "transfer": transfer,
    "track": track,
    "data": Group(
        "Make a clip data set: puppets, characters, sprites, lpc, mug, mhad, natops, folder; or check or shard one.",
        {
            "puppets": data_puppets,
            "characters": data_characters,
            "sprites": data_sprites,
            "lpc": data_lpc,
            "mug": data_corpus("mug", "<subject>/<expression>/<take>/*.jpg"),
            "mhad": data_corpus("mhad", "RGB/a1_s1_t1_color.avi, ... and Depth/a1_s1_t1_depth.mat, ..."),
            "natops": data_corpus("natops", "gesture01/g01s01.avi, ... and segmentation.txt"),
            "folder": data_folder,
            "check": data_check,
            "shard": data_shard,
        },
    ),
    "train": Group(
        "Train a model: autoencoder (stage 1), then diffusion (stage 2), and few-steps to make it faster.",
        {
            "autoencoder": Group(
                "Train stage 1 of a preset; `auto` picks the one that suits the clips.",
                {"auto": train_suitable_autoencoder} | {name: autoencoder_training(preset) for name, preset in PRESETS.items()},
            ),
            "diffusion": Group(
                "Train stage 2 of a preset.", {name: diffusion_training(preset) for name, preset in PRESETS.items()}
            ),
            "few-steps": train_few_steps,
        },
    ),
    "adapt": adapt,
    "evaluate": evaluate,
    "batch": batch,
    "import": import_,
    "export": export,
    "serve": serve,
    "info": info,
    "new": new,
    "completion": completion_command(lambda: COMMANDS),
}

DESCRIPTION = (
    "Animate one image by latent flow diffusion. Every command also takes --config FILE (options from a YAML file or a run's "
    "config.json; the command line wins), --json (the result as one JSON object), --quiet (no progress and notes) and "
    "--traceback (or LFDM_TRACEBACK=1)."
)


def main() -> None:
    """Run the command line of this process and exit."""
    sys.exit(run_process(COMMANDS, sys.argv[1:], DESCRIPTION))
