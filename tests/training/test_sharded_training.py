"""Trainings on clips in shards."""

import shutil
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.config.presets import Preset
from lfdm.config.training import AdaptationConfig, DiffusionTrainingConfig, FewStepsConfig, OptimizationConfig
from lfdm.config.video import Size
from lfdm.data.cache import open_cache
from lfdm.data.index import ClipRecord
from lfdm.data.sharded_clips import ShardedClips
from lfdm.data.sharding import write_shards
from lfdm.data.training_clips import find_clips
from lfdm.errors import UserError
from lfdm.folders.run_folder import find_checkpoints, find_model
from lfdm.pipeline.pipeline import LatentFlowPipeline
from lfdm.training.adaptation import adapt
from lfdm.training.encoded_clips import EncodedClips, open_encoded_clips
from lfdm.training.encoded_shards import open_encoded_shards
from lfdm.training.few_steps import train_few_steps
from lfdm.training.stage1 import train_autoencoder
from lfdm.training.stage2 import train_diffusion
from tests.training.test_processes import run_processes

pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'lfdm[scale]'")


@pytest.fixture(scope="module")
def shards(puppets_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clips of `puppets_dir`, two in a shard. Read only."""
    out = tmp_path_factory.mktemp("shards")
    write_shards(puppets_dir, out, shard_mb=0.04, num_workers=1)
    return out


@pytest.fixture(scope="module")
def stage1(tiny_preset: Preset, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten steps of stage 1 on the shards. Read only."""
    out = tmp_path_factory.mktemp("runs") / "stage1"
    train_autoencoder(tiny_preset, shards, out)
    return out


def with_optimization(preset: Preset, **changes: Any) -> Preset:
    stages = preset.autoencoder_training, preset.diffusion_training
    first, second = (replace(stage, optimization=replace(stage.optimization, **changes)) for stage in stages)
    return replace(preset, autoencoder_training=first, diffusion_training=second)


def assert_same_weights(run: Path, other: Path) -> None:
    one, two = (load_file(find_checkpoints(folder)[-1] / "training.safetensors") for folder in (run, other))
    assert one.keys() == two.keys()
    assert [name for name in one if not np.array_equal(one[name], two[name])] == []


def test_stage_1_resumes_on_shards_with_other_workers(tiny_preset: Preset, shards: Path, stage1: Path, tmp_path: Path) -> None:
    """A run that is stopped and goes on with two loader processes equals one that is not."""
    train_autoencoder(with_optimization(tiny_preset, checkpoint_steps=5), str(shards), tmp_path / "parts")
    shutil.rmtree(find_checkpoints(tmp_path / "parts")[-1])
    train_autoencoder(with_optimization(tiny_preset, checkpoint_steps=5, num_workers=2), shards, tmp_path / "parts")
    assert_same_weights(stage1, tmp_path / "parts")


def test_what_shards_cannot_do_is_one_line(tiny_preset: Preset, shards: Path, tmp_path: Path) -> None:
    by_subject = replace(tiny_preset, autoencoder_training=replace(tiny_preset.autoencoder_training, pairs_by="subject"))
    with pytest.raises(UserError, match="pairs_by"):
        train_autoencoder(by_subject, shards, tmp_path / "run")


def _encode(stage1: Path, place: str, training: DiffusionTrainingConfig) -> EncodedClips:
    autoencoder = LatentFlowAutoencoder.from_pretrained(find_model(stage1, "autoencoder"))
    clips = find_clips(place).open(Size(32, 32), "pad")
    assert isinstance(clips, ShardedClips)
    return open_encoded_shards(autoencoder, clips, training)


def test_processes_share_the_encoding_of_shards_and_get_what_is_cached_of_clips(
    tiny_preset: Preset, puppets_dir: Path, puppet_records: list[ClipRecord], shards: Path, stage1: Path, tmp_path: Path
) -> None:
    training, folder = tiny_preset.diffusion_training, tmp_path / "shards"
    shutil.copytree(shards, folder, ignore=shutil.ignore_patterns("encoded-*"))
    run_processes(2, _encode, stage1, str(folder), training)
    made = {path.name: path.stat().st_mtime_ns for path in folder.glob("encoded-*/*")}
    encoded = _encode(stage1, str(folder), training)
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("encoded-*/*")} == made
    assert len(made) == 2 * len(find_clips(folder).open(Size(32, 32), "pad").shard_sizes or ())
    autoencoder = LatentFlowAutoencoder.from_pretrained(find_model(stage1, "autoencoder"))
    cache = open_cache(puppets_dir, puppet_records, 32, "pad", tmp_path / "cache")
    whole = open_encoded_clips(autoencoder, cache, training)
    places = {record.path: index for index, record in enumerate(cache.records)}
    assert isinstance(encoded.clips, ShardedClips)
    assert len(encoded.clips) == len(cache)
    for index in range(len(cache)):
        other = places[encoded.clips.set.values(index)["path"]]
        assert np.array_equal(encoded.motion.clip(index), whole.motion.clip(other))
        assert encoded.clips.label(index) == cache.label(other)
        assert encoded.latents.latent(index, 0).shape == whole.latents.latent(other, 0).shape
    assert encoded.latents.num_versions == whole.latents.num_versions > 1


