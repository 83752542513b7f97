"""The clips shown in a report: one per label, the best and the worst.

Shapes: frames are (t, H, W, 3) uint8.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from lfdm.evaluation.generation import GeneratedClips
from lfdm.evaluation.run import EvaluationRun
from lfdm.motion.motion import Motion

NUM_EXTREMES = 6
"""Number of best and of worst clips in a report."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """A real clip and the clip generated from its first frame, with its label or (unconditional) without one."""

    label: str
    subject: str = ""
    real: np.ndarray
    generated: np.ndarray
    predicted: str | None
    """The classifier's label of the generated clip."""
    unconditional: bool = False
    score: float | None = None
    motion: Motion | None = None
    """Motion of this one clip."""

    @property
    def title(self) -> str:
        """The requested label."""
        return "unconditional" if self.unconditional else self.label

    @property
    def is_misclassified(self) -> bool:
        return self.predicted not in (None, self.label)


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """The clips shown in a report."""

    by_label: list[Example]
    """The first clip of every label."""
    best: list[Example] = field(default_factory=list)
    worst: list[Example] = field(default_factory=list)
    score_name: str = ""
    """Score that ranks best and worst."""
    energies: tuple[np.ndarray, np.ndarray] | None = None
    """Motion energy of every generated and every real clip."""


def choose_examples(run: EvaluationRun, generated: GeneratedClips) -> Examples:
    """Return one example per label, and the clips with the highest and lowest scores."""
    first: dict[str, int] = {}
    for i, record in enumerate(run.records):
        first.setdefault(record.label, i)
    ranked = [] if generated.scores is None else np.argsort(-generated.scores, kind="stable").tolist()
    num = min(NUM_EXTREMES, len(ranked) // 2)
    return Examples(
        by_label=[_example(run, generated, i) for _, i in sorted(first.items())],
        best=[_example(run, generated, i) for i in ranked[:num]],
        worst=[_example(run, generated, i) for i in ranked[::-1][:num]],
        score_name=generated.score_name,
        energies=generated.energies,
    )


def _example(run: EvaluationRun, generated: GeneratedClips, i: int) -> Example:
    stored, motion = generated.arrays, None
    if "flow" in stored:
        flow = torch.from_numpy(stored.rows("flow", [i])).float()
        occlusion = torch.from_numpy(stored.rows("occlusion", [i])).float() / 255
        motion = Motion(flow, occlusion, corners=bool(stored.rows("corners", [i])[0]))
    return Example(
        label=run.records[i].label,
        subject=run.records[i].subject,
        real=run.clips.frames([i])[0],
        generated=stored.rows("frames", [i])[0],
        predicted=None if generated.predicted is None else str(generated.predicted[i]),
        unconditional=run.unconditional,
        score=None if generated.scores is None else float(generated.scores[i]),
        motion=motion,
    )
