"""Hypothesis strategies of command lines: every command of lfdm with odd values, and commands that read a damaged file."""

import functools
import warnings
from typing import Any

import tyro
from hypothesis import strategies as st

from benchmarks.faults.damage import NAMES, NUMBERS, PATHS, WORDS, damages
from benchmarks.faults.samples import CLIPS, IMAGES, LABELS, NUM_FRAMES, ODD_IMAGES, SIZE
from lfdm.cli import COMMANDS
from lfdm.cli.console import Group

TINY = f"--size {SIZE} --num-frames {NUM_FRAMES} --autoencoder.channels 8 --autoencoder.max-channels 8"
TINY += " --autoencoder.num-downs 1 --autoencoder.num-res-blocks 1 --autoencoder.predictor.channels 8 8 8 8"
TINY += " --autoencoder.predictor.match-channels 8 --unet.latent-channels 8 --unet.condition-dim 8 --unet.dim 8"
TINY += " --unet.channel-multipliers 1 2 --unet.num-heads 1 --unet.head-dim 8 --unet.spatial-attention-levels None"
TINY += " --unet.temporal-attention-levels None"
ONE_STEP = "--{0}optimization.num-steps 1 --{0}optimization.batch-size 2 --{0}optimization.warmup-steps 0"
STAGE1 = f"train autoencoder flow64 --data data --out stage1 {TINY} {ONE_STEP.format('autoencoder-training.')}"
STAGE2 = f"train diffusion flow64 --data data --autoencoder ./stage1 --out stage2 {TINY} {ONE_STEP.format('diffusion-training.')}"
EVALUATE = "evaluate --data data --num-clips 2 --num-inference-steps 1 --classifier.num-steps 1 --frame-network.num-steps 1"
EVALUATE += " --allow-small --num-diversity-clips 1 --num-ceiling-clips 1"
GENERATE = "generate {image} wave --model {model} --num-inference-steps 1"
TRANSFER = "transfer image.png {clip} --model ./model"
PREPARATION = (STAGE1, STAGE2, f"{EVALUATE} --model ./model --out results")
"""Commands whose results belong to the samples."""

VALID: dict[str, str] = {
    "demo": "demo --out demo --device cpu",
    "generate": GENERATE.format(image="image.png", model="./model"),
    "transfer": TRANSFER.format(clip="clip.mp4"),
    "data puppets": f"data puppets --out new --num-subjects 2 --num-takes 1 --size {SIZE} --num-frames 2 --num-workers 1",
    "data lpc": "data lpc --sheets sheets --out new --num-characters 2 --size 16 --num-frames 3 --num-workers 1",
    "data mug": "data mug mug --out new --size 16 --num-workers 1",
    "data mhad": "data mhad mhad --out new --size 16 --num-workers 1",
    "data natops": "data natops natops --out new --size 16 --num-workers 1",
    "data folder": "data folder tree --out new --size 16 --num-workers 1",
    "train autoencoder flow64": STAGE1.replace("--out stage1", "--out new"),
    "train autoencoder mug128": STAGE1.replace("flow64", "mug128").replace("--out stage1", "--out new"),
    "train diffusion flow64": STAGE2.replace("--out stage2", "--out new"),
    "adapt": f"adapt --data data --out new --model ./model {ONE_STEP.format('')}",
    "evaluate": f"{EVALUATE} --model ./model --out new",
    "import": "import --preset mug128 --diffusion flowdiff.pth --out new",
    "serve": "serve --model ./model --port {taken}",
    "info": "info --model ./model",
}
"""A command line by its command. `{taken}` is a port in use, so that `serve` ends."""
_SLOW_TO_DO = frozenset(
    [
        "num-steps",
        "num-subjects",
        "num-takes",
        "num-frames",
        "num-inference-steps",
        "num-videos",
        "num-characters",
        "size",
        "image-size",
        "batch-size",
        "scale",
        "num-clips",
        "num-diversity-clips",
        "num-ceiling-clips",
        "epoch-repeats",
        "num-workers",
        "num-resnets",
        "num-res-blocks",
        "perceptual-scales",
    ]
)
"""Options whose large values are allowed and take hours: they get small or forbidden ones."""
_SMALL = ("-1", "0", "1", "2", "3", "", "NaN", "1e3", "99999999999999999999", "9" * 5000, "0x10", "\u0661", "None", "1.5")
_FLOATS = ("0.5", "-0.5", "1.0000001", "1e-5", "1e5", *NUMBERS, *WORDS)
_FILES = (
    "image.png",
    "clip.mp4",
    "mask.png",
    "motion.safetensors",
    "data",
    "tree",
    "frames",
    "model",
    "./model",
    "stage1",
    "results",
)
_FILES += ("/dev/null", "/dev/zero", "/proc/self/mem", "new/a/b", "image.png/x", "missing", "table.csv", "flowdiff.pth")
_OUTPUTS = (
    "x.mp4",
    "x.gif",
    "x.webm",
    "x.webp",
    "x.apng",
    "x.MP4",
    "x",
    "x.png",
    "image.png",
    "clip.gif",
    "x.avi",
    ".mp4",
    "x.safetensors",
)
_CONDITIONS = ("wave", "jump", "wave=0.5,jump=0.5", "wave=nan", "wave=1e400", "wave=-1", "=", "wave=", "wave=0", "Wave", "None")