def test_stage_2_resumes_on_shards(tiny_preset: Preset, shards: Path, stage1: Path, tmp_path: Path) -> None:
    whole = train_diffusion(tiny_preset, str(shards), stage1, tmp_path / "whole")
    halves = with_optimization(tiny_preset, checkpoint_steps=5)
    train_diffusion(halves, shards, stage1, tmp_path / "parts")
    shutil.rmtree(find_checkpoints(tmp_path / "parts")[-1])
    train_diffusion(halves, shards, stage1, tmp_path / "parts")
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    assert LatentFlowPipeline.from_pretrained(tmp_path / "whole").condition.labels == ("jump", "wave")
    assert whole.name == "step-00000010"


def test_shards_that_cannot_be_written_next_to_are_encoded_in_the_cache(
    tiny_preset: Preset, shards: Path, stage1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LFDM_HOME", str(tmp_path / "home"))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(shards))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        encoded = _encode(stage1, f"http://127.0.0.1:{server.server_address[1]}", tiny_preset.diffusion_training)
        server.shutdown()
    local = _encode(stage1, str(shards), tiny_preset.diffusion_training)
    assert np.array_equal(encoded.motion.clip(1), local.motion.clip(1))
    assert list((tmp_path / "home").rglob("*-encoded-*/*.arrow"))


@pytest.mark.parametrize("command", ["few-steps", "adapt"])
def test_distillation_and_adaptation_read_shards(
    command: str, tiny_preset: Preset, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The losses of shards at a URL, read through a bounded cache, are those of the same shards on the disk."""
    monkeypatch.setenv("LFDM_HOME", str(tmp_path / "home"))
    LatentFlowPipeline.from_preset(tiny_preset, ["jump", "wave"]).save_pretrained(tmp_path / "model")
    optimization = OptimizationConfig(num_steps=4, batch_size=2, learning_rate=1e-3, log_steps=1, sample_steps=100)
    losses: list[list[float]] = []
    for data, cache_gb in ((str(shards), None), (f"file://{shards}", 0.01)):
        found: list[float] = []
        options: dict[str, Any] = {"cache_gb": cache_gb, "report": lambda step, found=found: found.append(step.metrics["loss"])}
        out = tmp_path / str(cache_gb)
        if command == "adapt":
            adapt(tmp_path / "model", data, out, AdaptationConfig(optimization=optimization), **options)
        else:
            config = FewStepsConfig(optimization=optimization, guidance_steps=2, tangent_warmup_steps=2)
            train_few_steps(tmp_path / "model", data, out, config, **options)
        losses.append(found)
    assert len(losses[0]) == 4
    assert losses[0] == losses[1]
    assert list((tmp_path / "home").rglob("*.arrow"))
