"""report.html: one page that holds all it shows, videos and pictures included, and asks no other place for anything.

Every text that comes from a data set or a file name is escaped. Videos are H.264, which browsers play, enlarged by a whole factor
first, since its colours are shared by 2x2 pixels.
"""

import base64
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import numpy as np
import torch

from lfdm.data.video import FrameSource, encode_video
from lfdm.evaluation.report import plots, tables
from lfdm.evaluation.report.shown import Example, Shown
from lfdm.evaluation.report.style import STYLE
from lfdm.motion.warp import warp
from lfdm.visualize import draw_panel

SHOWN_SIDE = 192
"""Frames are enlarged by a whole factor to at most this side."""
NUM_PANELS = 6
MARGIN = 4
CONTENT_POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
"""Nothing is loaded from anywhere, no script runs."""


def draw_page(results: dict[str, Any], shown: Shown | None, sheet: bytes | None, *, fps: float) -> str:
    """The whole page.

    Args:
        results: as results.json holds them.
        shown: None for stage 1 alone.
        sheet: the contact sheet, PNG.
        fps: of the clips.
    """
    sections = []
    if shown is not None and results["generation"] is not None:
        sections += _generation(results, shown, sheet, fps)
    if results["stage1"] is not None:
        sections.append(_stage1(results["stage1"]))
    sections.append(_left_out(results["left_out"]))
    sections.append(_record(results))
    sections = [section for section in sections if section]
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


Section = tuple[str, str, str]
"""Anchor, title and content."""


def _generation(results: dict[str, Any], shown: Shown, sheet: bytes | None, fps: float) -> list[Section]:
    generation = results["generation"]
    sections: list[Section] = [
        ("clips", "Real and generated", _clips(shown.examples, "The first held-out clip of every label.", fps)),
        ("quality", "Generation", tables.generation(generation) + _generation_plots(results, shown)),
        ("distances", "Distances", tables.distances(generation) + _distance_plots(generation)),
    ]
    if shown.best:
        by = f"By the {escape(shown.score_name)}."
        best, worst = _clips(shown.best, "", fps), _clips(shown.worst, "", fps)
        sections.append(("extremes", "Best and worst", f"<p class=soft>{by}</p><h3>Best</h3>{best}<h3>Worst</h3>{worst}"))
    moving = [example for example in shown.examples if example.motion is not None][:NUM_PANELS]
    if moving:
        panels = "".join(_figure(_panel(example), escape(example.label), fps) for example in moving)
        note = "White occlusion = seen in the source, black = painted. One scale of flow colours over each clip."
        sections.append(("motion", "Flow and occlusion", f'<p class=soft>{note}</p><div class="panels">{panels}</div>'))
    if sheet is not None:
        picture = f'<img alt="contact sheet" src="{_data_url("image/png", sheet)}">'
        sections.append(("sheet", "Contact sheet", f"<details><summary>Frames of every label</summary>{picture}</details>"))
    return sections


def _clips(examples: Sequence[Example], note: str, fps: float) -> str:
    figures = []
    for example in examples:
        pair = np.concatenate(
            (_enlarge(example.real), np.full_like(_enlarge(example.real)[:, :, :MARGIN], 128), _enlarge(example.generated)),
            axis=2,
        )
        caption = f"<b>{escape('unconditional' if example.unconditional else example.label)}</b>"
        if example.named is not None:
            seen = "recognised" if not example.is_wrong else f"taken for {escape(example.named)}"
            caption += f' <span class="{"bad" if example.is_wrong else "good"}">{seen}</span>'
        details = [escape(example.subject)] + ([f"score {example.score:.3f}"] if example.score is not None else [])
        caption += f"<br>{', '.join(details)}"
        figures.append(_figure(pair, caption, fps, above='<div class="pair"><span>real</span><span>generated</span></div>'))
    start = f"<p class=soft>{note}</p>" if note else ""
    return f'{start}<div class="clips">{"".join(figures)}</div>'


def _generation_plots(results: dict[str, Any], shown: Shown) -> str:
    if not plots.has_matplotlib():
        return f"<p class=soft>{escape(plots.NO_MATPLOTLIB)}</p>"
    generation, drawn = results["generation"], []
    accuracy = generation.get("action_accuracy")
    if accuracy:
        drawn.append(plots.plot_by_label(accuracy["by_label"], accuracy["value"], "asked-for action recognised"))
    smoothness = generation["temporal_smoothness"]
    drawn.append(
        plots.plot_spectra(
            smoothness["generated_spectrum"],
            smoothness["real_spectrum"],
            results["settings"]["num_frames"],
            smoothness["above_cycles_per_frame"],
        )
    )
    if shown.energies is not None:
        drawn.append(plots.plot_energies(*shown.energies))
    return _plots(drawn)


def _distance_plots(generation: dict[str, Any]) -> str:
    if not plots.has_matplotlib():
        return ""
    drawn = []
    for name, found in generation["distances"].items():
        if "frechet_by_label" in found:
            drawn.append(plots.plot_groups(found["frechet_by_label"]["groups"], f"c{name}"))
    return _plots(drawn)


def _stage1(stage1: dict[str, Any]) -> Section:
    drawn = [plots.plot_reconstruction(stage1["reconstruction"])] if plots.has_matplotlib() else []
    return "stage1", "Stage 1", tables.stage1(stage1) + _plots(drawn)


def _left_out(left_out: dict[str, str]) -> Section:
    rows = "".join(f"<tr><td>{escape(key)}</td><td class=long>{escape(reason)}</td></tr>" for key, reason in left_out.items())
    content = f'<div class="scroll"><table>{rows}</table></div>' if rows else "<p>Nothing.</p>"
    return "left-out", "Left out", content


def _record(results: dict[str, Any]) -> Section:
    return "record", "How it was done", tables.record(results)


def _plots(drawn: Sequence[str]) -> str:
    return f'<div class="plots">{"".join(f"<div class=card>{svg}</div>" for svg in drawn)}</div>' if drawn else ""


def _figure(frames: FrameSource, caption: str, fps: float, *, above: str = "") -> str:
    source = _data_url("video/mp4", encode_video(frames, fps=fps, suffix=".mp4"))
    video = f'<video src="{source}" autoplay loop muted playsinline controlslist="nodownload"></video>'
    return f'<figure class="card">{above}{video}<figcaption>{caption}</figcaption></figure>'


def _panel(example: Example) -> Iterator[np.ndarray]:
    """Source, generated, warped, flow and occlusion of an example that has a motion, t frames (H, W, 3)."""
    motion = example.motion
    assert motion is not None
    source = torch.from_numpy(example.real[0]).permute(2, 0, 1)[None].float() / 255
    size = example.real.shape[1:3]
    grid = motion.resize((size[0], size[1])).grid()
    warped = warp(source, grid, padding_mode="border")[0].permute(1, 2, 3, 0)
    return draw_panel(example.real[0], example.generated, (warped * 255).round().to(torch.uint8).numpy(), motion)


def _enlarge(frames: np.ndarray) -> np.ndarray:
    factor = max(1, SHOWN_SIDE // max(frames.shape[1:3]))
    return frames.repeat(factor, axis=1).repeat(factor, axis=2)


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
