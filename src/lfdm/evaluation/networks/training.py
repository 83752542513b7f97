"""Training of the small networks of an evaluation on the data set itself, and where they are stored."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lfdm.data.cache import ClipCache
from lfdm.data.progress import Progress
from lfdm.evaluation.settings import ClassifierTraining
from lfdm.folders.components import Model

NetworkT = TypeVar("NetworkT", bound=Model)
LoadBatch = Callable[[np.ndarray, torch.Generator], Tensor]
"""Loads the augmented inputs of the given clips."""

WEIGHT_DECAY = 0.02
MAX_GRADIENT_NORM = 1.0


def train_network(
    make: Callable[[list[str]], NetworkT],
    load_batch: LoadBatch,
    clip_classes: Sequence[str],
    training: ClassifierTraining,
    *,
    task: str,
    device: torch.device | str,
    progress: Progress | None = None,
) -> NetworkT:
    """Train a classifier of clips by cross-entropy on shuffled clips, and return it in evaluation mode.

    Args:
        make: builds the network for the given classes.
        clip_classes: class of every clip.
        task: description for progress reports.
    """
    classes = sorted(set(clip_classes))
    targets = torch.tensor([classes.index(name) for name in clip_classes], device=device)
    num_clips = len(targets)
    with torch.random.fork_rng():
        torch.manual_seed(training.seed)
        model = make(classes)
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.learning_rate, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, training.learning_rate, total_steps=training.num_steps)
    rng = np.random.default_rng((training.seed, num_clips))
    generator = torch.Generator(device).manual_seed(training.seed)
    num_epochs = -(-training.num_steps * training.batch_size // num_clips)
    order = np.concatenate([rng.permutation(num_clips) for _ in range(num_epochs)])
    for step in range(training.num_steps):
        chosen = order[step * training.batch_size : (step + 1) * training.batch_size]
        loss = F.cross_entropy(model(load_batch(chosen, generator)), targets[chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(task, step + 1, training.num_steps)
    return model.eval()


def load_or_train(
    cache: ClipCache, kind: type[NetworkT], name: str, key: list[Any], train: Callable[[], NetworkT], device: torch.device | str
) -> tuple[NetworkT, Path]:
    """Load network `name` of these clips from next to their cache, training it first if necessary; return it and its folder.

    Args:
        key: JSON values that, with the clips, determine the trained network.
    """
    digest = hashlib.sha256(json.dumps([*key, cache.folder.name]).encode()).hexdigest()
    folder = cache.folder.parent / f"{name}-{digest[:16]}"
    if not folder.is_dir():
        train().save_pretrained(folder)
    return kind.from_pretrained(folder, device=device), folder
