"""The tables of report.html, and the rows that the command line prints, out of results.json."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

MISSING = "-"
MEANINGS = {
    "Asked-for action": "clips that the data set's classifier takes for the label asked for",
    "Motion amount, pixels": "mean change per frame, over that of the real clips; a still video has 0",
    "Motion amount, flow": "mean length of the flow, over that of the real clips",
    "Jitter": "share of temporal power above a quarter cycle per frame, over that of the real clips",
    "Identity": "likeness of later frames to the source; 1 = as in real clips, 0 = as another subject",
    "Recognised subject": "later frames whose likest held-out subject is their own",
    "Frame 0": "PSNR against the given image (100 dB = exact)",
    "Diversity, flow": "difference between two seeds, over that of two real takes",
    "Diversity, pixels": "difference between two seeds, over that of two real takes",
    "Time": "per video, generation alone, on one device in batches",
}


def number(value: float | None, digits: int = 3) -> str:
    """A number for people; `MISSING` for None."""
    if value is None:
        return MISSING
    if value and (abs(value) < 10.0**-digits or abs(value) >= 1e5):
        return f"{value:.2e}"
    return f"{value:.{digits}f}"


def headline(results: dict[str, Any]) -> str:
    """What was judged on, in one line."""
    data, settings = results["data"], results["settings"]
    parts = [
        f"{data['num_clips']} held-out clips of {data['num_subjects']} subjects, data set {escape(str(data['name']))}",
        f"{settings['num_frames']} frames of {settings['image_size']}x{settings['image_size']}",
    ]
    if "num_inference_steps" in settings:
        scale = f", guidance {settings['guidance_scale']:g}" if "guidance_scale" in settings else ""
        parts.append(f"{settings['num_inference_steps']} steps of {escape(settings['scheduler'])}{scale}")
    return " · ".join([*parts, f"seed {settings['seed']}", escape(results["date"][:10])])


@dataclass(frozen=True)
class _Row:
    """Where a figure of `generation` stands in results.json: its value, and what was measured of both kinds of clips."""

    name: str
    key: str
    value: str = "value"
    generated: str = ""
    real: str = ""
    unit: str = ""
    digits: int = 3


_ROWS = (
    _Row("Asked-for action", "action_accuracy", real="real_held_out"),
    _Row("Motion amount, pixels", "pixel_motion_amount", generated="generated_energy", real="real_energy", digits=4),
    _Row("Motion amount, flow", "motion_amount", generated="generated_px", real="real_px", unit=" px"),
    _Row("Jitter", "temporal_smoothness", generated="generated_share", real="real_share"),
    _Row("Identity", "identity", generated="generated_likeness", real="real_likeness"),
    _Row("Recognised subject", "identity", value="generated_recognised", real="real_recognised"),
    _Row("Diversity, flow", "diversity", generated="between_seeds_px", real="between_takes_px", unit=" px"),
    _Row("Diversity, pixels", "pixel_diversity", generated="between_seeds_l1", real="between_takes_l1", digits=4),
    _Row("Frame 0", "frame_0", value="psnr", unit=" dB", digits=1),
)


def generation_rows(generation: dict[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """Figure, its value, what was measured of generated and of real clips, and N, of everything but the distances."""
    rows = []
    for row in _ROWS:
        figure = generation.get(row.key)
        if figure is not None:
            value = number(figure[row.value], row.digits if not row.generated else 3)
            parts = [number(figure[name], row.digits) + row.unit if name else MISSING for name in (row.generated, row.real)]
            rows.append((row.name, value + (row.unit if not row.generated else ""), *parts, str(figure["num_clips"])))
    rows.append(("Time", f"{number(generation['seconds_per_video'], 2)} s", MISSING, MISSING, MISSING))
    return rows


def distance_rows(generation: dict[str, Any]) -> list[tuple[str, str, str, str, str, str]]:
    """Figure, value, interval or spread, floor, value at the floor's size, N and dimension of every distance."""
    rows = []
    for name, found in generation["distances"].items():
        rows += [_distance(name, found["frechet"], found)] if "frechet" in found else []
        for prefix, key in (("c", "frechet_by_label"), ("s", "frechet_by_subject")):
            rows += [_spread(f"{prefix}{name}", found[key])] if key in found else []
        rows += [_distance(found["kernel_name"], found["kernel"], found)] if "kernel" in found else []
    for name, found in generation["frame_distances"].items():
        rows += [_distance(name, found["frechet"], found)] if "frechet" in found else []
    return rows


