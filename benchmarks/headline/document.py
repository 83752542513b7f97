"""Render docs/headline.md from the stored results."""

from typing import Any

from benchmarks.experiment.tables import minutes, number, table, with_interval
from lfdm.config.video import Size

TITLES = {
    "ours": "ours: motion by diffusion in a latent flow space",
    "vdm": "VDM: diffusion of pixels",
    "vdm-folded": "VDM, 4x4 pixels folded",
    "ldm": "LDM: diffusion of frame latents",
    "copy": "the image in every frame",
    "nearest": "nearest real motion",
}
NOT_CONVERGED = "not converged"


def render(all_results: list[dict[str, Any]]) -> str:
    """Render the document."""
    head = (
        "# Flow, pixels or frame latents\n\n"
        "Rendered from benchmarks/results/headline-*.json by `python -m benchmarks.headline`. [evaluation.md](evaluation.md)"
        " defines the figures. Tables show the presets and baselines of their day; the same command today trains today's"
        " ([log.md](log.md) lists the changes).\n"
    )
    return "\n".join([head, *map(_render_one, all_results)])


def _render_one(results: dict[str, Any]) -> str:
    settings, evaluation, rows = results["settings"], results["evaluation"], results["rows"]
    sampling, share, size = settings["preset"]["diffusion"], settings["first_stage_share"], evaluation["image_size"]
    if settings["equal"] == "time":
        budget = f"equal training time, {settings['budget_minutes']:g} minutes ({share:g} of it for the first of two stages)"
        flags = f"--budget-minutes {settings['budget_minutes']:g}"
    else:
        budget = f"equal clips seen by every diffusion network, {settings['clips_seen']}"
        flags = f"--equal clips --clips-seen {settings['clips_seen']}"
    name = results["dataset"]
    data = " --sheets DIR" if name == "lpc" else ""
    real = results.get("real_action_accuracy")  # not in the oldest results
    classifier = "" if real is None else f" The classifier recognises {real:.3f} of the real clips."
    threads = results["speed"]["num_threads"]
    gamma = settings["preset"]["diffusion_training"]["min_snr_gamma"]
    weights = "all timesteps have equal weight" if gamma is None else f"min-SNR weights, gamma {gamma:g}"
    about = (
        f"## {name}: {budget}\n\n"
        f"{evaluation['num_clips']} held-out clips of {results['data']['num_subjects']} subjects, {evaluation['num_frames']}"
        f" frames of {Size.parse(size)}, seed {evaluation['seed']}; {sampling['num_inference_steps']} steps of"
        f" {sampling['scheduler']}, guidance {sampling['guidance_scale']:g}, for every method. Every diffusion network predicts"
        f" {sampling['prediction_type']}; {weights}."
        f" Seconds per video on {results['speed']['device']}, {threads} thread{'s'[: threads != 1]}.{classifier}\n\n"
        f"`python -m benchmarks.headline --dataset {name}{data} {flags} --methods {' '.join(settings['methods'])} --out DIR`\n\n"
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
    explanation = f"*{NOT_CONVERGED}*: does not beat copying the image or guessing the class, and supports no claim."
    notes = [explanation] if _any_lost(rows) else []
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
