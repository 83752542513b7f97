"""Training of stage 1 that grows from small images, where most of the motion is learned cheaply, to large ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from lfdm.config.presets import Preset
from lfdm.config.sizes import SizeStage, staged_presets
from lfdm.folders.files import expand_home
from lfdm.training.reports import Callbacks
from lfdm.training.stage1 import train_autoencoder


def train_growing(
    preset: Preset,
    data: str | Path,
    out: Path,
    stages: Sequence[SizeStage],
    *,
    init: str | Path | None = None,
    cache_gb: float | None = None,
    **callbacks: Unpack[Callbacks],
) -> Path:
    """Train stage 1 at one size after the other, each from the weights of the one before; return the last checkpoint.

    The last size trains in `out`, the others in run folders next to it, `out` with the size appended. The same call resumes:
    a stage that is complete ends at once.

    Args:
        init: what the first stage starts from; see `train_autoencoder`.
        cache_gb, callbacks: see `train_autoencoder`.

    Raises:
        UserError: sizes that do not fit the preset, and as `train_autoencoder`.
    """
    out = expand_home(out)
    *smaller, last = staged_presets(preset, stages)
    for small in smaller:
        folder = out.with_name(f"{out.name}-{min(small.size)}")
        train_autoencoder(small, data, folder, init=init, cache_gb=cache_gb, **callbacks)
        init = folder
    return train_autoencoder(last, data, out, init=init, cache_gb=cache_gb, **callbacks)
