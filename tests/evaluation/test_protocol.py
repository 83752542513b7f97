"""The whole protocol at tiny size: real puppets, real networks with small random weights."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lfdm.config.presets import Preset
from lfdm.data.index import read_index, write_index
from lfdm.data.puppets.data_set import write_puppets
from lfdm.errors import UserError
from lfdm.evaluation.loading import select_clips
from lfdm.evaluation.protocol import evaluate
from lfdm.evaluation.settings import EvaluationConfig
from lfdm.folders.files import file_sha256
from lfdm.folders.run_folder import find_model
from lfdm.pipeline.pipeline import LatentFlowPipeline
from lfdm.training.stage1 import train_autoencoder


@pytest.fixture(scope="module")
def evaluated(
    model: Path, data: Path, quick: EvaluationConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("out") / "evaluation"
    return evaluate(model, data, out, quick, num_inference_steps=2), out


def test_every_figure_is_there_with_its_number_of_clips(evaluated: tuple[dict[str, Any], Path]) -> None:
    results, _ = evaluated
    stage1, generation = results["stage1"], results["generation"]
    for figure in (stage1["flow_epe_ratio"], stage1["warp_recovery"], *stage1["reconstruction"].values()):
        assert figure["num_clips"] == 12
    assert stage1["flow_epe_ratio"]["num_pixels"] > 50
    assert 0 < stage1["flow_epe_ratio"]["ceiling"]["value"] < stage1["flow_epe_ratio"]["value"]
    assert stage1["warp_recovery"]["value"] < stage1["warp_recovery"]["ceiling"]["value"] < 1.1
    assert set(stage1["reconstruction"]) == {"prediction", "warped", "copy"}
    for figure in (generation["action_accuracy"], generation["frame_0"], generation["motion_amount"]):
        assert figure["num_clips"] == 12
    accuracy = generation["action_accuracy"]
    assert set(accuracy["by_label"]) == {"kick", "walk", "wave"}
    assert 0 <= accuracy["value"] <= 1
    assert 0 <= accuracy["real_held_out"] <= 1
    assert generation["diversity"]["num_clips"] == 3
    assert generation["diversity"]["num_take_pairs"] == 6
    assert generation["diversity"]["value"] > 0
    assert set(results["left_out"]) == {"stage1.reconstruction.perceptual"}
    f1 = stage1["visibility_f1"]
    assert f1["num_clips"] == 12
    assert 0 < f1["figure"]["num_pixels"] < f1["all_pixels"]["num_pixels"] == 12 * 3 * 32 * 32
    assert 0 < f1["all_pixels"]["visible_if_all"] < 1
    assert generation["identity"]["num_subjects"] == 2
    assert generation["temporal_smoothness"]["value"] > 0
    assert generation["pixel_motion_amount"]["generated_energy"] > 0


def test_settings_say_how_it_was_done(evaluated: tuple[dict[str, Any], Path], model: Path) -> None:
    results, _ = evaluated
    settings = results["settings"]
    assert (settings["num_clips"], settings["num_frames"], settings["image_size"]) == (12, 4, 32)
    assert (settings["num_inference_steps"], settings["guidance_scale"], settings["seed"]) == (2, 1.0, 0)
    assert settings["scheduler"] == "dpmpp_2m"
    assert {"autoencoder", "unet"} <= set(results["model"]["weights_sha256"])
    assert all(len(digest) == 64 for digest in results["model"]["weights_sha256"].values())
    assert results["model"]["name"] == str(model)
    assert {"lfdm", "torch", "diffusers", "numpy"} <= set(results["versions"])


def test_files_are_whole(evaluated: tuple[dict[str, Any], Path]) -> None:
    results, out = evaluated
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(results))
    assert sorted(path.name for path in out.iterdir()) == ["cache", "contact-sheet.png", "report.html", "results.json", "samples"]
    assert len(list((out / "samples").glob("*.gif"))) == 3
    with Image.open(out / "contact-sheet.png") as sheet:
        assert sheet.height > 2 * 3 * 64


@pytest.mark.slow
def test_figures_do_not_depend_on_the_batch_size(
    evaluated: tuple[dict[str, Any], Path], model: Path, data: Path, quick: EvaluationConfig, tmp_path: Path
) -> None:
    results, _ = evaluated
    again = evaluate(model, data, tmp_path, replace(quick, batch_size=5), num_inference_steps=2)
    for names in (
        ("stage1", "flow_epe_ratio"),
        ("stage1", "warp_recovery"),
        ("generation", "motion_amount"),
        ("generation", "diversity"),
        ("generation", "identity"),
        ("generation", "temporal_smoothness"),
    ):
        first, second = (r[names[0]][names[1]]["value"] for r in (results, again))
        assert first == pytest.approx(second, rel=1e-3), names
    assert again["stage1"]["flow_epe_ratio"]["num_pixels"] == results["stage1"]["flow_epe_ratio"]["num_pixels"]


def test_only_stage_1_is_evaluated_of_a_run_or_an_autoencoder_folder(
    tiny_preset: Preset,
    evaluated: tuple[dict[str, Any], Path],
    model: Path,
    data: Path,
    tmp_path: Path,
    vgg19: Callable[[Path, tuple[int, ...]], Path],
) -> None:
    vgg = vgg19(tmp_path / "vgg.pth", (4, 4, 8, 8, 8))
    optimization = replace(tiny_preset.autoencoder_training.optimization, num_steps=1)
    preset = replace(tiny_preset, autoencoder_training=replace(tiny_preset.autoencoder_training, optimization=optimization))
    train_autoencoder(preset, data, tmp_path / "run", init=model)
    of_run = evaluate(tmp_path / "run", data, tmp_path / "a", EvaluationConfig(num_ceiling_clips=4, perceptual_weights=str(vgg)))
    assert of_run["generation"] is None
    assert "only stage 1" in of_run["left_out"]["generation"]
    assert of_run["stage1"]["flow_epe_ratio"]["ceiling"]["num_clips"] == 4
    assert of_run["settings"]["num_frames"] == 4
    copied, predicted = (of_run["stage1"]["reconstruction"][name]["perceptual"] for name in ("copy", "prediction"))
    assert copied > 0
    assert predicted > 0
    assert of_run["settings"]["perceptual_weights_sha256"] == file_sha256(vgg)

    longer = tmp_path / "longer"
    write_puppets(longer, num_subjects=1, size=32, num_frames=16, test_fraction=1.0, num_workers=1, num_takes=1)
    for options in ({"guidance_scale": 2.0}, {"num_inference_steps": 4}, {"config": EvaluationConfig(unconditional=True)}):
        with pytest.raises(UserError, match=r"must be left out: .* is only stage 1"):
            evaluate(tmp_path / "run", data, tmp_path / "refused", **options)  # type: ignore[arg-type]
    weights = find_model(tmp_path / "run", "autoencoder")
    of_folder = evaluate(weights, longer, tmp_path / "b", EvaluationConfig(num_ceiling_clips=1))
    assert (of_folder["settings"]["num_frames"], of_folder["settings"]["image_size"]) == (16, 32)
    assert of_folder["model"]["weights_sha256"] == of_run["model"]["weights_sha256"]
    alone = evaluate(model / "autoencoder", data, tmp_path / "c", EvaluationConfig(num_ceiling_clips=1))
    assert alone["model"]["weights_sha256"]["autoencoder"] == evaluated[0]["model"]["weights_sha256"]["autoencoder"]
    assert not (tmp_path / "c" / "contact-sheet.png").exists()
    assert "Stage 1" in (tmp_path / "c" / "report.html").read_text()


def test_what_cannot_be_measured_is_left_out_with_a_reason(
    model: Path, data: Path, quick: EvaluationConfig, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    shutil.copytree(data, root, ignore=shutil.ignore_patterns("*.truth.npz", ".cache"))
    write_index(root, [record for record in read_index(root) if record.split == "test" and record.path.endswith("-0.avi")])
    results = evaluate(model, root, tmp_path / "out", quick, num_inference_steps=2)
    assert set(results["left_out"]) == {
        "stage1.flow_epe_ratio",
        "stage1.warp_recovery",
        "stage1.visibility_f1",
        "stage1.reconstruction.perceptual",
        "generation.action_accuracy",
        "generation.diversity",
        "generation.pixel_diversity",
        "generation.identity",
        "generation.distances.classifier",
        "generation.frame_distances.frames",
    }
    assert "exact motion" in results["left_out"]["stage1.flow_epe_ratio"]
    assert "flow_epe_ratio" not in results["stage1"]
    assert results["generation"]["frame_0"]["num_clips"] == 6


def test_unconditional_generation_leaves_out_what_needs_a_label(
    model: Path, data: Path, quick: EvaluationConfig, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    shutil.copytree(data, root, ignore=shutil.ignore_patterns(".cache"))
    records = read_index(root)
    write_index(root, [replace(record, label="juggle") if record.label == "wave" else record for record in records])
    config = replace(quick, unconditional=True)
    results = evaluate(model, root, tmp_path / "out", config, num_inference_steps=2)  # labels that the model does not know
    assert results["left_out"]["generation.action_accuracy"] == "unconditional: no action is requested"
    assert "action_accuracy" not in results["generation"]
    assert results["generation"]["distances"]["FVD[data-classifier]"]["frechet"]["value"] > 0
    assert (results["settings"]["unconditional"], "guidance_scale" in results["settings"]) == (True, False)
    assert (tmp_path / "out" / "contact-sheet.png").is_file()
    with pytest.raises(UserError, match="guidance_scale must be left out with unconditional=True"):
        evaluate(model, root, tmp_path / "other", config, guidance_scale=2.0)


def test_a_model_without_labels_is_evaluated_unconditional(
    tiny_preset: Preset, data: Path, quick: EvaluationConfig, tmp_path: Path
) -> None:
    LatentFlowPipeline.from_preset(tiny_preset, []).save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="it knows none: evaluate it unconditional"):
        evaluate(tmp_path / "model", data, tmp_path / "out")
    config = replace(quick, unconditional=True, num_clips=8)
    results = evaluate(tmp_path / "model", data, tmp_path / "out", config, num_inference_steps=2)
    assert results["generation"]["motion_amount"]["num_clips"] == 8


def test_clips_are_drawn_by_whole_subjects(tmp_path: Path) -> None:
    write_puppets(tmp_path, num_subjects=3, num_takes=2, size=32, num_frames=2, test_fraction=1.0, truth="none", num_workers=1)
    records = read_index(tmp_path)
    chosen = select_clips(records, 16, 1, where="here")
    assert len(chosen) == 16
    assert len({records[i].subject for i in chosen}) == 1
    assert len({tuple(select_clips(records, 16, seed, where="here")) for seed in range(8)}) > 1
    assert select_clips(records, None, 0, where="here") == select_clips(records, 999, 0, where="here") == list(range(48))


def test_wrong_values_are_refused_before_anything_is_written(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"num_clips": 0}, "num_clips"),
        ({"batch_size": 0}, "batch_size"),
        ({"extractors": ("i3d:a", "i3d:a")}, "extractors must be different"),
        ({"trust_file": True}, "trust_file must be left out"),
    )
    for settings, message in wrong:
        with pytest.raises(UserError, match=message):
            EvaluationConfig(**settings)
    for arguments, message in (
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"sampler": "eulr"}, "sampler must be one of .*; got 'eulr'"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(model, data, out, **arguments)  # type: ignore[arg-type]
    for config in (EvaluationConfig(perceptual_weights=str(tmp_path / "vgg.pth")), EvaluationConfig(extractors=("i3d:no.pt",))):
        with pytest.raises(FileNotFoundError):
            evaluate(model, data, out, config)
    with pytest.raises(FileNotFoundError):
        evaluate(tmp_path / "nothing", data, out)
    with pytest.raises(FileNotFoundError):
        evaluate(model, tmp_path / "nothing", out)
    assert not out.exists()


def test_data_that_does_not_fit_is_refused(model: Path, data: Path, tmp_path: Path) -> None:
    larger = tmp_path / "larger"
    write_puppets(larger, num_subjects=1, num_takes=1, size=48, num_frames=4, test_fraction=1.0, num_workers=1)
    with pytest.raises(UserError, match=r"32x32 pixels.*48x48"):
        evaluate(model, larger, tmp_path / "out")
    strange = tmp_path / "strange"
    shutil.copytree(data, strange, ignore=shutil.ignore_patterns(".cache"))
    records = read_index(strange)
    write_index(strange, [replace(record, label="juggle") if record.label == "wave" else record for record in records])
    with pytest.raises(UserError, match=r"does not know the labels \['juggle'\]"):
        evaluate(model, strange, tmp_path / "out")
    write_index(strange, [record for record in records if record.split == "train"])
    with pytest.raises(UserError, match="no held-out clips"):
        evaluate(model, strange, tmp_path / "out")
