"""Check a clip data set for what usually goes wrong: too little data, leaks, and clips that the method cannot learn from."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from lfdm.data.checking.clip_summary import ClipSummary, summarize_clip
from lfdm.data.checking.first_frames import recognize_labels
from lfdm.data.index import ClipRecord, check_workers, count_labels, read_index, split_warnings
from lfdm.data.progress import Progress, run_all
from lfdm.folders.files import expand_home

MIN_SUBJECTS = 3
MIN_CLIPS = 8
"""Fewest training subjects, and training clips of a label, without a warning."""
MIN_VISIBLE = 0.8
"""Least share of a label's figure that the first frame shows, without a warning: no warp makes the rest."""
MIN_ESTIMATE = 0.6
"""The same of an estimate: of puppets, whose first frames show 98 percent, the bundled model finds 67 to 82."""
MOVED = 0.6
"""Fraction of the textured background at the edges above which the camera has moved, rather than a figure in front of it."""
MAX_MOVING = 0.05
"""Fraction of the clips that may have a moving camera without a warning."""
GIVEAWAY_MARGIN, GIVEAWAY_DEVIATIONS = 0.15, 3.0
"""First frames give labels away if these are recognised more often than by chance, by this margin and this many deviations."""
DUPLICATE_RMS, DUPLICATE_FRACTION = 3.0, 0.15
"""Two clips are near-duplicates if they differ by less than this in grey levels, and than this fraction of their contrast."""
_ROWS = 256
"""Test clips that are compared at a time."""

Verdict = Literal["ok", "warning", "not checked"]


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """Result of one check."""

    name: str
    verdict: Verdict
    text: str
    """Finding, or the reason why nothing could be checked."""
    clips: tuple[str, ...] = ()
    """Paths of the clips concerned."""


@dataclass(frozen=True, kw_only=True)
class DataCheck:
    """The results of all checks."""

    num_clips: int
    num_subjects: int
    num_labels: int
    checks: tuple[CheckResult, ...]
    visible: dict[str, float]
    """For each label, the share of the figure's pixels that the first frame shows, where the exact motion is stored."""
    estimated_visible: dict[str, float] | None = None
    """The same of moving figures, as a stage 1 estimates it."""

    @property
    def warnings(self) -> list[CheckResult]:
        """The checks that found a fault."""
        return [check for check in self.checks if check.verdict == "warning"]


def check_data(root: str | Path, *, num_workers: int | None = None, progress: Progress | None = None) -> DataCheck:
    """Read every clip of a data set once and check it.

    Args:
        num_workers: threads; by default one per core.

    Raises:
        FileNotFoundError, UserError: no data set, or a number of workers that is not allowed.
    """
    root = expand_home(root)
    check_workers(num_workers)
    records = read_index(root)
    pool = ThreadPoolExecutor(num_workers or os.cpu_count() or 1)
    summaries = run_all(pool, partial(summarize_clip, root), records, work="checking clips", progress=progress)
    clips = [(record, summary) for record, summary in zip(records, summaries, strict=True) if summary.broken is None]
    read = [record for record, _ in clips]
    train = [record for record in read if record.split == "train"]
    visible = _visible_shares(clips)
    checks = (
        _check_readable(records, summaries),
        _check_subjects(train),
        _check_labels(train),
        _result("split", split_warnings(read), "every label has training clips, and test clips if there are any"),
        _check_first_frames(clips),
        _check_cameras(clips),
        _check_cuts(clips),
        _check_duplicates(clips),
        _check_truth(visible),
    )
    found = {name: len({getattr(record, name) for record in records}) for name in ("subject", "label")}
    return DataCheck(
        num_clips=len(records), num_subjects=found["subject"], num_labels=found["label"], checks=checks, visible=visible
    )


def check_estimate(visible: dict[str, float]) -> CheckResult:
    """Check the share of moving figures that the first frame shows, as a stage 1 estimates it, which tends to be too low."""
    name = "estimated figure"
    if not visible:
        return CheckResult(name=name, verdict="not checked", text="nothing moves")
    return _check_visible(name, visible, MIN_ESTIMATE)


def _check_visible(name: str, visible: dict[str, float], least: float) -> CheckResult:
    low = {label: share for label, share in visible.items() if share < least}
    listed = ", ".join(f"{label} {share:.0%}" for label, share in sorted((low or visible).items(), key=lambda item: item[1]))
    fault = f"labels that turn or hide the figure, of which warping the first frame can make only this part: {listed}"
    return _result(name, [fault] if low else [], f"of the figure, the first frame shows: {listed}")


def _check_truth(visible: dict[str, float]) -> CheckResult:
    name = "visible figure"
    if not visible:
        return CheckResult(name=name, verdict="not checked", text="no clip has exact motion; a stage 1 (--model) can estimate it")
    return _check_visible(name, visible, MIN_VISIBLE)


def _check_readable(records: Sequence[ClipRecord], summaries: Sequence[ClipSummary]) -> CheckResult:
    broken = {r.path: s.broken for r, s in zip(records, summaries, strict=True) if s.broken is not None}
    fault = f"{len(broken)} clips cannot be used: {_some([*broken.values()])}"
    return _result("broken clips", [fault] if broken else [], "all clips can be read", broken)


def _result(name: str, faults: Sequence[str], fine: str, clips: Iterable[str] = ()) -> CheckResult:
    text = "; ".join(faults) if faults else fine
    return CheckResult(name=name, verdict="warning" if faults else "ok", text=text, clips=tuple(clips))


