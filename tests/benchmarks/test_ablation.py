"""The ablation: its rows, verdicts, and a few stages at miniature size."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.ablation.ablation import Ablation, AblationSettings, ablate
from benchmarks.ablation.document import compare, render, with_earlier_groups
from benchmarks.ablation.rows import codec_rows, regions_of_equal_size, sampling_rows, seeded, stage1_rows, stage2_rows, together
from benchmarks.experiment.tables import write_results
from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.config.presets import FLOW64, Preset
from lfdm.config.serialization import to_json
from lfdm.evaluation.settings import EvaluationConfig
from lfdm.folders.model_folder import read_json
from lfdm.training.stage1 import train_autoencoder


def _changes(one: Any, other: Any, name: str = "") -> Iterator[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in one:
            yield from _changes(one[key], other.get(key), f"{name}.{key}".lstrip("."))
    elif one != other:
        yield name


def test_each_row_changes_what_it_says() -> None:
    rows = {row.name: row for row in stage2_rows(FLOW64)}
    changed = {name: list(_changes(to_json(rows[row.against].preset), to_json(row.preset))) for name, row in rows.items()}
    assert changed == {
        "base": [],
        "raw": ["diffusion.normalize", "diffusion.clamp_to_range"],
        "grid": ["diffusion.codec"],
        "epsilon": ["diffusion.prediction_type"],
        "v-prediction": ["diffusion.prediction_type"],
        "min-snr": ["diffusion_training.min_snr_gamma"],
        "small-batch": ["diffusion_training.optimization.batch_size"],
    }
    again = seeded(rows["raw"], 2)
    assert list(_changes(to_json(rows["raw"].preset), to_json(again.preset))) == ["diffusion_training.optimization.seed"]


def test_codecs_are_compared_with_one_recipe() -> None:
    rows = {row.name: row for row in codec_rows(FLOW64)}
    for row in rows.values():
        changed = list(_changes(to_json(FLOW64), to_json(row.preset)))
        assert all(name.startswith(("name", "unet", "diffusion.codec", "diffusion_training.energy_exponent")) for name in changed)
    assert rows["frames"].preset == FLOW64
    assert rows["learned-1"].preset.diffusion_training.energy_exponent == 1


def test_winning_changes_are_combined() -> None:
    rows = {row.name: row for row in stage2_rows(FLOW64)}
    base, first = rows["base"], rows["v-prediction"]
    (row,) = together(base, [first, rows["small-batch"], rows["epsilon"]])
    expected = replace(first.preset, diffusion_training=rows["small-batch"].preset.diffusion_training)
    assert row.preset == expected  # the better one of the two prediction types
    assert row.against == first.name
    assert row.title.startswith("together: predicts ")
    assert together(base, [first]) == together(base, []) == []


def test_stage1_rows_change_only_stage_1() -> None:
    rows = {row.name: row for row in stage1_rows(FLOW64, Path("vgg16.safetensors"))}
    assert "perceptual" in rows
    assert "perceptual" not in {row.name for row in stage1_rows(FLOW64, None)}
    for row in rows.values():
        changed = list(_changes(to_json(rows[row.against].preset), to_json(row.preset)))
        assert all(name.startswith(("autoencoder", "unet.latent_channels")) for name in changed)
        assert bool(changed) == (row.name != "base")


def test_regions_are_as_large_as_the_dense_model() -> None:
    models = (FLOW64.autoencoder, regions_of_equal_size(FLOW64.autoencoder))
    sizes = [sum(p.numel() for p in LatentFlowAutoencoder(**to_json(model)).parameters()) for model in models]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05)


def test_sampling_rows_are_different() -> None:
    rows = sampling_rows(1.0)
    assert len({(row.guidance_scale, row.num_inference_steps, row.sampler) for row in rows}) == len(rows) == 14
    assert {row.sampler for row in rows} == {None, "euler", "dpmpp_2m", "heun"}


@pytest.mark.parametrize(
    ("value", "interval", "verdict"),
    [(10.0, (9.0, 11.0), "better"), (10.0, (9.0, 20.5), "tie"), (19.5, (19.4, 19.6), "tie"), (30.0, (28.0, 33.0), "worse")],
)
def test_verdicts(value: float, interval: tuple[float, float], verdict: str) -> None:
    figure = {"value": value, "low": interval[0], "high": interval[1]}
    other = {"value": 20.0, "low": 19.0, "high": 21.0}
    assert compare(figure, other, more_is_better=False) == verdict
    mirrored = {"better": "worse", "worse": "better", "tie": "tie"}[verdict]
    assert compare(figure, other, more_is_better=True) == mirrored
    assert compare(None, other, more_is_better=True) == "-"


@pytest.mark.slow
def test_some_rows_at_miniature_size(
    quick_preset: Preset, puppets_dir: Path, quick_evaluation: EvaluationConfig, tmp_path: Path
) -> None:
    train_autoencoder(quick_preset, puppets_dir, tmp_path / "stage1")
    settings = AblationSettings(
        preset=quick_preset,
        data=puppets_dir,
        autoencoder=str(tmp_path / "stage1"),
        budget_minutes=0.01,
        evaluation=quick_evaluation,
    )
    stage2 = ("plan-stage2", "train-base", "evaluate-base", "train-raw", "train-small-batch", "evaluate-raw-weights")
    stage1 = ("plan-stage1", "train-stage1-base", "evaluate-stage1-base", "train-stage1-stride", "evaluate-stage1-stride")
    lines: list[str] = []
    found = ablate(settings, tmp_path / "out", (*stage2, "evaluate-heun-4", *stage1), say=lines.append)
    results = {"dataset": "puppets", **found}
    names = {group: [row["name"] for row in content["rows"]] for group, content in results["groups"].items()}
    assert names == {"stage2": ["base", "raw-weights"], "sampling": ["heun-4"], "stage1": ["base", "stride"]}
    by_name = {row["name"]: row for row in results["groups"]["stage2"]["rows"]}
    assert by_name["raw-weights"]["distance"]["value"] != by_name["base"]["distance"]["value"]
    folder = Ablation(settings, tmp_path / "out").folder
    assert folder.result("train-base")["num_steps"] == folder.result("train-raw")["num_steps"]
    assert folder.result("train-small-batch")["num_steps"] == 3 * folder.result("train-base")["num_steps"]  # of 1 clip, not 3
    stored = tmp_path / "results" / "ablation-puppets.json"
    write_results(results, stored)
    text = render(stored.parent)
    assert text.count("\n### ") == 3
    assert "flow_epe_ratio" in text
    unfinished = Ablation(settings, tmp_path / "out")
    assert unfinished.seed_rows() == unfinished.together_rows() == []  # not all rows are evaluated

    given = replace(settings, sampling_model=str(tmp_path / "out" / "base"))
    sampled = {
        "dataset": "puppets",
        **ablate(given, tmp_path / "given", ("evaluate-as-set", "evaluate-guidance-2"), say=lines.append),
    }
    assert list(sampled["groups"]) == ["sampling"]
    as_set, guided = sampled["groups"]["sampling"]["rows"]
    assert as_set["distance"] == by_name["base"]["distance"]
    assert guided["against"] == "as-set"
    merged = with_earlier_groups(sampled, stored)
    assert merged["groups"] == {**read_json(stored)["groups"], "sampling": sampled["groups"]["sampling"]}
    write_results(merged, stored)
    text = render(stored.parent)
    assert "| as-set: " in text
    assert f"--sampling-model {given.sampling_model} " in text
