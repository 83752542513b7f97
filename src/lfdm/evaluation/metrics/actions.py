"""Do generated clips show the requested action? Decided by a classifier trained on the data set's real clips."""

from collections.abc import Sequence
from typing import Any

import numpy as np

RELIABLE_ACCURACY = 0.98
"""Accuracy on real held-out clips below which the classifier is not a reliable reference."""


def action_accuracy(generated: np.ndarray, real: np.ndarray, labels: Sequence[str], classes: Sequence[str]) -> dict[str, Any]:
    """Return the classifier's accuracy on the generated clips, and on the real ones for comparison.

    Args:
        generated, real: logits of every clip, (n, number of classes).
        labels: requested label of every clip, (n,).
        classes: label of every logit.
    """
    target = np.array(labels)
    right, reference = predicted_labels(generated, classes) == target, predicted_labels(real, classes) == target
    return {
        "value": float(right.mean()),
        "num_clips": len(target),
        "real_held_out": float(reference.mean()),
        "reliable": bool(reference.mean() >= RELIABLE_ACCURACY),
        "by_label": {label: float(right[target == label].mean()) for label in sorted(set(labels))},
    }


def predicted_labels(logits: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Return the most likely label of every clip, (n,)."""
    return np.array(classes)[logits.argmax(axis=1)]


def label_probabilities(logits: np.ndarray, labels: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Return the classifier's probability of every clip's own label, (n,)."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    columns = [list(classes).index(label) for label in labels]
    return np.exp(log_probabilities[np.arange(len(columns)), columns])
