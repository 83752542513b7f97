"""Procedural labelled clips whose flow and visibility are known exactly.

A clip shows one figure, a puppet of rigid textured capsules, that starts from rest and does one action. Only the label
decides the motion: all clips of a subject have the same first frame. Takes vary in tempo, amplitude and lag.
"""

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import get_args

import numpy as np

from lfdm.config.checks import check, check_integer, check_number
from lfdm.config.video import MAX_FPS, MIN_FPS, Size, SizeInput
from lfdm.data.curves import ease
from lfdm.data.free_motion import FREE_LABEL, count_free_takes
from lfdm.data.index import (
    CLIPS_DIR,
    MAX_FRAMES,
    MAX_SUBJECTS,
    ClipRecord,
    check_rendering,
    check_split,
    check_workers,
    new_data_set,
    num_test_subjects,
    refuse_data_set,
    write_index,
)
from lfdm.data.progress import Progress, run_all
from lfdm.data.puppets.actions import ACTIONS, Style, act
from lfdm.data.puppets.figures import Subject, make_subject, place
from lfdm.data.puppets.free_motion import move_freely
from lfdm.data.puppets.render import Track, render, square_corner
from lfdm.data.truth import Truth, TruthChoice, save_truth, truth_path
from lfdm.data.video import write_video
from lfdm.folders.files import expand_home

MIN_SIDE = 32
MAX_TAKES = 10_000
MAX_DRIFT = 0.02
"""Limit of the camera drift, as a fraction of the frame."""


@dataclass(frozen=True, eq=False)
class PuppetClip:
    """A rendered clip: frames (t, height, width, 3) uint8 and, if requested, its exact motion."""

    frames: np.ndarray
    truth: Truth | None


def render_clip(
    subject: Subject | int,
    action: str,
    take_seed: int,
    *,
    size: SizeInput = 64,
    num_frames: int = 16,
    fps: float = 8.0,
    truth: bool = True,
) -> PuppetClip:
    """Render one clip; the same arguments always give the same clip.

    Frame k shows the action at k / fps seconds; frame 0 is the subject at rest for every action and take.

    Args:
        subject: a subject or its seed; in frames that are not square it stands in the middle, as large as in a square of the
            short side.
        action: one of `ACTIONS`, or `free`: another random motion in every take, see `lfdm.data.puppets.free_motion`.

    Raises:
        UserError: an unknown action, or a size, length, rate or seed that is not allowed.
    """
    frame = Size.parse(size, low=MIN_SIDE)
    return PuppetClip(*render(*animate(subject, action, take_seed, frame, num_frames=num_frames, fps=fps), frame, truth))


def animate(
    subject: Subject | int, action: str, take_seed: int, frame: Size, *, num_frames: int = 16, fps: float = 8.0
) -> tuple[Subject, list[Track], np.ndarray]:
    """Return what `render` draws: the subject, the track of each part, and the camera's drift (t, 2) in pixels.

    Raises UserError as `render_clip` does.
    """
    check_integer("num_frames", num_frames, 2, MAX_FRAMES)
    check_number("fps", fps, low=MIN_FPS, high=MAX_FPS)
    check_integer("take_seed", take_seed, 0, 2**64 - 1)
    if not isinstance(subject, Subject):
        check_integer("subject", subject, 0, 2**64 - 1)
        subject = make_subject(subject)
    rng = np.random.default_rng((take_seed, 2))
    time = np.arange(num_frames) / fps
    take = Style(tempo=rng.uniform(0.87, 1.15), amplitude=rng.uniform(0.88, 1.12), lag=rng.uniform(0.0, 0.1))
    is_free = action == FREE_LABEL
    pose = move_freely(subject.reach, time, rng) if is_free else act(action, take, subject.reach, time)
    joints = place(subject, pose)
    unit, corner = min(frame), square_corner(frame)
    drift = _camera_drift(rng, time) * unit
    tracks = [Track(part, joints[part.name][0] * unit + corner - drift, joints[part.name][1]) for part in subject.parts]
    return subject, tracks, drift


