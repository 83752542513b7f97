"""Settings of an evaluation. Imports no torch."""

from dataclasses import dataclass, field, fields

from lfdm.config.checks import check, check_integer, check_positive, check_types
from lfdm.config.serialization import to_json

MAX_CLIPS = 2**31
TORCHSCRIPT_PREFIX = "i3d-torchscript:"
"""Prefix of the only extractor whose file is a program."""


@dataclass(frozen=True, kw_only=True)
class ClassifierTraining:
    """Training of a small network on the data set's training clips."""

    num_steps: int = 100
    """Optimizer steps."""
    batch_size: int = 32
    """Examples per step."""
    learning_rate: float = 2e-3
    """Peak learning rate of the one-cycle schedule."""
    seed: int = 0
    """Seed of initial weights, order and augmentation."""

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "num_steps", "batch_size", "learning_rate")


_NETWORK_FIELDS = (
    "extractors",
    "frame_extractors",
    "allow_small",
    "trust_file",
    "classifier",
    "frame_network",
    "perceptual_weights",
)
"""Fields that a resumed evaluation may change: results that depend on them are stored under names of their own."""

FRAME_TRAINING = ClassifierTraining(num_steps=300, batch_size=64)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Settings that do not depend on the evaluated model."""

    num_clips: int | None = None
    """Number of held-out clips, taken subject by subject in an order shuffled by `seed`; by default all."""
    seed: int = 0
    """Seed of the choice of clips and of the videos: clip i is generated with seed + i."""
    unconditional: bool = False
    """Generate without the clips' labels; figures that need labels are left out."""
    batch_size: int = 8
    """Clips per batch."""
    bf16: bool = False
    """Run the evaluated networks in bfloat16; the measuring networks stay in float32."""
    num_diversity_clips: int = 128
    """Number of clips that are generated a second time, with another seed."""
    num_ceiling_clips: int = 128
    """Number of clips on which the best flow at the model's flow resolution is computed."""
    extractors: tuple[str, ...] = ("classifier",)
    """Video feature extractors: `classifier` (trained on the data set), i3d:PATH, i3d-torchscript:PATH, videomae:NAME_OR_DIR."""
    frame_extractors: tuple[str, ...] = ("frames",)
    """Frame feature extractors: `frames` (trained on the data set), vgg:PATH."""
    allow_small: bool = False
    """Report Frechet distances of fewer clips than features, which are mostly bias, instead of leaving them out."""
    trust_file: bool = False
    """Run a TorchScript extractor whatever its SHA-256. Such a file is a program."""
    perceptual_weights: str | None = None
    """VGG-19 (torchvision's state dict) or VGG-16 (safetensors) for stage 1's perceptual distance."""
    classifier: ClassifierTraining = field(default_factory=ClassifierTraining)
    """Training of the action classifier, which is stored next to the data set's cache."""
    frame_network: ClassifierTraining = FRAME_TRAINING
    """Training of the network that recognises subjects, which is stored there too."""

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
        has_program = any(spec.startswith(TORCHSCRIPT_PREFIX) for spec in self.extractors)
        check(has_program or not self.trust_file, "trust_file", self.trust_file, f"left out without an {TORCHSCRIPT_PREFIX}PATH")

    def generation_settings(self) -> dict[str, object]:
        """Return the settings that determine what is generated and measured of a clip."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _NETWORK_FIELDS}

    def network_settings(self) -> dict[str, object]:
        """Return the settings of the measuring networks as JSON values."""
        return {name: value for name, value in to_json(self).items() if name in _NETWORK_FIELDS}
