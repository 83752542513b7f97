"""Labelled clips of rigged characters, with exact flow and visibility.

Every clip of a subject starts from the same rest pose, seen by the same camera, so that only the label decides the motion.
Takes vary in speed, phase and amplitude; subjects in parts, colours, proportions, camera, light and background.
"""

import functools
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Self, get_args

import numpy as np

from lfdm.config.checks import check, check_integer
from lfdm.config.video import Size, SizeInput
from lfdm.data.characters.clips import ClipSettings, Difficulty, Scene, Take
from lfdm.data.characters.figures import Figure, mixing_families
from lfdm.data.characters.gltf import Character, read_character
from lfdm.data.characters.skeleton import Action
from lfdm.data.free_motion import FREE_LABEL, count_free_takes
from lfdm.data.index import (
    CLIPS_DIR,
    MAX_SUBJECTS,
    ClipRecord,
    Split,
    check_split,
    check_workers,
    new_data_set,
    num_test_subjects,
    refuse_data_set,
    write_index,
)
from lfdm.data.progress import Progress, run_all, worker_processes
from lfdm.data.truth import Truth, TruthChoice, save_truth, truth_path
from lfdm.data.video import write_video
from lfdm.errors import UserError
from lfdm.folders.files import expand_home, write_bytes
from lfdm.folders.model_folder import read_json

MAX_TAKES = 1000
MIN_MOVEMENT = 0.2
"""Actions in which no bone moves further, as a fraction of the figure's height, are not labels unless requested."""
_Render = Callable[..., tuple[np.ndarray, Truth | None]]
"""Return a clip and, with `truth=True`, its exact motion."""
_FINISHED_DIR = "finished"
_PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class RenderedCharacters:
    """A finished data set."""

    index: Path
    """`clips.csv`."""
    skipped: Sequence[str]
    """Files that could not be used, each with the reason."""
    visible: dict[str, float]
    """For each label, the share of the figure's pixels whose surface the first frame shows; empty without truth. No warp can
    make the others."""


@dataclass(frozen=True)
class _Settings:
    """Settings that all subjects of a data set share."""

    clips: ClipSettings
    labels: tuple[str, ...]
    num_takes: int
    num_free: int
    """Clips of each subject with free motion."""
    seed: int
    truth: TruthChoice


@dataclass(frozen=True)
class _Cast:
    """The files whose parts a subject may have, and its split."""

    split: Split
    paths: tuple[Path, ...]


def write_characters(
    source: str | Path,
    root: str | Path,
    *,
    labels: Sequence[str] = (),
    num_subjects: int = 100,
    num_takes: int = 2,
    free_motion: float = 0.0,
    size: SizeInput = 128,
    num_frames: int = 16,
    fps: float = 8.0,
    seed: int = 0,
    test_fraction: float = 0.2,
    difficulty: Difficulty = "easy",
    backgrounds: str | Path | None = None,
    shadows: bool = False,
    transparent: bool = False,
    truth: TruthChoice = "test",
    num_workers: int | None = None,
    progress: Progress | None = None,
) -> RenderedCharacters:
    """Render every glTF file below `source` into a clip data set at `root`, which appears only when it is complete.

    A call that was interrupted leaves what it has finished in a hidden folder next to `root`; the same call continues there.

    Characters that share a skeleton, actions and the names of their parts are mixed. Test subjects are made of files that no
    training subject uses. The same arguments give the same data set on the same OpenGL driver.

    Args:
        labels: actions to render, in any spelling (`Kick_Left`, `kick left`); by default those that all files share and that
            move the figure.
        num_takes: clips of each subject and label.
        free_motion: share, among all clips, of those whose joints move at random; their label is `free`.
        size: of frames; sides are multiples of 16.
        backgrounds: folder of pictures for ground and wall, instead of procedural patterns.
        shadows: draw cast shadows, which the exact flow does not follow.
        transparent: leave out ground and wall, and give the clips an alpha channel.
        num_workers: processes that render (None: one per core; 0 or 1: this one). A script that starts several must guard its
            main module (`if __name__ == "__main__":`).

    Raises:
        UserError: values that are not allowed, no usable file, labels that no file has, or no OpenGL.
        FileNotFoundError: no such folder.
        FileExistsError: `root` already holds a data set.
        MissingExtraError: moderngl is not installed.
    """
    source, root = expand_home(source), expand_home(root)
    check_integer("num_subjects", num_subjects, 1, MAX_SUBJECTS)
    check_integer("num_takes", num_takes, 1, MAX_TAKES)
    check_split(seed=seed, test_fraction=test_fraction)
    check_workers(num_workers)
    check(truth in get_args(TruthChoice), "truth", truth, ", ".join(get_args(TruthChoice)))
    frame = Size.parse(size)
    pictures = _find_backgrounds(backgrounds)
    look = {"difficulty": difficulty, "backgrounds": pictures, "shadows": shadows, "transparent": transparent}
    clips = ClipSettings(size=frame, num_frames=num_frames, fps=fps, **look)
    refuse_data_set(root)
    characters, skipped = _read_all(source)
    actions = _choose_labels(characters, labels)
    num_free = count_free_takes(free_motion, num_takes * len(actions))
    check(not (num_free and FREE_LABEL in actions), "labels", FREE_LABEL, "other actions with free_motion, which has this label")
    settings = _Settings(clips, actions, num_takes, num_free, seed, truth)
    casts = _cast(characters, num_subjects, seed, test_fraction)
    workers = min(num_subjects, (os.cpu_count() or 1) if num_workers is None else num_workers)
    return _write(root, settings, casts, workers, skipped, progress)