def _some(texts: Sequence[str], most: int = 5) -> str:
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def _check_subjects(train: Sequence[ClipRecord]) -> CheckResult:
    performers: dict[str, set[str]] = {}
    for record in train:
        performers.setdefault(record.label, set()).add(record.subject)
    count = len({record.subject for record in train})
    few = [f"{label} ({len(names)})" for label, names in sorted(performers.items()) if len(names) < MIN_SUBJECTS]
    faults = []
    if count < MIN_SUBJECTS:
        faults = [f"{count} training subjects, fewer than {MIN_SUBJECTS}: the model learns these figures, not others"]
    elif few:
        faults = [f"labels of fewer than {MIN_SUBJECTS} training subjects: {_some(few)}"]
    return _result("subjects", faults, f"{count} training subjects")


def _check_labels(train: Sequence[ClipRecord]) -> CheckResult:
    counts = count_labels(train)
    few = [f"{label} ({count})" for label, count in counts.items() if count < MIN_CLIPS]
    fault = f"labels with fewer than {MIN_CLIPS} training clips: {_some(few)}"
    return _result("clips per label", [fault] if few else [], f"at least {min(counts.values(), default=0)} training clips each")


_Clips = Sequence[tuple[ClipRecord, ClipSummary]]


def _check_first_frames(clips: _Clips) -> CheckResult:
    name = "first frames"
    labels, subjects = ([getattr(record, field) for record, _ in clips] for field in ("label", "subject"))
    found = recognize_labels(np.array([summary.first_frame for _, summary in clips]), labels, subjects) if clips else None
    if found is None:
        return CheckResult(name=name, verdict="not checked", text="needs two labels of two subjects each")
    figures = (
        f"a linear classifier recognises {found.accuracy:.0%} of the labels from the first frame (chance: {found.chance:.0%})"
    )
    if not found.is_above_chance(GIVEAWAY_MARGIN, GIVEAWAY_DEVIATIONS):
        return _result(name, [], figures)
    known = [f"{label} {share:.0%}" for label, share in sorted(found.recall.items(), key=lambda item: -item[1])]
    fault = f"first frames give the label away: {figures}, best {_some(known)}; clips should start alike whatever the label"
    return _result(name, [fault], "")


def _check_cameras(clips: _Clips) -> CheckResult:
    name = "still camera"
    known = [(record.path, summary.camera) for record, summary in clips if summary.camera is not None]
    if not known:
        return CheckResult(name=name, verdict="not checked", text="no clip shows texture at its edges")
    moving = [path for path, moved in known if moved > MOVED]
    fault = f"{len(moving)} of {len(known)} clips have a moving camera, which is learned as motion of the figure: {_some(moving)}"
    plain = len(clips) - len(known)
    fine = "the background stays still" + (f" ({plain} clips without texture at their edges not checked)" if plain else "")
    return _result(name, [fault] if len(moving) > MAX_MOVING * len(known) else [], fine, moving)


def _check_cuts(clips: _Clips) -> CheckResult:
    cut = {record.path: summary.cuts for record, summary in clips if summary.cuts}
    listed = _some([f"{path} (frame {', '.join(map(str, cuts))})" for path, cuts in cut.items()])
    fault = f"{len(cut)} clips have cuts, which 'lfdm data folder --scene-cuts' splits: {listed}"
    return _result("cuts", [fault] if cut else [], "no clip has a cut", cut)


def _check_duplicates(clips: _Clips) -> CheckResult:
    name = "split leak"
    halves = [[(record, summary) for record, summary in clips if record.split == split] for split in ("train", "test")]
    if not all(halves):
        return CheckResult(name=name, verdict="not checked", text="needs training and test clips")
    pairs = find_duplicates(*(np.array([summary.fingerprint for _, summary in half]) for half in halves))
    found = [(halves[1][test][0].path, halves[0][train][0].path) for test, train in pairs]
    listed = _some([f"{test} = {train}" for test, train in found])
    fault = f"{len(found)} test clips look like a training clip, so that a test shows what was learned by heart: {listed}"
    return _result(
        name, [fault] if found else [], "no test clip is a near-duplicate of a training clip", (path for path, _ in found)
    )


def find_duplicates(train: np.ndarray, test: np.ndarray) -> list[tuple[int, int]]:
    """Return pairs (test index, train index) of near-duplicates, mirrored ones included, at most one for each test clip.

    Args:
        train: (n, frames, H, W, 3) uint8.
        test: (m, frames, H, W, 3) uint8.
    """
    both = np.concatenate([train, train[:, :, :, ::-1]])
    known = both.reshape(len(both), -1).astype(np.float32) - 128
    squares = (known**2).mean(1)
    pairs: list[tuple[int, int]] = []
    for start in range(0, len(test), _ROWS):
        rows = test[start : start + _ROWS].reshape(-1, known.shape[1]).astype(np.float32) - 128
        distances = (rows**2).mean(1)[:, None] + squares - 2 * (rows @ known.T) / known.shape[1]
        nearest = distances.argmin(1)
        rms = np.sqrt(np.maximum(distances[np.arange(len(rows)), nearest], 0))
        same = (rms < DUPLICATE_RMS) & (rms < DUPLICATE_FRACTION * rows.std(1))
        pairs += [(start + int(index), int(nearest[index]) % len(train)) for index in np.flatnonzero(same)]
    return pairs


def _visible_shares(clips: _Clips) -> dict[str, float]:
    figure, visible = Counter[str](), Counter[str]()
    for record, summary in clips:
        figure[record.label] += summary.figure_pixels
        visible[record.label] += summary.visible_pixels
    return {label: visible[label] / count for label, count in sorted(figure.items()) if count}
