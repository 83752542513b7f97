"""Render docs/ablation.md from the stored results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import codecs, few_steps
from benchmarks.experiment.tables import minutes, number, read_results, table, with_interval
from lfdm.folders.model_folder import read_json

TIE = "tie"
FIRST_SEED = 0
HEAD = """# What each choice is worth

Rendered from benchmarks/results/ablation-*.json by `python -m benchmarks.ablation`. Every row changes one thing in the row that
the column *against* names. The preset is that of the day of the measurement; changes that won have become the default since
([log.md](log.md)). A *tie* means that one of the two values lies inside the other's interval. Intervals are over clips; other
training seeds move a row, too, as the table of seeds shows. Training is in minutes of processor time; the first row of stage 2
includes estimating the motion that all rows share. Rows ran in parallel, so seconds per video are only indicative. Models are
identified by the hash of their weights and may have been replaced in the bundle since.
"""
GROUPS = {
    "stage2": "Stage 2: one stage 1, one motion cache, one number of clips seen",
    "together": "Stage 2: all winning changes together",
    "seeds": "Stage 2: the two best rows with other seeds",
    "codec": "Stage 2: what is diffused, at equal training time",
    "sampling": "Sampling: one model, no training",
    "stage1": "Stage 1: equal training time",
}
STAGE1_FIGURES = {
    "flow_epe_ratio": ("flow_epe_ratio (lower is better)", 3, False),
    "warp_recovery": ("warp_recovery", 3, True),
    "prediction_psnr": ("prediction, dB", 2, True),
    "warped_psnr": ("warped only, dB", 2, True),
}
"""By name: title, digits, whether more is better."""


def render(folder: Path) -> str:
    """Render the document from the results in a folder."""
    ablations = [part for results in read_results(folder, "ablation-") for part in _render_one(results)]
    distilled = [few_steps.render_table(results) for results in read_results(folder, "few-steps-")]
    compared = [codecs.render_table(results) for results in read_results(folder, "codecs-")]
    return "\n".join([HEAD, *ablations, *distilled, *compared])


def with_earlier_groups(results: dict[str, Any], stored: Path) -> dict[str, Any]:
    """Add the groups of the stored results that are missing in `results`."""
    earlier = read_json(stored)["groups"] if stored.exists() else {}
    groups = {group: results["groups"].get(group, earlier.get(group)) for group in GROUPS}
    return {**results, "groups": {group: content for group, content in groups.items() if content is not None}}


def _render_one(results: dict[str, Any]) -> list[str]:
    groups = results["groups"]
    base = {row["name"]: row for row in groups["stage2"]["rows"]} if "stage2" in groups else {}
    parts = [f"## {results['dataset']}\n"]
    for group, content in groups.items():
        rows = _with_first_seed(content["rows"], base) if group == "seeds" else content["rows"]
        known = ({} if group == "stage1" else base) | {row["name"]: row for row in rows}
        body = _stage1_table(rows, known) if group == "stage1" else _generation_table(rows, known)
        parts.append(f"### {GROUPS[group]}\n\n{_about(results['dataset'], group, content)}\n\n{body}")
    return parts


def _with_first_seed(rows: Sequence[dict[str, Any]], base: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Put the row of the first seed in front of its repetitions with other seeds."""
    repeated = {row["against"]: [other for other in rows if other["against"] == row["against"]] for row in rows}
    return [row for name, others in repeated.items() for row in (*_first_seed(base.get(name)), *others)]


def _first_seed(row: dict[str, Any] | None) -> list[dict[str, Any]]:
    return [] if row is None else [{**row, "title": f"{row['title']}, seed {FIRST_SEED}"}]


def _about(dataset: str, group: str, content: dict[str, Any]) -> str:
    """Render the number of clips, the machine, the training time and the command."""
    settings, evaluation = content["settings"], content["settings"]["evaluation"]
    facts = [f"{evaluation['num_clips'] or 'All'} held-out clips, seed {evaluation['seed']}, on {content['machine']}"]
    options = [f"--dataset {dataset} --data DIR --autoencoder {settings['autoencoder']}"]
    if group == "sampling" and settings["sampling_model"] is not None:
        options.append(f"--sampling-model {settings['sampling_model']}")
        facts.append(f"the model is {settings['sampling_model']}")
    else:
        options.append(f"--budget-minutes {settings['budget_minutes']:g}")
        facts.append(f"{settings['budget_minutes']:g} minutes of training per row")
    if group in ("stage2", "together", "seeds", "codec"):
        facts.append(f"stage 1 is that of {settings['autoencoder']}")
    if group == "stage1" and settings["perceptual_weights"] is not None:
        options.append("--perceptual-weights VGG16")
    if content["weights_sha256"] is not None:
        facts[-1] += f" (weights {content['weights_sha256'][:12]})"
    if evaluation["num_clips"] is not None:
        options.append(f"--num-clips {evaluation['num_clips']}")
    command = f"python -m benchmarks.ablation {' '.join(options)} --only {group} --out DIR"
    return f"{'; '.join(facts)}.\n\n`{command}`"


def compare(figure: dict[str, Any] | None, other: dict[str, Any] | None, *, more_is_better: bool) -> str:
    """Return better, worse, or tie (one value lies inside the other's interval); a dash if one is missing."""
    if figure is None or other is None:
        return "-"
    pairs = ((figure, other), (other, figure))
    if any(None not in (b["low"], b["high"]) and b["low"] <= a["value"] <= b["high"] for a, b in pairs):
        return TIE
    return "better" if (figure["value"] > other["value"]) == more_is_better else "worse"


def _against(row: dict[str, Any], known: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    return known.get(row["against"]) if row["against"] != row["name"] else None


def _generation_table(rows: Sequence[dict[str, Any]], known: dict[str, dict[str, Any]]) -> str:
    cells = []
    varied = any(row.get("pixel_diversity") is not None for row in rows)
    for row in rows:
        other = _against(row, known)
        verdict = compare(row["distance"], other["distance"] if other is not None else None, more_is_better=False)
        cells.append(
            [
                row["title"],
                with_interval(row["distance"]),
                f"{row['against']}: {verdict}" if other is not None else "-",
                number(row["action_accuracy"], 3),
                number(row["identity"], 3),
                number(row["motion_amount"]),
                *([number(row["pixel_diversity"], 3), f"{row['jitter']:.3f} ({row['real_jitter']:.3f})"] if varied else []),
                number(row["seconds_per_video"], 2),
                minutes(row["training"]["seconds"]) if "training" in row else "-",
            ]
        )
    header = ["row", f"{rows[0]['distance_name']} (interval)", "against", "class accuracy", "identity", "motion amount"]
    if varied:
        header += ["pixel diversity", "jitter (real)"]
    return table([*header, "s/video", "training"], cells)


def _stage1_table(rows: Sequence[dict[str, Any]], known: dict[str, dict[str, Any]]) -> str:
    names = [name for name in STAGE1_FIGURES if name in rows[0]["figures"]]
    cells = []
    for row in rows:
        other = _against(row, known)
        line = [row["title"], row["against"] if other is not None else "-"]
        for name in names:
            _, digits, more_is_better = STAGE1_FIGURES[name]
            cell = with_interval(row["figures"][name], digits)
            if other is not None:
                cell += f", {compare(row['figures'][name], other['figures'][name], more_is_better=more_is_better)}"
            line.append(cell)
        training = row.get("training")
        cells.append([*line, str(training["num_steps"]) if training is not None else "-"])
    return table(["row", "against", *(STAGE1_FIGURES[name][0] for name in names), "steps"], cells)
