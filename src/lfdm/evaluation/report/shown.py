"""The clips that a report shows: one per label, the best and the worst.

Shapes: frames are (t, H, W, 3) uint8.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from lfdm.evaluation.generation import Judged
from lfdm.evaluation.run import EvaluationRun
from lfdm.motion.motion import Motion

NUM_EXTREMES = 6
"""How many of the best and of the worst clips are shown."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """A real clip and the clip generated from its first frame, of its label or (unconditional) of none."""

    label: str
    subject: str = ""
    real: np.ndarray
    generated: np.ndarray
    named: str | None
    """What the classifier calls the generated clip."""
    unconditional: bool = False
    score: float | None = None
    motion: Motion | None = None
    """Of this one clip."""

    @property
    def is_wrong(self) -> bool:
        """Taken for another label than the one asked for."""
        return self.named not in (None, self.label)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """The clips that a report shows."""

    examples: list[Example]
    """The first clip of every label."""
    best: list[Example] = field(default_factory=list)
    worst: list[Example] = field(default_factory=list)
    score_name: str = ""
    """What best and worst are by."""
    energies: tuple[np.ndarray, np.ndarray] | None = None
    """Motion energy of every generated and every real clip."""


def pick_shown(run: EvaluationRun, judged: Judged) -> Shown:
    """One example per label, and the clips of the highest and lowest scores."""
    first: dict[str, int] = {}
    for i, record in enumerate(run.records):
        first.setdefault(record.label, i)
    ranked = [] if judged.scores is None else np.argsort(-judged.scores, kind="stable").tolist()
    num = min(NUM_EXTREMES, len(ranked) // 2)
    return Shown(
        examples=[_example(run, judged, i) for _, i in sorted(first.items())],
        best=[_example(run, judged, i) for i in ranked[:num]],
        worst=[_example(run, judged, i) for i in ranked[::-1][:num]],
        score_name=judged.score_name,
        energies=judged.energies,
    )


def _example(run: EvaluationRun, judged: Judged, i: int) -> Example:
    stored, motion = judged.generated, None
    if "flow" in stored:
        flow = torch.from_numpy(stored.rows("flow", [i])).float()
        occlusion = torch.from_numpy(stored.rows("occlusion", [i])).float() / 255
        motion = Motion(flow, occlusion, corners=bool(stored.rows("corners", [i])[0]))
    return Example(
        label=run.records[i].label,
        subject=run.records[i].subject,
        real=run.clips.frames([i])[0],
        generated=stored.rows("frames", [i])[0],
        named=None if judged.named is None else str(judged.named[i]),
        unconditional=run.unconditional,
        score=None if judged.scores is None else float(judged.scores[i]),
        motion=motion,
    )
