"""What the page and the API say about the served model: its card, its labels, its measured quality."""

import html
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lfdm.folders.model_folder import read_json
from lfdm.pipeline.pipeline import LatentFlowPipeline

CARD_NAME = "README.md"
QUALITY_NAME = "evaluation.json"
MAX_CARD_BYTES = 200_000


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured number of evaluation.json."""

    name: str
    value: float
    unit: str
    num_clips: int | None
    meaning: str

    def text(self) -> str:
        """The number as it is shown."""
        digits = 1 if self.unit == "dB" else 2 if self.unit else 3
        return f"{self.value:.{digits}f}{' ' + self.unit if self.unit else ''}"


# Where figures lie in evaluation.json, and what they say to somebody who has not read the method.
_FIGURES = (
    ("asked-for action", "generation.action_accuracy.value", "", "share of videos that show the action asked for"),
    ("reconstruction", "stage1.reconstruction.prediction.psnr", "dB", "a frame rebuilt from the picture and its motion"),
    ("flow error", "stage1.flow_epe_ratio.value", "", "of moving pixels; 1 = knowing the camera's drift alone"),
    ("sharpness of motion", "stage1.warp_recovery.value", "", "from copying the picture (0) to warping it exactly (1)"),
    ("motion amount", "generation.motion_amount.value", "", "of real clips = 1"),
    ("diversity", "generation.diversity.value", "", "between two seeds; between two real takes = 1"),
    ("time", "generation.seconds_per_video", "s", "per video, where this was measured"),
)


@dataclass(frozen=True, kw_only=True)
class ModelPage:
    """What is known of a model; parts that its folder lacks are empty."""

    name: str
    card: str
    labels: tuple[str, ...]
    video: str
    sampling: str
    figures: tuple[Figure, ...]
    accuracy_by_label: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """For the API."""
        quality = {
            f.name: {"value": f.value, "unit": f.unit, "num_clips": f.num_clips, "meaning": f.meaning} for f in self.figures
        }
        return {
            "name": self.name,
            "labels": list(self.labels),
            "video": self.video,
            "sampling": self.sampling,
            "quality": quality,
            "accuracy_by_label": self.accuracy_by_label,
            "card": self.card,
        }

    def to_html(self) -> str:
        """Labels and figures; the card is shown below it as Markdown."""
        parts = [f'<div class="lf-chips">{"".join(_chip(text) for text in (self.video, self.sampling))}</div>']
        if self.figures:
            facts = "".join(_fact(figure) for figure in self.figures)
            parts += ['<div class="lf-section">Measured quality</div>', f'<div class="lf-facts">{facts}</div>']
        else:
            parts.append(
                f'<p class="lf-quiet">Not measured: no {QUALITY_NAME} (the results.json of lfdm evaluate) beside the model.</p>'
            )
        if self.accuracy_by_label:
            rows = "".join(_label_row(label, share) for label, share in self.accuracy_by_label.items())
            parts += [
                '<div class="lf-section">Labels, and how often the asked-for action is seen</div>',
                f'<div class="lf-labels">{rows}</div>',
            ]
        elif self.labels:
            chips = "".join(_chip(label) for label in self.labels)
            parts += ['<div class="lf-section">Labels</div>', f'<div class="lf-chips">{chips}</div>']
        return "".join(parts)


def read_model_page(name: str, pipe: LatentFlowPipeline, folder: Path) -> ModelPage:
    """From a loaded model and the folder that holds its index."""
    config = pipe.config
    quality = read_json(folder / QUALITY_NAME) if (folder / QUALITY_NAME).is_file() else {}
    card = folder / CARD_NAME
    figures = [_figure(quality, *entry) for entry in _FIGURES]
    by_label = _at(quality, "generation.action_accuracy.by_label")
    return ModelPage(
        name=Path(name).name,
        card=card.read_text(errors="replace")[:MAX_CARD_BYTES] if card.is_file() else "",
        labels=tuple(pipe.condition.labels),
        video="{num_frames} frames of {image_size}x{image_size}, {fps:g} per second".format(**config),
        sampling="{num_inference_steps} steps, guidance {guidance_scale:g}".format(**config),
        figures=tuple(figure for figure in figures if figure is not None),
        accuracy_by_label={k: float(v) for k, v in by_label.items() if _is_number(v)} if isinstance(by_label, dict) else {},
    )


def _figure(quality: dict[str, Any], name: str, where: str, unit: str, meaning: str) -> Figure | None:
    value = _at(quality, where)
    if not _is_number(value):
        return None
    parent = _at(quality, where.rpartition(".")[0])
    num = parent.get("num_clips") if isinstance(parent, dict) else None
    num = num if num is not None else _at(quality, "settings.num_clips")
    return Figure(name=name, value=float(value), unit=unit, num_clips=num if isinstance(num, int) else None, meaning=meaning)


def _at(values: object, where: str) -> Any:
    for key in where.split("."):
        values = values.get(key) if isinstance(values, dict) else None
    return values


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _chip(text: str) -> str:
    return f'<span class="lf-chip">{html.escape(text)}</span>'


def _fact(figure: Figure) -> str:
    n = f"; {figure.num_clips} clips" if figure.num_clips else ""
    return (
        f'<div class="lf-fact"><b>{html.escape(figure.text())}</b><span>{html.escape(figure.name)}</span>'
        f"<small>{html.escape(figure.meaning + n)}</small></div>"
    )


def _label_row(label: str, share: float) -> str:
    width = 100 * min(max(share, 0.0), 1.0)
    return (
        f'<span>{html.escape(label)}</span><span class="lf-bar"><i style="width:{width:.0f}%"></i></span><span>{share:.2f}</span>'
    )
