"""The paper's claim on data that anybody can have: motion in a latent flow space against pixels and frame latents, at equal cost.

    python benchmarks/headline.py --dataset puppets64 --out runs/headline-puppets64
    python benchmarks/headline.py --dataset lpc64 --sheets Universal-LPC-spritesheet --out runs/headline-lpc64

Makes the data, plans, trains and judges everything, and writes benchmarks/results/headline-DATASET.json and docs/headline.md. The
same command goes on where it was stopped. With `--only` it runs some stages alone (a method's name, or `plan`, `speed`), so that
several cores can share the work: run `--only plan` first.
"""

import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from comparison import PLAN, SPEED, Comparison
from lfdm.config.presets import get_preset
from lfdm.data.puppets.data_set import write_puppets
from lfdm.data.sprites import write_lpc
from lfdm.evaluation.settings import EvaluationConfig
from lfdm.folders.run_folder import prepare_run
from methods import TRAININGS, ComparisonSettings, is_first_stage
from tables import RESULTS_DIR, minutes, number, read_results, summarize, table, with_interval, write_results

DOCUMENT = Path("docs/headline.md")
INDEX_NAME = "clips.csv"
TITLES = {
    "ours": "ours: motion by diffusion in a latent flow space",
    "vdm": "VDM: diffusion of pixels",
    "vdm-folded": "VDM, 4x4 pixels folded",
    "ldm": "LDM: diffusion of frame latents",
    "copy": "copy: the image in every frame",
    "nearest": "nearest real motion",
}
NOT_CONVERGED = "not converged"


@dataclass(frozen=True, kw_only=True)
class Headline:
    """Train and judge our method and the baselines; the same command resumes."""

    dataset: Literal["puppets64", "lpc64"]
    """Preset and data."""
    out: Path
    """Folder of runs, evaluations and finished stages."""
    data: Path | None = None
    """Clip data set; by default OUT-data beside OUT, made first: 360 puppets, or 300 LPC characters."""
    sheets: Path | None = None
    """LPC sprite sheets, to make the LPC data from."""
    methods: tuple[str, ...] = ("ours", "vdm", "ldm", "copy", "nearest")
    """What is compared; vdm-folded is one more that can be asked for."""
    equal: Literal["time", "clips"] = "time"
    """Equal training time, or equally many clips seen by every diffusion network."""
    budget_minutes: float = 60.0
    """Training time of each method: processor minutes, or minutes where there is a GPU."""
    first_stage_share: float = 0.4
    """Part of it for the first of two stages."""
    clips_seen: int = 0
    """With equal='clips'."""
    num_clips: int | None = 320
    """Held-out clips that all are judged on."""
    only: tuple[str, ...] = ()
    """Methods or stages to run; by default all."""
    threads: int = 1
    """Threads of torch."""
    device: str = "cpu"
    """Of sampling and judging; training takes the GPU if there is one."""
    results: Path = RESULTS_DIR
    """Folder of stored results."""
    document: Path = field(default_factory=lambda: DOCUMENT)
    """The table of all stored results."""