def _distance(name: str, estimate: dict[str, Any], found: dict[str, Any]) -> tuple[str, str, str, str, str, str]:
    return (
        name,
        number(estimate["value"]),
        f"{number(estimate['low'])} to {number(estimate['high'])}",
        number(estimate["floor"]),
        number(estimate["value_at_floor"]),
        f"{estimate['num_generated']} / {found['dim']}",
    )


def _spread(name: str, grouped: dict[str, Any]) -> tuple[str, str, str, str, str, str]:
    groups = list(grouped["groups"].values())
    return (
        name,
        f"{number(grouped['mean'])} ± {number(grouped['std'])}",
        f"{number(grouped['low'])} to {number(grouped['high'])}",
        number(grouped["floor"]),
        number(grouped["value_at_floor"]),
        f"{len(groups)} x {min(g['num_generated'] for g in groups)} / {groups[0]['dim']}",
    )


GENERATION_HEADS = ("figure", "value", "generated", "real clips", "N")
DISTANCE_HEADS = ("distance", "value", "interval", "floor", "value at the floor's size", "N / features")


def summary(results: dict[str, Any]) -> list[tuple[str, Sequence[str], Sequence[Sequence[str]]]]:
    """Title, heads and rows of the tables that a terminal shows."""
    shown: list[tuple[str, Sequence[str], Sequence[Sequence[str]]]] = []
    if results["stage1"] is not None:
        shown.append(("Stage 1, frames 1 on", *_reconstruction(results["stage1"])))
        if "flow_epe_ratio" in results["stage1"]:
            shown.append(("Stage 1 against exact motion", SCORE_HEADS, _scores(results["stage1"])))
    if results["generation"] is not None:
        shown.append(("Generation", GENERATION_HEADS, generation_rows(results["generation"])))
        if distances := distance_rows(results["generation"]):
            shown.append(("Distances", DISTANCE_HEADS, distances))
    return shown


def tiles(results: dict[str, Any]) -> str:
    """The figures to look at first."""
    shown: list[tuple[str, str, str]] = []
    generation, stage1 = results["generation"], results["stage1"]
    if generation is not None:
        if "action_accuracy" in generation:
            figure = generation["action_accuracy"]
            shown.append(("Asked-for action", number(figure["value"]), f"real clips {number(figure['real_held_out'])}"))
        for name, found in generation["distances"].items():
            if "frechet" in found:
                note = (
                    f"at the floor's size {number(found['frechet']['value_at_floor'])}, floor {number(found['frechet']['floor'])}"
                )
                shown.append((name, number(found["frechet"]["value"]), note))
        if "identity" in generation:
            shown.append(("Identity", number(generation["identity"]["value"]), "1 = as real clips"))
        shown.append(("Motion amount", number(generation["pixel_motion_amount"]["value"]), "pixels; 1 = as real clips"))
        shown.append(("Jitter", number(generation["temporal_smoothness"]["value"]), "1 = as real clips"))
        shown.append(("Time", f"{number(generation['seconds_per_video'], 2)} s", "per video"))
    if stage1 is not None:
        figure = stage1["reconstruction"]["prediction"]
        shown.append(("Reconstruction", f"{number(figure['psnr'], 1)} dB", f"SSIM {number(figure['ssim'])}"))
        for key, name, better in (("flow_epe_ratio", "Score 1", "lower"), ("warp_recovery", "Score 2", "higher")):
            if key in stage1:
                best = number(stage1[key]["whole_frame_fit"]["value"])
                shown.append((name, number(stage1[key]["value"]), f"{better} is better; best fit {best}"))
    cells = "".join(
        f'<div class="tile"><span class="name">{escape(name)}</span><b>{value}</b><span class="unit">{escape(note)}</span></div>'
        for name, value, note in shown
    )
    return f'<div class="tiles">{cells}</div>'


