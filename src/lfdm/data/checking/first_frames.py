"""Check that first frames do not give the label away: a linear classifier tries to recognise it for unseen subjects."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MAX_CLIPS = 2000
"""Most clips that are classified, evenly spaced among all."""
_FOLDS = 5
_RIDGE = 0.01
"""Regularization, as a fraction of the mean squared length of the features."""


@dataclass(frozen=True, eq=False)
class Recognition:
    """How well the label is recognised from first frames."""

    accuracy: float
    """Fraction of clips whose label is recognised."""
    chance: float
    """Fraction of clips with the most frequent label."""
    num_independent: int
    """Number of clips, or of subjects where all clips of a subject look alike."""
    recall: dict[str, float]
    """Fraction of clips recognised, by label."""

    def is_above_chance(self, margin: float, deviations: float) -> bool:
        """Return whether the accuracy is above chance by `margin` and by that many standard deviations."""
        deviation = (self.chance * (1 - self.chance) / self.num_independent) ** 0.5
        return self.accuracy - self.chance > max(margin, deviations * deviation)


def recognize_labels(frames: np.ndarray, labels: Sequence[str], subjects: Sequence[str]) -> Recognition | None:
    """Classify first frames (n, H, W, 3) uint8 as they are, and as they differ from the other clips of their subject.

    Subjects are split into five groups; each is classified by what is fitted to the others. Returns the more accurate of both,
    or None where fewer than two labels have two subjects.
    """
    chosen = _comparable(labels, subjects)
    names = sorted({labels[index] for index in chosen})
    if len(names) < 2:
        return None
    target = np.array([names.index(labels[index]) for index in chosen])
    groups = sorted({subjects[index] for index in chosen})
    group = np.array([groups.index(subjects[index]) for index in chosen])
    features = frames[chosen].reshape(len(chosen), -1).astype(np.float32)
    chance = np.bincount(target).max() / len(target)

    def recognition(values: np.ndarray, num_independent: int) -> Recognition:
        right = _predict(values, target, group % _FOLDS, len(names)) == target
        recall = {name: float(right[target == number].mean()) for number, name in enumerate(names)}
        return Recognition(float(right.mean()), float(chance), num_independent, recall)

    centred = features - _means(features, group)[group]
    found = [recognition(features, len(groups)), recognition(centred, len(target))]
    return max(found, key=lambda one: one.accuracy)


def _comparable(labels: Sequence[str], subjects: Sequence[str]) -> list[int]:
    """Return the clips whose label has at least two subjects, at most `MAX_CLIPS` of them."""
    performers: dict[str, set[str]] = {}
    for label, subject in zip(labels, subjects, strict=True):
        performers.setdefault(label, set()).add(subject)
    clips = [index for index, label in enumerate(labels) if len(performers[label]) > 1]
    return clips[:: -(-len(clips) // MAX_CLIPS)] if clips else []


def _means(features: np.ndarray, group: np.ndarray) -> np.ndarray:
    return np.stack([features[group == number].mean(0) for number in range(group.max() + 1)])


def _predict(features: np.ndarray, target: np.ndarray, fold: np.ndarray, num_labels: int) -> np.ndarray:
    """Return the label of each row by ridge regression that is fitted to the rows of the other folds."""
    result = np.zeros(len(target), int)
    for number in np.unique(fold):
        is_train, is_test = fold != number, fold == number
        middle = features[is_train].mean(0)
        train, test = features[is_train] - middle, features[is_test] - middle
        kernel = train @ train.T
        kernel[np.diag_indices_from(kernel)] += _RIDGE * max(float(np.trace(kernel)) / len(kernel), 1.0)
        hot = np.eye(num_labels, dtype=np.float32)[target[is_train]]
        shares = hot.mean(0)
        scores = test @ (train.T @ np.linalg.solve(kernel, hot - shares)) + shares
        result[is_test] = scores.argmax(1)
    return result
