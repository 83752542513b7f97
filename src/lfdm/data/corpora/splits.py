"""Sample the test subjects of a data set so that every label has training and test clips where that is possible."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

import numpy as np

from lfdm.data.index import ClipRecord, num_test_subjects

_NUM_ORDERS = 50
"""Orders of the subjects that are tried where the first leaves a label out: one order is not always enough when subjects have
several labels."""


def sample_test_subjects(labels_of: Mapping[str, AbstractSet[str]], test_fraction: float, seed: int) -> set[str]:
    """Return about `test_fraction` of the subjects, sampled evenly from all groups with the same labels.

    Every label keeps a training subject and, if it has two or more subjects, also gets a test subject where that is possible;
    for this, more or fewer subjects than the fraction says may be taken.
    """
    ranked = _rank(labels_of, seed)
    num_test = num_test_subjects(len(ranked), test_fraction)
    if num_test == 0:
        return set()
    rng = np.random.default_rng(seed)
    subjects_of = Counter(label for labels in labels_of.values() for label in labels)
    possible = {label for label, count in subjects_of.items() if count > 1}
    best: set[str] = set()
    best_covered = -1
    for _ in range(_NUM_ORDERS):
        test = _balance(ranked, labels_of, num_test)
        covered = len(possible & _labels(test, labels_of))
        if covered > best_covered:
            best, best_covered = test, covered
        if covered == len(possible):
            break
        ranked = [ranked[i] for i in rng.permutation(len(ranked))]
    return best


def hold_out_subjects(records: Sequence[ClipRecord], test_fraction: float, seed: int) -> list[ClipRecord]:
    """Move about `test_fraction` of the subjects to the test split; see `sample_test_subjects`."""
    labels_of: dict[str, set[str]] = defaultdict(set)
    for record in records:
        labels_of[record.subject].add(record.label)
    test = sample_test_subjects(labels_of, test_fraction, seed)
    return [replace(record, split="test") if record.subject in test else record for record in records]


def _rank(labels_of: Mapping[str, AbstractSet[str]], seed: int) -> list[str]:
    """Order the subjects so that the first n, for any n, hold an even share of each group with the same labels."""
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for subject in sorted(labels_of):
        groups[tuple(sorted(labels_of[subject]))].append(subject)
    rng = np.random.default_rng(seed)
    ranked: list[tuple[float, str]] = []
    for _, subjects in sorted(groups.items()):
        shuffled = [subjects[i] for i in rng.permutation(len(subjects))]
        ranked += [((rank + 0.5) / len(shuffled), subject) for rank, subject in enumerate(shuffled)]
    return [subject for _, subject in sorted(ranked)]


def _balance(ranked: Sequence[str], labels_of: Mapping[str, AbstractSet[str]], num_test: int) -> set[str]:
    """Take the first `num_test` subjects, then move as few as possible so that no label is on one side only."""
    test = set(ranked[:num_test])
    held_out = Counter(label for subject in test for label in labels_of[subject])
    training = Counter(label for subject in ranked[num_test:] for label in labels_of[subject])

    def move(subject: str, source: Counter[str], target: Counter[str]) -> None:
        test.symmetric_difference_update({subject})
        source.subtract(labels_of[subject])
        target.update(labels_of[subject])

    def can_leave(subject: str, side: Counter[str]) -> bool:
        return all(side[label] > 1 for label in labels_of[subject])

    for subject in reversed(ranked):  # every label gets a training subject
        if subject in test and any(training[label] == 0 for label in labels_of[subject]):
            move(subject, held_out, training)
    for subject in ranked:  # and then a test subject
        lacks = any(held_out[label] == 0 for label in labels_of[subject])
        if subject not in test and lacks and can_leave(subject, training):
            move(subject, training, held_out)
    for subject in reversed(ranked):  # back to the fraction
        if len(test) > num_test and subject in test and can_leave(subject, held_out):
            move(subject, held_out, training)
    return test


def _labels(subjects: AbstractSet[str], labels_of: Mapping[str, AbstractSet[str]]) -> set[str]:
    return set().union(*(labels_of[subject] for subject in subjects))
