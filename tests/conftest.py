"""What many tests share: a tiny data set, tiny presets, the command line, one thread."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lfdm.cli import COMMANDS
from lfdm.cli.console import run
from lfdm.config.models import AutoencoderConfig, UNetConfig
from lfdm.config.predictors import DenseConfig, RegionConfig
from lfdm.config.presets import FLOW64, NATOPS128, Preset
from lfdm.config.training import AutoencoderTrainingConfig, OptimizationConfig
from lfdm.data.index import ClipRecord, read_index, write_index
from lfdm.data.puppets.data_set import write_puppets
from tests.command_line import Lfdm

PUPPET_LABELS = ("jump", "wave")
PUPPET_FRAMES = 6
PUPPET_SIZE = 32


torch.set_num_threads(1)  # quicker on tiny tensors, and sums do not depend on the machine's number of cores


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that have slow tests: a process that gets one of them last would keep the others waiting."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def own_random_state() -> Iterator[None]:
    """Whatever a test does to torch's seed is undone."""
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.fixture
def lfdm(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Lfdm:
    """Run a command line in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run(COMMANDS, [str(argument) for argument in arguments], "test")
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="session")
def puppets_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 6 subjects (2 of them for testing, with truth), 2 labels, 6 frames of 32x32. Read only."""
    root = tmp_path_factory.mktemp("data") / "puppets"
    write_puppets(
        root, num_subjects=6, num_takes=1, size=PUPPET_SIZE, num_frames=PUPPET_FRAMES, test_fraction=0.34, num_workers=1
    )
    write_index(root, [record for record in read_index(root) if record.label in PUPPET_LABELS])
    return root


@pytest.fixture(scope="session")
def puppet_records(puppets_dir: Path) -> list[ClipRecord]:
    """The training clips of `puppets_dir`."""
    return [record for record in read_index(puppets_dir) if record.split == "train"]


@pytest.fixture(scope="session")
def tiny_preset() -> Preset:
    """`puppets64` at a size that trains in a second, for `puppets_dir`."""
    optimization = OptimizationConfig(
        num_steps=10, batch_size=3, learning_rate=2e-3, ema_decay=0.9, checkpoint_minutes=1e6, sample_steps=1000
    )
    return replace(
        FLOW64,
        name="tiny",
        image_size=PUPPET_SIZE,
        num_frames=4,
        autoencoder=AutoencoderConfig(
            channels=8,
            max_channels=16,
            num_downs=1,
            num_res_blocks=1,
            predictor=DenseConfig(channels=(8, 8, 16, 16), match_channels=8),
            corners=False,
            padding_mode="border",
        ),
        unet=UNetConfig(
            latent_channels=16, condition_dim=8, dim=8, channel_multipliers=(1, 2), patch_size=2, num_heads=2, head_dim=8
        ),
        autoencoder_training=AutoencoderTrainingConfig(optimization=optimization, ssim_weight=0.05),
        diffusion_training=replace(FLOW64.diffusion_training, optimization=optimization),
    )


@pytest.fixture(scope="session")
def tiny_paper_preset() -> Preset:
    """`natops128` in a miniature: regions, text embeddings, the grid itself diffused."""
    return replace(
        NATOPS128,
        image_size=32,
        num_frames=3,
        autoencoder=AutoencoderConfig(
            channels=4,
            max_channels=8,
            num_res_blocks=1,
            predictor=RegionConfig(num_regions=2, channels=4, flow_channels=4, max_channels=8, depth=2, padding=0),
        ),
        unet=UNetConfig(
            latent_channels=8, condition_dim=6, dim=8, channel_multipliers=(1, 2), num_heads=2, head_dim=8, upsample="nearest"
        ),
    )


TINY_BERT_WORDS = ("Turn", "turn", "Left", "Right", "Spread", "Fold", "Wings", "now", "wave", "jump")


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT folder of random weights, 16 wide, that knows `TINY_BERT_WORDS`, upper and lower case apart. Read only."""
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'lfdm[text]'")
    folder = tmp_path_factory.mktemp("text") / "tiny-bert"
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *TINY_BERT_WORDS]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)}, do_lower_case=False).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.BertModel(config).save_pretrained(folder)
    return folder


def _write_vgg19(path: Path, widths: tuple[int, ...]) -> Path:
    """torchvision's names: `features.N` counts convolutions, ReLUs and poolings."""
    generator, state, position, before = torch.Generator().manual_seed(0), {}, 0, 3
    for width, count in zip(widths, (2, 2, 4, 4, 4), strict=True):
        for _ in range(count):
            scale = (2 / (9 * before)) ** 0.5
            state[f"features.{position}.weight"] = scale * torch.randn(width, before, 3, 3, generator=generator)
            state[f"features.{position}.bias"] = torch.zeros(width)
            before, position = width, position + 2
        position += 1
    torch.save(state, path)
    return path


@pytest.fixture(scope="session")
def vgg19() -> Callable[[Path, tuple[int, ...]], Path]:
    """Writes random weights of VGG-19 with the given widths of its five blocks to a path."""
    return _write_vgg19
