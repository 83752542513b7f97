"""Every check finds the fault that its data set is made to have, and none finds one in clean data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from lfdm.data.checking.data_check import DataCheck, check_data, check_estimate
from lfdm.data.index import ClipRecord, Split, read_index, write_index
from lfdm.data.puppets.data_set import write_puppets
from lfdm.data.truth import Truth, save_truth, truth_path
from lfdm.data.video import read_video, write_video

SIDE, FRAMES = 48, 6
LABELS = {"down": (1, 0), "right": (0, 1)}
NUM_SUBJECTS = 12
TRAIN_SUBJECTS = 9


@dataclass(frozen=True)
class Clip:
    """One clip of a data set that a test makes."""

    label: str
    subject: str
    split: Split
    frames: np.ndarray


def texture(seed: int, side: int) -> np.ndarray:
    """Return smooth noise (side, side, 3) uint8."""
    coarse = np.random.default_rng(seed).integers(40, 216, (side // 4 + 2, side // 4 + 2, 3))
    fine = np.kron(coarse, np.ones((4, 4, 1)))
    return ((fine[:-4, :-4] + fine[2:-2, 2:-2] + fine[4:, 4:]) / 3).astype(np.uint8)[:side, :side]


def perform(label: str, subject: int, pan: float = 0.0) -> np.ndarray:
    """Draw a square that starts in the middle and moves as the label says, in front of a background that may pan."""
    wide = texture(subject, 2 * SIDE)
    clip = np.empty((FRAMES, SIDE, SIDE, 3), np.uint8)
    for index in range(FRAMES):
        start = round(pan * index)
        clip[index] = wide[start : start + SIDE, start : start + SIDE]
        row, column = (SIDE // 2 - 5 + index * step for step in LABELS[label])
        clip[index, row : row + 10, column : column + 10] = (200, 30 * (subject % 5), 40)
    return clip


def clean_clips(pan: float = 0.0) -> list[Clip]:
    return [
        Clip(label, f"s{number}", "train" if number < TRAIN_SUBJECTS else "test", perform(label, number, pan))
        for number in range(NUM_SUBJECTS)
        for label in LABELS
    ]


def write(root: Path, clips: Sequence[Clip]) -> Path:
    records = []
    for number, clip in enumerate(clips):
        path = f"clips/{number:03d}.avi"
        (root / "clips").mkdir(parents=True, exist_ok=True)
        write_video(root / path, clip.frames, fps=8, lossless=True)
        described = {"path": path, "label": clip.label, "subject": clip.subject, "split": clip.split, "fps": 8.0}
        records.append(ClipRecord.describe(clip.frames.shape, **described))
    write_index(root, records)
    return root


def warned(check: DataCheck) -> dict[str, str]:
    return {warning.name: warning.text for warning in check.warnings}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set without faults. Read only."""
    return write(tmp_path_factory.mktemp("clean"), clean_clips())


Changed = Callable[[Callable[[ClipRecord], ClipRecord | None]], Path]


@pytest.fixture
def changed(clean: Path, tmp_path: Path) -> Changed:
    """Return a data set of the same clips with other records; None leaves a clip out."""

    def change(edit: Callable[[ClipRecord], ClipRecord | None]) -> Path:
        (tmp_path / "clips").symlink_to(clean / "clips")
        write_index(tmp_path, [record for old in read_index(clean) if (record := edit(old)) is not None])
        return tmp_path

    return change


def test_clean_data_raises_no_warning(clean: Path) -> None:
    check = check_data(clean, num_workers=1)
    assert warned(check) == {}
    assert (check.num_clips, check.num_subjects, check.num_labels) == (24, NUM_SUBJECTS, 2)
    verdicts = {one.name: one.verdict for one in check.checks}
    assert verdicts.pop("visible figure") == "not checked"
    assert set(verdicts.values()) == {"ok"}


@pytest.mark.slow
def test_puppets_raise_no_warning(tmp_path: Path) -> None:
    write_puppets(tmp_path, num_subjects=10, num_takes=1, size=32, num_frames=5, num_workers=1, truth="test")
    check = check_data(tmp_path, num_workers=1)
    assert warned(check) == {}
    assert min(check.visible.values()) > 0.9


def test_few_subjects_and_few_clips_are_found(changed: Changed) -> None:
    root = changed(lambda record: record if record.subject in ("s0", "s1", "s11") else None)
    found = warned(check_data(root, num_workers=1))
    assert set(found) == {"subjects", "clips per label"}
    assert "2 training subjects" in found["subjects"]
    assert "down (2), right (2)" in found["clips per label"]


def test_a_label_of_few_subjects_is_found(changed: Changed) -> None:
    root = changed(lambda r: r if r.label == "down" or r.subject in ("s0", "s1", "s11") else None)
    assert "right (2)" in warned(check_data(root, num_workers=1))["subjects"]


