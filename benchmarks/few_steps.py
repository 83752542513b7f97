"""A distilled model against its teacher, by number of steps: quality as `lfdm evaluate` measured it, and time of a call in turns.

    python -m benchmarks.few_steps --teacher TEACHER --evaluations RUNS/*/results.json

stores both in benchmarks/results; `python -m benchmarks.ablation` renders them.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.experiment.tables import RESULTS_DIR, number, summarize, table, with_interval, write_results
from benchmarks.speed.measuring import device_name
from lfdm.folders.model_folder import read_json
from lfdm.folders.sources import bundled_images
from lfdm.pipeline.pipeline import LatentFlowPipeline

RESULTS = RESULTS_DIR / "few-steps-puppets.json"
STEPS = (4, 2, 1)
FLOW_MAP = "flow_map"


def read_row(path: Path) -> dict[str, Any]:
    """Return the figures of the table from a results.json of `lfdm evaluate`."""
    evaluation = read_json(path)
    settings = evaluation["settings"] | evaluation["model"]
    return {
        "distilled": settings["scheduler"] == FLOW_MAP,
        "num_steps": settings["num_inference_steps"],
        "num_clips": settings["num_clips"],
        "guidance_scale": settings["guidance_scale"],
        **summarize(evaluation),
    }


def time_calls(teacher: LatentFlowPipeline, model: LatentFlowPipeline, num_rounds: int) -> dict[str, float]:
    """Return median seconds of processor time of a call for one video, all kinds of calls in turns."""
    calls = {"teacher": (teacher, teacher.config["num_inference_steps"]), **{str(n): (model, n) for n in STEPS}}
    image, seconds = bundled_images("puppets64")[0], {name: [] for name in calls}
    for turn in range(num_rounds + 1):
        for name, (pipe, num_steps) in calls.items():
            start = time.process_time()
            pipe(image, "wave", num_inference_steps=num_steps, generator=0, output_type="uint8")
            if turn > 0:  # the first one warms up
                seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def render_table(results: dict[str, Any]) -> str:
    """Render the table of docs/ablation.md."""
    rows, seconds = results["rows"], results["seconds"]
    cells = [
        [
            f"flow map, {row['num_steps']}" if row["distilled"] else f"teacher, {row['num_steps']}, guided",
            str(row["num_steps"] if row["distilled"] else 2 * row["num_steps"]),
            with_interval(row["distance"]),
            number(row["action_accuracy"], 3),
            number(row["pixel_diversity"], 3),
            number(row["jitter"], 3),
            number(row["motion_amount"], 3),
            number(seconds[str(row["num_steps"]) if row["distilled"] else "teacher"], 2),
        ]
        for row in rows
    ]
    first = rows[0]
    clips = f"{first['num_clips']} held-out clips, seed 0, guidance {first['guidance_scale']:g}"
    real = f"jitter of real clips {number(first['real_jitter'], 3)}, their motion amount is 1"
    calls = f"Seconds of a call for one video, processor time in float32, are medians of {results['num_rounds']} in turns"
    command = "python -m benchmarks.few_steps --teacher TEACHER --evaluations RUNS/*/results.json"
    distance = f"{first['distance_name']} (interval)"
    header = ["model, steps", "predictions", distance, "class accuracy", "pixel diversity", "jitter", "motion amount", "s/video"]
    lines = (
        "## Few steps\n",
        f"`puppets64` is distilled ([decision 40](decisions/0040-few-steps.md)). {clips}; {real}.",
        f"{calls} ({results['machine']}).\n",
        f"`{command}`\n\n{table(header, cells)}",
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Quality and time of a distilled model by number of steps.")
    parser.add_argument("--teacher", required=True, help="pipeline folder or run of stage 2")
    parser.add_argument("--model", default="puppets64", help="what `lfdm train few-steps` made of it")
    parser.add_argument("--evaluations", type=Path, nargs="+", help="results.json of both, the teacher's first")
    parser.add_argument("--num-rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pipes = [LatentFlowPipeline.from_pretrained(name) for name in (options.teacher, options.model)]
    for pipe in pipes:
        pipe.set_progress_bar_config(disable=True)
    results = {
        "machine": device_name(torch.device("cpu")),
        "num_rounds": options.num_rounds,
        "rows": [read_row(path) for path in options.evaluations],
        "seconds": time_calls(pipes[0], pipes[1], options.num_rounds),
    }
    write_results(results, RESULTS)


if __name__ == "__main__":
    main()
