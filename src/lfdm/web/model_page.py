"""Description of the served model on the page and in the API: its card, its labels and its evaluation."""

import html
from dataclasses import asdict, dataclass
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


@dataclass(frozen=True, kw_only=True)
class ModelPage:
    """Description of a model; fields are empty where its folder has no such information."""

    name: str
    card: str
    labels: tuple[str, ...]
    video: str
    sampling: str
    figures: tuple[Figure, ...]
    accuracy_by_label: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return the answer of the API."""
        fields = asdict(self)
        figures = {figure.pop("name"): figure for figure in fields.pop("figures")}
        return fields | {"labels": list(self.labels), "quality": figures}

    def to_html(self) -> str:
        """Return labels and figures; the card is shown below them as Markdown."""
        parts = [f'<div class="lf-chips">{_chip(self.video)}{_chip(self.sampling)}</div>']
        if self.figures:
            parts.append(_section("Measured quality", "lf-facts", "".join(map(_fact, self.figures))))
        else:
            note = f"Not measured: the model has no {QUALITY_NAME} (results.json of lfdm evaluate)."
            parts.append(f'<p class="lf-quiet">{note}</p>')
        if self.accuracy_by_label:
            rows = "".join(_label_row(label, share) for label, share in self.accuracy_by_label.items())
            parts.append(_section("Labels, and how often the requested action is recognised", "lf-labels", rows))
        elif self.labels:
            parts.append(_section("Labels", "lf-chips", "".join(map(_chip, self.labels))))
        return "".join(parts)


def read_model_page(name: str, pipe: LatentFlowPipeline, folder: Path) -> ModelPage:
    """Describe a loaded model, with the card and evaluation of the folder that holds its index."""
    config = pipe.config
    quality = read_json(folder / QUALITY_NAME) if (folder / QUALITY_NAME).is_file() else {}
    card = folder / CARD_NAME
    figures = [_figure(quality, *entry) for entry in _FIGURES]
    by_label = _lookup(quality, "generation.action_accuracy.by_label")
    return ModelPage(
        name=Path(name).name,
        card=card.read_text(errors="replace")[:MAX_CARD_BYTES] if card.is_file() else "",
        labels=tuple(pipe.condition.labels),
        video=f"{config['num_frames']} frames of {pipe.size}, {config['fps']:g} per second",
        sampling="{num_inference_steps} steps, guidance {guidance_scale:g}".format(**config),
        figures=tuple(figure for figure in figures if figure is not None),
        accuracy_by_label={k: float(v) for k, v in by_label.items() if _is_number(v)} if isinstance(by_label, dict) else {},
    )


def _figure(quality: dict[str, Any], name: str, key: str, unit: str, meaning: str) -> Figure | None:
    value = _lookup(quality, key)
    if not _is_number(value):
        return None
    num = _lookup(quality, f"{key.rpartition('.')[0]}.num_clips") or _lookup(quality, "settings.num_clips")
    return Figure(name=name, value=float(value), unit=unit, num_clips=num if isinstance(num, int) else None, meaning=meaning)


def _lookup(values: object, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _section(title: str, css_class: str, content: str) -> str:
    return f'<div class="lf-section">{title}</div><div class="{css_class}">{content}</div>'


def _chip(text: str) -> str:
    return f'<span class="lf-chip">{html.escape(text)}</span>'


def _fact(figure: Figure) -> str:
    meaning = figure.meaning + (f"; {figure.num_clips} clips" if figure.num_clips else "")
    return (
        f'<div class="lf-fact"><b>{html.escape(figure.text())}</b><span>{html.escape(figure.name)}</span>'
        f"<small>{html.escape(meaning)}</small></div>"
    )


def _label_row(label: str, share: float) -> str:
    width = 100 * min(max(share, 0.0), 1.0)
    return (
        f'<span>{html.escape(label)}</span><span class="lf-bar"><i style="width:{width:.0f}%"></i></span><span>{share:.2f}</span>'
    )