def words() -> st.SearchStrategy[dict[str, Any]]:
    """Return a strategy of cases with odd command lines."""
    return st.sampled_from(sorted(VALID)).flatmap(_odd_line)


def _odd_line(command: str) -> st.SearchStrategy[dict[str, Any]]:
    base = VALID[command].split()
    trains = command.startswith(("train", "adapt", "evaluate"))  # without its last options it would take hours
    longest = len(command.split()) + 2 if trains else len(base)
    options = st.lists(st.sampled_from(_options(command)).flatmap(_option), max_size=3)
    changed = st.one_of(
        *[st.just(base)] * 4,
        st.integers(len(command.split()), longest).map(lambda at: base[:at]),
        st.builds(
            lambda at, word: [*base[:at], word, *base[at + 1 :]],
            st.integers(len(command.split()) - 1, len(base) - 1),
            st.sampled_from([*_FILES, *PATHS, *WORDS, *_CONDITIONS]) | st.text(max_size=10),
        ),
        st.lists(st.sampled_from([*base, *_FILES, "--", "-h", "--help", *NAMES]), max_size=6).map(
            lambda extra: [*base[:2], *extra]
        ),
    )
    return st.builds(lambda line, extra: {"words": [*line, *(word for group in extra for word in group)]}, changed, options)


