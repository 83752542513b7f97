"""report.html: a single page that contains its videos and pictures, and loads nothing from elsewhere.

Every text from a data set or a file name is escaped. Videos are H.264, which browsers play. They are enlarged by a whole factor
first, because H.264 stores colours at half resolution.
"""

import base64
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import numpy as np
import torch

from lfdm.data.video import FrameSource, encode_video
from lfdm.evaluation.report import plots, tables
from lfdm.evaluation.report.examples import Example, Examples
from lfdm.evaluation.report.style import STYLE
from lfdm.motion.warp import warp
from lfdm.visualize import draw_panel

VIDEO_SIDE = 192
"""Frames are enlarged by a whole factor to at most this side, in pixels."""
NUM_PANELS = 6
MARGIN = 4
"""Pixels between real and generated frames."""
GRAY = 128
CONTENT_POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
"""Nothing is loaded from elsewhere, and no script runs."""

Section = tuple[str, str, str]
"""Anchor, title and content."""


def make_page(results: dict[str, Any], examples: Examples | None, sheet: bytes | None, *, fps: float) -> str:
    """Return the whole page.

    Args:
        results: content of results.json.
        examples: None for an evaluation of stage 1 only.
        sheet: the contact sheet as PNG.
        fps: frame rate of the clips.
    """
    sections = []
    if examples is not None and results["generation"] is not None:
        sections += _generation(results, examples, sheet, fps)
    if results["stage1"] is not None:
        sections.append(_stage1(results["stage1"]))
    sections.append(_left_out(results["left_out"]))
    sections.append(("record", "Settings and versions", tables.record(results)))
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title, _ in sections)
    body = "".join(f'<section id="{name}"><h2>{title}</h2>{content}</section>' for name, title, content in sections)
    title = f"Evaluation of {escape(str(results['model']['name']))}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head><body><main>"
        f"<h1>{title}</h1><p class=soft>{tables.headline(results)}</p><nav>{links}</nav>"
        f"{tables.tiles(results)}{body}</main></body></html>\n"
    )


def side_by_side(real: np.ndarray, generated: np.ndarray, margin_value: int) -> np.ndarray:
    """Join two clips (t, H, W, 3) with a margin of gray `margin_value` between them: (t, H, 2 W + MARGIN, 3)."""
    return np.concatenate((real, np.full_like(real[:, :, :MARGIN], margin_value), generated), axis=2)


def _generation(results: dict[str, Any], examples: Examples, sheet: bytes | None, fps: float) -> list[Section]:
    generation = results["generation"]
    sections: list[Section] = [
        ("clips", "Real and generated", _clips(examples.by_label, "The first held-out clip of every label.", fps)),
        ("quality", "Generation", tables.generation(generation) + _generation_plots(results, examples)),
        ("distances", "Distances", tables.distances(generation) + _distance_plots(generation)),
    ]
    if examples.best:
        note = f"Ranked by the {escape(examples.score_name)}."
        best, worst = _clips(examples.best, "", fps), _clips(examples.worst, "", fps)
        sections.append(("extremes", "Best and worst", f"<p class=soft>{note}</p><h3>Best</h3>{best}<h3>Worst</h3>{worst}"))
    moving = [example for example in examples.by_label if example.motion is not None][:NUM_PANELS]
    if moving:
        panels = "".join(_figure(_panel(example), escape(example.label), fps) for example in moving)
        note = "Occlusion: white is visible in the source, black is inpainted. Flow colours have one scale per clip."
        sections.append(("motion", "Flow and occlusion", f'<p class=soft>{note}</p><div class="panels">{panels}</div>'))
    if sheet is not None:
        picture = f'<img alt="contact sheet" src="{_data_url("image/png", sheet)}">'
        sections.append(("sheet", "Contact sheet", f"<details><summary>Frames of every label</summary>{picture}</details>"))
    return sections


