"""Decoder adaptation: only the decoder changes, and the run folder becomes a pipeline folder."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lfdm.config.models import AutoencoderConfig
from lfdm.config.predictors import RegionConfig
from lfdm.config.presets import Preset
from lfdm.config.training import AdaptationConfig, OptimizationConfig
from lfdm.errors import UserError
from lfdm.folders.run_folder import find_checkpoints
from lfdm.pipeline.pipeline import LatentFlowPipeline
from lfdm.training.adaptation import DECODER, adapt
from lfdm.training.reports import StepReport
from tests.training.test_processes import FSDP2, TOLERANCES, assert_equal_stages, run_processes

QUICK = AdaptationConfig(
    optimization=OptimizationConfig(num_steps=4, batch_size=2, learning_rate=1e-3, log_steps=1, sample_steps=2)
)
WEIGHTS = "diffusion_pytorch_model.safetensors"


def paper(preset: Preset) -> Preset:
    """The paper's two models at tiny size."""
    autoencoder = AutoencoderConfig(
        channels=8,
        max_channels=16,
        num_downs=1,
        num_res_blocks=1,
        predictor=RegionConfig(num_regions=2, channels=4, flow_channels=4, max_channels=8, depth=2),
    )
    training = replace(preset.autoencoder_training, match_weight=0.0)
    return replace(preset, autoencoder=autoencoder, autoencoder_training=training)


@pytest.fixture(scope="module", params=["own", "paper"])
def model(request: pytest.FixtureRequest, tiny_preset: Preset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline with other batch-norm statistics than a new one."""
    preset = tiny_preset if request.param == "own" else paper(tiny_preset)
    pipe = LatentFlowPipeline.from_preset(preset, ["jump", "wave"])
    for name, buffer in pipe.autoencoder.named_buffers():
        if "running" in name:
            buffer.add_(0.1)
    folder = tmp_path_factory.mktemp("models") / request.param
    pipe.save_pretrained(folder)
    return folder


def test_only_the_decoder_changes(model: Path, puppets_dir: Path, tmp_path: Path) -> None:
    losses: list[float] = []
    out = adapt(model, puppets_dir, tmp_path / "out", QUICK, report=lambda step: losses.append(step.metrics["loss"]))
    assert len(losses) == 4
    before, after = (load_file(folder / "autoencoder" / WEIGHTS) for folder in (model, out))
    raw = load_file(find_checkpoints(out)[-1] / "training.safetensors")
    assert before.keys() == after.keys()
    for weights in (after, {name.removeprefix("model."): value for name, value in raw.items()}):
        changed = {name for name, value in before.items() if weights[name].numpy().tobytes() != value.numpy().tobytes()}
        assert changed == {name for name in before if name.split(".")[0] in DECODER}
    for part in ("unet", "condition", "motion_codec", "scheduler"):
        files = sorted(path.name for path in (model / part).iterdir())
        assert files == sorted(path.name for path in (out / part).iterdir())
        assert all((model / part / name).read_bytes() == (out / part / name).read_bytes() for name in files)


def test_the_run_folder_is_a_pipeline_that_generates_the_same_motion(model: Path, puppets_dir: Path, tmp_path: Path) -> None:
    out = adapt(model, puppets_dir, tmp_path / "out", QUICK)
    assert {"model_index.json", "config.json", "checkpoints", "samples", "metrics.jsonl"} <= {path.name for path in out.iterdir()}
    results = [
        LatentFlowPipeline.from_pretrained(folder)(
            torch.full((3, 32, 32), 0.5),
            "wave",
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        )
        for folder in (model, out)
    ]
    assert torch.equal(results[0].motion.flow, results[1].motion.flow)
    assert not torch.equal(torch.as_tensor(results[0].frames), torch.as_tensor(results[1].frames))


def test_a_stopped_adaptation_is_resumed_exactly(model: Path, puppets_dir: Path, tmp_path: Path) -> None:
    def stop(step: StepReport) -> None:
        if step.step == 3:
            raise KeyboardInterrupt

    often = replace(QUICK, optimization=replace(QUICK.optimization, checkpoint_steps=2))
    with pytest.raises(KeyboardInterrupt):
        adapt(model, puppets_dir, tmp_path / "parts", often, report=stop)
    assert [path.name for path in find_checkpoints(tmp_path / "parts")] == ["step-00000002"]
    with pytest.raises(FileNotFoundError):
        LatentFlowPipeline.from_pretrained(tmp_path / "parts")
    outs = [adapt(model, puppets_dir, tmp_path / name, often) for name in ("parts", "whole", "whole")]  # twice changes nothing
    first, second = (load_file(out / "autoencoder" / WEIGHTS) for out in outs[:2])
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert json.loads((outs[0] / "config.json").read_text())["adaptation"]["optimization"]["num_steps"] == 4
    with pytest.raises(UserError, match=r"adaptation\.l1_weight is 1\.0 there, 2\.0 here"):
        adapt(model, puppets_dir, tmp_path / "parts", replace(often, l1_weight=2.0))


@pytest.mark.slow
def test_two_processes_with_shares_of_the_weights_adapt_as_one(
    model: Path, puppets_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses and weights agree, and the folder is a pipeline; one process repeats the last step and finds the same."""
    config = replace(QUICK, optimization=replace(QUICK.optimization, checkpoint_steps=3))
    adapt(model, puppets_dir, tmp_path / "one", config)
    for name, value in FSDP2.items():
        monkeypatch.setenv(name, value)
    run_processes(2, adapt, model, puppets_dir, tmp_path / "two", config)
    assert_equal_stages(tmp_path / "one", tmp_path / "two", "autoencoder", **TOLERANCES)
    LatentFlowPipeline.from_pretrained(tmp_path / "two")
    shutil.rmtree(find_checkpoints(tmp_path / "two")[-1])
    adapt(model, puppets_dir, tmp_path / "two", config)
    assert_equal_stages(tmp_path / "one", tmp_path / "two", "autoencoder", **TOLERANCES)


def test_losses_are_those_that_reach_the_decoder() -> None:
    losses = AdaptationConfig().losses()
    weights = {name: value for name, value in vars(losses).items() if name.endswith("_weight") and value}
    assert weights == {"l1_weight": 1.0, "inpainted_weight": 0.5}
    assert losses.optimization.learning_rate == 2e-5
    assert losses.mirror_sided_labels  # labels play no part
    with pytest.raises(UserError, match="l1_weight must be positive, or another weight be"):
        AdaptationConfig(l1_weight=0.0, inpainted_weight=0.0)


def test_impossible_adaptations_write_nothing(model: Path, puppets_dir: Path, tmp_path: Path) -> None:
    perceptual = replace(QUICK, perceptual_weight=10.0, perceptual_weights_path=str(tmp_path / "vgg.pth"))
    for arguments in ((tmp_path / "nothing", puppets_dir), (model, tmp_path / "nothing")):
        with pytest.raises(FileNotFoundError, match="nothing"):
            adapt(*arguments, tmp_path / "out", QUICK)
    with pytest.raises(FileNotFoundError, match=r"vgg\.pth"):
        adapt(model, puppets_dir, tmp_path / "out", perceptual)
    assert not (tmp_path / "out").exists()
