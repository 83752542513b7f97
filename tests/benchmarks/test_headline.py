"""The headline comparison at miniature size, stopped and resumed; documents rendered from the stored results."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.ablation import document as ablation_document
from benchmarks.experiment.tables import RESULTS_DIR, read_results
from benchmarks.headline import comparison as headline
from benchmarks.headline.comparison import PLAN, Comparison
from benchmarks.headline.document import render
from benchmarks.headline.methods import ComparisonSettings
from benchmarks.headline.planning import missing_package
from lfdm.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results(tiny_settings: ComparisonSettings, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run the whole comparison, stopped when our second stage begins and again before the evaluations."""
    out = tmp_path_factory.mktemp("headline") / "run"
    with pytest.MonkeyPatch.context() as patch:

        def stop(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        patch.setattr("benchmarks.headline.comparison.train_diffusion", stop)
        with pytest.raises(KeyboardInterrupt):
            headline.compare(tiny_settings, out)
    trained = {path: path.stat().st_mtime_ns for path in out.glob("*/checkpoints/*/state.json")}
    assert [path.parents[2].name for path in trained] == ["ours-autoencoder"]
    assert headline.compare(tiny_settings, out, ("ours-unet",)) is None  # the evaluations are to be done
    found = headline.compare(tiny_settings, out)
    assert found is not None
    assert all(path.stat().st_mtime_ns == changed for path, changed in trained.items())
    with pytest.raises(UserError, match="budget_minutes"):
        headline.compare(replace(tiny_settings, budget_minutes=1.0), out)
    return found


@pytest.mark.slow
def test_every_method_is_evaluated_or_left_out_with_a_reason(results: dict[str, Any], tiny_settings: ComparisonSettings) -> None:
    left_out = {stage.removeprefix("evaluate-") for stage in results["left_out"]} & set(tiny_settings.methods)
    assert left_out == (set() if missing_package() is None else {"vdm", "ldm"})
    assert all("pip install" in reason for reason in results["left_out"].values())
    assert list(results["rows"]) == [method for method in tiny_settings.methods if method not in left_out]
    for method, row in results["rows"].items():
        assert row["distance"]["low"] <= row["distance"]["value"] <= row["distance"]["high"]
        assert set(row["seconds_per_video"]) == {"1", "8"}
        assert (row["training_seconds"] is None) == (method == "copy")
    assert results["rows"]["copy"]["motion_amount"] == 0
    assert results["rows"]["copy"]["converged"] is None


@pytest.mark.slow
def test_budgets_are_met(results: dict[str, Any], tiny_settings: ComparisonSettings) -> None:
    plan, budget = results["plan"], 60 * tiny_settings.budget_minutes
    seconds = {name: plan["num_steps"][name] * plan["step_seconds"][name] for name in plan["num_steps"]}
    seconds = {name: value + plan["preparation_seconds"].get(name, 0) for name, value in seconds.items()}
    groups = (("ours-autoencoder", "ours-unet"), ("vdm",), ("ldm-autoencoder", "ldm-unet"))
    for group in (group for group in groups if group[0] in seconds):
        assert budget - sum(plan["step_seconds"][n] for n in group) <= sum(seconds[n] for n in group) <= budget


def test_a_baseline_that_does_not_beat_copying_supports_no_claim() -> None:
    (changed,) = read_results(RESULTS_DIR, "headline-puppets")
    row = changed["rows"]["nearest"]
    changed["rows"] |= {"vdm": row | {"converged": False}, "ldm": row | {"converged": True}}
    text = render([changed])
    lines = {line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")}
    assert "VDM: diffusion of pixels (not converged)" in lines
    assert "LDM: diffusion of frame latents" in lines
    assert "supports no claim" in text


@pytest.mark.parametrize(
    ("distance", "accuracy", "converged"),
    [(90.0, 0.3, True), (110.0, 0.3, False), (90.0, 0.13, False), (90.0, None, True), (None, 0.3, None)],
)
def test_converged_means_closer_than_copying_and_better_than_guessing(
    distance: float | None, accuracy: float | None, converged: bool | None
) -> None:
    figure = None if distance is None else {"value": distance}
    rows = {
        "copy": {"distance": {"value": 100.0}, "action_accuracy": 0.125},
        "ours": {"distance": figure, "action_accuracy": accuracy},
    }
    headline.mark_converged(rows, num_clips=320, num_labels=8)
    assert rows["copy"]["converged"] is None
    assert rows["ours"]["converged"] is converged
    if converged:
        rows["copy"]["action_accuracy"] = 0.29  # labels with unequal counts
        headline.mark_converged(rows, num_clips=320, num_labels=8)
        assert rows["ours"]["converged"] is (accuracy is None)


def test_methods_without_their_package_are_left_out(
    tiny_settings: ComparisonSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("planning", "comparison"):
        monkeypatch.setattr(f"benchmarks.headline.{module}.missing_package", lambda: "no such package")
    settings = replace(tiny_settings, methods=("ours", "vdm", "copy"))
    comparison = Comparison(settings, tmp_path)
    said: list[str] = []
    left_out = comparison.folder.run(comparison.stages(), ("plan", "vdm"), say=said.append)
    assert set(comparison.folder.result(PLAN)["num_steps"]) == {"ours-autoencoder", "ours-unet"}
    assert left_out == {"vdm": "no such package", "evaluate-vdm": "no such package"}


@pytest.mark.usefixtures("needs_package")
def test_equal_clips(tiny_settings: ComparisonSettings, tmp_path: Path) -> None:
    settings = replace(tiny_settings, equal="clips", clips_seen=60)
    comparison = Comparison(settings, tmp_path)
    comparison.folder.run(comparison.stages(), (PLAN,), say=lambda _: None)
    steps = comparison.folder.result(PLAN)["num_steps"]
    assert all(steps[n] * settings.batch_size(n) == 60 for n in ("ours-unet", "vdm", "ldm-unet"))
    assert steps["ours-autoencoder"] == steps["ldm-autoencoder"] == settings.preset.autoencoder_training.optimization.num_steps


def test_wrong_settings_are_refused(tiny_settings: ComparisonSettings) -> None:
    with pytest.raises(UserError, match="methods"):
        replace(tiny_settings, methods=("ours", "gan", "copy"))
    with pytest.raises(UserError, match="clips_seen"):
        replace(tiny_settings, equal="clips")


def test_documents_show_the_stored_results() -> None:
    assert (ROOT / "docs" / "headline.md").read_text() == render(read_results(RESULTS_DIR, "headline-"))
    assert (ROOT / "docs" / "ablation.md").read_text() == ablation_document.render(RESULTS_DIR)
