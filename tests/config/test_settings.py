"""Settings: documented, checked, stored and read back."""

import ast
import dataclasses
import importlib
import inspect
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import lfdm.config
from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.config.checks import check_number
from lfdm.config.diffusion import DiffusionConfig
from lfdm.config.models import AutoencoderConfig, UNetConfig
from lfdm.config.predictors import DenseConfig, RegionConfig
from lfdm.config.presets import FLOW64, MUG128, PRESETS, Preset
from lfdm.config.serialization import from_json, to_json
from lfdm.config.training import AutoencoderTrainingConfig, DiffusionTrainingConfig, OptimizationConfig, with_num_steps
from lfdm.config.video import Size
from lfdm.denoiser.unet3d import MotionUNet3D
from lfdm.errors import UserError

STEPS = OptimizationConfig(num_steps=10, batch_size=2, learning_rate=0.1)
MODULES = [importlib.import_module(f"lfdm.config.{name}") for name in lfdm.config.__all__]
CLASSES = [
    cls
    for module in MODULES
    for _, cls in inspect.getmembers(module, inspect.isclass)
    if cls.__module__ == module.__name__ and dataclasses.is_dataclass(cls)
]


def test_neither_settings_nor_presets_import_torch() -> None:
    names = ", ".join(module.__name__ for module in MODULES)
    code = f"import sys, {names}; print(sorted({{'torch', 'diffusers', 'numpy'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_field_has_a_one_line_description() -> None:
    found = 0
    for node in (node for module in MODULES for node in ast.parse(inspect.getsource(module)).body):
        if isinstance(node, ast.ClassDef):
            for statement, after in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(statement, ast.AnnAssign):
                    found += 1
                    name = f"{node.name}.{ast.unparse(statement.target)}"
                    assert isinstance(after, ast.Expr), name
                    assert isinstance(after.value, ast.Constant), name
                    assert isinstance(after.value.value, str), name
                    assert "\n" not in after.value.value, name
    own = [f for cls in CLASSES for f in dataclasses.fields(cls) if f.name in inspect.get_annotations(cls)]
    assert found == len(own) + len(Size._fields) > 80


@pytest.mark.parametrize("cls", CLASSES)
def test_settings_are_frozen_and_keyword_only(cls: type) -> None:
    assert all(field.kw_only for field in dataclasses.fields(cls))
    assert cls.__dataclass_params__.frozen


@pytest.mark.parametrize(("cls", "model"), [(AutoencoderConfig, LatentFlowAutoencoder), (UNetConfig, MotionUNet3D)])
def test_model_settings_are_the_arguments_of_the_models(cls: type, model: type) -> None:
    arguments = inspect.signature(model.__init__).parameters
    taken = {name: argument.default for name, argument in arguments.items() if name != "self"}
    assert to_json(cls()) == taken
    assert all(argument.kind is inspect.Parameter.KEYWORD_ONLY for name, argument in arguments.items() if name != "self")


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
def test_json_round_trip(preset: Preset) -> None:
    assert from_json(Preset, json.loads(json.dumps(to_json(preset)))) == preset
    changed = replace(preset, fps=12, num_frames=7)
    assert from_json(Preset, json.loads(json.dumps(to_json(changed)))) == changed != preset


