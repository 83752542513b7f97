"""Training of the small networks that judge: the same short recipe for all, and where the trained ones are kept."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lfdm.data.cache import ClipCache
from lfdm.data.progress import Progress
from lfdm.evaluation.settings import ClassifierTraining
from lfdm.folders.model_folder import StrictLoading

JudgeT = TypeVar("JudgeT", bound=StrictLoading)
Draw = Callable[[np.ndarray, torch.Generator], tuple[Tensor, Tensor]]
"""Inputs and class numbers of some training examples, augmented."""


def fit_classifier(
    make: Callable[[], JudgeT],
    draw: Draw,
    num_examples: int,
    training: ClassifierTraining,
    *,
    work: str,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> JudgeT:
    """Make a network of logits and train it by cross-entropy on shuffled examples; returns it in evaluation mode.

    `work` names the training in progress reports.
    """
    with torch.random.fork_rng():
        torch.manual_seed(training.seed)
        model = make()
    assert isinstance(model, nn.Module)
    nn.Module.to(model, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.learning_rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, training.learning_rate, total_steps=training.num_steps)
    rng = np.random.default_rng((training.seed, num_examples))
    generator = torch.Generator(device).manual_seed(training.seed)
    num_epochs = -(-training.num_steps * training.batch_size // num_examples)
    order = np.concatenate([rng.permutation(num_examples) for _ in range(num_epochs)])
    for step in range(training.num_steps):
        inputs, numbers = draw(order[step * training.batch_size : (step + 1) * training.batch_size], generator)
        loss = F.cross_entropy(model(inputs), numbers.to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(work, step + 1, training.num_steps)
    return model.eval()


def kept_beside(
    cache: ClipCache, kind: type[JudgeT], name: str, key: list[Any], train: Callable[[], JudgeT], device: torch.device | str
) -> tuple[JudgeT, Path]:
    """The judge `name` of these clips, trained by the first call and kept beside their cache, and its folder.

    Args:
        key: JSON values that, with the clips, decide what is trained.
    """
    digest = hashlib.sha256(json.dumps([*key, cache.folder.name]).encode()).hexdigest()
    folder = cache.folder.parent / f"{name}-{digest[:16]}"
    if not folder.is_dir():
        train().save_pretrained(folder)
    return kind.from_pretrained(folder, device=device), folder
