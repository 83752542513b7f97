"""Hostile folders: paths that leave them, links, devices, names that change a terminal, and tables."""

import os
from collections.abc import Callable
from pathlib import Path

from benchmarks.faults.commands import STAGE1, VALID
from benchmarks.faults.hostile import ESCAPE, FOLDER, GENERATE, TRANSFER, Hostile, sparse

_TRAIN = VALID["train autoencoder flow64"]
_LABELLED = f"{FOLDER} --labels table.csv"
Write = Callable[[Path], object]


def _index(**values: str) -> Write:
    """Return a function that changes values in the first row of clips.csv."""

    def write(folder: Path) -> None:
        path = folder / "data/clips.csv"
        names, first, *others = path.read_text().splitlines()
        row = dict(zip(names.split(","), first.split(","), strict=True)) | values
        path.write_text("\n".join([names, ",".join(row.values()), *others]) + "\n")

    return write


def _first_clip(folder: Path) -> Path:
    return min((folder / "data/clips").rglob("*.avi"))


def _linked_clip(folder: Path) -> None:
    clip = _first_clip(folder)
    clip.unlink()
    clip.symlink_to(folder.parent / "secret.mp4")


def _linked_clips(folder: Path) -> None:
    (folder / "data/clips").rename(folder.parent / "case-clips")
    (folder / "data/clips").symlink_to(folder.parent / "case-clips")


def _table(text: str) -> Write:
    return lambda folder: (folder / "table.csv").write_text(text)


def _many_links(folder: Path) -> None:
    """Link every folder to those that contain it, many times: the paths that lead to one clip grow exponentially."""
    for label in (folder / "tree").iterdir():
        for index in range(12):
            (label / f"link{index}").symlink_to(folder / "tree", target_is_directory=True)


def _crossed_links(folder: Path) -> None:
    """Link folders to each other of which none contains another."""
    for name in "abcdefgh":
        (folder / "tree" / name).mkdir()
    for name in "abcdefgh":
        for other in "abcdefgh":
            (folder / "tree" / name / f"to-{other}").symlink_to(folder / "tree" / other, target_is_directory=True)


def _deep(folder: Path) -> None:
    path = folder / "tree/deep"
    for _ in range(60):
        path = path / ("x" * 50)
    path.mkdir(parents=True)


def _renamed(name: str) -> Write:
    return lambda folder: (folder / "tree/jump/ann/take.mp4").rename(folder / "tree/jump/ann" / name)


def _linked_checkpoint(folder: Path) -> None:
    """Make the oldest checkpoint a link to a folder elsewhere, which is not to be removed with it."""
    checkpoint = next((folder / "stage1/checkpoints").iterdir())
    precious = folder / "precious"
    checkpoint.rename(precious)
    for step in range(3):
        (checkpoint.parent / f"step-{step:08d}").symlink_to(precious)


def _case(name: str, words: str, write: Write, *, kind: str = "path", may_work: bool = False) -> Hostile:
    return Hostile(name=name, kind=kind, words=words, write=write, may_work=may_work)


FOLDERS = [
    _case("a mix of labels of 100,000 digits", GENERATE.replace("wave", f"a={'1' * 100_000}x"), lambda _: None),
    *(
        _case(f"clip {path} in clips.csv", _TRAIN, _index(path=path))
        for path in ("../secret.mp4", "clips/../../secret.mp4", "/etc/passwd", "~/x.avi", "/dev/zero")
    ),
    *(  # names of files that do not exist: such clips are left out
        _case(f"clip {path} in clips.csv", _TRAIN, _index(path=path), may_work=True)
        for path in ("file:///etc/passwd", "..\\secret.mp4")
    ),
    _case("a clip that is a link out of the data set", _TRAIN, _linked_clip, kind="link", may_work=True),
    _case("clips that are a link out of the data set", _TRAIN, _linked_clips, kind="link", may_work=True),
    _case("escape codes as label", _TRAIN, _index(label=f"wave{ESCAPE}")),
    _case("clips.csv of 1 TB of zeros", _TRAIN, lambda f: sparse(f / "data/clips.csv", 2**40, b"path,label")),
    _case("clips.csv that is a pipe", _TRAIN, lambda f: (f / "data/clips.csv").unlink() or os.mkfifo(f / "data/clips.csv")),
    _case("clips.csv with a field of 1 MB", _TRAIN, _index(label="x" * 10**6)),
    _case("2^60 frames in clips.csv", _TRAIN, _index(frames=str(2**60)), may_work=True),  # left out
    _case("table that names files elsewhere", _LABELLED, _table("path,label\n../secret.mp4,a\n/etc/passwd,b\n")),
    _case(
        "table with labels that are paths",
        _LABELLED,
        _table("path,label\njump/ann/take.mp4,../../x\nwave/ann/take.mp4,/y\n"),
        may_work=True,
    ),
    _case(
        "table with escape codes",
        _LABELLED,
        _table(f"path,label\njump/ann/take.mp4,a{ESCAPE}\nwave/ann/take.mp4,b\n{ESCAPE},c\n"),
        may_work=True,
    ),
    _case(
        "labels that are a list of 1 TB",
        "import --labels labels.txt --out ./model",
        lambda f: sparse(f / "labels.txt", 2**40, b"wave\n"),
    ),
    _case(
        "segmentation of 1 TB", VALID["data natops"], lambda f: sparse(f / "natops/segmentation.txt", 2**40, b"// Subject 3\n")
    ),
    _case(
        "a take of 10^12 frames",
        VALID["data natops"],
        lambda f: (f / "natops/segmentation.txt").write_text(
            (f / "natops/segmentation.txt").read_text().replace("1:1,3", "1:1,999999999999")
        ),
        may_work=True,
    ),
    _case(
        "split list of 1 TB", FOLDER, lambda f: sparse(f / "tree/trainlist01.txt", 2**40, b"jump/ann/take.mp4\n"), may_work=True
    ),
    _case("links to the folders around", FOLDER, _many_links, kind="link", may_work=True),
    _case("links between folders", FOLDER, _crossed_links, kind="link", may_work=True),
    _case("folders 60 deep", FOLDER, _deep, may_work=True),
    _case("a name of two lines", FOLDER, _renamed("a\nlfdm: all is well.mp4"), may_work=True),
    _case("a name of escape codes", FOLDER, _renamed(f"a{ESCAPE}.mp4"), may_work=True),
    _case("a pipe as clip", FOLDER, lambda f: os.mkfifo(f / "tree/jump/pipe.mp4"), kind="link", may_work=True),
    _case("a pipe as frame", TRANSFER.format("frames"), lambda f: os.mkfifo(f / "frames/frame-00009.png"), kind="link"),
    _case("a pipe as picture", GENERATE.replace("image.png", "pipe.png"), lambda f: os.mkfifo(f / "pipe.png"), kind="link"),
    _case(
        "/dev/zero as picture",
        GENERATE.replace("image.png", "zero.png"),
        lambda f: (f / "zero.png").symlink_to("/dev/zero"),
        kind="link",
    ),
    _case(
        "/dev/zero as weights",
        GENERATE,
        lambda f: [(p := f / "model/unet/diffusion_pytorch_model.safetensors").unlink(), p.symlink_to("/dev/zero")],
        kind="link",
    ),
    _case(
        "checkpoints that link elsewhere",
        f"{STAGE1} --autoencoder-training.optimization.keep-checkpoints 1",
        _linked_checkpoint,
        kind="link",
        may_work=True,
    ),
    _case("a picture's name with escape codes", GENERATE.replace("image.png", f"a{ESCAPE.replace(' ', '')}.png"), lambda _: None),
]
