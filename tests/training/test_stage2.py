"""Stage-2 training: from a stage-1 model and clips to a folder that the pipeline loads."""

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.condition import text
from lfdm.condition.text import encode_tokens
from lfdm.config.diffusion import DiffusionConfig
from lfdm.config.models import TRACK_CHANNELS, UNetConfig
from lfdm.config.presets import FLOW64, Preset
from lfdm.config.serialization import from_json, to_json
from lfdm.config.training import DiffusionTrainingConfig, with_num_steps
from lfdm.data.augmentation import ColorJitter
from lfdm.data.cache import open_cache
from lfdm.data.frame_indices import uniform_indices
from lfdm.data.index import read_index, write_index
from lfdm.errors import UserError
from lfdm.folders.model_folder import WEIGHTS_NAME, read_tensors
from lfdm.folders.run_folder import find_checkpoints, find_model
from lfdm.motion.codec import FrameCodec
from lfdm.motion.tracks import track_maps
from lfdm.pipeline.pipeline import LatentFlowPipeline
from lfdm.training.batches import BatchRandomness
from lfdm.training.reports import StepReport
from lfdm.training.stage1 import train_autoencoder
from lfdm.training.stage2 import TRACK_LOSS_WEIGHT, DiffusionTask, train_diffusion
from tests.training.test_processes import FSDP2, assert_equal_stages, run_processes

WITHOUT_EFFECT = (".conv1.bias", ".conv2.bias")
"""Biases before norms: their gradient is rounding error, which Adam enlarges."""
GOLDEN = Path(__file__).parents[1] / "golden" / "stage2_curve.json"


