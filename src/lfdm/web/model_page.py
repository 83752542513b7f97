"""Description of the served model on the page and in the API: its card, its labels and its evaluation."""

import html
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lfdm.pipeline.pipeline import LatentFlowPipeline
from lfdm.pipeline.quality import QUALITY_NAME, Figure, figures, is_number, lookup, read_quality

CARD_NAME = "README.md"
MAX_CARD_BYTES = 200_000


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
    quality = read_quality(folder)
    card = folder / CARD_NAME
    by_label = lookup(quality, "generation.action_accuracy.by_label")
    return ModelPage(
        name=Path(name).name,
        card=card.read_text(errors="replace")[:MAX_CARD_BYTES] if card.is_file() else "",
        labels=tuple(pipe.condition.labels),
        video=f"{config['num_frames']} frames of {pipe.size}, {config['fps']:g} per second",
        sampling="{num_inference_steps} steps, guidance {guidance_scale:g}".format(**config),
        figures=figures(quality),
        accuracy_by_label={k: float(v) for k, v in by_label.items() if is_number(v)} if isinstance(by_label, dict) else {},
    )


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
