from pathlib import Path

import numpy as np
import pytest
import torch

from lfdm.data.cache import open_cache
from lfdm.data.index import read_index
from lfdm.errors import UserError
from lfdm.evaluation.networks.frame_network import FrameNetwork, load_or_train_frame_network
from lfdm.evaluation.settings import ClassifierTraining


def test_frame_network_tells_unseen_frames_of_its_subjects_apart(puppets_dir: Path) -> None:
    records = [record for record in read_index(puppets_dir) if record.split == "train" and record.label == "wave"]
    cache = open_cache(puppets_dir, records, 32, "pad")
    training = ClassifierTraining(num_steps=60, batch_size=8, learning_rate=5e-3)
    network, folder = load_or_train_frame_network(cache, training=training)
    again, same = load_or_train_frame_network(cache, training=training)
    assert folder == same
    others = [record for record in read_index(puppets_dir) if record.split == "train" and record.label == "jump"]
    clips = open_cache(puppets_dir, others, 32, "pad")
    frames = torch.from_numpy(np.stack([clips.clip(i)[-1] for i in range(len(clips))])).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        logits = network(frames)
        assert torch.equal(logits, again(frames))
        assert network.features(frames).shape == (len(clips), 64)
    subjects = sorted({record.subject for record in records})
    predicted = [subjects[i] for i in logits.argmax(dim=1)]
    assert sum(a == record.subject for a, record in zip(predicted, others, strict=True)) >= len(others) - 1


def test_one_subject_is_too_few() -> None:
    with pytest.raises(UserError, match=r"subjects must be .*; got \['a'\]"):
        FrameNetwork(subjects=["a"])
