"""report.html: a single page that contains its videos and pictures, and loads nothing from elsewhere.

`templates/report.html` has its structure; texts from a data set or a file name are escaped there. Videos are H.264, which
browsers play. They are enlarged by a whole factor first, because H.264 stores colours at half resolution.
"""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch

from lfdm.data.sprite_sheets import enlarge
from lfdm.data.video import FrameSource, encode_video
from lfdm.evaluation.report import plots, tables
from lfdm.evaluation.report.examples import Example, Examples
from lfdm.motion.warp import warp
from lfdm.visualize import draw_panel

VIDEO_SIDE = 192
"""Frames are enlarged by a whole factor to at most this side, in pixels."""
NUM_PANELS = 6
MARGIN = 4
"""Pixels between real and generated frames."""
GRAY = 128
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def make_page(results: dict[str, Any], examples: Examples | None, sheet: bytes | None, *, fps: float) -> str:
    """Return the whole page.

    Args:
        results: content of results.json.
        examples: None for an evaluation of stage 1 only.
        sheet: the contact sheet as PNG.
        fps: frame rate of the clips.
    """

    def video(frames: FrameSource) -> str:
        return _data_url("video/mp4", encode_video(frames, fps=fps, suffix=".mp4"))

    shown = examples or Examples(by_label=[])
    stage1, generation = results["stage1"], results["generation"] if examples is not None else None
    has_plots = plots.has_matplotlib()
    return _TEMPLATES.get_template("report.html").render(
        name=results["model"]["name"],
        headline=tables.headline(results),
        tiles=tables.tiles(results),
        examples=shown,
        moving=[example for example in shown.by_label if generation and example.motion is not None][:NUM_PANELS],
        pair=lambda example: video(side_by_side(_enlarge(example.real), _enlarge(example.generated), GRAY)),
        panel=lambda example: video(_panel(example)),
        sheet=None if sheet is None else _data_url("image/png", sheet),
        generation=generation and tables.generation(generation),
        distances=generation and tables.distances(generation),
        stage1=stage1 and tables.stage1(stage1),
        left_out=tables.left_out(results["left_out"]),
        record=tables.record(results),
        no_plots="" if has_plots else plots.NO_MATPLOTLIB,
        generation_plots=_generation_plots(results, shown) if has_plots and generation else [],
        distance_plots=_distance_plots(generation) if has_plots and generation else [],
        stage1_plots=[plots.plot_reconstruction(stage1["reconstruction"])] if has_plots and stage1 else [],
    )


def side_by_side(real: np.ndarray, generated: np.ndarray, margin_value: int) -> np.ndarray:
    """Join two clips (t, H, W, 3) with a margin of gray `margin_value` between them: (t, H, 2 W + MARGIN, 3)."""
    return np.concatenate((real, np.full_like(real[:, :, :MARGIN], margin_value), generated), axis=2)


def _generation_plots(results: dict[str, Any], examples: Examples) -> list[str]:
    generation, drawn = results["generation"], []
    accuracy = generation.get("action_accuracy")
    if accuracy:
        drawn.append(plots.plot_by_label(accuracy["by_label"], accuracy["value"], "requested action recognised"))
    drawn.append(plots.plot_spectra(generation["temporal_smoothness"], results["settings"]["num_frames"]))
    if examples.energies is not None:
        drawn.append(plots.plot_energies(*examples.energies))
    return drawn


def _distance_plots(generation: dict[str, Any]) -> list[str]:
    return [
        plots.plot_groups(figures["frechet_by_label"]["groups"], f"c{name}")
        for name, figures in generation["distances"].items()
        if "frechet_by_label" in figures
    ]


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
    return enlarge(frames, max(1, VIDEO_SIDE // max(frames.shape[1:3])))


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
