"""A tiny data set, model and settings for tests of evaluations."""

from pathlib import Path

import pytest
import torch
from torch import nn

from lfdm.config.presets import Preset
from lfdm.data.index import read_index, write_index
from lfdm.data.puppets.actions import ACTIONS
from lfdm.data.puppets.data_set import write_puppets
from lfdm.evaluation.settings import ClassifierTraining, EvaluationConfig
from lfdm.pipeline.pipeline import LatentFlowPipeline

LABELS = ("kick", "walk", "wave")


@pytest.fixture(scope="session")
def quick() -> EvaluationConfig:
    """Networks that are hardly trained, and few second videos."""
    training = ClassifierTraining(num_steps=2, batch_size=4)
    return EvaluationConfig(num_diversity_clips=3, allow_small=True, classifier=training, frame_network=training)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four puppets, three actions, two takes, 4 frames of 32x32; the last two puppets (12 clips) are held out. Read only."""
    root = tmp_path_factory.mktemp("data") / "dolls"
    write_puppets(root, num_subjects=4, num_takes=2, size=32, num_frames=4, fps=2, test_fraction=0.5, num_workers=1)
    write_index(root, [record for record in read_index(root) if record.label in LABELS])
    return root


@pytest.fixture(scope="session")
def model(tiny_preset: Preset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline whose flow heads are not zero, unlike those of an untrained one. Read only."""
    pipe = LatentFlowPipeline.from_preset(tiny_preset, ACTIONS)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, parameter in pipe.autoencoder.motion_predictor.named_parameters():
            if "head" in name:
                nn.init.normal_(parameter, std=0.05)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    pipe.save_pretrained(folder)
    return folder
