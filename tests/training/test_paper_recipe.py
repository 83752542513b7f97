"""The paper's presets train: mug128 at full size for two steps of each stage, the others with narrower networks.

The perceptual network is VGG-19 in torchvision's layout with random weights, clips are drawn here; batch 1, few frames.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
from safetensors.torch import load_file

from lfdm.config.models import UNetConfig
from lfdm.config.presets import Preset, get_preset
from lfdm.config.training import with_num_steps
from lfdm.data.index import ClipRecord, write_index
from lfdm.data.video import write_video
from lfdm.folders.run_folder import find_checkpoints
from lfdm.pipeline.pipeline import LatentFlowPipeline
from lfdm.training.stage1 import train_autoencoder
from lfdm.training.stage2 import train_diffusion

LABELS = ("Turn Left", "Spread Wings")
WriteVgg19: TypeAlias = Callable[[Path, tuple[int, ...]], Path]


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips of 6 frames of 128x128, two labels, one subject."""
    root = tmp_path_factory.mktemp("data") / "faces"
    records = []
    rng = np.random.default_rng(0)
    for i, label in enumerate(LABELS):
        coarse = rng.integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
        path = f"clips/{i}.avi"
        write_video(root / path, coarse.repeat(8, axis=1).repeat(8, axis=2), fps=8)
        records.append(ClipRecord(path=path, label=label, subject="a", split="train", frames=6, fps=8.0, width=128, height=128))
    write_index(root, records)
    return root


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    """A folder that is emptied at once: full-size checkpoints are large."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def two_steps(preset: Preset, vgg: Path, **diffusion: object) -> Preset:
    """`preset` with two steps of one sample and few frames, everything else as it is."""
    short = {"batch_size": 1, "num_workers": 0, "log_steps": 1}
    stage1, stage2 = preset.autoencoder_training, preset.diffusion_training
    return replace(
        preset,
        num_frames=4,
        autoencoder_training=replace(
            stage1, optimization=replace(with_num_steps(stage1.optimization, 2), **short), perceptual_weights_path=str(vgg)
        ),
        diffusion_training=replace(stage2, optimization=replace(with_num_steps(stage2.optimization, 2), **short)),
        diffusion=replace(preset.diffusion, **diffusion),
    )


def train(preset: Preset, data: Path, out: Path) -> LatentFlowPipeline:
    """Both stages; every trained tensor must have moved."""
    losses: dict[str, list[dict[str, float]]] = {"one": [], "two": []}
    stage1 = train_autoencoder(preset, data, out / "one", report=lambda step: losses["one"].append(step.metrics))
    assert_moved(stage1)
    stage2 = train_diffusion(preset, data, out / "one", out / "two", report=lambda step: losses["two"].append(step.metrics))
    assert_moved(stage2)
    for metrics in losses["one"]:
        assert metrics["loss"] == pytest.approx(10 * metrics["perceptual"] + 10 * metrics["equivariance"], rel=1e-4)
    assert [len(steps) for steps in losses.values()] == [2, 2]
    assert all(np.isfinite(list(metrics.values())).all() for steps in losses.values() for metrics in steps)
    assert [metrics["learning_rate"] for steps in losses.values() for metrics in steps] == [2e-4] * 4
    assert 0.5 < losses["two"][0]["loss"] < 2  # unit noise, of which an untrained network knows little
    return LatentFlowPipeline.from_pretrained(out / "two")


def assert_moved(checkpoint: Path) -> None:
    stored = load_file(checkpoint / "training.safetensors")
    moments = {name: value for name, value in stored.items() if "exp_avg_sq." in name}
    assert {int(stored[name.replace("exp_avg_sq", "step")]) for name in moments} == {2}
    assert [name for name, value in moments.items() if not value.isfinite().all()] == []
    assert sum(bool(value.any()) for value in moments.values()) > 0.9 * len(moments)


@pytest.mark.slow
def test_mug128_trains_at_full_size(faces: Path, work: Path, wide_bert: Path, vgg19: WriteVgg19) -> None:
    vgg = vgg19(work / "vgg19.pth", (64, 128, 256, 512, 512))
    preset = two_steps(get_preset("mug128"), vgg, text_encoder=str(wide_bert))
    pipe = train(preset, faces, work)
    assert sum(p.numel() for p in pipe.autoencoder.parameters()) == 66_004_557
    assert sum(p.numel() for p in pipe.unet.parameters()) == 42_731_203
    assert pipe.embed_condition(["Turn Left", None]).shape == (2, 768)


@pytest.mark.parametrize("name", ["mhad128", "natops128"])
def test_the_others_train_with_narrower_networks(name: str, faces: Path, work: Path, wide_bert: Path, vgg19: WriteVgg19) -> None:
    vgg = vgg19(work / "vgg19.pth", (4, 4, 4, 4, 4))
    preset = two_steps(get_preset(name), vgg, text_encoder=str(wide_bert))
    predictor = replace(preset.autoencoder.predictor, channels=4, flow_channels=4, max_channels=16)
    narrow = replace(preset.autoencoder, channels=8, max_channels=16, predictor=predictor)
    unet: UNetConfig = replace(preset.unet, latent_channels=16, dim=8, num_heads=2, head_dim=8)
    pipe = train(replace(preset, autoencoder=narrow, unet=unet), faces, work)
    assert pipe.condition.config["learned_null"] == (name == "natops128")
    checkpoint = find_checkpoints(work / "two")[-1]
    assert (checkpoint / "condition").is_dir() == (name == "natops128")
    assert json.loads((work / "one" / "config.json").read_text())["preset"]["autoencoder"]["predictor"]["padding"] == 0


@pytest.fixture(scope="module")
def wide_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text model as wide as the published one, and one layer deep, with random weights."""
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'lfdm[text]'")
    folder = tmp_path_factory.mktemp("text") / "bert"
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *" ".join(LABELS).split()]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)}, do_lower_case=False).save_pretrained(folder)
    config = transformers.BertConfig(vocab_size=len(words), num_hidden_layers=1, intermediate_size=64, max_position_embeddings=32)
    transformers.BertModel(config).save_pretrained(folder)
    return folder
