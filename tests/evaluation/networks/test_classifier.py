import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from lfdm.data.cache import ClipCache, open_cache
from lfdm.data.index import ClipRecord, write_index
from lfdm.data.video import write_video
from lfdm.errors import UserError
from lfdm.evaluation.networks.classifier import (
    ActionClassifier,
    augment,
    load_clips,
    load_or_train_classifier,
)
from lfdm.evaluation.settings import ClassifierTraining

FRAMES, SIZE = 4, 16
TRAINING = ClassifierTraining(num_steps=25, batch_size=8, learning_rate=5e-3)


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ClipCache]:
    """Clips of a block that moves right or down; colours and place vary, so that only the motion gives the label away."""
    root = tmp_path_factory.mktemp("blocks")
    rng = np.random.default_rng(0)
    records = []
    for i in range(24):
        label, split = ("down", "right")[i % 2], "train" if i < 16 else "test"
        ground, block = rng.integers(0, 100, 3), rng.integers(150, 255, 3)
        frames = np.broadcast_to(ground, (FRAMES, SIZE, SIZE, 3)).astype(np.uint8).copy()
        row, column = rng.integers(0, 4, 2)
        for k in range(FRAMES):
            y, x = (row + 2 * k, column) if label == "down" else (row, column + 2 * k)
            frames[k, y : y + 5, x : x + 5] = block
        write_video(root / f"{i}.avi", frames, fps=8, lossless=True)
        records.append(
            ClipRecord(path=f"{i}.avi", label=label, subject=str(i), split=split, frames=FRAMES, fps=8, width=SIZE, height=SIZE)
        )
    write_index(root, records)
    return {name: open_cache(root, [r for r in records if r.split == name], SIZE, "pad") for name in ("train", "test")}


@pytest.fixture(scope="module")
def trained(caches: dict[str, ClipCache]) -> ActionClassifier:
    return load_or_train_classifier(caches["train"], num_frames=FRAMES, training=TRAINING)[0]


def classify(classifier: ActionClassifier, video: torch.Tensor) -> list[str]:
    with torch.no_grad():
        return [classifier.labels[i] for i in classifier(video).argmax(dim=1).tolist()]


def test_learns_motion_and_names_it_on_unseen_clips(trained: ActionClassifier, caches: dict[str, ClipCache]) -> None:
    video = load_clips(caches["test"], range(8), FRAMES)
    labels = [record.label for record in caches["test"].records]
    assert classify(trained, video) == labels
    blurred = torch.nn.functional.avg_pool3d(video, (1, 3, 3), stride=1, padding=(0, 1, 1), count_include_pad=False)
    assert classify(trained, blurred) == labels
    still = classify(trained, video[:, :, :1].expand_as(video))
    assert len(set(still)) == 1


def test_a_classifier_is_trained_once_and_reproducibly(caches: dict[str, ClipCache]) -> None:
    steps: list[int] = []

    def load(seed: int) -> tuple[ActionClassifier, Path]:
        training = ClassifierTraining(num_steps=2, batch_size=4, seed=seed)
        progress = lambda _, done, __: steps.append(done)  # noqa: E731
        return load_or_train_classifier(caches["train"], num_frames=FRAMES, training=training, progress=progress)

    first, folder = load(0)
    assert load(0)[1] == folder
    assert steps == [1, 2]
    shutil.rmtree(folder)
    again, _ = load(0)
    other, _ = load(1)
    assert again.labels == ("down", "right")
    assert torch.equal(first.head.weight, again.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)


def test_augmentation_changes_every_clip_and_is_a_function_of_its_generator() -> None:
    video = torch.rand(3, 3, FRAMES, SIZE, SIZE)
    a, b = (augment(video, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(a, b)
    assert (a - video).abs().mean(dim=(1, 2, 3, 4)).min() > 0.01


def test_bad_values_are_named(trained: ActionClassifier, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"labels must be .*; got \['wave'\]"):
        ActionClassifier(labels=["wave"])
    with pytest.raises(ValueError, match=r"\(b, 3, 4, H, W\)"):
        trained(torch.zeros(1, 3, 5, SIZE, SIZE))
    with pytest.raises(UserError, match="num_steps must be positive"):
        ClassifierTraining(num_steps=0)
    with pytest.raises(FileNotFoundError):
        ActionClassifier.from_pretrained(tmp_path / "nothing")
