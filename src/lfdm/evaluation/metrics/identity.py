"""How well generated frames keep the subject of frame 0, from features of a frame network (n, t, d)."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def identity(generated: np.ndarray, real: np.ndarray, subjects: Sequence[str]) -> dict[str, Any]:
    """Compare the likeness of later frames to frame 0 with that of real clips (value 1) and of other subjects (value 0).

    Likeness is the cosine of two frames' features, centred on the mean of all real ones. `recognised` is the share of later
    frames whose nearest subject (by the mean of its first frames) is their own.

    Args:
        generated, real: features of every frame of every clip, (n, t, d); frame 0 of both shows the same image.
        subjects: subject of every clip, (n,).
    """
    names = sorted(set(subjects))
    rows = np.array([names.index(subject) for subject in subjects])
    centre = real.reshape(-1, real.shape[-1]).mean(axis=0, dtype=np.float64)
    source = _unit(real[:, 0] - centre)
    subject_source = _unit(np.stack([source[rows == k].mean(axis=0) for k in range(len(names))]))
    likeness, recognised = {}, {}
    for name, features in (("generated", generated), ("real", real)):
        later = _unit(features[:, 1:] - centre)
        likeness[name] = float(np.einsum("ntd,nd->nt", later, source).mean())
        recognised[name] = float((np.argmax(later @ subject_source.T, axis=-1) == rows[:, None]).mean())
    others = source @ source.T
    different = rows[:, None] != rows[None]
    other = float(others[different].mean()) if different.any() else float("nan")
    distance = likeness["real"] - other
    return {
        "value": (likeness["generated"] - other) / distance if distance else float("nan"),
        **{f"{name}_likeness": value for name, value in likeness.items()},
        "other_subjects_likeness": other,
        **{f"{name}_recognised": value for name, value in recognised.items()},
        "num_clips": len(rows),
        "num_subjects": len(names),
    }


def identity_per_clip(generated: np.ndarray) -> np.ndarray:
    """Return the mean cosine of every clip's later frames with its first, from uncentred features (n, t, d): (n,)."""
    unit = _unit(generated.astype(np.float64))
    return np.einsum("ntd,nd->nt", unit[:, 1:], unit[:, 0]).mean(axis=1)


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)
