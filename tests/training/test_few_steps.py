"""Distillation of stage 2 to few steps: what it learns, how it resumes, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lfdm.config.presets import Preset
from lfdm.config.training import FewStepsConfig, OptimizationConfig
from lfdm.data.cache import open_cache
from lfdm.data.index import ClipRecord
from lfdm.denoiser.unet3d import MotionUNet3D
from lfdm.errors import UserError
from lfdm.folders.model_folder import read_tensors
from lfdm.folders.run_folder import find_checkpoints
from lfdm.pipeline.pipeline import LatentFlowPipeline
from lfdm.training.batches import BatchRandomness
from lfdm.training.encoded_clips import open_encoded_clips
from lfdm.training.few_steps import FewStepsTask, load_teacher, make_student, train_few_steps
from lfdm.training.loop import train
from tests.training.test_loop import metrics
from tests.training.test_processes import FSDP2, run_processes

OPTIMIZATION = OptimizationConfig(
    num_steps=4, batch_size=4, learning_rate=1e-3, ema_decay=0.0, checkpoint_minutes=1e6, sample_steps=1000
)
CONFIG = FewStepsConfig(optimization=OPTIMIZATION, guidance_steps=2, tangent_warmup_steps=2, instant_fraction=0.5)


@pytest.fixture(scope="module")
def teacher(tiny_preset: Preset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pipe = LatentFlowPipeline.from_preset(tiny_preset, ["jump", "wave"])
    folder = tmp_path_factory.mktemp("teacher") / "model"
    pipe.save_pretrained(folder)
    return folder


def make_task(teacher: Path, records: list[ClipRecord], root: Path, config: FewStepsConfig = CONFIG) -> FewStepsTask:
    pipe = LatentFlowPipeline.from_pretrained(teacher)
    clips = open_cache(root, records, pipe.size, pipe.config["fit"])
    assert isinstance(pipe.unet, MotionUNet3D)
    encoded = open_encoded_clips(pipe.autoencoder, clips, config)
    return FewStepsTask(make_student(pipe, config), pipe.unet, config, clips, encoded)


def batch_of(task: FewStepsTask, size: int) -> dict[str, Any]:
    samples = [task.dataset[i, i % len(task.clips)] for i in range(size)]
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def losses(task: FewStepsTask, step: int, size: int = 4) -> dict[str, float]:
    randomness = BatchRandomness.of_whole_batch(torch.Generator().manual_seed(0), size, step=step)
    with torch.no_grad():
        return {name: float(value) for name, value in task.loss(task.module, batch_of(task, size), randomness).items()}


def test_a_run_is_a_model_that_samples_in_few_steps_with_one_pass_each(teacher: Path, puppets_dir: Path, tmp_path: Path) -> None:
    checkpoint = train_few_steps(teacher, puppets_dir, tmp_path / "run", CONFIG)
    assert (checkpoint / "unet" / "config.json").is_file()
    pipe = LatentFlowPipeline.from_pretrained(tmp_path / "run")
    assert pipe.scheduler.sampler == "flow_map"
    assert pipe.config["num_inference_steps"] == 4
    calls: list[dict[str, Any]] = []
    pipe.unet.register_forward_pre_hook(lambda _, args, kwargs: calls.append({"args": args, **kwargs}), with_kwargs=True)
    options: dict[str, Any] = {"output_type": "uint8", "generator": torch.Generator().manual_seed(0)}
    frames = pipe(torch.rand(3, 32, 32), "wave", guidance_scale=3.0, **options).frames
    assert np.asarray(frames).shape == (1, 4, 32, 32, 3)
    assert len(calls) == 4
    assert [len(call["args"][2]) for call in calls] == [1] * 4  # one condition: no second prediction
    assert {call["guidance"] for call in calls} == {3.0}
    timesteps = [float(call["args"][1]) for call in calls]
    assert [float(call["until"]) for call in calls] == [*timesteps[1:], 0.0]
    with pytest.raises(UserError, match="guidance_scale"):
        pipe(torch.rand(3, 32, 32), "wave", guidance_scale=4.5, **options)
    with pytest.raises(UserError, match="guidance_scale"):
        pipe(torch.rand(3, 32, 32), "wave", guidance_scale=0.5, **options)
    calls.clear()
    pipe(torch.rand(3, 32, 32), "wave", negative_condition="jump", guidance_scale=3.0, **options)
    assert [len(call["args"][2]) for call in calls] == [2] * 4  # away from another condition: both predictions
    assert all("guidance" not in call for call in calls)


def test_a_stopped_training_continues_bit_for_bit(
    teacher: Path, puppet_records: list[ClipRecord], puppets_dir: Path, tmp_path: Path
) -> None:
    whole = train(make_task(teacher, puppet_records, puppets_dir), OPTIMIZATION, tmp_path / "whole")
    train(make_task(teacher, puppet_records, puppets_dir), OPTIMIZATION, tmp_path / "parts", stop_after=3)
    parts = train(make_task(teacher, puppet_records, puppets_dir), OPTIMIZATION, tmp_path / "parts")
    first, second = (read_tensors(folder / "training.safetensors") for folder in (whole, parts))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, FSDP2])
def test_two_processes_train_as_one(
    teacher: Path,
    puppet_records: list[ClipRecord],
    puppets_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, str],
) -> None:
    """Also where only one of them has an interval, for whose target the student makes predictions."""
    config = replace(CONFIG, guidance_steps=0, instant_fraction=0.5)
    optimization = replace(OPTIMIZATION, batch_size=2, log_steps=1)

    def work(out: Path) -> None:
        train(make_task(teacher, puppet_records, puppets_dir, config), optimization, out)

    work(tmp_path / "one")
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    run_processes(2, work, tmp_path / "two")
    one, two = (read_tensors(find_checkpoints(tmp_path / name)[-1] / "training.safetensors") for name in ("one", "two"))
    for name in ("model.heads.0.out.weight", "model.time_embedding.0.weight"):  # not biases before norms, which have no effect
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-4)
    for line, other in zip(*(metrics(tmp_path / name) for name in ("one", "two")), strict=True):
        assert other["loss"] == pytest.approx(line["loss"], abs=1e-4)


def test_micro_batches_have_the_loss_of_the_whole_batch(
    teacher: Path, puppet_records: list[ClipRecord], puppets_dir: Path
) -> None:
    task = make_task(teacher, puppet_records, puppets_dir)
    batch = batch_of(task, 4)
    parts = []
    with torch.no_grad():
        for rows in (slice(0, 4, 2), slice(1, 4, 2)):  # as two processes share it
            randomness = BatchRandomness(torch.Generator().manual_seed(0), 4, rows, 3)
            parts.append(float(task.loss(task.module, {name: value[rows] for name, value in batch.items()}, randomness)["loss"]))
    assert sum(parts) / 2 == pytest.approx(losses(task, 3)["loss"], rel=1e-4)


def test_without_guidance_the_student_already_is_its_teacher(
    teacher: Path, puppet_records: list[ClipRecord], puppets_dir: Path
) -> None:
    near_one = replace(CONFIG, max_guidance=1 + 1e-6)
    found = losses(make_task(teacher, puppet_records, puppets_dir, near_one), 0)
    assert found["instant_error"] == pytest.approx(0.0, abs=1e-9)
    assert found["interval_error"] == 0.0  # the first steps have no intervals
    assert losses(make_task(teacher, puppet_records, puppets_dir), 0)["instant_error"] > 1e-9


@pytest.mark.parametrize("target", ["composed", "derivative"])
def test_steps_on_one_batch_bring_the_student_nearer_to_its_target(
    target: Any, teacher: Path, puppet_records: list[ClipRecord], puppets_dir: Path
) -> None:
    task = make_task(teacher, puppet_records, puppets_dir, replace(CONFIG, target=target, tangent_warmup_steps=0))
    batch, optimizer = batch_of(task, 4), torch.optim.Adam(task.pipeline.unet.parameters(), lr=1e-3)
    history = []
    for _ in range(16):
        randomness = BatchRandomness.of_whole_batch(torch.Generator().manual_seed(0), 4, step=100)
        found = task.loss(task.module, batch, randomness)
        optimizer.zero_grad()
        found["loss"].backward()
        optimizer.step()
        history.append({name: float(value.detach()) for name, value in found.items()})
    assert history[0]["instant_error"] > 0
    assert history[0]["interval_error"] > 0
    assert history[-1]["loss"] < history[0]["loss"] - 0.1
    assert not any(parameter.requires_grad for parameter in task.teacher.parameters())


@pytest.mark.parametrize("change", [{"max_guidance": 1.0}, {"min_snr_gamma": 5.0}, {"guidance_steps": -1}])
def test_settings_that_are_not_allowed_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(change))):
        replace(CONFIG, **change)


def test_a_model_that_predicts_noise_and_changed_settings_are_refused(
    teacher: Path, tiny_preset: Preset, puppets_dir: Path, tmp_path: Path
) -> None:
    noise = replace(tiny_preset, diffusion=replace(tiny_preset.diffusion, prediction_type="epsilon"))
    LatentFlowPipeline.from_preset(noise, ["wave"]).save_pretrained(tmp_path / "noise")
    with pytest.raises(UserError, match="epsilon"):
        load_teacher(tmp_path / "noise")
    with pytest.raises(UserError, match="flow_map"):
        replace(tiny_preset, unet=replace(tiny_preset.unet, flow_map=True))
    train_few_steps(teacher, puppets_dir, tmp_path / "run", CONFIG)
    with pytest.raises(UserError, match="max_guidance"):
        train_few_steps(teacher, puppets_dir, tmp_path / "run", replace(CONFIG, max_guidance=3.0))


def test_a_distilled_model_teaches_by_its_conditional_prediction(teacher: Path, tmp_path: Path) -> None:
    make_student(load_teacher(teacher), CONFIG).save_pretrained(tmp_path / "distilled")
    again = load_teacher(tmp_path / "distilled")
    assert not again.unet.flow_map
    assert again.unet.max_guidance is None
    assert make_student(again, CONFIG).unet.max_guidance == CONFIG.max_guidance


def test_the_flow_map_sampler_needs_a_flow_map(teacher: Path) -> None:
    pipe = LatentFlowPipeline.from_pretrained(teacher)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, sampler="flow_map")
    with pytest.raises(UserError, match="flow_map"):
        pipe(torch.rand(3, 32, 32), "wave", num_inference_steps=2)
