"""The tables of report.html, and the rows that the command line prints, from results.json."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lfdm.config.video import Size

MISSING = "-"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Column heads and rows of text."""

    title: str
    heads: Sequence[str] = ()
    rows: Sequence[Sequence[str]]
    note: str = ""
    """Explanation of the figures, shown above the table."""
    last_is_text: bool = False
    """True if the last column holds text for a page, which may wrap and which a terminal leaves out."""


@dataclass(frozen=True)
class Tile:
    """One of the most important figures."""

    name: str
    value: str
    note: str


@dataclass(frozen=True)
class _Figure:
    """A figure of `generation` in results.json: its keys, unit and number of digits."""

    name: str
    key: str
    value: str
    generated: str
    real: str
    unit: str
    digits: int


_GENERATION = (
    _Figure("Action accuracy", "action_accuracy", "value", "", "real_held_out", "", 3),
    _Figure("Motion amount, pixels", "pixel_motion_amount", "value", "generated_energy", "real_energy", "", 4),
    _Figure("Motion amount, flow", "motion_amount", "value", "generated_px", "real_px", " px", 3),
    _Figure("Jitter", "temporal_smoothness", "value", "generated_share", "real_share", "", 3),
    _Figure("Identity", "identity", "value", "generated_likeness", "real_likeness", "", 3),
    _Figure("Recognised subject", "identity", "generated_recognised", "", "real_recognised", "", 3),
    _Figure("Diversity, flow", "diversity", "value", "between_seeds_px", "between_takes_px", " px", 3),
    _Figure("Diversity, pixels", "pixel_diversity", "value", "between_seeds_l1", "between_takes_l1", "", 4),
    _Figure("Frame 0", "frame_0", "psnr", "", "", " dB", 1),
)
_MEANINGS = {
    "Action accuracy": "share of generated clips that a classifier trained on the data set assigns to the requested label",
    "Motion amount, pixels": "mean change per frame, divided by that of the real clips; a still video has 0",
    "Motion amount, flow": "mean length of the flow, divided by that of the real clips",
    "Jitter": "share of temporal power above a quarter cycle per frame, divided by that of the real clips; higher is less smooth",
    "Identity": "likeness of later frames to the source image; 1 is as in real clips, 0 as in clips of another subject",
    "Recognised subject": "share of later frames whose most similar held-out subject is their own",
    "Diversity, flow": "difference in flow between two seeds, divided by that between two real takes",
    "Diversity, pixels": "difference in pixels between two seeds, divided by that between two real takes",
    "Frame 0": "PSNR of the first frame to the given image; 100 dB is exact",
    "Time": "time to generate one video, on one device in batches",
}
_STAGE1_MEANINGS = {
    "flow_epe_ratio": (
        "Flow error ratio (lower is better)",
        "end-point error of the flow on moving pixels, divided by that of a flow that knows only the camera's drift; 0 is exact",
    ),
    "warp_recovery": (
        "Warp recovery (higher is better)",
        "how far the reconstruction gets from copying frame 0 (value 0) to warping it by the exact flow (value 1)",
    ),
}
_RECONSTRUCTION_NOTE = (
    "Real frames compared with the decoder's prediction, with warped frame 0 and with a copy of frame 0. L1 is the mean absolute "
    "difference, lower is better; PSNR and SSIM measure the same in decibels and by local structure, higher is better."
)
_MOTION_NOTE = (
    "Least squares: the same figures of the flow at the model's resolution that is nearest to the exact flow, over the whole "
    "frame or over the pixels that the figure counts. Its frames are only warped, so a model that also inpaints can recover more."
)
_VISIBILITY_NOTE = "How well the occlusion map separates visible from hidden pixels: F1 of both classes, 1 is perfect."
_DISTANCE_NOTE = (
    "Difference between the feature distributions of real and generated clips; lower is better. A Frechet distance depends on "
    "its extractor and on the number of clips, so compare it with its floor (one half of the real clips against the other) at "
    "the same number of clips. Prefixes c and s: mean ± standard deviation over classes and subjects. K: kernel distance, "
    "which is unbiased. Intervals cover 95 %."
)
_MEASURES = {"l1": ("L1", 4), "psnr": ("PSNR, dB", 2), "ssim": ("SSIM", 4), "perceptual": ("perceptual", 3)}
_GENERATION_HEADS = ("figure", "value", "generated", "real clips", "N")
_DISTANCE_HEADS = ("distance", "value", "interval", "floor", "value at the floor's N", "N / features")
_MOTION_HEADS = ("against exact motion", "value", "least squares, whole frame", "least squares, these pixels", "N")


