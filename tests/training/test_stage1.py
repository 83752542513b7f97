"""Stage-1 training: exact resume of the real thing, a recorded curve, and how the losses are wired."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.config.models import AutoencoderConfig
from lfdm.config.predictors import RegionConfig
from lfdm.config.presets import Preset
from lfdm.config.serialization import from_json, to_json
from lfdm.config.training import AutoencoderTrainingConfig
from lfdm.data.cache import ClipCache, open_cache
from lfdm.data.index import ClipRecord, write_index
from lfdm.data.video import write_video
from lfdm.errors import UserError
from lfdm.folders.run_folder import find_checkpoints, prepare_run
from lfdm.training.batches import BatchRandomness, micro_batches
from lfdm.training.loop import train
from lfdm.training.reports import StepReport
from lfdm.training.stage1 import AutoencoderTask, train_autoencoder
from tests.full_disk import file_size_limit
from tests.training.test_processes import FSDP2, TOLERANCES, assert_equal_stages, run_processes

GOLDEN = Path(__file__).parents[1] / "golden" / "autoencoder_curve.json"


def with_optimization(preset: Preset, **changes: Any) -> Preset:
    training = preset.autoencoder_training
    return replace(preset, autoencoder_training=replace(training, optimization=replace(training.optimization, **changes)))


def stored(checkpoint: Path) -> dict[str, torch.Tensor]:
    average = load_file(checkpoint / "autoencoder" / "diffusion_pytorch_model.safetensors")
    return load_file(checkpoint / "training.safetensors") | {f"average.{name}": value for name, value in average.items()}


def assert_same_checkpoints(a: Path, b: Path) -> None:
    first, second = stored(a), stored(b)
    assert first.keys() == second.keys()
    assert {name.split(".")[0] for name in first} == {"model", "average", "step", "exp_avg", "exp_avg_sq"}
    assert any(name.endswith("running_var") for name in first)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


# ------------------------------------------------------------------------------------------------------------ resuming


def randomness(seed: int = 0) -> BatchRandomness:
    """For batches of three samples."""
    return BatchRandomness.of_whole_batch(torch.Generator().manual_seed(seed), 3)


def make_task(preset: Preset, cache: ClipCache) -> AutoencoderTask:
    torch.manual_seed(preset.autoencoder_training.optimization.seed)
    return AutoencoderTask(LatentFlowAutoencoder(**to_json(preset.autoencoder)), preset.autoencoder_training, cache)


@pytest.mark.parametrize("precision", ["no", "bf16"])  # bf16 trains in channels_last memory
def test_five_steps_and_five_more_in_mid_epoch_with_two_workers_equal_ten(
    tiny_preset: Preset, puppets_dir: Path, puppet_records: list[ClipRecord], tmp_path: Path, precision: str
) -> None:
    cache = open_cache(puppets_dir, puppet_records, 32, "pad", tmp_path / "cache")
    assert len(cache) % tiny_preset.autoencoder_training.optimization.batch_size != 0  # step 5 is inside an epoch
    preset = with_optimization(tiny_preset, mixed_precision=precision)
    config = preset.autoencoder_training.optimization
    whole = train(make_task(preset, cache), config, tmp_path / "whole")
    with_workers = replace(config, num_workers=2)
    train(make_task(preset, cache), with_workers, tmp_path / "parts", stop_after=5)
    assert_same_checkpoints(train(make_task(preset, cache), with_workers, tmp_path / "parts"), whole)


CHILD = """
import json, sys, time, torch
from pathlib import Path
from lfdm.config.serialization import from_json
from lfdm.config.predictors import RegionConfig
from lfdm.config.presets import Preset
from lfdm.training.stage1 import train_autoencoder

torch.set_num_threads(1)
preset = from_json(Preset, json.loads(sys.argv[1]))

def report(latest):
    if latest.step == 7:
        print("ready", flush=True)
        time.sleep(120)