def test_missing_json_keys_have_their_defaults() -> None:
    assert from_json(UNetConfig, {"dim": 32}) == UNetConfig(dim=32)


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (UNetConfig, {"dims": 3}, "unknown setting 'dims'; did you mean 'dim'?"),
        (OptimizationConfig, {"xyz": 3}, "unknown setting 'xyz'; known: num_steps, batch_size,"),
        (Preset, {"unet": {"head_dims": 3}}, "unknown setting 'unet.head_dims'; did you mean 'unet.head_dim'?"),
        (Preset, {"unet": {"dim": 0}}, "unet.dim must be positive; got 0"),
        (Preset, {"unet": 3}, "missing settings: name, image_size, autoencoder_training, diffusion_training"),
        (OptimizationConfig, {"num_steps": 5}, "missing settings: batch_size, learning_rate"),
        (DiffusionTrainingConfig, {"optimization": 3}, "optimization must be the settings of OptimizationConfig; got 3"),
        (UNetConfig, {"dim": "64"}, "dim must be a whole number; got '64'"),
        (UNetConfig, {"separate_heads": 1}, "separate_heads must be True or False; got 1"),
        (
            UNetConfig,
            {"channel_multipliers": [1, "2"]},
            "channel_multipliers must be a tuple (any number) of: a whole number; got",
        ),
        (
            Preset,
            {"autoencoder": {"predictor": {"type": "sparse"}}},
            "autoencoder.predictor.type must be one of",
        ),
        (
            AutoencoderConfig,
            {"predictor": {"type": "dense", "depth": 3}},
            "unknown setting 'predictor.depth'; known:",
        ),
        (UNetConfig, {"upsample": "cubic"}, "upsample must be one of 'transpose', 'nearest'; got 'cubic'"),
    ],
)
def test_json_of_wrong_keys_or_types_is_refused(cls: type, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        from_json(cls, values)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("make", "field", "allowed"),
    [
        (lambda: replace(STEPS, num_steps=0), "num_steps", "positive; got 0"),
        (lambda: replace(STEPS, num_steps=2.5), "num_steps", "a whole number; got 2.5"),
        (lambda: replace(STEPS, num_steps=True), "num_steps", "a whole number; got True"),
        (lambda: replace(STEPS, batch_size=-1), "batch_size", "positive; got -1"),
        (lambda: replace(STEPS, learning_rate=math.nan), "learning_rate", "a finite number; got nan"),
        (lambda: replace(STEPS, learning_rate=math.inf), "learning_rate", "a finite number; got inf"),
        (lambda: replace(STEPS, betas=(0.9,)), "betas", "a tuple (2) of: a finite number; got (0.9,)"),
        (lambda: replace(STEPS, betas=(0.9, 1.0)), "betas", "two numbers in [0, 1); got (0.9, 1.0)"),
        (lambda: replace(STEPS, ema_decay=1.0), "ema_decay", "in [0, 1); got 1.0"),
        (lambda: replace(STEPS, max_grad_norm=0.0), "max_grad_norm", "positive or None; got 0.0"),
        (lambda: replace(STEPS, mixed_precision="fp16"), "mixed_precision", "one of 'auto', 'no', 'bf16'; got 'fp16'"),
        (lambda: replace(STEPS, schedule="milestones"), "milestones", "given with schedule='milestones', and only"),
        (lambda: replace(STEPS, milestones=(5,)), "milestones", "given with schedule='milestones', and only then"),
        (
            lambda: replace(STEPS, schedule="milestones", milestones=(5, 2)),
            "milestones",
            "in rising order and below",
        ),
        (
            lambda: replace(STEPS, schedule="milestones", milestones=(5, 10)),
            "milestones",
            "in rising order and below",
        ),
        (lambda: replace(STEPS, num_workers=-1), "num_workers", "zero or more; got -1"),
        (lambda: replace(STEPS, warmup_steps=11), "warmup_steps", "at most num_steps (10); got 11"),
        (lambda: AutoencoderConfig(predictor="dense"), "predictor", "the settings of PredictorConfig; got 'dense'"),  # type: ignore[arg-type]
        (lambda: AutoencoderConfig(predictor=DenseConfig()), "corners", "False with the dense predictor"),
        (lambda: replace(MUG128.autoencoder, upsampling="convex"), "upsampling", "'bilinear' with corners=True"),
        (lambda: DenseConfig(channels=(8, 8, 12, 8)), "channels", "4 to 10 multiples of 8"),
        (lambda: DenseConfig(channels=(8, 8, 8)), "channels", "4 to 10 multiples of 8"),
        (lambda: RegionConfig(padding=4), "padding", "0 to 3; got 4"),
        (lambda: RegionConfig(max_channels=32), "max_channels", "at least 64, the first width; got 32"),
        (lambda: UNetConfig(dim=60), "dim", "even, at least 4 and a multiple of num_groups (8); got 60"),
        (lambda: UNetConfig(channel_multipliers=()), "channel_multipliers", "1 to 10 numbers; got ()"),
        (lambda: UNetConfig(spatial_attention_levels=(True,)), "spatial_attention_levels", "4 values, one per level"),
        (lambda: DiffusionConfig(num_inference_steps=2000), "num_inference_steps", "a whole number from 1 to 1000"),
        (lambda: DiffusionConfig(text_pooling="attention"), "text_pooling", "'mean' with condition='labels'; got 'attention'"),
        (lambda: DiffusionConfig(guidance_scale=-1.0), "guidance_scale", "a finite number, 0 to 100; got -1.0"),
        (lambda: UNetConfig(patch_size=0), "patch_size", "positive; got 0"),
        (lambda: UNetConfig(patch_size=101), "patch_size", "at most 100; got 101"),
        (
            lambda: DiffusionConfig(prediction_type="epsilon", dynamic_thresholding=True),
            "clamp_to_range",
            "False with dynamic_thresholding; got True",
        ),
        (lambda: DiffusionConfig(codec="grid"), "normalize", "False with codec='grid'; got True"),
        (lambda: DiffusionConfig(normalize=False), "clamp_to_range", "False without normalize"),
        (
            lambda: DiffusionConfig(prediction_type="velocity", dynamic_thresholding=True, clamp_to_range=False),
            "dynamic_thresholding",
            "False with velocity",
        ),
        (lambda: AutoencoderTrainingConfig(optimization=STEPS, flip_probability=1.5), "flip_probability", "in [0, 1]; got 1.5"),
        (lambda: AutoencoderTrainingConfig(optimization=STEPS, l1_weight=-1.0), "l1_weight", "zero or more; got -1.0"),
        (
            lambda: AutoencoderTrainingConfig(optimization=STEPS, perceptual_weight=1.0),
            "perceptual_weights_path",
            "given with perceptual_weight > 0, and only then; got None",
        ),
        (
            lambda: AutoencoderTrainingConfig(optimization=STEPS, perceptual_weights_path="a.pth"),
            "perceptual_weights_path",
            "given with perceptual_weight > 0, and only then; got 'a.pth'",
        ),
        (
            lambda: replace(
                MUG128.autoencoder_training, perceptual_weight=0.0, perceptual_weights_path=None, equivariance_weight=0.0
            ),
            "l1_weight",
            "positive, or another weight be; got 0.0",
        ),
        (
            lambda: AutoencoderTrainingConfig(optimization=STEPS, perceptual_scales=2),
            "perceptual_scales",
            "4, its default, without perceptual_weight; got 2",
        ),
        (
            lambda: AutoencoderTrainingConfig(optimization=STEPS, flip_probability=0.0, mirror_sided_labels=True),
            "mirror_sided_labels",
            "False with flip_probability=0",
        ),
        (
            lambda: DiffusionTrainingConfig(optimization=STEPS, panel_inference_steps=0),
            "panel_inference_steps",
            "a whole number from 1 to 1000; got 0",
        ),
        (
            lambda: replace(FLOW64, diffusion_training=replace(FLOW64.diffusion_training, cache_motion=False)),
            "diffusion.normalize",
            "False without diffusion_training.cache_motion",
        ),
        (lambda: DiffusionTrainingConfig(optimization=STEPS, condition_dropout=1.1), "condition_dropout", "in [0, 1]; got 1.1"),
        (lambda: replace(STEPS, epoch_repeats=0), "epoch_repeats", "positive; got 0"),
        (lambda: replace(STEPS, last_batch="pad"), "last_batch", "one of 'join', 'drop', 'keep'; got 'pad'"),
        (lambda: DiffusionTrainingConfig(optimization=STEPS, min_snr_gamma=0.0), "min_snr_gamma", "positive or None; got 0.0"),
        (lambda: replace(FLOW64, num_frames=1), "num_frames", "at least 2; got 1"),
        (lambda: replace(FLOW64, fps=0.0), "fps", "a finite number, 0.01 to 1000; got 0.0"),
        (
            lambda: replace(FLOW64, image_size=72),
            "image_size",
            "a multiple of 16 (for these two models), at least 16, or HEIGHTxWIDTH of two such numbers; got 72",
        ),
        (
            lambda: replace(MUG128, image_size=64),
            "image_size",
            "a multiple of 128 (for these two models), at least 128, or HEIGHTxWIDTH of two such numbers; got 64",
        ),
        (lambda: replace(FLOW64, unet=UNetConfig()), "unet.latent_channels", "48, as the auto-encoder gives; got 256"),
    ],
)
def test_impossible_values_are_refused(make: Callable[[], object], field: str, allowed: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert str(caught.value).startswith(f"{field} must be {allowed}")


def test_a_shortened_training_keeps_its_schedule_where_it_can() -> None:
    long = replace(STEPS, num_steps=1000, warmup_steps=50, schedule="milestones", milestones=(100, 900))
    assert with_num_steps(long, 1000) == long
    assert with_num_steps(long, 200) == replace(long, num_steps=200, warmup_steps=20, milestones=(100,))
    assert with_num_steps(long, 100) == replace(long, num_steps=100, warmup_steps=10, schedule="constant", milestones=())
    assert with_num_steps(STEPS, 3) == replace(STEPS, num_steps=3)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400, -1, True, "1", None])
def test_numbers_outside_the_range_are_refused(value: object) -> None:
    with pytest.raises(UserError, match=r"^fps must be a finite number, 0 or more; got"):
        check_number("fps", value, low=0)