def number(value: float | None, digits: int = 3) -> str:
    """Format a number; `MISSING` for None."""
    if value is None:
        return MISSING
    if value and (abs(value) < 10.0**-digits or abs(value) >= 1e5):
        return f"{value:.2e}"
    return f"{value:.{digits}f}"


def headline(results: dict[str, Any]) -> str:
    """Describe data and sampling in one line."""
    data, settings = results["data"], results["settings"]
    parts = [
        f"{_count(data['num_clips'], 'held-out clip')} of {_count(data['num_subjects'], 'subject')}, data set {data['name']}",
        f"{settings['num_frames']} frames of {Size.parse(settings['image_size'])}",
    ]
    if "num_inference_steps" in settings:
        scale = f", guidance {settings['guidance_scale']:g}" if "guidance_scale" in settings else ""
        parts.append(f"{settings['num_inference_steps']} steps of {settings['scheduler']}{scale}")
    return " · ".join([*parts, f"seed {settings['seed']}", results["date"][:10]])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def summary(results: dict[str, Any]) -> list[tuple[str, Sequence[str], Sequence[Sequence[str]]]]:
    """Return title, heads and rows of the tables for a terminal."""
    stage1_figures, figures = results["stage1"], results["generation"]
    tables = [] if stage1_figures is None else stage1(stage1_figures)[:2]
    tables += [] if figures is None else [generation(figures), distances(figures)]
    shown = [(table, -1 if table.last_is_text else None) for table in tables if table.rows]
    return [(table.title, table.heads[:end], [row[:end] for row in table.rows]) for table, end in shown]


def tiles(results: dict[str, Any]) -> list[Tile]:
    """Return the most important figures."""
    tiles: list[Tile] = []
    generation, stage1 = results["generation"], results["stage1"]
    if generation is not None:
        if "action_accuracy" in generation:
            figure = generation["action_accuracy"]
            tiles.append(Tile("Action accuracy", number(figure["value"]), f"real clips {number(figure['real_held_out'])}"))
        for name, found in generation["distances"].items():
            if "frechet" in found:
                value, at_floor, floor = (number(found["frechet"][key]) for key in ("value", "value_at_floor", "floor"))
                tiles.append(Tile(name, value, f"at the floor's N {at_floor}, floor {floor}"))
        for key, name, note in (
            ("identity", "Identity", "1 = as real clips"),
            ("pixel_motion_amount", "Motion amount", "pixels; 1 = as real clips"),
            ("temporal_smoothness", "Jitter", "1 = as real clips"),
        ):
            if key in generation:
                tiles.append(Tile(name, number(generation[key]["value"]), note))
        tiles.append(Tile("Time", f"{number(generation['seconds_per_video'], 2)} s", "per video"))
    if stage1 is not None:
        figure = stage1["reconstruction"]["prediction"]
        tiles.append(Tile("Reconstruction", f"{number(figure['psnr'], 1)} dB", f"SSIM {number(figure['ssim'])}"))
        for key, (title, _) in _STAGE1_MEANINGS.items():
            if key in stage1:
                name, _, better = title.removesuffix(")").partition(" (")
                best = number(stage1[key]["whole_frame_ceiling"]["value"])
                tiles.append(Tile(name, number(stage1[key]["value"]), f"{better}; least-squares flow {best}"))
    return tiles


def generation(figures: dict[str, Any]) -> Table:
    """Return the table of all generation figures except the distances."""
    heads = (*_GENERATION_HEADS, "meaning")
    return Table(title="Generation", heads=heads, rows=_generation_rows(figures), last_is_text=True)


def distances(figures: dict[str, Any]) -> Table:
    """Return the table of Frechet and kernel distances of all extractors."""
    return Table(title="Distances", heads=_DISTANCE_HEADS, rows=_distance_rows(figures), note=_DISTANCE_NOTE)


def stage1(figures: dict[str, Any]) -> list[Table]:
    """Return the tables of reconstruction, motion (without rows where it was not measured) and visibility."""
    tables = [_reconstruction(figures), _motion(figures)]
    if "visibility_f1" in figures:
        visibility = figures["visibility_f1"]
        rows = [
            (title, *(number(visibility[key][name]) for name in ("visible", "visible_if_all", "hidden")))
            for key, title in (("figure", "figure pixels"), ("all_pixels", "all pixels"))
        ]
        heads = (f"visibility F1 (threshold {visibility['threshold']:g})", "visible", "visible, if all were", "hidden")
        tables.append(Table(title="Visibility", heads=heads, rows=rows, note=_VISIBILITY_NOTE))
    return tables


