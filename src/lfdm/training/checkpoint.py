"""Checkpoints of a training, written completely or not at all, in formats that cannot execute code."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn

from lfdm.config.checks import check_integer
from lfdm.folders.files import TEMPORARY_SUFFIX, replace_folder
from lfdm.folders.model_folder import WEIGHTS_NAME, load_exactly, read_json, read_tensors
from lfdm.folders.run_folder import CHECKPOINTS_DIR, SAMPLES_DIR, STATE_NAME, find_checkpoints
from lfdm.training.sharding import shared_as, whole

TRAINING_NAME = "training.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")
MAX_STEP = 2**53
"""Largest step that JSON can hold exactly."""


def checkpoint_path(out: Path, step: int) -> Path:
    """Return the folder of the checkpoint of a step."""
    return out / CHECKPOINTS_DIR / f"step-{step:08d}"


@dataclass(frozen=True, eq=False)
class TrainingState:
    """Weights, averaged weights and Adam's moments; each process may hold a share of them.

    `models` are keyed by their folders inside a checkpoint, the main one first. `averages` are the same modules if no average
    is computed.
    """

    models: dict[str, nn.Module]
    averages: dict[str, nn.Module]
    optimizer: torch.optim.Adam

    def tensors(self) -> dict[str, Tensor]:
        """Return what resuming needs in addition to the averages: `model.NAME`, `step.NAME`, `exp_avg.NAME`, `exp_avg_sq.NAME`.

        For models other than the main one the names are `FOLDER-model.NAME` and so on.
        """
        tensors = {}
        for folder, model in self.models.items():
            tensors |= {f"{self._key(folder, 'model')}.{name}": value for name, value in model.state_dict().items()}
            for name, parameter in _trained(model):
                for key, value in self.optimizer.state.get(parameter, {}).items():
                    tensors[f"{self._key(folder, key)}.{name}"] = value
        return {name: value.detach() for name, value in tensors.items()}

    def non_finite(self) -> list[str]:
        """Return the names of the tensors with NaN or infinite values."""
        return [name for name, value in self.tensors().items() if not bool(whole(value).isfinite().all())]

    def save(self, out: Path, step: int, *, keep: int, averages: dict[str, nn.Module] | None) -> Path:
        """Write the checkpoint of `step` and remove all but the `keep` newest.

        Args:
            averages: the averages with all of their weights; None in a process that only sends its shares to the one that writes.

        Raises:
            OSError: writing failed; earlier checkpoints are intact and nothing is left of this one.
        """
        folder = checkpoint_path(out, step)
        tensors = {}
        for name, value in self.tensors().items():
            tensor = whole(value)
            if averages is not None:
                tensors[name] = tensor.cpu().contiguous()
        if averages is None:
            return folder

        def write(temporary: Path) -> None:
            for name, average in averages.items():
                average.save_pretrained(temporary / name)  # type: ignore[operator]
            (temporary / TRAINING_NAME).write_bytes(save(tensors))
            (temporary / STATE_NAME).write_text(json.dumps({"step": step}))

        try:
            replace_folder(folder, write)
        except (OSError, SafetensorError) as error:
            raise OSError(f"{error}; the checkpoint before is intact") from error
        for old in find_checkpoints(out)[:-keep]:
            _remove(old)
        return folder

    def load_newest(self, out: Path) -> int:
        """Load the newest checkpoint of a run folder and return its step, or 0 if there is none.

        Raises:
            UserError: a damaged checkpoint, or one of another model.
        """
        checkpoints = find_checkpoints(out)
        if not checkpoints:
            return 0
        path = checkpoints[-1] / TRAINING_NAME
        tensors = read_tensors(path)
        for folder, model in self.models.items():
            _load(model, _pick(tensors, self._key(folder, "model")), path)
            if self.averages[folder] is not model:
                averaged = checkpoints[-1] / folder / WEIGHTS_NAME
                _load(self.averages[folder], read_tensors(averaged), averaged)
            steps, *moments = (_pick(tensors, self._key(folder, key)) for key in ("step", *MOMENTS))
            for name, parameter in _trained(model):
                if name in steps:  # in the parameter's memory format; steps stay on the CPU, where Adam reads them
                    copies = [torch.empty_like(parameter).copy_(shared_as(values[name], parameter)) for values in moments]
                    self.optimizer.state[parameter] = {"step": steps[name], **dict(zip(MOMENTS, copies, strict=True))}
        state = checkpoints[-1] / STATE_NAME
        return check_integer(f"{state}: step", read_json(state).get("step"), 0, MAX_STEP)

    def _key(self, folder: str, kind: str) -> str:
        return kind if folder == next(iter(self.models)) else f"{folder}-{kind}"


def remove_unfinished(out: Path) -> None:
    """Remove what killed processes left in the run folder `out`: temporary files, checkpoints half written or half removed."""
    folder = out / CHECKPOINTS_DIR
    hidden = (path for place in (out, out / SAMPLES_DIR) for path in place.glob(f".*{TEMPORARY_SUFFIX}"))
    for path in (*hidden, *folder.glob(".step-*"), *set(folder.glob("step-*")).difference(find_checkpoints(out))):
        _remove(path)


def _remove(path: Path) -> None:
    """Remove a checkpoint or a file; of a link, only the link."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    (path / STATE_NAME).unlink(missing_ok=True)  # first: without it an interrupted removal leaves no checkpoint
    shutil.rmtree(path)


def _load(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    state = model.state_dict()
    shares = {name: shared_as(value, state[name]) if name in state else value for name, value in tensors.items()}
    load_exactly(model, shares, str(path))


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _pick(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): value for name, value in tensors.items() if name.startswith(f"{prefix}.")}
