"""What an evaluation measures, on how much, with which networks. Imports no torch."""

from dataclasses import dataclass, field, fields

from lfdm.config.checks import check, check_integer, check_positive, check_types
from lfdm.config.serialization import to_json

MAX_CLIPS = 2**31
EXECUTABLE_EXTRACTOR = "i3d-torchscript:"
"""How the specification of the one extractor begins whose file is a program."""


@dataclass(frozen=True, kw_only=True)
class ClassifierTraining:
    """How a small network that judges is trained on the data set's real clips."""

    num_steps: int = 100
    """Optimizer steps."""
    batch_size: int = 32
    """Examples per step."""
    learning_rate: float = 2e-3
    """Highest rate of the one-cycle schedule."""
    seed: int = 0
    """Seed of initial weights, order and augmentation."""

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "num_steps", "batch_size", "learning_rate")


_JUDGING = ("extractors", "frame_extractors", "allow_small", "trust_file", "classifier", "frame_network", "perceptual_weights")
"""Settings that a resumed evaluation may change."""

FRAME_TRAINING = ClassifierTraining(num_steps=300, batch_size=64)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Settings that do not depend on what is evaluated."""

    num_clips: int | None = None
    """How many held-out clips, subject by subject in an order drawn by `seed`; by default all."""
    seed: int = 0
    """Of the drawn clips and of the videos: clip i gets the noise of seed + i."""
    unconditional: bool = False
    """Generate without the clips' labels; figures that need them are left out."""
    batch_size: int = 8
    """Clips at a time."""
    bf16: bool = False
    """Run the evaluated networks in bfloat16; those that judge stay in float32."""
    num_diversity_clips: int = 128
    """How many clips are generated a second time, by another seed."""
    num_ceiling_clips: int = 128
    """On how many clips it is computed what scores 1 and 2 can reach at the flow's resolution."""
    extractors: tuple[str, ...] = ("classifier",)
    """Features of videos: `classifier` (trained on the data set), i3d:PATH, i3d-torchscript:PATH, videomae:NAME_OR_DIR."""
    frame_extractors: tuple[str, ...] = ("frames",)
    """Features of frames: `frames` (trained on the data set), vgg:PATH."""
    allow_small: bool = False
    """Give Frechet distances of fewer clips than features, which are mostly bias, instead of leaving them out."""
    trust_file: bool = False
    """Run a TorchScript extractor whatever its SHA-256: such a file is a program."""
    perceptual_weights: str | None = None
    """VGG-19 (torchvision's state dict) or VGG-16 (safetensors) for stage 1's perceptual distance."""
    classifier: ClassifierTraining = field(default_factory=ClassifierTraining)
    """Training of the action classifier, kept beside the data's cache."""
    frame_network: ClassifierTraining = FRAME_TRAINING
    """Training of the network that tells subjects apart, kept there too."""

    def __post_init__(self) -> None:
        check_types(self)
        for name, low, high in (
            ("num_clips", 1, MAX_CLIPS),
            ("seed", 0, MAX_CLIPS),
            ("batch_size", 1, 10_000),
            ("num_diversity_clips", 0, MAX_CLIPS),
            ("num_ceiling_clips", 1, MAX_CLIPS),
        ):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), low, high)
        for name in ("extractors", "frame_extractors"):
            values = getattr(self, name)
            check(len(set(values)) == len(values), name, values, "different from one another")
        executes = any(spec.startswith(EXECUTABLE_EXTRACTOR) for spec in self.extractors)
        check(executes or not self.trust_file, "trust_file", self.trust_file, f"left out without an {EXECUTABLE_EXTRACTOR}PATH")

    def deciding(self) -> dict[str, object]:
        """The settings that decide what is made and measured of a clip, without those whose results have names of their own."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _JUDGING}

    def judging(self) -> dict[str, object]:
        """The other settings as JSON values: which networks judge, how those of the data set are trained."""
        return {name: value for name, value in to_json(self).items() if name in _JUDGING}
