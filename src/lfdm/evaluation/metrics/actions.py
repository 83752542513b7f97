"""Whether generated clips show the action that was asked for: a classifier trained on the data set's real clips decides."""

from collections.abc import Sequence
from typing import Any

import numpy as np

RELIABLE_ACCURACY = 0.98
"""Accuracy on real held-out clips below which the classifier's word is worth little."""


def judge_actions(generated: np.ndarray, real: np.ndarray, asked: Sequence[str], known: Sequence[str]) -> dict[str, Any]:
    """The share of clips that are taken for what was asked for, with that of the real clips beside it.

    Args:
        generated, real: logits of every clip, (n, number of `known` labels).
        asked: the label of every clip, (n,).
    """
    wanted = np.array(asked)
    right, reference = named(generated, known) == wanted, named(real, known) == wanted
    return {
        "value": float(right.mean()),
        "num_clips": len(wanted),
        "real_held_out": float(reference.mean()),
        "reliable": bool(reference.mean() >= RELIABLE_ACCURACY),
        "by_label": {label: float(right[wanted == label].mean()) for label in sorted(set(asked))},
    }


def named(logits: np.ndarray, known: Sequence[str]) -> np.ndarray:
    """The likeliest label of every clip, (n,)."""
    return np.array(known)[logits.argmax(axis=1)]


def certainty(logits: np.ndarray, asked: Sequence[str], known: Sequence[str]) -> np.ndarray:
    """The log probability that the classifier gives to the label asked for, (n,)."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    columns = [list(known).index(label) for label in asked]
    return log_probabilities[np.arange(len(columns)), columns]
