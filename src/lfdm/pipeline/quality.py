"""The figures of a model's `evaluation.json` (results.json of `lfdm evaluate`) that describe it to its users."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lfdm.folders.files import file_sha256
from lfdm.folders.model_folder import WEIGHTS_NAME, read_json

QUALITY_NAME = "evaluation.json"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured number of evaluation.json."""

    name: str
    value: float
    unit: str
    num_clips: int | None
    meaning: str

    def text(self) -> str:
        """Format the number for display."""
        digits = 1 if self.unit == "dB" else 2 if self.unit else 3
        return f"{self.value:.{digits}f}{' ' + self.unit if self.unit else ''}"


# Name, key in evaluation.json, unit and meaning of every figure, for readers who do not know the method.
_FIGURES = (
    ("Action accuracy", "generation.action_accuracy.value", "", "share of videos recognised as the requested action"),
    ("Reconstruction", "stage1.reconstruction.prediction.psnr", "dB", "real frames rebuilt from the picture and their motion"),
    ("Flow error ratio", "stage1.flow_epe_ratio.value", "", "on moving pixels; 0 is exact, 1 ignores the figure's motion"),
    ("Warp recovery", "stage1.warp_recovery.value", "", "0 is copying the picture, 1 is warping it by the exact flow"),
    ("Motion amount", "generation.motion_amount.value", "", "compared with real clips, which have 1"),
    ("Diversity", "generation.diversity.value", "", "between two seeds; two real takes have 1"),
    ("Time", "generation.seconds_per_video", "s", "per video, on the machine of the evaluation"),
)


def read_quality(folder: Path) -> dict[str, Any]:
    """Return the evaluation stored in a model folder, or nothing."""
    path = folder / QUALITY_NAME
    return read_json(path) if path.is_file() else {}


def is_of_weights(quality: dict[str, Any], folder: Path) -> bool:
    """Return whether an evaluation names the SHA-256 of all weights in a model folder."""
    stated = lookup(quality, "model.weights_sha256")
    files = {path.parent.name: path for path in folder.glob(f"*/{WEIGHTS_NAME}")}
    return isinstance(stated, dict) and stated == {name: file_sha256(path) for name, path in files.items()}


def figures(quality: dict[str, Any]) -> tuple[Figure, ...]:
    """Return the figures that an evaluation holds."""
    found = [_figure(quality, *entry) for entry in _FIGURES]
    return tuple(figure for figure in found if figure is not None)


def _figure(quality: dict[str, Any], name: str, key: str, unit: str, meaning: str) -> Figure | None:
    value = lookup(quality, key)
    if not is_number(value):
        return None
    num = lookup(quality, f"{key.rpartition('.')[0]}.num_clips") or lookup(quality, "settings.num_clips")
    return Figure(name=name, value=float(value), unit=unit, num_clips=num if isinstance(num, int) else None, meaning=meaning)


def lookup(values: object, key: str) -> Any:
    """Return the value of a dotted key, or None."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def is_number(value: object) -> bool:
    """Return whether a JSON value is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)