def _write(
    root: Path, settings: _Settings, casts: Sequence[_Cast], workers: int, skipped: Sequence[str], progress: Progress | None
) -> RenderedCharacters:
    pool = worker_processes(workers)
    with new_data_set(root, resume=_fingerprint(settings, casts)) as folder:
        write = partial(_write_subject, folder, settings, casts)
        parts = run_all(pool, write, range(len(casts)), work="rendering characters", progress=progress)
        records = sorted(chain.from_iterable(part.records for part in parts), key=lambda record: record.path)
        shutil.rmtree(folder / _FINISHED_DIR)
        index = root / write_index(folder, records).name
    pixels, visible = (sum((getattr(part, name) for part in parts), Counter()) for name in ("figure_pixels", "visible_pixels"))
    return RenderedCharacters(index, skipped, {label: visible[label] / count for label, count in sorted(pixels.items())})


# ---------------------------------------------------------------------------------------------------------- subjects


def label_of(action: str) -> str:
    """Return the label of an action's name.

    >>> label_of("Kick_Left")
    'kick left'
    """
    return " ".join(action.replace("_", " ").lower().split())


_load = functools.lru_cache(maxsize=256)(read_character)


def _read_all(source: Path) -> tuple[list[Character], list[str]]:
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: no such folder of glTF files")
    characters, skipped = [], []
    paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in (".gltf", ".glb") and path.is_file())
    for path in paths:
        try:
            characters.append(_load(path))
        except UserError as error:
            skipped.append(str(error))
    if not characters:
        reasons = f" ({skipped[0]})" if skipped else ""
        raise UserError(f"{source}: no rigged, animated .gltf or .glb file{reasons}")
    return characters, skipped


