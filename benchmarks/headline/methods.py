"""The methods of a comparison, their trainings, and its settings."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.experiment.evaluation import shortened
from benchmarks.headline.baselines.config import BaselinesConfig, DenoiserConfig
from lfdm.config.checks import check, check_types
from lfdm.config.presets import Preset
from lfdm.config.serialization import to_json
from lfdm.evaluation.settings import EvaluationConfig

TRAININGS: dict[str, tuple[str, ...]] = {
    "ours": ("ours-autoencoder", "ours-unet"),
    "vdm": ("vdm",),
    "vdm-folded": ("vdm-folded",),
    "ldm": ("ldm-autoencoder", "ldm-unet"),
    "copy": (),
    "nearest": ("ours-autoencoder", "ours-unet"),
}
"""Trainings of each method: a first and a second stage, or one with the time of both.

`vdm-folded` is `vdm` with 4x4 pixels folded into channels, so that it has as few positions as ours; it is stronger when time is
short.
"""


@dataclass(frozen=True, kw_only=True)
class ComparisonSettings:
    """Everything that determines the figures of a comparison."""

    preset: Preset
    """Our preset; the baselines share its frames, objective, optimizer and sampling."""
    data: Path
    """Clip data set."""
    methods: tuple[str, ...] = ("ours", "vdm", "ldm", "copy", "nearest")
    """Methods to compare, of those in `TRAININGS`."""
    baselines: BaselinesConfig = field(default_factory=BaselinesConfig)
    """Sizes of the baselines."""
    equal: Literal["time", "clips"] = "time"
    """Every method trains for `budget_minutes`, or every diffusion network sees `clips_seen` clips."""
    budget_minutes: float = 60.0
    """Training time of a method in minutes; `experiment.budget` says of which clock."""
    first_stage_share: float = 0.4
    """Share of that time for the first of two stages."""
    clips_seen: int = 0
    """Clips per diffusion network with equal='clips'; first stages then take the preset's number of steps."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Evaluation of every method."""

    def __post_init__(self) -> None:
        check_types(self)
        named = all(method in TRAININGS for method in self.methods) and {"ours", "copy"} <= set(self.methods)
        check(named, "methods", self.methods, f"some of {', '.join(TRAININGS)}, ours and copy among them")
        check(0 < self.first_stage_share < 1, "first_stage_share", self.first_stage_share, "in (0, 1)")
        check(self.budget_minutes > 0, "budget_minutes", self.budget_minutes, "positive")
        matched = (self.clips_seen > 0) == (self.equal == "clips") and self.clips_seen >= 0
        check(matched, "clips_seen", self.clips_seen, "positive with equal='clips', and 0 otherwise")

    def to_json(self) -> dict[str, Any]:
        """Return JSON values for the record of the run."""
        return {**to_json(self), "data": str(self.data)}

    def trainings(self) -> list[str]:
        """Return every training once, first stages first."""
        return list(dict.fromkeys(name for method in self.methods for name in TRAININGS[method]))

    def denoiser(self, training: str) -> DenoiserConfig | None:
        """Return the baseline denoiser of a training; None for our stages and for frame auto-encoders."""
        baselines = self.baselines
        return {"vdm": baselines.vdm, "vdm-folded": baselines.vdm_folded, "ldm-unet": baselines.ldm}.get(training)

    def batch_size(self, training: str) -> int:
        """Return the clips (or pairs, in a first stage) per step."""
        denoiser = self.denoiser(training)
        if denoiser is not None:
            return denoiser.batch_size
        config = self.preset.autoencoder_training if is_first_stage(training) else self.preset.diffusion_training
        return config.optimization.batch_size

    def with_steps(self, training: str, num_steps: int) -> Preset:
        """Return the preset with the number of steps of one training."""
        return shortened(self.preset, "autoencoder_training" if is_first_stage(training) else "diffusion_training", num_steps)


def is_first_stage(training: str) -> bool:
    """Return whether a training is a first stage (images, no diffusion)."""
    return training.endswith("-autoencoder")