def left_out(reasons: dict[str, str]) -> Table:
    """Return the table of figures that were not measured, with the reasons."""
    return Table(title="Left out", rows=list(reasons.items()), last_is_text=True)


def record(results: dict[str, Any]) -> list[Table]:
    """Return model, data, settings, versions and extractors."""
    found = [(title.capitalize(), results[title]) for title in ("model", "data", "settings", "versions")]
    generation = results["generation"] or {}
    extractors = generation.get("distances", {}) | generation.get("frame_distances", {})
    if extractors:
        found.append(("SHA-256 of the extractors", {name: values["sha256"] for name, values in extractors.items()}))
    return [
        Table(title=title, rows=[(key, _text(value)) for key, value in values.items()], last_is_text=True)
        for title, values in found
    ]


def _generation_rows(generation: dict[str, Any]) -> list[Sequence[str]]:
    """Return name, value, measurement of generated and of real clips, N and meaning of every figure except the distances."""
    rows: list[Sequence[str]] = []
    for row in _GENERATION:
        figure = generation.get(row.key)
        if figure is not None:
            value = number(figure[row.value], row.digits if not row.generated else 3)
            parts = [number(figure[name], row.digits) + row.unit if name else MISSING for name in (row.generated, row.real)]
            unit = row.unit if not row.generated else ""
            rows.append((row.name, value + unit, *parts, str(figure["num_clips"]), _MEANINGS[row.name]))
    time = f"{number(generation['seconds_per_video'], 2)} s"
    rows.append(("Time", time, MISSING, MISSING, MISSING, _MEANINGS["Time"]))
    return rows


def _distance_rows(generation: dict[str, Any]) -> list[Sequence[str]]:
    """Return name, value, interval, floor, value at the floor's N, N and dimension of every distance."""
    rows = []
    for name, found in generation["distances"].items():
        rows += [_distance(name, found["frechet"], found)] if "frechet" in found else []
        for prefix, key in (("c", "frechet_by_label"), ("s", "frechet_by_subject")):
            rows += [_group_distance(f"{prefix}{name}", found[key])] if key in found else []
        rows += [_distance(found["kernel_name"], found["kernel"], found)] if "kernel" in found else []
    for name, found in generation["frame_distances"].items():
        rows += [_distance(name, found["frechet"], found)] if "frechet" in found else []
    return rows


def _distance(name: str, estimate: dict[str, Any], found: dict[str, Any]) -> Sequence[str]:
    size = f"{estimate['num_generated']} / {found['dim']}"
    return name, number(estimate["value"]), *_interval_and_floor(estimate), size


def _group_distance(name: str, grouped: dict[str, Any]) -> Sequence[str]:
    groups = list(grouped["groups"].values())
    size = f"{len(groups)} x {min(g['num_generated'] for g in groups)} / {groups[0]['dim']}"
    return name, f"{number(grouped['mean'])} ± {number(grouped['std'])}", *_interval_and_floor(grouped), size


def _interval_and_floor(estimate: dict[str, Any]) -> tuple[str, str, str]:
    interval = f"{number(estimate['low'])} to {number(estimate['high'])}"
    return interval, number(estimate["floor"]), number(estimate["value_at_floor"])


def _reconstruction(figures: dict[str, Any]) -> Table:
    measures = [name for name in _MEASURES if name in figures["reconstruction"]["prediction"]]
    rows: list[Sequence[str]] = [
        (name, *(number(values[measure], _MEASURES[measure][1]) for measure in measures), str(values["num_clips"]))
        for name, values in figures["reconstruction"].items()
    ]
    heads = ("frames 1 on", *(_MEASURES[measure][0] for measure in measures), "N")
    return Table(title="Stage 1, frames 1 on", heads=heads, rows=rows, note=_RECONSTRUCTION_NOTE)


def _motion(figures: dict[str, Any]) -> Table:
    rows: list[Sequence[str]] = []
    for key, (title, meaning) in _STAGE1_MEANINGS.items():
        if key in figures:
            values = (figures[key]["value"], figures[key]["whole_frame_ceiling"]["value"], figures[key]["ceiling"]["value"])
            rows.append((title, *(number(value) for value in values), str(figures[key]["num_clips"]), meaning))
    heads = (*_MOTION_HEADS, "meaning")
    return Table(title="Stage 1 against exact motion", heads=heads, rows=rows, note=_MOTION_NOTE, last_is_text=True)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