def _options(command: str) -> list[tuple[str, tuple[int, str, tuple[str, ...]]]]:
    """List the options of a command: name, and number, kind and choices of its values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tyro: for its own tests
        parser = _parser(command)
    found = []
    for action in parser._actions:
        number = {"*": -1, "?": 1}.get(str(action.nargs), action.nargs or 0)
        kind, choices = str(action.metavar or ""), tuple(map(str, action.choices or ()))
        found += [(name, (int(number), kind, choices)) for name in action.option_strings]
    return found or [("--help", (0, "", ()))]


@functools.cache
def _parser(command: str) -> Any:
    entry: Any = COMMANDS
    for word in command.split():
        entry = entry.commands[word] if isinstance(entry, Group) else entry[word]
    return tyro.extras.get_parser(entry)


def _option(option: tuple[str, tuple[int, str, tuple[str, ...]]]) -> st.SearchStrategy[list[str]]:
    name, (number, kind, choices) = option
    if number == 0:
        return st.just([name])
    value = st.sampled_from(_values(name, kind, choices))
    counts = st.integers(0, 5) if number < 0 else st.sampled_from([number] * 8 + [number + 1, max(0, number - 1)])
    return counts.flatmap(lambda count: st.lists(value, min_size=count, max_size=count)).map(lambda values: [name, *values])


def _values(name: str, kind: str, choices: tuple[str, ...]) -> list[str]:
    last = name.strip("-").rpartition(".")[2]
    if choices:
        return [*choices * 3, *WORDS]
    if last in _SLOW_TO_DO:
        return [*_SMALL]
    if "INT" in kind:
        return [*_SMALL, *NUMBERS]
    if "FLOAT" in kind:
        return [*_FLOATS]
    if last in ("out", "motion"):
        return [*_OUTPUTS * 2, *_FILES, *PATHS, *NAMES]
    return [*_FILES * 2, *_CONDITIONS, *PATHS, *NAMES, *WORDS]


# ----------------------------------------------------------------------------------------------------- damaged files

_LABELLED = "data folder tree --out new --size 16 --num-workers 1 --labels {}"
_FOLDER_LINES = (VALID["data folder"], f"{VALID['data folder']} --scene-cuts", f"{VALID['data folder']} --clip-seconds 0.2")
READERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    *((f"image.{ending}", (GENERATE.format(image=f"image.{ending}", model="./model"),)) for ending in IMAGES),
    *((name, (GENERATE.format(image=name, model="./model"),)) for name in (*ODD_IMAGES, "pages.tiff")),
    ("mask.png", (f"{VALID['generate']} --motion-mask mask.png",)),
    *((f"clip.{ending}", (TRANSFER.format(clip=f"clip.{ending}"),)) for ending in CLIPS),
    ("frames/frame-00001.png", (TRANSFER.format(clip="frames"),)),
    *((f"tree/{LABELS[0]}/{name}", _FOLDER_LINES) for name in ("ann/take.mp4", "bob/take.webp", "eve/take.gif")),
    *((name, (_LABELLED.format(name),)) for name in ("table.csv", "table.tsv")),
    ("motion.safetensors", ("generate image.png --reuse-motion motion.safetensors --model ./model",)),
    ("flowdiff.pth", (VALID["import"],)),
    ("legacy.pth", (VALID["import"].replace("flowdiff", "legacy"),)),
    ("labels.txt", ("import --labels labels.txt --out ./model",)),
    ("data/clips.csv", (VALID["train autoencoder flow64"], VALID["evaluate"], VALID["adapt"])),
    ("natops/segmentation.txt", (VALID["data natops"],)),
    ("natops/gesture01/g01s03.avi", (VALID["data natops"],)),
    ("sheets/body/male/light.png", (VALID["data lpc"],)),
)
_FOLDERS: dict[str, tuple[str, ...]] = {
    "model": (VALID["generate"], VALID["info"], VALID["transfer"], VALID["evaluate"], VALID["adapt"]),
    "stage1": (STAGE1, VALID["train diffusion flow64"], f"{EVALUATE} --model ./stage1 --out new"),
    "stage2": (STAGE2, GENERATE.format(image="image.png", model="./stage2"), "info --model ./stage2"),
    "data": (STAGE1, STAGE2, VALID["evaluate"]),
    "results": (PREPARATION[2],),
}
"""Commands that read the files of a folder. The data set's files are its clips and its caches."""


def damaged_files(names: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    """Return a strategy of cases with one damaged file; `names` are all samples, relative to their folder."""
    readers = [(name, lines) for name, lines in READERS if name in names]
    missing = [name for name, _ in READERS if name not in names]
    assert not missing, f"no samples {missing}"
    for folder, lines in _FOLDERS.items():
        readers += [(name, lines) for name in names if name.startswith(f"{folder}/") and "tfevents" not in name]
    return st.sampled_from(readers).flatmap(_damaged)


def _damaged(reader: tuple[str, tuple[str, ...]]) -> st.SearchStrategy[dict[str, Any]]:
    name, lines = reader
    suffix = f".{name.rpartition('.')[2]}"
    return st.builds(
        lambda line, changes: {"file": name, "damages": changes, "words": line.split()}, st.sampled_from(lines), damages(suffix)
    )