@pytest.fixture(scope="module")
def stage1(tiny_preset: Preset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained autoencoder that estimates some motion."""
    folder = tmp_path_factory.mktemp("stage1") / "model"
    torch.manual_seed(0)
    model = LatentFlowAutoencoder(**to_json(tiny_preset.autoencoder))
    with torch.no_grad():
        for parameter in itertools.chain(model.motion_predictor.parameters(), model.buffers()):
            if parameter.is_floating_point():
                parameter.add_(0.05 * torch.randn_like(parameter).abs())
    model.save_pretrained(folder)
    return folder


def with_steps(preset: Preset, num_steps: int, **changes: object) -> Preset:
    training = preset.diffusion_training
    optimization = with_num_steps(training.optimization, num_steps)
    return replace(preset, diffusion_training=replace(training, optimization=optimization, **changes))


def with_panels(preset: Preset) -> Preset:
    """A sample panel every two steps, of videos sampled in two steps."""
    training = preset.diffusion_training
    optimization = replace(training.optimization, sample_steps=2)
    return replace(preset, diffusion_training=replace(training, optimization=optimization, panel_inference_steps=2))


def test_a_run_folder_is_a_pipeline_with_measured_statistics(
    tiny_preset: Preset, puppets_dir: Path, stage1: Path, tmp_path: Path
) -> None:
    metrics = []
    checkpoint = train_diffusion(
        with_panels(with_steps(tiny_preset, 2)),
        puppets_dir,
        stage1,
        tmp_path / "run",
        report=lambda step: metrics.append(step.metrics),
    )
    assert (checkpoint / "unet" / "config.json").is_file()
    assert np.isfinite(metrics[-1]["loss"])
    assert list((tmp_path / "run" / "samples").iterdir())
    pipe = LatentFlowPipeline.from_pretrained(tmp_path / "run")
    assert pipe.condition.labels == ("jump", "wave")
    assert isinstance(pipe.motion_codec, FrameCodec)
    assert pipe.motion_codec.std is not None
    assert min(pipe.motion_codec.std) > 0
    out = pipe(
        torch.rand(3, 32, 32), "wave", num_inference_steps=2, output_type="uint8", generator=torch.Generator().manual_seed(0)
    )
    assert isinstance(out.frames, np.ndarray)
    assert out.frames.shape == (1, 4, 32, 32, 3)
    trained = LatentFlowAutoencoder.from_pretrained(stage1).state_dict()
    for name, value in pipe.autoencoder.state_dict().items():
        assert torch.equal(value, trained[name]), name


def test_the_same_command_makes_the_same_weights(tiny_preset: Preset, puppets_dir: Path, stage1: Path, tmp_path: Path) -> None:
    """Noise, timesteps and dropped conditions are functions of (seed, step); resuming itself is tested in test_loop."""
    folders = [train_diffusion(with_steps(tiny_preset, 3), puppets_dir, stage1, tmp_path / name) for name in ("a", "b")]
    first, second = (read_tensors(folder / "training.safetensors") for folder in folders)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_gradient_checkpointing_changes_no_weight_and_may_be_enabled_later(
    tiny_preset: Preset, puppets_dir: Path, stage1: Path, tmp_path: Path
) -> None:
    kept, computed_again = (with_steps(tiny_preset, 2, gradient_checkpointing=on) for on in (False, True))
    folders = [train_diffusion(kept, puppets_dir, stage1, tmp_path / "kept")]
    folders.append(train_diffusion(computed_again, puppets_dir, stage1, tmp_path / "again"))
    one, other = (read_tensors(folder / "training.safetensors") for folder in folders)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert train_diffusion(computed_again, puppets_dir, stage1, tmp_path / "kept") == folders[0]


def test_micro_batches_see_the_same_samples_and_noise(
    tiny_preset: Preset, puppets_dir: Path, stage1: Path, tmp_path: Path
) -> None:
    preset = with_steps(tiny_preset, 2, condition_dropout=0.5, min_snr_gamma=5.0)
    training = preset.diffusion_training
    divided = replace(training, optimization=replace(training.optimization, micro_batch_size=2))
    whole = train_diffusion(preset, puppets_dir, stage1, tmp_path / "whole")
    parts = train_diffusion(replace(preset, diffusion_training=divided), puppets_dir, stage1, tmp_path / "parts")
    expected, actual = (read_tensors(folder / "training.safetensors") for folder in (whole, parts))
    for name, value in expected.items():
        if name.startswith("exp_avg."):  # a mean of gradients
            torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-6)
    assert train_diffusion(preset, puppets_dir, stage1, tmp_path / "parts") == parts  # a resumed run may change it


def test_a_stopped_training_continues_bit_for_bit(tiny_preset: Preset, puppets_dir: Path, stage1: Path, tmp_path: Path) -> None:
    """Stopped in the middle of an epoch, after the checkpoint, with two loader workers."""
    preset = with_steps(tiny_preset, 7)
    optimization = replace(preset.diffusion_training.optimization, checkpoint_steps=3, log_steps=1, num_workers=2)
    preset = replace(preset, diffusion_training=replace(preset.diffusion_training, optimization=optimization))

    def stop(report: StepReport) -> None:
        if report.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_diffusion(preset, puppets_dir, stage1, tmp_path / "stopped", report=stop)
    assert [path.name for path in find_checkpoints(tmp_path / "stopped")] == ["step-00000003"]
    folders = [train_diffusion(preset, puppets_dir, stage1, tmp_path / name) for name in ("stopped", "whole")]
    for file in ("training.safetensors", "unet/diffusion_pytorch_model.safetensors"):
        first, second = (read_tensors(folder / file) for folder in folders)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_resumed_run_keeps_its_stage_1_and_its_statistics(
    tiny_preset: Preset, puppets_dir: Path, stage1: Path, tmp_path: Path
) -> None:
    """Even if the stage 1 that it started with has been trained further in place."""
    preset = with_steps(tiny_preset, 4)
    optimization = replace(preset.diffusion_training.optimization, checkpoint_steps=2, log_steps=1)
    preset = replace(preset, diffusion_training=replace(preset.diffusion_training, optimization=optimization))

    def stop(report: StepReport) -> None:
        if report.step == 3:
            raise KeyboardInterrupt

    whole = train_diffusion(preset, puppets_dir, stage1, tmp_path / "whole")
    shutil.copytree(stage1, tmp_path / "changing")
    with pytest.raises(KeyboardInterrupt):
        train_diffusion(preset, puppets_dir, tmp_path / "changing", tmp_path / "run", report=stop)
    other = LatentFlowAutoencoder.from_pretrained(tmp_path / "changing")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    other.save_pretrained(tmp_path / "changing")
    resumed = train_diffusion(preset, puppets_dir, tmp_path / "changing", tmp_path / "run")
    assert (resumed / "unet" / WEIGHTS_NAME).read_bytes() == (whole / "unet" / WEIGHTS_NAME).read_bytes()


def test_motion_can_be_estimated_at_every_step(tiny_preset: Preset, puppets_dir: Path, stage1: Path, tmp_path: Path) -> None:
    preset = replace(tiny_preset, diffusion=DiffusionConfig(normalize=False, clamp_to_range=False))
    preset = with_steps(preset, 2, cache_motion=False)
    train_diffusion(preset, puppets_dir, stage1, tmp_path / "run")
    codec = LatentFlowPipeline.from_pretrained(tmp_path / "run").motion_codec
    assert isinstance(codec, FrameCodec)
    assert codec.mean is None


@pytest.mark.parametrize(
    ("preset_changes", "training_changes", "message"),
    [
        (
            {"diffusion": DiffusionConfig(condition="text", text_encoder="./no-such-folder")},
            {},
            "'./no-such-folder' is not available",
        ),
        (
            {"diffusion": DiffusionConfig(prediction_type="epsilon", sampler="ddim", num_inference_steps=1000)},
            {},
            "num_inference_steps must be a whole number from 1 to 995; got 1000",
        ),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_written(
    preset_changes: dict[str, object],
    training_changes: dict[str, object],
    message: str,
    tiny_preset: Preset,
    puppets_dir: Path,
    stage1: Path,
    tmp_path: Path,
) -> None:
    preset = replace(with_steps(tiny_preset, 2, **training_changes), **preset_changes)
    with pytest.raises(UserError, match=message):
        train_diffusion(preset, puppets_dir, stage1, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_random_backgrounds_for_opaque_clips_are_refused(
    tiny_preset: Preset, puppets_dir: Path, stage1: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"^background must be white"):
        train_diffusion(with_steps(tiny_preset, 1, background="random"), puppets_dir, stage1, tmp_path / "run")


def test_the_first_steps_follow_the_recorded_curve(
    tiny_preset: Preset, moving_squares: Path, stage1: Path, tmp_path: Path
) -> None:
    """Fails if a change affects the numerics; record the new curve (in the message) only if that was intended."""
    golden = json.loads(GOLDEN.read_text())
    preset = replace(
        tiny_preset,
        unet=from_json(UNetConfig, golden["unet"]),
        diffusion=from_json(DiffusionConfig, golden["diffusion"]),
        diffusion_training=from_json(DiffusionTrainingConfig, golden["diffusion_training"]),
    )
    reports: list[StepReport] = []
    train_diffusion(preset, moving_squares, stage1, tmp_path / "run", report=reports.append)
    curve = {name: [report.metrics[name] for report in reports] for name in golden["curve"]}
    for name, expected in golden["curve"].items():
        np.testing.assert_allclose(curve[name], expected, rtol=2e-3, atol=1e-5, err_msg=f"{name}: {json.dumps(curve)}")
    assert np.mean(curve["loss"][-4:]) < np.mean(curve["loss"][:4])


# ------------------------------------------------------------------------------------------------------ conditions


def relabelled(data: Path, root: Path, label_of: dict[str, str]) -> Path:
    """The clips of `data` under other labels."""
    shutil.copytree(data, root, ignore=shutil.ignore_patterns(".cache"))
    write_index(root, [replace(record, label=label_of.get(record.label, record.label)) for record in read_index(data)])
    return root


def null_of(folder: Path) -> torch.Tensor:
    return read_tensors(folder / "condition" / "diffusion_pytorch_model.safetensors")["null"]


def test_text_conditions_are_embedded_once_and_stored(
    tiny_preset: Preset, puppets_dir: Path, stage1: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    diffusion = replace(tiny_preset.diffusion, condition="text", text_encoder=str(tiny_bert))
    preset = replace(with_steps(tiny_preset, 2), diffusion=diffusion, unet=replace(tiny_preset.unet, condition_dim=16))
    train_diffusion(preset, puppets_dir, stage1, tmp_path / "run")
    pipe = LatentFlowPipeline.from_pretrained(tmp_path / "run")
    assert pipe.condition.labels == ("jump", "wave")
    assert pipe.condition.text_encoder == str(tiny_bert)
    assert torch.equal(pipe.embed_condition(["jump", "wave"]), encode_tokens(["jump", "wave"], tiny_bert).mean())
    assert torch.equal(pipe.embed_condition(None), torch.zeros(1, 16))
    text._load.cache_clear()
    moved = tiny_bert.rename(tiny_bert.with_name("moved"))  # a stopped run does not need the text encoder again
    try:
        train_diffusion(with_steps(preset, 3), puppets_dir, stage1, tmp_path / "run")
    finally:
        moved.rename(tiny_bert)
    with pytest.raises(UserError, match=r"unet\.condition_dim must be 16, as .* gives; got 8"):
        train_diffusion(replace(preset, unet=tiny_preset.unet), puppets_dir, stage1, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_learned_null_is_trained_averaged_and_resumed_exactly(
    tiny_preset: Preset, puppets_dir: Path, stage1: Path, tmp_path: Path
) -> None:
    def preset(num_steps: int, learning_rate: float = 1e-2) -> Preset:
        changed = with_steps(tiny_preset, num_steps, condition_dropout=0.5)
        training = changed.diffusion_training
        optimization = replace(training.optimization, learning_rate=learning_rate, schedule="constant", warmup_steps=0)
        diffusion = replace(changed.diffusion, learned_null=True)
        return replace(changed, diffusion=diffusion, diffusion_training=replace(training, optimization=optimization))

    whole = train_diffusion(preset(5), puppets_dir, stage1, tmp_path / "whole")
    train_diffusion(preset(3), puppets_dir, stage1, tmp_path / "parts")
    parts = train_diffusion(preset(5), puppets_dir, stage1, tmp_path / "parts")
    first, second = (read_tensors(folder / "training.safetensors") for folder in (whole, parts))
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert first["condition-exp_avg.null"].abs().sum() > 0
    start = null_of(tmp_path / "whole" / "model")
    assert not torch.allclose(first["condition-model.null"], start)
    averaged = null_of(whole)
    assert not torch.equal(averaged, first["condition-model.null"])
    pipe = LatentFlowPipeline.from_pretrained(tmp_path / "parts")  # the newest, not that of the beginning
    assert torch.equal(pipe.embed_condition(None)[0], averaged)
    pipe.save_pretrained(tmp_path / "saved")
    assert torch.equal(LatentFlowPipeline.from_pretrained(tmp_path / "saved").condition.null, averaged)


def test_learned_pooling_of_text_is_trained_with_the_unet(
    tiny_preset: Preset, puppets_dir: Path, stage1: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    diffusion = replace(tiny_preset.diffusion, condition="text", text_encoder=str(tiny_bert), text_pooling="attention")
    preset = replace(with_steps(tiny_preset, 2), diffusion=diffusion, unet=replace(tiny_preset.unet, condition_dim=16))
    checkpoint = train_diffusion(preset, puppets_dir, stage1, tmp_path / "run")
    assert read_tensors(checkpoint / "training.safetensors")["condition-exp_avg.query"].abs().sum() > 0
    loaded = LatentFlowPipeline.from_pretrained(tmp_path / "run").condition
    assert loaded.query.abs().sum() > 0
    assert not torch.equal(loaded.encode(["wave"]), encode_tokens(["wave"], tiny_bert).mean())


def test_without_a_learned_null_a_checkpoint_holds_only_the_unet(
    tiny_preset: Preset, puppets_dir: Path, stage1: Path, tmp_path: Path
) -> None:
    checkpoint = train_diffusion(with_steps(tiny_preset, 1), puppets_dir, stage1, tmp_path / "run")
    assert sorted(path.name for path in checkpoint.iterdir()) == ["state.json", "training.safetensors", "unet"]
    assert not any("condition-" in name for name in read_tensors(checkpoint / "training.safetensors"))


def make_task(preset: Preset, data: Path, stage1: Path, names: list[str], tmp_path: Path) -> DiffusionTask:
    records = [record for record in read_index(data) if record.split == "train"]
    clips = open_cache(data, records, preset.image_size, preset.fit, tmp_path / "cache")
    pipe = LatentFlowPipeline.from_preset(preset, names)
    pipe.autoencoder = LatentFlowAutoencoder.from_pretrained(stage1)
    return DiffusionTask(pipe, preset.diffusion_training, clips, None)


def test_cells_next_to_tracks_weigh_more(tiny_preset: Preset, puppets_dir: Path, stage1: Path, tmp_path: Path) -> None:
    task = make_task(tiny_preset, puppets_dir, stage1, ["wave", "jump"], tmp_path)
    clean = torch.zeros(2, 3, 4, 8, 8)
    assert task.entry_weights(clean) is None
    maps = torch.zeros(2, TRACK_CHANNELS, 4, 8, 8)
    plain = task.entry_weights(clean, maps)
    assert plain is not None
    assert (plain == 1).all()
    maps[1] = track_maps(torch.tensor([[0.1, 0.1]]), torch.tensor([[0.1, 0.1]]), torch.tensor([2]), (4, 8, 8))
    weights = task.entry_weights(clean, maps)
    assert weights is not None
    assert (weights[0] == 1).all()
    assert weights[1, 0, 2, 4, 4] == weights.max() == 1 + TRACK_LOSS_WEIGHT


def test_dropped_conditions_and_the_label_none_train_the_null_condition(
    tiny_preset: Preset, puppets_dir: Path, stage1: Path, tmp_path: Path
) -> None:
    data = relabelled(puppets_dir, tmp_path / "data", {"jump": "None"})
    task = make_task(with_steps(tiny_preset, 1, condition_dropout=0.1), data, stage1, ["wave"], tmp_path)
    label = torch.arange(len(task.clips.labels)).repeat(1000)
    randomness = BatchRandomness.of_whole_batch(torch.Generator().manual_seed(0), len(label))
    rows = task.drop_conditions(label, randomness)
    named_none = torch.tensor([name == "None" for name in task.clips.labels])[label]
    assert named_none.any()
    assert (rows[named_none] == -1).all()
    assert float((rows[~named_none] == -1).float().mean()) == pytest.approx(0.1, abs=0.02)
    assert set(rows[~named_none].tolist()) == {-1, 0}
    embeddings = task.module.condition.look_up(torch.tensor([-1, 0]))
    assert torch.equal(embeddings, task.pipeline.embed_condition([None, "wave"]))
    train_diffusion(with_steps(tiny_preset, 1), data, stage1, tmp_path / "run")
    assert LatentFlowPipeline.from_pretrained(tmp_path / "run").condition.labels == ("wave",)


def test_an_unconditional_model_has_no_labels(tiny_preset: Preset, puppets_dir: Path, stage1: Path, tmp_path: Path) -> None:
    train_diffusion(with_panels(with_steps(tiny_preset, 2, condition_dropout=1.0)), puppets_dir, stage1, tmp_path / "run")
    assert list((tmp_path / "run" / "samples").iterdir())
    pipe = LatentFlowPipeline.from_pretrained(tmp_path / "run")
    assert pipe.condition.labels == ()
    options: dict[str, Any] = {"num_inference_steps": 1, "output_type": "uint8"}
    assert np.asarray(pipe(torch.rand(3, 32, 32), None, **options).frames).shape == (1, 4, 32, 32, 3)
    with pytest.raises(UserError, match="this model has no labels"):
        pipe(torch.rand(3, 32, 32), "wave", **options)


# ----------------------------------------------------------------------------------------------------- paper's target


def test_the_paper_target_is_the_absolute_grid_of_all_frames_jittered_alike(
    tiny_preset: Preset, puppets_dir: Path, stage1: Path, tmp_path: Path
) -> None:
    """METHOD 4: motion of every frame (frame 0 too) against the clip's jittered first frame, stage 1 in evaluation mode."""
    diffusion = replace(tiny_preset.diffusion, codec="grid", normalize=False, clamp_to_range=False, still_first_frame=False)
    preset = replace(tiny_preset, diffusion=diffusion)
    preset = with_steps(preset, 1, color_jitter=(64 / 255, 0.25, 0.25, 0.04), cache_motion=False)
    task = make_task(preset, puppets_dir, stage1, ["jump", "wave"], tmp_path)
    sample = task.dataset[3, 1]
    clip = task.clips.clip(1)[uniform_indices(task.clips.num_frames(1), 4)]
    rng = np.random.default_rng((0, 3))
    rng.random()  # the draw of the flip, which has probability 0
    amounts = ColorJitter(amounts=(64 / 255, 0.25, 0.25, 0.04), random_order=False).apply(clip, rng)
    assert not np.array_equal(amounts, clip)
    np.testing.assert_array_equal(sample["video"].permute(1, 2, 3, 0).numpy(), amounts)
    batch = {"video": sample["video"][None], "label": torch.tensor([sample["label"]])}
    autoencoder = task.pipeline.autoencoder
    assert not any(layer.training for layer in autoencoder.modules())
    with torch.no_grad():
        clean, latent = task.observe(batch, torch.device("cpu"))
        video = sample["video"][None].float() / 255
        motion = autoencoder.estimate_motion(video[:, :, 0], video)
        torch.testing.assert_close(latent, autoencoder.encode(video[:, :, 0]).latent)
    torch.testing.assert_close(clean[:, :2], motion.grid().permute(0, 4, 1, 2, 3))
    torch.testing.assert_close(clean[:, 2:], 2 * motion.occlusion - 1)


def test_training_may_start_from_the_bundled_model(puppets_dir: Path, tmp_path: Path) -> None:
    """Its preset with the size of the test's clips, 32x32, 6 frames; the model predicts v, and is distilled."""
    preset = replace(
        with_steps(FLOW64, 1), image_size=32, num_frames=6, diffusion=DiffusionConfig(prediction_type="v_prediction")
    )
    optimization = replace(preset.diffusion_training.optimization, batch_size=2, learning_rate=1e-9)
    preset = replace(preset, diffusion_training=replace(preset.diffusion_training, optimization=optimization))
    train_diffusion(preset, puppets_dir, "puppets64", tmp_path / "run", init="puppets64")
    bundled, trained = (LatentFlowPipeline.from_pretrained(name) for name in ("puppets64", tmp_path / "run"))
    assert trained.condition.labels == ("jump", "wave")
    assert not trained.unet.flow_map
    assert trained.unet.max_guidance is None
    assert trained.scheduler.sampler == "dpmpp_2m"
    assert torch.equal(trained.embed_condition(["wave", "jump"]), bundled.embed_condition(["wave", "jump"]))
    assert torch.equal(trained.autoencoder.final.weight, bundled.autoencoder.final.weight)
    new, old = (pipe.unet.get_parameter("motion_in.weight") for pipe in (trained, bundled))
    torch.testing.assert_close(new, old, atol=1e-6, rtol=0)


def test_a_stage_1_with_other_settings_is_refused(tiny_preset: Preset, puppets_dir: Path, stage1: Path, tmp_path: Path) -> None:
    other = replace(tiny_preset, autoencoder=replace(tiny_preset.autoencoder, num_res_blocks=2))
    with pytest.raises(UserError, match="num_res_blocks is 1 there, 2 here"):
        train_diffusion(other, puppets_dir, stage1, tmp_path / "run")


def test_stage_1_may_start_from_a_stage_2_run(tiny_preset: Preset, puppets_dir: Path, stage1: Path, tmp_path: Path) -> None:
    train_diffusion(with_steps(tiny_preset, 1), puppets_dir, stage1, tmp_path / "first")
    optimization = replace(tiny_preset.autoencoder_training.optimization, num_steps=1, learning_rate=1e-30)
    still = replace(tiny_preset, autoencoder_training=replace(tiny_preset.autoencoder_training, optimization=optimization))
    train_autoencoder(still, puppets_dir, tmp_path / "second", init=tmp_path / "first")
    before, after = (read_tensors(find_model(run, "autoencoder") / WEIGHTS_NAME) for run in (stage1, tmp_path / "second"))
    torch.testing.assert_close(after["final.weight"], before["final.weight"])


def test_training_starts_from_given_weights(tiny_preset: Preset, puppets_dir: Path, stage1: Path, tmp_path: Path) -> None:
    train_diffusion(with_steps(tiny_preset, 2), puppets_dir, stage1, tmp_path / "first")
    slow = with_steps(tiny_preset, 1)
    optimization = replace(slow.diffusion_training.optimization, learning_rate=1e-9, seed=5)
    slow = replace(slow, diffusion_training=replace(slow.diffusion_training, optimization=optimization))
    train_diffusion(slow, puppets_dir, stage1, tmp_path / "second", init=tmp_path / "first")
    first, second = (LatentFlowPipeline.from_pretrained(tmp_path / name).unet.state_dict() for name in ("first", "second"))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, atol=1e-6, rtol=0)

    renamed = relabelled(puppets_dir, tmp_path / "renamed", {"jump": "hop"})
    train_diffusion(slow, renamed, stage1, tmp_path / "renamed-run", init=tmp_path / "first")
    known, kept = (LatentFlowPipeline.from_pretrained(tmp_path / name) for name in ("first", "renamed-run"))
    assert kept.condition.labels == ("hop", "wave")
    assert torch.equal(kept.embed_condition("wave"), known.embed_condition("wave"))
    assert (kept.embed_condition("hop") @ known.embed_condition(["jump", "wave"]).T).abs().max() < 1e-4

    train_diffusion(slow, puppets_dir, stage1, tmp_path / "from-unet", init=find_model(tmp_path / "first", "unet"))
    other = replace(tiny_preset, unet=replace(tiny_preset.unet, input_kernel=5))
    with pytest.raises(UserError, match=r"first holds a U-Net .*input_kernel is \d there, 5 here"):
        train_diffusion(other, puppets_dir, stage1, tmp_path / "third", init=tmp_path / "first")
    other = replace(tiny_preset, diffusion=DiffusionConfig(prediction_type="epsilon"))
    trained = tiny_preset.diffusion.prediction_type
    with pytest.raises(UserError, match=f"diffusion.prediction_type must be {trained}, .*; got epsilon"):
        train_diffusion(other, puppets_dir, stage1, tmp_path / "third", init=tmp_path / "first")
    assert not (tmp_path / "third").exists()