def test_a_label_without_training_clips_is_found(changed: Changed) -> None:
    root = changed(lambda record: replace(record, label="turn") if (record.subject, record.label) == ("s11", "down") else record)
    assert "turn" in warned(check_data(root, num_workers=1))["split"]


def mark_corner(frame: np.ndarray) -> None:
    frame[2:8, 2:8] = 255


def tint_background(frame: np.ndarray) -> None:
    frame[...] = frame // 2 + np.array([100, 0, 0], np.uint8)


@pytest.mark.parametrize("give_away", [mark_corner, tint_background])
def test_first_frames_that_give_the_label_away_are_found(tmp_path: Path, give_away: Callable[[np.ndarray], None]) -> None:
    clips = clean_clips()
    for clip in clips:
        if clip.label == "right":
            give_away(clip.frames[0])
    found = warned(check_data(write(tmp_path, clips), num_workers=1))
    assert "100% of the labels" in found["first frames"]


def test_backgrounds_by_label_are_found_where_every_subject_does_one_label(tmp_path: Path) -> None:
    clips = []
    for number, clip in enumerate(clean_clips()):
        frames = clip.frames if clip.label == "down" else clip.frames // 2 + np.array([0, 0, 110], np.uint8)
        clips.append(replace(clip, subject=f"person{number}", frames=frames))
    assert "first frames" in warned(check_data(write(tmp_path, clips), num_workers=1))


def test_moving_cameras_are_found_and_exposure_is_none(tmp_path: Path) -> None:
    moving = check_data(write(tmp_path / "pan", clean_clips(pan=0.8)[::2]), num_workers=1)
    assert set(warned(moving)) == {"still camera"}
    assert "12 of 12 clips" in warned(moving)["still camera"]
    assert len(moving.warnings[0].clips) == 12
    brighter = np.linspace(1, 1.15, FRAMES)[:, None, None, None]
    clips = [replace(clip, frames=np.minimum(clip.frames * brighter, 255).astype(np.uint8)) for clip in clean_clips()[::2]]
    assert warned(check_data(write(tmp_path / "exposure", clips), num_workers=1)) == {}


def test_cuts_are_found(tmp_path: Path) -> None:
    clips = clean_clips()
    clips[5] = replace(clips[5], frames=np.concatenate([clips[5].frames, 255 - clips[5].frames]))
    check = check_data(write(tmp_path, clips), num_workers=1)
    assert "clips/005.avi (frame 6)" in warned(check)["cuts"]
    assert [one.clips for one in check.warnings if one.name == "cuts"] == [("clips/005.avi",)]


@pytest.mark.parametrize("mirrored", [False, True])
def test_copies_across_the_split_are_found(tmp_path: Path, mirrored: bool) -> None:
    clips = clean_clips()
    copied = clips[3].frames[:, :, ::-1] if mirrored else clips[3].frames
    noise = np.random.default_rng(0).integers(-3, 4, copied.shape)
    clips[-1] = replace(clips[-1], frames=np.clip(copied + noise, 0, 255).astype(np.uint8))
    check = check_data(write(tmp_path, clips), num_workers=1)
    assert "clips/023.avi = clips/003.avi" in warned(check)["split leak"]


def test_broken_clips_are_named_and_the_others_checked(changed: Changed, tmp_path: Path) -> None:
    root = changed(lambda record: replace(record, frames=7) if record.path == "clips/004.avi" else record)
    check = check_data(root, num_workers=1)
    assert "clips/004.avi: holds 6 frames, clips.csv says 7" in warned(check)["broken clips"]
    (tmp_path / "clips").unlink()
    check = check_data(root, num_workers=1)
    assert "24 clips cannot be used" in warned(check)["broken clips"]


def test_figures_that_the_first_frame_hides_are_found_by_label(clean: Path, tmp_path: Path) -> None:
    for record in read_index(clean):
        frames = read_video(clean / record.path)
        (tmp_path / record.path).parent.mkdir(exist_ok=True)
        write_video(tmp_path / record.path, frames, fps=8, lossless=True)
        shape = frames.shape[:3]
        visible = np.full(shape, record.label == "down")
        visible[:, ::2] = True
        flow, drift = np.zeros((*shape, 2), np.float32), np.zeros((shape[0], 2), np.float32)
        save_truth(truth_path(tmp_path / record.path), Truth(flow, visible, visible, np.full(shape, True), drift))
    write_index(tmp_path, read_index(clean))
    check = check_data(tmp_path, num_workers=1)
    assert check.visible == {"down": 1.0, "right": 0.5}
    assert "right 50%" in warned(check)["visible figure"]
    assert "down" not in warned(check)["visible figure"]
    assert check_estimate({"a": 0.7}).verdict == "ok"
    assert check_estimate({"a": 0.5}).verdict == "warning"