def _choose_labels(characters: Sequence[Character], requested: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the actions to render; every character has them."""
    shared = {label_of(name) for name in characters[0].actions}
    for character in characters[1:]:
        shared &= {label_of(name) for name in character.actions}
    if requested:
        wanted = tuple(dict.fromkeys(label_of(name) for name in requested))
        missing = [name for name in wanted if name not in shared]
        if missing:
            raise UserError(f"labels must be actions of all files ({', '.join(sorted(shared))}); got {', '.join(missing)}")
        return wanted
    names = sorted(name for name in shared if not name.startswith("idle"))
    moving = tuple(name for name in names if _movement(characters[0], name) >= MIN_MOVEMENT)
    if not moving:
        raise UserError("labels must be given: the files share no action that moves the figure")
    return moving


def _find_action(figure: Figure | Character, label: str) -> Action:
    return next(action for name, action in figure.actions.items() if label_of(name) == label)


def _movement(character: Character, label: str) -> float:
    """Return how far a bone gets at most from where the action begins, as a fraction of the skeleton's height.

    Each bone counts with its joint and with a point one tenth of the height along it.
    """
    action, skeleton = _find_action(character, label), character.skeleton
    poses = [action.sample(skeleton.rest, time) for time in np.linspace(0, action.duration, 9)]
    matrices = np.stack([skeleton.matrices(pose) for pose in poses])
    joints = matrices[..., :3, 3]
    height = np.ptp(joints[0, :, 1])
    places = np.concatenate([joints, joints + 0.1 * height * matrices[..., :3, 1]], axis=1)
    return float(np.linalg.norm(places - places[0], axis=-1).max() / height)


def _find_backgrounds(folder: str | Path | None) -> tuple[Path, ...]:
    if folder is None:
        return ()
    folder = expand_home(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of backgrounds")
    pictures = tuple(sorted(path for path in folder.rglob("*") if path.suffix.lower() in _PICTURE_ENDINGS))
    check(bool(pictures), "backgrounds", folder, f"a folder with pictures ({', '.join(_PICTURE_ENDINGS)})")
    return pictures


def _cast(characters: Sequence[Character], num_subjects: int, seed: int, test_fraction: float) -> list[_Cast]:
    """Cast every subject; the files of test subjects are used in no training subject."""
    rng = np.random.default_rng((seed, 3))
    num_train = num_subjects - num_test_subjects(num_subjects, test_fraction)
    families = mixing_families(characters)
    large = [[character.path for character in family] for family in families if len(family) > 1]
    single = [family[0].path for family in families if len(family) == 1]
    groups: dict[str, list[tuple[Path, ...]]] = {"train": [], "test": []}
    for paths, mixes in [(paths, True) for paths in large] + [(single, False)]:
        shuffled = [paths[index] for index in rng.permutation(len(paths))]
        count = num_test_subjects(len(paths), test_fraction) if len(paths) > 1 else 0
        for split, chosen in (("test", shuffled[:count]), ("train", shuffled[count:])):
            if chosen:
                groups[split] += [tuple(sorted(chosen))] if mixes else [(path,) for path in chosen]
    if num_train < num_subjects and not groups["test"]:
        raise UserError(f"test_fraction must be 0 for a single file, whose parts would be in both splits; got {test_fraction:g}")
    splits: list[Split] = ["train"] * num_train + ["test"] * (num_subjects - num_train)  # type: ignore[list-item]
    return [_Cast(split, groups[split][number % len(groups[split])]) for number, split in enumerate(splits)]


def _fingerprint(settings: _Settings, casts: Sequence[_Cast]) -> str:
    """Return a digest of all that decides the clips; files count by size and time."""
    files = sorted({*chain.from_iterable(cast.paths for cast in casts), *settings.clips.backgrounds})
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr((settings, casts, stats)).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class _Written:
    """The clips of a subject, and counts of the figure's pixels by label."""

    records: list[ClipRecord]
    figure_pixels: Counter[str]
    visible_pixels: Counter[str]

    def save(self, path: Path) -> None:
        records = [asdict(record) for record in self.records]
        write_bytes(path, json.dumps({"records": records, "figure": self.figure_pixels, "visible": self.visible_pixels}).encode())

    @classmethod
    def load(cls, path: Path) -> Self:
        values = read_json(path)
        records = [ClipRecord(**record) for record in values["records"]]
        return cls(records, Counter(values["figure"]), Counter(values["visible"]))


def _write_subject(folder: Path, settings: _Settings, casts: Sequence[_Cast], number: int) -> _Written:
    """Write the clips of a subject and then a file that says so; one that an earlier call has finished is not rendered again."""
    finished = folder / _FINISHED_DIR / f"{number}.json"
    if finished.is_file():
        return _Written.load(finished)
    written = _render_subject(folder, settings, casts, number)
    finished.parent.mkdir(exist_ok=True)
    written.save(finished)
    return written


def _render_subject(folder: Path, settings: _Settings, casts: Sequence[_Cast], number: int) -> _Written:
    name, split = f"character{number:04d}", casts[number].split
    rng, fps = np.random.default_rng((settings.seed, number, 0)), settings.clips.fps
    mirrored = bool(rng.random() < 0.5) and {_mirror_label(label) for label in settings.labels} == set(settings.labels)
    scene = Scene([_load(path) for path in casts[number].paths], settings.clips, rng, mirrored=mirrored)
    written = _Written([], Counter(), Counter())
    for label, index, render in _list_takes(scene, settings, number, mirrored=mirrored):
        frames, truth = render(truth=settings.truth in ("all", split))
        path = f"{CLIPS_DIR}/{name}/{label.replace(' ', '-')}-{index}.avi"
        write_video(folder / path, frames, fps=fps)
        if truth is not None:
            save_truth(truth_path(folder / path), truth)
            written.figure_pixels[label] += int(truth.figure.sum())
            written.visible_pixels[label] += int((truth.figure & truth.visible).sum())
        written.records.append(ClipRecord.describe(frames.shape, path=path, label=label, subject=name, split=split, fps=fps))
    scene.renderer.release()
    return written


def _list_takes(scene: Scene, settings: _Settings, number: int, *, mirrored: bool) -> Iterator[tuple[str, int, _Render]]:
    """Yield label and number of each clip of a subject, and how to render it."""
    for row, action_label in enumerate(settings.labels):
        action = _find_action(scene.figure, action_label)
        label = _mirror_label(action_label) if mirrored else action_label
        for index in range(settings.num_takes):
            rng = np.random.default_rng((settings.seed, number, row + 1, index))
            take = Take(speed=rng.uniform(0.85, 1.2), start=rng.uniform(0, 0.12), amplitude=rng.uniform(0.85, 1.0))
            yield label, index, partial(scene.render, action, take)
    for index in range(settings.num_free):
        rng = np.random.default_rng((settings.seed, number, len(settings.labels) + 1, index))
        yield FREE_LABEL, index, partial(scene.render_free, rng)


def _mirror_label(label: str) -> str:
    """Exchange left and right.

    >>> _mirror_label("kick left"), _mirror_label("wave")
    ('kick right', 'wave')
    """
    sides = {"left": "right", "right": "left"}
    return " ".join(sides.get(word, word) for word in label.split())
