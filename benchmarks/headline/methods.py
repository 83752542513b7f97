"""What is compared: methods, the trainings they are made of, and the settings of a comparison."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.experiment.judging import shortened
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
"""The trainings that each method is made of: a first and a second stage, or one that has the time of both.

`vdm-folded` is `vdm` with 4x4 pixels folded into channels, so that it works on as few positions as ours: stronger where time is
scarce.
"""


@dataclass(frozen=True, kw_only=True)
class ComparisonSettings:
    """All that decides the figures of a comparison."""

    preset: Preset
    """Our system; the baselines take its data, frames, objective, optimizer and sampling."""
    data: Path
    """Clip data set."""
    methods: tuple[str, ...] = ("ours", "vdm", "ldm", "copy", "nearest")
    """Those of `TRAININGS` that are compared."""
    baselines: BaselinesConfig = field(default_factory=BaselinesConfig)
    """Sizes of the baselines."""
    equal: Literal["time", "clips"] = "time"
    """Every method trains for `budget_minutes`, or every diffusion network sees `clips_seen` clips."""
    budget_minutes: float = 60.0
    """Training time of a method; see `budget` for whose minutes."""
    first_stage_share: float = 0.4
    """Part of that time that the first of two stages gets."""
    clips_seen: int = 0
    """Clips per diffusion network with equal='clips'; first stages then take the preset's number of steps."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """How all are judged."""

    def __post_init__(self) -> None:
        check_types(self)
        named = all(method in TRAININGS for method in self.methods) and {"ours", "copy"} <= set(self.methods)
        check(named, "methods", self.methods, f"some of {', '.join(TRAININGS)}, ours and copy among them")
        check(0 < self.first_stage_share < 1, "first_stage_share", self.first_stage_share, "in (0, 1)")
        check(self.budget_minutes > 0, "budget_minutes", self.budget_minutes, "positive")
        matched = (self.clips_seen > 0) == (self.equal == "clips") and self.clips_seen >= 0
        check(matched, "clips_seen", self.clips_seen, "positive with equal='clips', and 0 otherwise")

    def to_json(self) -> dict[str, Any]:
        """JSON values, for the record."""
        return {**to_json(self), "data": str(self.data)}

    def trainings(self) -> list[str]:
        """Every training that a method needs, once, first stages first."""
        return list(dict.fromkeys(name for method in self.methods for name in TRAININGS[method]))

    def denoiser(self, training: str) -> DenoiserConfig | None:
        """The denoiser that is trained; None for our own stages and for frame auto-encoders."""
        baselines = self.baselines
        return {"vdm": baselines.vdm, "vdm-folded": baselines.vdm_folded, "ldm-unet": baselines.ldm}.get(training)

    def batch_size(self, training: str) -> int:
        """Clips (pairs, in a first stage) per step."""
        denoiser = self.denoiser(training)
        if denoiser is not None:
            return denoiser.batch_size
        config = self.preset.autoencoder_training if is_first_stage(training) else self.preset.diffusion_training
        return config.optimization.batch_size

    def with_steps(self, training: str, num_steps: int) -> Preset:
        """The preset with the length of one training; see `shortened`."""
        return shortened(self.preset, "autoencoder_training" if is_first_stage(training) else "diffusion_training", num_steps)


def is_first_stage(training: str) -> bool:
    """Whether a training is that of images rather than of diffusion."""
    return training.endswith("-autoencoder")