def _clips(examples: Sequence[Example], note: str, fps: float) -> str:
    figures = []
    for example in examples:
        pair = side_by_side(_enlarge(example.real), _enlarge(example.generated), GRAY)
        caption = f"<b>{escape(example.title)}</b>"
        if example.predicted is not None:
            verdict = f"classified as {escape(example.predicted)}" if example.is_misclassified else "recognised"
            caption += f' <span class="{"bad" if example.is_misclassified else "good"}">{verdict}</span>'
        details = [escape(example.subject)] + ([f"score {example.score:.3f}"] if example.score is not None else [])
        caption += f"<br>{', '.join(details)}"
        figures.append(_figure(pair, caption, fps, above='<div class="pair"><span>real</span><span>generated</span></div>'))
    start = f"<p class=soft>{note}</p>" if note else ""
    return f'{start}<div class="clips">{"".join(figures)}</div>'


def _generation_plots(results: dict[str, Any], examples: Examples) -> str:
    if not plots.has_matplotlib():
        return f"<p class=soft>{escape(plots.NO_MATPLOTLIB)}</p>"
    generation, drawn = results["generation"], []
    accuracy = generation.get("action_accuracy")
    if accuracy:
        drawn.append(plots.plot_by_label(accuracy["by_label"], accuracy["value"], "requested action recognised"))
    drawn.append(plots.plot_spectra(generation["temporal_smoothness"], results["settings"]["num_frames"]))
    if examples.energies is not None:
        drawn.append(plots.plot_energies(*examples.energies))
    return _plots(drawn)


def _distance_plots(generation: dict[str, Any]) -> str:
    found = {
        name: figures["frechet_by_label"] for name, figures in generation["distances"].items() if "frechet_by_label" in figures
    }
    if not plots.has_matplotlib():
        return ""
    return _plots([plots.plot_groups(figures["groups"], f"c{name}") for name, figures in found.items()])


def _stage1(stage1: dict[str, Any]) -> Section:
    drawn = [plots.plot_reconstruction(stage1["reconstruction"])] if plots.has_matplotlib() else []
    return "stage1", "Stage 1", tables.stage1(stage1) + _plots(drawn)


def _left_out(left_out: dict[str, str]) -> Section:
    rows = "".join(f"<tr><td>{escape(key)}</td><td class=long>{escape(reason)}</td></tr>" for key, reason in left_out.items())
    content = f'<div class="scroll"><table>{rows}</table></div>' if rows else "<p>Nothing.</p>"
    return "left-out", "Left out", content


def _plots(drawn: Sequence[str]) -> str:
    return f'<div class="plots">{"".join(f"<div class=card>{svg}</div>" for svg in drawn)}</div>' if drawn else ""


def _figure(frames: FrameSource, caption: str, fps: float, *, above: str = "") -> str:
    source = _data_url("video/mp4", encode_video(frames, fps=fps, suffix=".mp4"))
    video = f'<video src="{source}" autoplay loop muted playsinline controlslist="nodownload"></video>'
    return f'<figure class="card">{above}{video}<figcaption>{caption}</figcaption></figure>'


def _panel(example: Example) -> Iterator[np.ndarray]:
    """Draw source, generated, warped, flow and occlusion of an example with a motion: t frames (H, W, 3)."""
    motion = example.motion
    assert motion is not None
    source = torch.from_numpy(example.real[0]).permute(2, 0, 1)[None].float() / 255
    size = example.real.shape[1:3]
    grid = motion.resize((size[0], size[1])).grid()
    warped = warp(source, grid, padding_mode="border")[0].permute(1, 2, 3, 0)
    return draw_panel(example.real[0], example.generated, (warped * 255).round().to(torch.uint8).numpy(), motion)


def _enlarge(frames: np.ndarray) -> np.ndarray:
    factor = max(1, VIDEO_SIDE // max(frames.shape[1:3]))
    return frames.repeat(factor, axis=1).repeat(factor, axis=2)


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