def generation(figures: dict[str, Any]) -> str:
    """Everything but the distances."""
    rows = [(*row, MEANINGS[row[0]]) for row in generation_rows(figures)]
    return _table((*GENERATION_HEADS, "meaning"), rows, long=True)


def distances(figures: dict[str, Any]) -> str:
    """Frechet and kernel distances of all extractors."""
    note = (
        "A Frechet distance depends on its extractor and on the number of clips: read it beside its floor (one half of the real "
        "clips against the other) and beside its own value at that size. c and s: mean ± standard deviation over classes and "
        "subjects. Intervals are of 95 %."
    )
    rows = [(escape(name), *rest) for name, *rest in distance_rows(figures)]
    table = _table(DISTANCE_HEADS, rows) if rows else "<p>None could be measured; see below why.</p>"
    return f"<p class=soft>{note}</p>{table}"


SCORE_HEADS = ("against exact motion", "value", "best fit, whole frame", "best fit, these pixels", "N")
SCORES = {
    "flow_epe_ratio": "score 1: flow error (lower is better)",
    "warp_recovery": "score 2: reconstruction (higher is better)",
}
_MEASURES = {"l1": ("L1", 4), "psnr": ("PSNR, dB", 2), "ssim": ("SSIM", 4), "perceptual": ("perceptual", 3)}


def stage1(figures: dict[str, Any]) -> str:
    """Reconstruction, scores and visibility."""
    content = _table(*_reconstruction(figures))
    if "flow_epe_ratio" in figures:
        content += _table(SCORE_HEADS, _scores(figures))
    if "visibility_f1" in figures:
        visibility = figures["visibility_f1"]
        rows = [
            (title, *(number(visibility[key][name]) for name in ("visible", "visible_if_all", "hidden")))
            for key, title in (("figure", "figure pixels"), ("all_pixels", "all pixels"))
        ]
        heads = (f"visibility F1 (above {visibility['threshold']:g})", "visible", "if all were called visible", "hidden")
        content += _table(heads, rows)
    return content


def _reconstruction(figures: dict[str, Any]) -> tuple[Sequence[str], list[Sequence[str]]]:
    measures = [name for name in _MEASURES if name in figures["reconstruction"]["prediction"]]
    rows: list[Sequence[str]] = [
        (name, *(number(values[measure], _MEASURES[measure][1]) for measure in measures), str(values["num_clips"]))
        for name, values in figures["reconstruction"].items()
    ]
    return ("frames 1 on", *(_MEASURES[measure][0] for measure in measures), "N"), rows


def _scores(figures: dict[str, Any]) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = []
    for key, title in SCORES.items():
        score = figures[key]
        values = (score["value"], score["whole_frame_fit"]["value"], score["ceiling"]["value"])
        rows.append((title, *(number(value) for value in values), str(score["num_clips"])))
    return rows


def record(results: dict[str, Any]) -> str:
    """Model, data, settings, extractors and versions."""
    parts = []
    for title in ("model", "data", "settings", "versions"):
        rows = [(escape(key), f"<code>{escape(_text(value))}</code>") for key, value in results[title].items()]
        parts.append(f"<h3>{title.capitalize()}</h3>{_table((), rows, long=True)}")
    found = (results["generation"] or {}).get("distances", {}) | (results["generation"] or {}).get("frame_distances", {})
    if found:
        rows = [(escape(name), f"<code>{escape(str(values['sha256']))}</code>") for name, values in found.items()]
        parts.append(f"<h3>SHA-256 of the extractors</h3>{_table((), rows, long=True)}")
    return f"<details><summary>Settings, hashes and versions</summary>{''.join(parts)}</details>"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, long: bool = False) -> str:
    """`long`: the last column holds text, which may wrap."""
    last = ' class="long"' if long else ""

    def row(cells: Sequence[str], tag: str) -> str:
        parts = [f"<{tag}{last if k == len(cells) - 1 else ''}>{cell}</{tag}>" for k, cell in enumerate(cells)]
        return f"<tr>{''.join(parts)}</tr>"

    head = row([escape(title) for title in heads], "th") if heads else ""
    body = "".join(row(cells, "td") for cells in rows)
    return f'<div class="scroll"><table>{head}{body}</table></div>'