def test_a_learned_null_condition_starts_from_given_weights(
    tiny_preset: Preset, puppets_dir: Path, stage1: Path, tmp_path: Path
) -> None:
    preset = with_steps(replace(tiny_preset, diffusion=replace(tiny_preset.diffusion, learned_null=True)), 1)
    train_diffusion(preset, puppets_dir, stage1, tmp_path / "first")
    optimization = replace(preset.diffusion_training.optimization, learning_rate=1e-9, seed=5)
    preset = replace(preset, diffusion_training=replace(preset.diffusion_training, optimization=optimization))
    train_diffusion(preset, puppets_dir, stage1, tmp_path / "second", init=tmp_path / "first")
    first, second = (LatentFlowPipeline.from_pretrained(tmp_path / name).condition.null for name in ("first", "second"))
    torch.testing.assert_close(second, first, atol=1e-6, rtol=0)


def test_a_run_that_was_stopped_before_its_first_checkpoint_still_starts_from_given_weights(
    tiny_preset: Preset, puppets_dir: Path, stage1: Path, tmp_path: Path
) -> None:
    first = train_diffusion(with_steps(tiny_preset, 2), puppets_dir, stage1, tmp_path / "first")
    preset = with_steps(tiny_preset, 2)
    optimization = replace(preset.diffusion_training.optimization, log_steps=1)
    preset = replace(preset, diffusion_training=replace(preset.diffusion_training, optimization=optimization))

    def stop(_: StepReport) -> None:
        raise KeyboardInterrupt

    whole = train_diffusion(preset, puppets_dir, stage1, tmp_path / "whole", init=first)
    with pytest.raises(KeyboardInterrupt):
        train_diffusion(preset, puppets_dir, stage1, tmp_path / "run", init=first, report=stop)
    assert find_checkpoints(tmp_path / "run") == []
    resumed = train_diffusion(preset, puppets_dir, stage1, tmp_path / "run", init=first)
    assert (resumed / "unet" / WEIGHTS_NAME).read_bytes() == (whole / "unet" / WEIGHTS_NAME).read_bytes()
    shutil.rmtree(tmp_path / "first")  # a run with a checkpoint needs it no more
    train_diffusion(with_steps(tiny_preset, 3), puppets_dir, stage1, tmp_path / "run", init=first)
    assert find_checkpoints(tmp_path / "run")[-1].name.endswith("3")


@pytest.mark.slow
def test_two_processes_with_shares_of_the_weights_train_as_one(
    tiny_preset: Preset, puppets_dir: Path, stage1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss curve, weights and averages agree, with panels and gradient checkpointing; one process resumes the run."""
    preset = with_panels(with_steps(tiny_preset, 8, gradient_checkpointing=True))
    optimization = replace(preset.diffusion_training.optimization, batch_size=4, log_steps=1, micro_batch_size=1)
    preset = replace(preset, diffusion_training=replace(preset.diffusion_training, optimization=optimization))

    def work(out: Path, stop_after: int | None = None) -> None:
        train_diffusion(preset, puppets_dir, stage1, out, stop_after=stop_after)

    work(tmp_path / "one")
    for name, value in FSDP2.items():
        monkeypatch.setenv(name, value)
    run_processes(2, work, tmp_path / "two", 5)
    work(tmp_path / "two")
    assert_equal_stages(tmp_path / "one", tmp_path / "two", "unet", WITHOUT_EFFECT)
    assert len(list((tmp_path / "two" / "samples").iterdir())) == len(list((tmp_path / "one" / "samples").iterdir()))
