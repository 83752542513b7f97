"""Arrays that a trained stage 1 computes for every clip, once, and that are then read from one memory-mapped file.

Shapes: rows (n, c, h, w) float16 of one clip.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.data.cache import ClipCache
from lfdm.data.clip_file import Part, damaged_clips, write_clips
from lfdm.data.progress import Progress
from lfdm.errors import UserError
from lfdm.folders.arrays import map_array
from lfdm.folders.lock import build_once
from lfdm.folders.model_folder import read_json

_SHAPE_NAME = "shape.json"


def check_finite(values: np.ndarray, name: str, clip: str) -> None:
    """Raise UserError if what stage 1 has computed for a clip is not finite in float16."""
    if not np.isfinite(values).all():
        raise UserError(f"{clip}: the {name} of stage 1 is not finite in float16; train stage 1 anew")


class ClipArrays:
    """Rows of every clip of a `ClipCache`, in one memory-mapped file. Loader processes get only its path."""

    name: ClassVar[str]
    """Name of the values in file names and messages."""

    def __init__(self, folder: Path, offsets: Sequence[int]) -> None:
        """Open the file in `folder`; `offsets` are the number of rows before each clip, and of all rows."""
        self.folder, self.offsets = folder, offsets
        self._rows = _map_rows(folder, self.name, offsets)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._rows = _map_rows(self.folder, self.name, self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def clip(self, index: int) -> np.ndarray:
        """Return the rows of clip `index`: a read-only view (n, c, h, w) float16."""
        return self._rows[self.offsets[index] : self.offsets[index + 1]]

    @classmethod
    def build(
        cls,
        autoencoder: LatentFlowAutoencoder,
        clips: ClipCache,
        rows: Callable[[int], Iterable[np.ndarray]],
        *,
        digest: str,
        offsets: Sequence[int],
        activity: str,
        bf16: bool,
        progress: Progress | None,
    ) -> Path:
        """Return the folder of these arrays; the first call computes them, without gradients and in evaluation mode.

        The folder lies next to the decoded clips and is named after them, `digest` and the precision. It appears only when it
        is complete, one process builds it while others wait, and one that has changed on the disk is made anew.

        Args:
            rows: computes the rows of clip `index`, in parts (n, c, h, w).
            activity: what the progress bar shows.

        Raises:
            UserError: values that are not finite in float16.
        """

        @torch.inference_mode()
        def write(temporary: Path) -> None:
            was_training = autoencoder.training
            autoencoder.eval()
            try:
                with torch.autocast(autoencoder.device.type, torch.bfloat16, enabled=bf16):
                    _write(temporary, cls.name, clips, rows, activity, progress)
            finally:
                autoencoder.train(was_training)

        folder = clips.folder.parent / f"{clips.folder.name}-{cls.name}-{digest}{'-bf16' if bf16 else ''}"
        build_once(folder, write, lambda found: _find_damage(found, cls.name, clips, offsets))
        return folder


def digest_weights(settings: object, autoencoder: LatentFlowAutoencoder, parts: Iterable[nn.Module]) -> str:
    """Return a digest of `settings`, of the auto-encoder's settings and of the weights of some of its parts."""
    model = json.loads(autoencoder.to_json_string())
    model.pop("_diffusers_version", None)
    digest = hashlib.sha256(json.dumps([settings, model], sort_keys=True).encode())
    for part in parts:
        for name, value in part.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _rows_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.f16"


def _map_rows(folder: Path, name: str, offsets: Sequence[int]) -> np.ndarray:
    """Map all rows: (offsets[-1], c, h, w). Raises UserError for a file of another size."""
    channels, height, width = read_json(folder / _SHAPE_NAME)["shape"]
    return map_array(_rows_path(folder, name), np.float16, (offsets[-1], channels, height, width))


def _write(
    folder: Path,
    name: str,
    clips: ClipCache,
    rows: Callable[[int], Iterable[np.ndarray]],
    activity: str,
    progress: Progress | None,
) -> None:
    shape: tuple[int, ...] = ()

    def arrays() -> Iterator[list[np.ndarray]]:
        nonlocal shape
        for index, record in enumerate(clips.records):
            parts = list(rows(index))
            for values in parts:
                check_finite(values, name, record.path)
            shape = parts[0].shape[1:]
            yield parts
            if progress is not None:
                progress(activity, index + 1, len(clips))

    parts = [asdict(part) for part in write_clips(_rows_path(folder, name), arrays())]
    (folder / _SHAPE_NAME).write_text(json.dumps({"shape": shape, "clips": parts}))


def _find_damage(folder: Path, name: str, clips: ClipCache, offsets: Sequence[int]) -> str | None:
    """Return what has changed in the arrays since they were written."""
    try:
        _map_rows(folder, name, offsets)
        parts = [Part(**part) for part in read_json(folder / _SHAPE_NAME)["clips"]]
        damaged = [clips.records[index].path for index in damaged_clips(_rows_path(folder, name), parts)]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        return str(error)
    return f"changed on the disk: {', '.join(damaged)}" if damaged else None
