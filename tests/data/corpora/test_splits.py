"""Sampling of test subjects."""

import pytest

from lfdm.data.corpora.splits import sample_test_subjects


def _covered(subjects: set[str], labels_of: dict[str, set[str]]) -> set[str]:
    return set().union(*(labels_of[subject] for subject in subjects))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "labels_of",
    [
        {"s1": {"wave"}, "s2": {"jump"}, "s3": {"jump"}},
        {f"{label}{n}": {label} for label in "abcdef" for n in range(2)},
        {"x": {"a"}, "y": {"a", "b"}, "z": {"b"}},
        {"x": {"a"}, "y": {"a", "b"}, "z": {"b", "c"}, "w": {"c"}},
        {**{f"s{n}": {"a", "b"} for n in range(20)}, "one": {"rare"}, "two": {"rare"}},
        {"s1": {"wave"}, "s2": {"jump"}},
    ],
)
def test_every_label_is_in_both_splits_where_it_can_be(labels_of: dict[str, set[str]], seed: int) -> None:
    test = sample_test_subjects(labels_of, 0.2, seed)
    subjects_of = [label for labels in labels_of.values() for label in labels]
    assert _covered(set(labels_of) - test, labels_of) == set(subjects_of)
    assert _covered(test, labels_of) == {label for label in subjects_of if subjects_of.count(label) > 1}


def test_the_fraction_is_kept_where_all_labels_are_in_both_splits() -> None:
    labels_of = {f"{label}{n}": {label} for label in "ab" for n in range(10)}
    test = sample_test_subjects(labels_of, 0.3, 0)
    assert len(test) == 6
    assert test != sample_test_subjects(labels_of, 0.3, 1)
    assert sample_test_subjects(labels_of, 0, 0) == set()
