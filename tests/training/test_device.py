"""A stage-2 step never makes the host wait for the device, and never computes in float64, which Apple GPUs lack."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lfdm.config.diffusion import PredictionType
from lfdm.config.presets import Preset
from lfdm.data.cache import open_cache
from lfdm.data.index import ClipRecord
from lfdm.motion.codecs import make_codec
from lfdm.pipeline.pipeline import LatentFlowPipeline
from lfdm.training.encoded_clips import open_encoded_clips
from lfdm.training.loop import _Trainer
from lfdm.training.motion_cache import CachedMotions
from lfdm.training.optimization import set_training
from lfdm.training.stage2 import DiffusionTask

WAITS = ("_local_scalar_dense", "nonzero", "equal", "_unique2", "masked_select", "lift_fresh")
"""Operations that give the host a value from the device, and `lift_fresh`, by which `torch.tensor(...)` copies one to it."""


class Watch(TorchDispatchMode):
    """Counts the operations that wait for a device, and those that touch float64."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.doubles: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.__name__.partition(".")[0]
        boolean_index = name in ("index", "index_put_") and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in args[1]
        )
        if name in WAITS or boolean_index:
            self.waits[name] += 1
        if any(isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float64 for leaf in tree_leaves((args, kwargs, result))):
            self.doubles[name] += 1
        return result


def make_trainer(preset: Preset, data: Path, records: list[ClipRecord], tmp_path: Path) -> _Trainer:
    clips = open_cache(data, records, preset.size, preset.fit, tmp_path / "cache")
    pipe = LatentFlowPipeline.from_preset(preset, sorted({record.label for record in records}))
    encoded = open_encoded_clips(pipe.autoencoder, clips, preset.diffusion_training)
    motion = encoded.motion
    pipe.motion_codec = make_codec(preset.diffusion, corners=motion.corners).measured(CachedMotions(motion), clamp=True)
    trainer = _Trainer(
        DiffusionTask(pipe, preset.diffusion_training, clips, encoded), preset.diffusion_training.optimization, tmp_path / "run"
    )
    set_training(trainer.module)
    return trainer


@pytest.mark.parametrize("kind", ["velocity", "v_prediction", "epsilon"])
@pytest.mark.parametrize("gamma", [None, 5.0])
def test_a_step_neither_waits_nor_uses_float64(
    kind: PredictionType,
    gamma: float | None,
    tiny_preset: Preset,
    puppets_dir: Path,
    puppet_records: list[ClipRecord],
    tmp_path: Path,
) -> None:
    training = replace(tiny_preset.diffusion_training, min_snr_gamma=gamma, condition_dropout=0.5)
    diffusion = replace(tiny_preset.diffusion, prediction_type=kind, learned_null=True)
    preset = replace(tiny_preset, diffusion=diffusion, diffusion_training=training)
    trainer = make_trainer(preset, puppets_dir, puppet_records, tmp_path)
    batches = iter(trainer._loader(3))
    trainer._train_step(next(batches))  # builds tables and moments
    batch = next(batches)
    with Watch() as watch:
        losses = trainer._train_step(batch)
    assert watch.waits == {}
    assert watch.doubles == {}
    assert set(losses) == {"loss", "grad_norm"}


def test_the_watch_sees_waits_and_float64() -> None:
    """Guards the test above."""
    x = torch.arange(3.0)
    with Watch() as watch:
        float(x.sum())
        assert (x >= 0).all()
        x[x > 1]
        x.double().sum()
        torch.tensor([1.0])
    assert watch.waits == {"_local_scalar_dense": 2, "index": 1, "lift_fresh": 1}
    assert watch.doubles == {"_to_copy": 1, "sum": 1}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch's sync debug mode needs a CUDA device")
def test_no_step_synchronizes_a_gpu(
    tiny_preset: Preset, puppets_dir: Path, puppet_records: list[ClipRecord], tmp_path: Path
) -> None:
    trainer = make_trainer(tiny_preset, puppets_dir, puppet_records, tmp_path)
    batches = iter(trainer._loader(3))
    trainer._train_step(next(batches))
    batch = next(batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer._train_step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
