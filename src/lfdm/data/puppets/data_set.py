"""Procedural labelled clips whose flow and visibility are known exactly: the embedded data set.

A clip shows one figure, a puppet of rigid textured capsules, that starts from rest and does one action. The label alone
decides the motion: every clip of a subject has the same first frame. Takes differ in tempo, amplitude and phase lag.
`puppet_actions` moves the figures, `puppet_figures` makes them of `puppet_parts`, `puppet_render` draws them.
"""

import os
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from lfdm.config.checks import check, check_integer, check_number
from lfdm.config.video import MAX_FPS, MIN_FPS
from lfdm.data.index import (
    MAX_FRAMES,
    MAX_SIZE,
    MAX_SUBJECTS,
    ClipRecord,
    check_data_settings,
    new_data_set,
    num_test_subjects,
    write_index,
)
from lfdm.data.progress import Progress
from lfdm.data.puppets.actions import ACTIONS, Variation, act, ease
from lfdm.data.puppets.figures import Subject, make_subject, place
from lfdm.data.puppets.render import Track, render
from lfdm.data.puppets.truth import Truth, save_truth, truth_path
from lfdm.data.video import write_video

TruthChoice = Literal["none", "test", "all"]
"""Which clips get a truth file beside them."""

MIN_SIZE = 32
MAX_TAKES = 10_000
MAX_DRIFT = 0.02
"""Camera drift stays below this, as a fraction of the frame."""


@dataclass(frozen=True)
class PuppetClip:
    """A rendered clip: frames (t, size, size, 3) uint8 and, if asked for, its exact motion."""

    frames: np.ndarray
    truth: Truth | None


def render_clip(
    subject: Subject | int,
    action: str,
    take_seed: int,
    *,
    size: int = 64,
    num_frames: int = 16,
    fps: float = 8.0,
    truth: bool = True,
) -> PuppetClip:
    """Render one clip; the same arguments give the same clip, for ever.

    `subject` is a drawn subject or its seed. Frame k shows the action at k / fps seconds; frame 0 is the subject at
    rest, whatever the action and the take.
    Raises UserError for an unknown action, a size below 32, fewer than 2 frames, an impossible fps, a negative seed.
    """
    check_integer("size", size, MIN_SIZE, MAX_SIZE)
    check_integer("num_frames", num_frames, 2, MAX_FRAMES)
    check_number("fps", fps, low=MIN_FPS, high=MAX_FPS)
    check_integer("take_seed", take_seed, 0, 2**64 - 1)
    if not isinstance(subject, Subject):
        check_integer("subject", subject, 0, 2**64 - 1)
        subject = make_subject(subject)
    rng = np.random.default_rng((take_seed, 2))
    time = np.arange(num_frames) / fps
    take = Variation(tempo=rng.uniform(0.87, 1.15), amplitude=rng.uniform(0.88, 1.12), lag=rng.uniform(0.0, 0.1))
    joints = place(subject, act(action, take, subject.reach, time))
    drift = _camera_drift(rng, time) * size
    tracks = [Track(part, joints[part.name][0] * size - drift, joints[part.name][1]) for part in subject.parts]
    return PuppetClip(*render(subject, tracks, drift, size, truth))


def _camera_drift(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    """A slow wander that starts at zero: (t, 2), fractions of the frame."""
    direction, rate = rng.uniform(0, 2 * np.pi, 2), rng.uniform(0.15, 0.4, 2)
    circle = np.stack(
        [np.cos(direction[0] + rate[0] * 2 * np.pi * time), np.sin(direction[1] + rate[1] * 2 * np.pi * time)], axis=-1
    )
    return 0.65 * rng.uniform(0.3, 1.0) * MAX_DRIFT * circle * ease(time, 1.5)[:, None]


@dataclass(frozen=True)
class _Job:
    """All clips of one subject, rendered by one worker."""

    root: Path
    subject: int
    split: Literal["train", "test"]
    num_takes: int
    size: int
    num_frames: int
    fps: float
    seed: int
    truth: bool


def write_puppets(
    root: str | Path,
    *,
    num_subjects: int = 360,
    num_takes: int = 2,
    size: int = 64,
    num_frames: int = 16,
    fps: float = 8.0,
    seed: int = 0,
    test_fraction: float = 0.2,
    truth: TruthChoice = "test",
    num_workers: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a clip data set: every subject does every action `num_takes` times. Returns `root`/clips.csv.

    The last `test_fraction` of the subjects is the test split (neither split is empty unless the fraction is 0 or 1).
    Clips are lossless; `truth` says which of them get a truth file. The same arguments give the same data set.
    `num_workers` processes render (None: one per core; 0 or 1: this one). `progress(done, total)` is called as clips
    are finished.
    `root` appears when it is whole. Raises UserError for values that no data set can have and a `root` that holds other
    things, and FileExistsError if it already holds a data set.
    """
    root = Path(root)
    check_integer("num_subjects", num_subjects, 1, MAX_SUBJECTS)
    check_integer("num_takes", num_takes, 1, MAX_TAKES)
    check_data_settings(
        size=size, num_frames=num_frames, seed=seed, test_fraction=test_fraction, num_workers=num_workers, least_size=MIN_SIZE
    )
    check_number("fps", fps, low=MIN_FPS, high=MAX_FPS)
    check(truth in get_args(TruthChoice), "truth", truth, "none, test or all")
    if (root / "clips.csv").exists():
        raise FileExistsError(f"{root} already holds a clip data set; remove it or choose another folder")

    first_test = num_subjects - num_test_subjects(num_subjects, test_fraction)
    records: list[ClipRecord] = []
    with new_data_set(root) as folder:
        jobs: list[_Job] = []
        for subject in range(num_subjects):
            split = "train" if subject < first_test else "test"
            with_truth = truth == "all" or truth == split
            jobs.append(_Job(folder, subject, split, num_takes, size, num_frames, fps, seed, with_truth))
        workers = min(len(jobs), (os.cpu_count() or 1) if num_workers is None else num_workers)
        for finished in _run(jobs, workers):
            records += finished
            if progress is not None:
                progress("rendering clips", len(records), num_subjects * len(ACTIONS) * num_takes)
        index = write_index(folder, sorted(records, key=lambda record: record.path))
    return root / index.name


def _run(jobs: list[_Job], workers: int) -> Iterator[list[ClipRecord]]:
    if workers <= 1:
        yield from map(_write_subject, jobs)
        return
    with ProcessPoolExecutor(workers) as pool:
        futures: list[Future[list[ClipRecord]]] = [pool.submit(_write_subject, job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _write_subject(job: _Job) -> list[ClipRecord]:
    name = f"puppet{job.subject:04d}"
    subject = make_subject(_derive_seed(job.seed, job.subject))
    records = []
    for index, action in enumerate(ACTIONS):
        for take in range(job.num_takes):
            take_seed = _derive_seed(job.seed, job.subject, index, take)
            clip = render_clip(subject, action, take_seed, size=job.size, num_frames=job.num_frames, fps=job.fps, truth=job.truth)
            path = f"clips/{name}/{action.replace(' ', '-')}-{take}.avi"
            write_video(job.root / path, clip.frames, fps=job.fps, lossless=True)
            if clip.truth is not None:
                save_truth(truth_path(job.root / path), clip.truth)
            records.append(
                ClipRecord(
                    path=path,
                    label=action,
                    subject=name,
                    split=job.split,
                    frames=job.num_frames,
                    fps=job.fps,
                    width=job.size,
                    height=job.size,
                )
            )
    return records


def _derive_seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
