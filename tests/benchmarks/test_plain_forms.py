"""The plain forms equal the fast ones in values and gradients."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.speed.models import Models, benchmark_preset
from benchmarks.speed.workloads import OPERATIONS, TrainingStep
from lfdm.config.models import AutoencoderConfig
from lfdm.config.predictors import RegionConfig
from lfdm.config.presets import Preset, get_preset

RELATIVE = 1e-5
GRADIENTS = 1e-4
"""Of stage 1: matching and regions pass rounding through softmax and batch norm over few values."""
SAMPLED = 1e-3
"""A sampler feeds rounding back and amplifies it, and an image of noise turns tiny motion into other colours."""
INFERENCE = ("unet_step", "guidance_step", "encode", "decode", "extract", "generate_4")


def distance(one: Tensor, other: Tensor) -> float:
    """Return the root mean square of the difference over the standard deviation of the second."""
    return float((one.double() - other.double()).square().mean().sqrt() / other.double().std())


def tiny_paper() -> Preset:
    """Return a miniature of the paper's preset, with regions and DDPM."""
    preset = get_preset("mug128")
    autoencoder = AutoencoderConfig(
        channels=8,
        max_channels=16,
        num_res_blocks=1,
        predictor=RegionConfig(num_regions=3, channels=4, flow_channels=8, max_channels=16, depth=3),
    )
    unet = replace(preset.unet, latent_channels=16, condition_dim=8, dim=8, channel_multipliers=(1, 2), num_heads=2, head_dim=4)
    training = replace(preset.autoencoder_training, perceptual_weights_path=None, perceptual_weight=0.0, l1_weight=1.0)
    return replace(
        preset, name="tiny-paper", image_size=64, num_frames=3, autoencoder=autoencoder, unet=unet, autoencoder_training=training
    )


def tracking() -> Preset:
    preset = benchmark_preset("tiny")
    predictor = replace(preset.autoencoder.predictor, tracking=20.0)
    return replace(preset, name="tiny-tracking", autoencoder=replace(preset.autoencoder, predictor=predictor))


PRESETS: dict[str, Callable[[], Preset]] = {
    "tiny": lambda: benchmark_preset("tiny"),
    "tiny_paper": tiny_paper,
    "tracking": tracking,
    "flow64": lambda: replace(get_preset("flow64"), num_frames=4),
}


@pytest.fixture(scope="module", params=list(PRESETS))
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Models:
    preset = PRESETS[request.param]()
    return Models(preset, torch.device("cpu"), tmp_path_factory.mktemp(request.param), dtype=torch.float32)


@pytest.mark.parametrize("operation", INFERENCE)
def test_plain_and_fast_inference_agree(models: Models, operation: str):
    calls: dict[str, Any] = OPERATIONS[operation].build(models, 2)
    plain = calls.pop("plain")()
    assert plain.std() > 1e-3
    for name, call in calls.items():
        result = call()
        assert result.shape == plain.shape
        assert distance(result, plain) < (SAMPLED if operation.startswith("generate") else RELATIVE), name


@pytest.mark.parametrize("operation", [*INFERENCE[:-1], "stage2_step", "stage1_step"])
def test_both_forms_run_in_bfloat16(operation: str, tmp_path: Path):
    models = Models(benchmark_preset("tiny"), torch.device("cpu"), tmp_path, dtype=torch.bfloat16)
    calls: dict[str, Any] = OPERATIONS[operation].build(models, 2)
    plain = calls.pop("plain")()
    for name, call in calls.items():
        assert torch.allclose(call().float(), plain.float(), atol=0.2 * float(plain.float().abs().max())), name


def gradients(step: TrainingStep) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss and the gradients by parameter name in our modules."""
    loss = step.loss(step.module)
    loss.backward()
    return loss.detach(), {
        name.removeprefix("unet."): weight.grad for name, weight in step.module.named_parameters() if weight.grad is not None
    }


def test_stage_2_losses_and_gradients_agree(models: Models):
    calls: dict[str, Any] = OPERATIONS["stage2_step"].build(models, 2)
    plain_loss, plain = gradients(calls.pop("plain"))
    sizes = models.preset.unet.sample_channels, models.preset.unet.latent_channels
    motion, latent = plain.pop("conv_in.weight").split([size * models.preset.unet.patch_size**2 for size in sizes], dim=1)
    plain |= {"motion_in.weight": motion, "latent_in.weight": latent, "latent_in.bias": plain.pop("conv_in.bias")}
    for name, step in calls.items():
        loss, found = gradients(step)
        # cached motion is stored in half precision, which the plain step does not round through
        allowed = RELATIVE if name == "uncached" else 5e-3
        assert float(loss) == pytest.approx(float(plain_loss), rel=allowed)
        assert found.keys() == plain.keys()
        whole = torch.cat([found[key].flatten() for key in plain])
        assert distance(whole, torch.cat([value.flatten() for value in plain.values()])) < allowed, name


def test_stage_1_losses_and_gradients_agree(models: Models):
    calls: dict[str, Any] = OPERATIONS["stage1_step"].build(models, 2)
    (fast_loss, fast), (plain_loss, plain) = gradients(calls["fast"]), gradients(calls["plain"])
    assert float(fast_loss) == pytest.approx(float(plain_loss), rel=RELATIVE)
    assert fast.keys() == plain.keys()
    whole = [torch.cat([found[key].flatten() for key in plain]) for found in (fast, plain)]
    assert distance(*whole) < GRADIENTS