train_autoencoder(preset, Path(sys.argv[2]), Path(sys.argv[3]), report=report)
"""


@pytest.mark.slow
def test_a_killed_process_is_resumed_by_the_same_call(tiny_preset: Preset, puppets_dir: Path, tmp_path: Path) -> None:
    preset = with_optimization(tiny_preset, checkpoint_steps=5, log_steps=1, num_workers=2)  # step 5 is inside an epoch
    command = [sys.executable, "-c", CHILD, json.dumps(to_json(preset)), str(puppets_dir), str(tmp_path / "killed")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGKILL)
    assert [path.name for path in find_checkpoints(tmp_path / "killed")] == ["step-00000005"]
    resumed = train_autoencoder(preset, puppets_dir, tmp_path / "killed")
    whole = train_autoencoder(preset, puppets_dir, tmp_path / "whole")
    assert_same_checkpoints(resumed, whole)
    lines = [json.loads(line) for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 11))


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, FSDP2], ids=["ddp", "fsdp"])
def test_two_processes_train_as_one(
    tiny_preset: Preset, puppets_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str]
) -> None:
    """Losses, weights, averages and batch-norm statistics agree, with panels; one process resumes the run."""
    preset = with_optimization(tiny_preset, batch_size=4, num_steps=8, log_steps=1, sample_steps=3)

    def work(out: Path, stop_after: int | None = None) -> None:
        train_autoencoder(preset, puppets_dir, out, stop_after=stop_after)

    work(tmp_path / "one")
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    run_processes(2, work, tmp_path / "two", 5)
    work(tmp_path / "two")
    assert_equal_stages(tmp_path / "one", tmp_path / "two", "autoencoder", **TOLERANCES)
    assert len(list((tmp_path / "two" / "samples").iterdir())) == 2


def test_a_full_disk_of_one_process_is_one_line_in_the_other(
    tiny_preset: Preset, puppets_dir: Path, puppet_records: list[ClipRecord], tmp_path: Path
) -> None:
    """Also before the first step."""
    preset = with_optimization(tiny_preset, batch_size=4)

    def work() -> None:
        if os.environ["RANK"] == "0":
            with file_size_limit(0), pytest.raises(OSError, match=r"config\.json"):
                train_autoencoder(preset, puppets_dir, tmp_path / "run")
        else:
            with pytest.raises(UserError, match="another process"):
                train_autoencoder(preset, puppets_dir, tmp_path / "run")

    open_cache(puppets_dir, puppet_records, preset.image_size, preset.fit)  # so that the disk is needed for the run only
    run_processes(2, work)


@pytest.mark.parametrize("in_the_way", ["file", "folder", "below a file", "another run"])
def test_an_out_that_cannot_be_a_run_is_refused_before_clips_are_decoded(
    tiny_preset: Preset, puppet_records: list[ClipRecord], tmp_path: Path, in_the_way: str
) -> None:
    write_index(tmp_path, puppet_records)  # without the clips themselves
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").touch()
    prepare_run(tmp_path / "another run", {"stage": "unet"})
    out = tmp_path / {"below a file": "file/run"}.get(in_the_way, in_the_way)
    with pytest.raises(UserError, match=r"choose another|another --out"):
        train_autoencoder(tiny_preset, tmp_path, out)


def test_an_unreadable_clip_leaves_no_run(tiny_preset: Preset, puppet_records: list[ClipRecord], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_index(tmp_path / "data", puppet_records)
    with pytest.raises(UserError, match="the clip is missing"):
        train_autoencoder(tiny_preset, tmp_path / "data", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_of_other_settings_is_refused(tiny_preset: Preset, puppets_dir: Path, tmp_path: Path) -> None:
    train_autoencoder(with_optimization(tiny_preset, num_steps=1), puppets_dir, tmp_path / "run")
    with pytest.raises(UserError, match=r"autoencoder_training\.optimization\.seed is 0 there, 1 here\. Use them"):
        train_autoencoder(with_optimization(tiny_preset, seed=1), puppets_dir, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["preset"]["name"] == "tiny"


def test_training_may_start_from_trained_weights(tiny_preset: Preset, puppets_dir: Path, tmp_path: Path) -> None:
    first = train_autoencoder(with_optimization(tiny_preset, num_steps=2), puppets_dir, tmp_path / "first")
    still = with_optimization(tiny_preset, num_steps=1, learning_rate=1e-30)
    second = train_autoencoder(still, puppets_dir, tmp_path / "second", init=tmp_path / "first")
    name = "average.final.weight"
    torch.testing.assert_close(stored(second)[name], stored(first)[name])
    shutil.rmtree(tmp_path / "first")  # a run with a checkpoint needs it no more
    longer = with_optimization(tiny_preset, num_steps=2, learning_rate=1e-30)
    assert train_autoencoder(longer, puppets_dir, tmp_path / "second", init=tmp_path / "first") != second


def test_clips_with_alpha_train_over_random_backgrounds(tiny_preset: Preset, tmp_path: Path) -> None:
    frames = np.zeros((4, 32, 32, 4), np.uint8)
    for k, frame in enumerate(frames):
        frame[8:24, 4 + 3 * k : 16 + 3 * k] = (200, 60, 40, 255)
    write_video(tmp_path / "clips" / "a.avi", frames, fps=8)
    record = ClipRecord.describe(frames.shape, path="clips/a.avi", label="go", subject="a", split="train", fps=8)
    write_index(tmp_path, [record])
    preset = with_optimization(tiny_preset, num_steps=2)
    losses: list[list[float]] = []
    white = preset.autoencoder_training
    for training in (white, replace(white, background="random")):
        reports: list[StepReport] = []
        out = tmp_path / f"run-{training.background}"
        train_autoencoder(replace(preset, autoencoder_training=training), tmp_path, out, report=reports.append)
        losses.append([report.metrics["loss"] for report in reports])
    assert losses[0] != losses[1]
    assert {folder.name.endswith("-alpha") for folder in (tmp_path / ".cache").iterdir() if folder.is_dir()} == {True, False}


def test_random_backgrounds_for_opaque_clips_are_refused(tiny_preset: Preset, puppets_dir: Path, tmp_path: Path) -> None:
    training = replace(tiny_preset.autoencoder_training, background="random")
    with pytest.raises(UserError, match=f"^background must be white, .*{puppets_dir}.*got 'random'$"):
        train_autoencoder(replace(tiny_preset, autoencoder_training=training), puppets_dir, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_data_set_without_training_clips_is_refused(tiny_preset: Preset, tmp_path: Path) -> None:
    write_video(tmp_path / "a.avi", np.zeros((2, 32, 32, 3), np.uint8), fps=8)
    record = ClipRecord(path="a.avi", label="wave", subject="a", split="test", frames=2, fps=8.0, width=32, height=32)
    write_index(tmp_path, [record])
    with pytest.raises(UserError, match=r"has no training clips \(split 'train'\)"):
        train_autoencoder(tiny_preset, tmp_path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# -------------------------------------------------------------------------------------------------------------- curve


def test_the_first_steps_follow_the_recorded_curve(tiny_preset: Preset, moving_squares: Path, tmp_path: Path) -> None:
    """Fails where a change moves the numerics: record the new curve (in the message) only if that was intended."""
    golden = json.loads(GOLDEN.read_text())
    preset = replace(
        tiny_preset,
        autoencoder=from_json(AutoencoderConfig, golden["autoencoder"]),
        autoencoder_training=from_json(AutoencoderTrainingConfig, golden["autoencoder_training"]),
    )
    reports: list[StepReport] = []
    train_autoencoder(preset, moving_squares, tmp_path / "run", report=reports.append)
    curve = {name: [report.metrics[name] for report in reports] for name in golden["curve"]}
    for name, expected in golden["curve"].items():
        np.testing.assert_allclose(curve[name], expected, rtol=2e-3, atol=1e-5, err_msg=f"{name}: {json.dumps(curve)}")
    assert curve["loss"][-1] < curve["loss"][0]


# -------------------------------------------------------------------------------------------------------------- losses

ONLY_L1 = {"warped_weight": 0.0, "inpainted_weight": 0.0, "match_weight": 0.0, "smoothness_weight": 0.0, "ssim_weight": 0.0}


@pytest.fixture
def vgg16(tmp_path: Path) -> Path:
    """A perceptual network of the known form, two channels wide."""
    generator = torch.Generator().manual_seed(0)
    names = [f"conv{block}_{i}" for block, count in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, count + 1)]
    state = {}
    for position, name in enumerate(names):
        state[f"{name}.weight"] = torch.randn(2, 2 if position else 3, 3, 3, generator=generator)
        state[f"{name}.bias"] = torch.zeros(2)
    save_file(state, tmp_path / "vgg16.safetensors")
    return tmp_path / "vgg16.safetensors"


def make_regions(preset: Preset) -> AutoencoderConfig:
    return replace(
        preset.autoencoder, predictor=RegionConfig(num_regions=2, channels=4, flow_channels=4, max_channels=8, depth=2)
    )


def test_the_loss_is_the_weighted_sum_of_its_parts(
    tiny_preset: Preset, puppets_dir: Path, puppet_records: list[ClipRecord], tmp_path: Path
) -> None:
    cache = open_cache(puppets_dir, puppet_records, 32, "pad", tmp_path / "cache")
    task = make_task(tiny_preset, cache)
    batch = {name: torch.stack([task.dataset[i, i][name] for i in range(3)]) for name in ("source", "driving")}
    losses = task.loss(task.module, batch, randomness())
    config = tiny_preset.autoencoder_training
    parts = {"l1": 1.0, "warped": 1.0, "inpainted": 0.5, "match": 1.0, "ssim": 0.05, "smoothness": 0.02}
    assert {name: getattr(config, f"{name}_weight") for name in parts} == parts
    assert losses.keys() == {"loss", *parts}
    torch.testing.assert_close(losses["loss"], torch.stack([weight * losses[name] for name, weight in parts.items()]).sum())
    # training starts at the identity: the prediction is the source
    difference = batch["source"].float() / 255 - batch["driving"].float() / 255
    halves = [difference, *(torch.nn.functional.avg_pool2d(difference, size) for size in (2, 4))]
    copying = torch.stack([half.abs().mean() for half in halves]).mean()
    torch.testing.assert_close(losses["warped"], copying)


def test_every_weight_moves_under_the_default_losses(
    tiny_preset: Preset, puppets_dir: Path, puppet_records: list[ClipRecord], tmp_path: Path
) -> None:
    """Also what training on several processes needs: no parameter is left without a gradient."""
    cache = open_cache(puppets_dir, puppet_records, 32, "pad", tmp_path / "cache")
    task = make_task(tiny_preset, cache)
    batch = {name: torch.stack([task.dataset[i, i][name] for i in range(3)]) for name in ("source", "driving")}
    task.loss(task.module, batch, randomness())["loss"].backward()
    assert [name for name, parameter in task.module.named_parameters() if parameter.grad is None] == []


def test_the_regions_model_trains_with_perceptual_and_equivariance_losses(
    tiny_preset: Preset, puppets_dir: Path, tmp_path: Path, vgg16: Path
) -> None:
    training = replace(
        tiny_preset.autoencoder_training,
        optimization=replace(tiny_preset.autoencoder_training.optimization, num_steps=2, log_steps=1, ema_decay=0.0),
        **{**ONLY_L1, "l1_weight": 0.0},
        perceptual_weight=10.0,
        perceptual_weights_path=str(vgg16),
        perceptual_scales=1,
        equivariance_weight=10.0,
    )
    preset = replace(tiny_preset, autoencoder=make_regions(tiny_preset), autoencoder_training=training)
    reports: list[StepReport] = []
    checkpoint = train_autoencoder(preset, puppets_dir, tmp_path / "run", report=reports.append)
    for report in reports:
        values = report.metrics
        assert values["loss"] == pytest.approx(10 * values["perceptual"] + 10 * values["equivariance"], rel=1e-5)
        assert min(values["perceptual"], values["equivariance"]) > 0
    trained = stored(checkpoint)
    assert not any("perceptual" in name or name.startswith("model.conv") for name in trained)  # the network is not ours
    moved = {name for name, value in trained.items() if name.startswith("exp_avg.") and value.abs().sum() > 0}
    for part in ("region_predictor", "background", "final", "first"):
        assert any(part in name for name in moved), part


def test_equivariance_trains_only_the_region_predictor_and_samples_from_the_generator(
    tiny_preset: Preset, puppets_dir: Path, puppet_records: list[ClipRecord], tmp_path: Path
) -> None:
    config = replace(tiny_preset.autoencoder_training, **{**ONLY_L1, "l1_weight": 0.0}, equivariance_weight=2.0)
    preset = replace(tiny_preset, autoencoder=make_regions(tiny_preset), autoencoder_training=config)
    task = make_task(preset, open_cache(puppets_dir, puppet_records, 32, "pad", tmp_path / "cache"))
    task.module.eval()
    batch = {name: torch.stack([task.dataset[i, i][name] for i in range(3)]) for name in ("source", "driving")}
    first, again, other = (task.loss(task.module, batch, randomness(seed))["loss"] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    shares = []
    for rows in micro_batches(3, 2):
        part = {name: value[rows] for name, value in batch.items()}
        same_draws = BatchRandomness(torch.Generator().manual_seed(0), 3, rows)
        shares.append(len(part["source"]) / 3 * task.loss(task.module, part, same_draws)["loss"])
    torch.testing.assert_close(torch.stack(shares).sum(), first)
    first.backward()
    with_gradient = {name for name, p in task.module.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert with_gradient
    assert all("region_predictor" in name for name in with_gradient)


def test_single_frames_learn_the_motion_of_tracked_clips(tiny_preset: Preset, puppets_dir: Path, tmp_path: Path) -> None:
    untaught = with_optimization(tiny_preset, num_steps=20)
    first = train_autoencoder(untaught, puppets_dir, tmp_path / "first")
    weights = {**ONLY_L1, "l1_weight": 0.0, "tracking_distillation_weight": 1.0}
    training = replace(tiny_preset.autoencoder_training, **weights, first_frame_probability=1.0)
    preset = replace(tiny_preset, autoencoder_training=training)
    preset = with_optimization(preset, num_steps=20, log_steps=1, ema_decay=0.0, mixed_precision="no")
    reports: list[StepReport] = []
    train_autoencoder(preset, puppets_dir, tmp_path / "run", init=first, report=reports.append)
    distances = [report.metrics["tracking_distillation"] for report in reports]
    assert distances == [report.metrics["loss"] for report in reports]
    assert np.mean(distances[-5:]) < 0.9 * np.mean(distances[:5])
    with pytest.raises(UserError, match="tracking_distillation_weight needs init"):
        train_autoencoder(preset, puppets_dir, tmp_path / "alone")


@pytest.mark.parametrize(
    ("kind", "weight"),
    [("regions", "match_weight"), ("regions", "tracking_distillation_weight"), ("dense", "equivariance_weight")],
)
def test_a_loss_that_the_predictor_does_not_have_is_refused(tiny_preset: Preset, kind: str, weight: str) -> None:
    model = make_regions(tiny_preset) if kind == "regions" else tiny_preset.autoencoder
    training = replace(tiny_preset.autoencoder_training, **{**ONLY_L1, weight: 1.0})
    with pytest.raises(UserError, match=rf"autoencoder_training\.{weight} must be 0 with the predictor '{kind}'; got 1.0"):
        replace(tiny_preset, autoencoder=model, autoencoder_training=training)


def test_a_missing_perceptual_network_is_named_before_anything_is_written(
    tiny_preset: Preset, puppets_dir: Path, tmp_path: Path
) -> None:
    training: AutoencoderTrainingConfig = replace(
        tiny_preset.autoencoder_training, perceptual_weight=1.0, perceptual_weights_path=str(tmp_path / "vgg.pth")
    )
    with pytest.raises(FileNotFoundError, match=r"vgg\.pth"):
        train_autoencoder(replace(tiny_preset, autoencoder_training=training), puppets_dir, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_panel_shows_source_driving_prediction_warped_flow_and_occlusion(
    tiny_preset: Preset, puppets_dir: Path, puppet_records: list[ClipRecord], tmp_path: Path
) -> None:
    task = make_task(tiny_preset, open_cache(puppets_dir, puppet_records, 32, "pad", tmp_path / "cache"))
    with torch.no_grad():
        picture = task.panel(task.module.eval())
    assert picture.shape == (6 * 32, 6 * 32, 3)
    tiles = picture[:32].reshape(32, 6, 32, 3).transpose(1, 0, 2, 3)
    clip = task.dataset.cache.clip(0)
    np.testing.assert_array_equal(tiles[0], clip[0])
    np.testing.assert_array_equal(tiles[1], clip[3])
    np.testing.assert_array_equal(tiles[3], clip[0])  # training starts at the identity,
    assert (tiles[4] == 255).all()  # with no flow,
    assert (tiles[5] == round(255 / (1 + np.exp(-3)))).all()  # and nearly everything visible