def _camera_drift(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    """Return a slow drift that starts at zero: (t, 2), fractions of the frame."""
    direction, rate = rng.uniform(0, 2 * np.pi, 2), rng.uniform(0.15, 0.4, 2)
    circle = np.stack(
        [np.cos(direction[0] + rate[0] * 2 * np.pi * time), np.sin(direction[1] + rate[1] * 2 * np.pi * time)], axis=-1
    )
    return 0.65 * rng.uniform(0.3, 1.0) * MAX_DRIFT * circle * ease(time, 1.5)[:, None]


def write_puppets(
    root: str | Path,
    *,
    num_subjects: int = 360,
    num_takes: int = 2,
    free_motion: float = 0.0,
    size: SizeInput = 64,
    num_frames: int = 16,
    fps: float = 8.0,
    seed: int = 0,
    test_fraction: float = 0.2,
    truth: TruthChoice = "test",
    num_workers: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a clip data set in which every subject does every action `num_takes` times; return the path of `root`/clips.csv.

    Clips are lossless. The same arguments give the same data set. `root` appears only when it is complete.

    Args:
        free_motion: share, among all clips, of those whose joints move at random; their label is `free`.
        size: of frames; sides are multiples of 16.
        test_fraction: share of the subjects, the last ones, that are the test split; neither split is empty unless it is 0 or 1.
        truth: the split whose clips get a truth file.
        num_workers: processes that render (None: one per core; 0 or 1: this one).

    Raises:
        UserError: values that are not allowed, or a `root` that holds other things.
        FileExistsError: `root` already holds a data set.
    """
    root = expand_home(root)
    check_integer("num_subjects", num_subjects, 1, MAX_SUBJECTS)
    check_integer("num_takes", num_takes, 1, MAX_TAKES)
    num_free = count_free_takes(free_motion, num_takes * len(ACTIONS))
    frame = check_rendering(size=size, num_frames=num_frames, min_side=MIN_SIDE)
    check_split(seed=seed, test_fraction=test_fraction, may_lack_training=True)
    check_workers(num_workers)
    check_number("fps", fps, low=MIN_FPS, high=MAX_FPS)
    check(truth in get_args(TruthChoice), "truth", truth, "none, test or all")
    refuse_data_set(root)
    num_train = num_subjects - num_test_subjects(num_subjects, test_fraction)
    num_workers = min(num_subjects, (os.cpu_count() or 1) if num_workers is None else num_workers)
    pool = ProcessPoolExecutor(num_workers) if num_workers > 1 else None
    with new_data_set(root) as folder:
        takes = dict.fromkeys(ACTIONS, num_takes) | {FREE_LABEL: num_free}
        form = {"size": frame, "num_frames": num_frames, "fps": fps}
        write = partial(_write_subject, folder=folder, num_train=num_train, takes=takes, seed=seed, truth=truth, **form)
        clips = run_all(pool, write, range(num_subjects), work="rendering puppets", progress=progress)
        return root / write_index(folder, sorted(chain.from_iterable(clips), key=lambda record: record.path)).name


def _write_subject(
    number: int,
    *,
    folder: Path,
    num_train: int,
    takes: dict[str, int],
    seed: int,
    truth: TruthChoice,
    size: Size,
    num_frames: int,
    fps: float,
) -> list[ClipRecord]:
    name, split = f"puppet{number:04d}", "train" if number < num_train else "test"
    subject = make_subject(_derive_seed(seed, number))
    with_truth = truth in ("all", split)
    records = []
    for index, (action, num_takes) in enumerate(takes.items()):
        for take in range(num_takes):
            take_seed = _derive_seed(seed, number, index, take)
            clip = render_clip(subject, action, take_seed, size=size, num_frames=num_frames, fps=fps, truth=with_truth)
            path = f"{CLIPS_DIR}/{name}/{action.replace(' ', '-')}-{take}.avi"
            write_video(folder / path, clip.frames, fps=fps)
            if clip.truth is not None:
                save_truth(truth_path(folder / path), clip.truth)
            records.append(ClipRecord.describe(clip.frames.shape, path=path, label=action, subject=name, split=split, fps=fps))
    return records


def _derive_seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