def main() -> None:
    """Run the command line."""
    try:
        run_headline(tyro.cli(Headline, description=__doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"headline: {error}")


def run_headline(command: Headline) -> None:
    """Everything that the command asks for."""
    torch.set_num_threads(command.threads)
    data = command.data if command.data is not None else _make_data(command)
    settings = ComparisonSettings(
        preset=get_preset("flow64"),
        data=data,
        methods=command.methods,
        equal=command.equal,
        budget_minutes=command.budget_minutes,
        first_stage_share=command.first_stage_share,
        clips_seen=command.clips_seen,
        evaluation=EvaluationConfig(num_clips=command.num_clips, num_diversity_clips=0),
    )
    results = compare(settings, command.out, command.only, device=command.device)
    if results is not None:
        name = command.dataset if command.equal == "time" else f"{command.dataset}-equal-clips"
        write_results(results, command.results / f"headline-{name}.json")
        command.document.write_text(render(read_results(command.results, "headline-")))


def _make_data(command: Headline) -> Path:
    """The data set of the preset, made on the first call."""
    folder = command.out.with_name(f"{command.out.name}-data")
    if (folder / INDEX_NAME).is_file():
        return folder
    _say(f"making {folder}")
    if command.dataset == "puppets64":
        write_puppets(folder, num_subjects=360, num_takes=2, test_fraction=1 / 6)
    elif command.sheets is None:
        raise ValueError("--sheets (a folder of LPC sprite sheets) or --data must be given for lpc64")
    else:
        write_lpc(command.sheets, folder, num_characters=300)
    return folder


def compare(settings: ComparisonSettings, out: Path, only: tuple[str, ...] = (), *, device: str = "cpu") -> dict[str, Any] | None:
    """Run the stages that are asked for; the results when every stage is finished, or left out for a reason."""
    prepare_run(out, settings.to_json())
    comparison = Comparison(settings, out, device=device)
    stages = comparison.stages()
    left_out = comparison.folder.run(stages, only, say=_say)
    missing = [stage.name for stage in stages if not comparison.folder.done(stage.name) and stage.name not in left_out]
    if missing:
        _say(f"to be done: {', '.join(missing)}")
        return None
    results = collect(comparison, left_out)
    _say(render([results]))
    return results


def collect(comparison: Comparison, left_out: dict[str, str]) -> dict[str, Any]:
    """The results of a finished comparison."""
    settings, folder = comparison.settings, comparison.folder
    plan, speed = folder.result(PLAN), folder.result(SPEED)
    rows = {m: _row(comparison, m) for m in settings.methods if folder.done(f"evaluate-{m}")}
    for method, row in rows.items():
        row["seconds_per_video"] = speed["seconds_per_video"].get(method)
        row["parameters"] = plan["parameters"].get(method)
    example = folder.result("evaluate-ours")
    mark_converged(rows, example["settings"]["num_clips"], len(example["data"]["labels"]))
    return {
        "settings": settings.to_json(),
        "distance_name": rows["ours"]["distance_name"],
        "rows": rows,
        "left_out": left_out,
        "plan": plan,
        "speed": {key: value for key, value in speed.items() if key != "seconds_per_video"},
        "data": example["data"],
        "real_action_accuracy": example["generation"].get("action_accuracy", {}).get("real_held_out"),
        "evaluation": example["settings"],
        "versions": example["versions"],
    }


def mark_converged(rows: dict[str, dict[str, Any]], num_clips: int, num_labels: int) -> None:
    """Set `converged` of every row: nearer to real clips than copying, and class accuracy beyond that of guessing.

    All still clips look alike to a network that knows actions, so that copying alone is too low a bar. Guessing is an even
    draw among `num_labels`, or copying's accuracy (one and the same answer; labels are not equally many everywhere) where
    that is higher. It is beaten where it lies below the 95 % interval (normal) of `num_clips` draws. None where it is not known.
    """
    limit = rows["copy"]["distance"]
    guessing = max(1 / num_labels, rows["copy"]["action_accuracy"] or 0.0)
    for method, row in rows.items():
        row["converged"] = None
        if method == "copy" or limit is None or row["distance"] is None:
            continue
        row["converged"] = row["distance"]["value"] < limit["value"]
        accuracy = row["action_accuracy"]
        if accuracy is not None:
            margin = 1.96 * math.sqrt(accuracy * (1 - accuracy) / num_clips)
            row["converged"] = row["converged"] and accuracy - margin > guessing


def _row(comparison: Comparison, method: str) -> dict[str, Any]:
    names = [name for name in TRAININGS[method] if method != "nearest" or is_first_stage(name)]  # it takes nothing of the U-Net
    trainings = {name: comparison.folder.result(name) for name in names}
    last = next((values for name, values in trainings.items() if not is_first_stage(name)), None)
    return {
        **summarize(comparison.folder.result(f"evaluate-{method}")),
        "trainings": trainings,
        "training_seconds": sum(values["seconds"] for values in trainings.values()) if trainings else None,
        "clips_seen": last["seen"] if last is not None else None,
    }


def render(all_results: list[dict[str, Any]]) -> str:
    """The document of stored results, and of nothing else."""
    head = (
        "# Flow, pixels or frame latents\n\n"
        "Rendered from benchmarks/results/headline-*.json by `python benchmarks/headline.py`; what each figure means is said in"
        " docs/evaluation.md. Preset and baselines are those of the day on which a table was made: a command that is run today"
        " trains those of today (docs/log.md says what has changed).\n"
    )
    return "\n".join([head, *map(_render_one, all_results)])


def _render_one(results: dict[str, Any]) -> str:
    settings, evaluation, rows = results["settings"], results["evaluation"], results["rows"]
    sampling, share, size = settings["preset"]["diffusion"], settings["first_stage_share"], evaluation["image_size"]
    if settings["equal"] == "time":
        budget = f"equal training time, {settings['budget_minutes']:g} minutes ({share:g} of it for the first of two stages)"
        asked = f"--budget-minutes {settings['budget_minutes']:g}"
    else:
        budget = f"equal clips seen by every diffusion network, {settings['clips_seen']}"
        asked = f"--equal clips --clips-seen {settings['clips_seen']}"
    name = settings["preset"]["name"]
    data = " --sheets DIR" if name == "lpc64" else ""
    real = results.get("real_action_accuracy")  # not in the oldest results
    judge = "" if real is None else f" The classifier names {real:.3f} of the real clips right."
    threads = results["speed"]["num_threads"]
    gamma = settings["preset"]["diffusion_training"]["min_snr_gamma"]
    weights = "every timestep weighs the same" if gamma is None else f"min-SNR weights, gamma {gamma:g}"
    about = (
        f"## {name}: {budget}\n\n"
        f"{evaluation['num_clips']} held-out clips of {results['data']['num_subjects']} subjects, {evaluation['num_frames']}"
        f" frames of {size}x{size}, seed {evaluation['seed']}; {sampling['num_inference_steps']} steps of"
        f" {sampling['scheduler']}, guidance {sampling['guidance_scale']:g}, for every method. Every diffusion network learned"
        f" {sampling['prediction_type']}; {weights}."
        f" Seconds per video on {results['speed']['device']}, {threads} thread{'s'[: threads != 1]}.{judge}\n\n"
        f"`python benchmarks/headline.py --dataset {name}{data} {asked} --methods {' '.join(settings['methods'])} --out DIR`\n\n"
    )
    body = table(
        [
            "method",
            f"{results['distance_name']} (interval)",
            "floor",
            "class accuracy",
            "identity",
            "motion amount",
            "s/video, batch 1 / 8",
            "training",
            "clips seen",
            "parameters",
        ],
        [_render_row(method, row) for method, row in rows.items()],
    )
    lost = f"{NOT_CONVERGED}: does not beat copying the image, or guessing the class, and supports no claim."
    notes = [lost] if _any_lost(rows) else []
    notes += [f"{stage}: left out, {reason}." for stage, reason in results["left_out"].items()]
    return about + body + "".join(f"\n{note}\n" for note in notes)


def _any_lost(rows: dict[str, Any]) -> bool:
    return any(row["converged"] is False for row in rows.values())


def _render_row(method: str, row: dict[str, Any]) -> list[str]:
    seconds, distance = row["seconds_per_video"], row["distance"]
    title = TITLES[method] + (f" ({NOT_CONVERGED})" if row["converged"] is False else "")
    return [
        title,
        with_interval(distance),
        number(distance["floor"]) if distance is not None else "-",
        number(row["action_accuracy"], 3),
        number(row["identity"], 3),
        number(row["motion_amount"]),
        "-" if seconds is None else " / ".join(number(value, 3) for value in seconds.values()),
        minutes(row["training_seconds"]),
        "-" if row["clips_seen"] is None else str(row["clips_seen"]),
        "-" if row["parameters"] is None else f"{row['parameters'] / 1e6:.2f} M",
    ]


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
