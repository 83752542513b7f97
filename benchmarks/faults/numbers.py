"""Break the numbers of a training: NaN, overflow and underflow in loss, gradient and weights of both stages."""

import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.faults.campaign import Campaign
from benchmarks.faults.kills import leftovers, newest_step
from benchmarks.faults.processes import run as run_command
from benchmarks.faults.tiny import Commands
from lfdm.data.index import CACHE_DIR
from lfdm.folders.model_folder import WEIGHTS_NAME, read_tensors
from lfdm.folders.run_folder import CHECKPOINTS_DIR, find_model
from lfdm.training.batches import BatchRandomness
from lfdm.training.stage1 import AutoencoderTask
from lfdm.training.stage2 import DiffusionTask

PROMISE = (
    "A training whose numbers break stops with one line that says which and at which step, and keeps the last good checkpoint."
)
BROKEN_STEP = 7
"""Step that breaks; checkpoints are written every 4."""
LAST_GOOD = 4
Losses = dict[str, Tensor]
Fault = Callable[[Callable[[], Losses], nn.Module], Losses]
"""Gets a function that computes the losses of a step, and the module."""


class _OverflowingGradient(torch.autograd.Function):
    """Passes a value on and lets its gradient overflow in float32."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        del ctx
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        del ctx
        return gradients[0] * 3e38 * 3e38


def _nan_loss(compute: Callable[[], Losses], _: nn.Module) -> Losses:
    return {name: value * float("nan") for name, value in compute().items()}


def _overflowing_loss(compute: Callable[[], Losses], _: nn.Module) -> Losses:
    return {name: value * 3e38 * 3e38 for name, value in compute().items()}


def _overflowing_gradient(compute: Callable[[], Losses], _: nn.Module) -> Losses:
    losses = compute()
    return {**losses, "loss": cast(Tensor, _OverflowingGradient.apply(losses["loss"]))}


def _underflow(compute: Callable[[], Losses], _: nn.Module) -> Losses:
    small = torch.tensor(1e-30, dtype=torch.bfloat16)
    return {name: value * small * small for name, value in compute().items()}


def _infinite_weight(compute: Callable[[], Losses], module: nn.Module) -> Losses:
    with torch.no_grad():
        next(parameter for parameter in module.parameters() if parameter.requires_grad).fill_(float("inf"))
    return compute()


FAULTS: dict[str, tuple[Fault, str]] = {
    "NaN in the loss": (_nan_loss, f"loss.* stopped being finite at step {BROKEN_STEP};"),
    "overflow of the loss": (_overflowing_loss, f"loss.* stopped being finite at step {BROKEN_STEP};"),
    "overflow of the gradient": (_overflowing_gradient, f"grad_norm stopped being finite at step {BROKEN_STEP};"),
    "infinite weights": (_infinite_weight, f"stopped being finite at step {BROKEN_STEP};|not finite after step"),
    "underflow of the gradient": (_underflow, f"grad_norm is zero in steps {BROKEN_STEP} to {BROKEN_STEP + 1}"),
}
"""Action from a step on, and words that the message must have."""


def run(*, short: bool = False) -> Campaign:
    """Break both stages and adaptation in float32 and bfloat16.

    Args:
        short: Only stage 2 in bfloat16.
    """
    campaign = Campaign(name="numbers", promise=PROMISE, aim="stops with the last good checkpoint, says where")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        commands = Commands(root=folder / "inputs")
        commands.prepare()
        for training in _trainings(commands)[1:2] if short else _trainings(commands):
            for precision in ("bf16",) if short else ("no", "bf16"):
                for fault in FAULTS:
                    _break(campaign, training, precision, fault, folder)
        _break_motion(campaign, commands, folder)
    campaign.notes.append(
        f"Losses, gradients and weights are broken from step {BROKEN_STEP} on, by code in the task of the training."
    )
    return campaign


@dataclass(frozen=True, kw_only=True)
class _Training:
    name: str
    words: Callable[[Path, str], list[str]]
    task: type[AutoencoderTask] | type[DiffusionTask]
    prefix: str
    """Prefix of the options of its optimization."""


def _trainings(commands: Commands) -> list[_Training]:
    name = "training.optimization"
    return [
        _Training(name="train autoencoder", words=commands.autoencoder, task=AutoencoderTask, prefix=f"autoencoder-{name}"),
        _Training(name="train diffusion", words=commands.diffusion, task=DiffusionTask, prefix=f"diffusion-{name}"),
        _Training(name="adapt", words=commands.adapt, task=AutoencoderTask, prefix="optimization"),
    ]


def _break(campaign: Campaign, training: _Training, precision: str, fault: str, folder: Path) -> None:
    """Run a training that breaks, then the same command without the fault."""
    place = folder / "place"
    place.mkdir()
    change, expected = FAULTS[fault]
    log_steps = 2 if "underflow" in fault else 4  # the step is found within a longer interval between logs
    options = f"--{training.prefix}.log-steps {log_steps} --{training.prefix}.mixed-precision {precision}"
    words = training.words(place / "out", options)
    ended = run_command(words, folder / "log", lambda: _break_task(training.task, change))
    seen = [] if ended.is_one_line and re.search(expected, ended.last_line) else [f"{ended.code}, {ended.output}"]
    if newest_step(place / "out") != LAST_GOOD:
        seen.append(f"the newest checkpoint is of step {newest_step(place / 'out')}")
    files = {path.name: read_tensors(path) for path in (place / "out" / CHECKPOINTS_DIR).rglob("*.safetensors")}
    seen += [
        f"{name} is not finite" for name, held in files.items() if not all(value.isfinite().all() for value in held.values())
    ]
    seen += [f"left {name}" for name in leftovers(place)]
    case = "float32" if precision == "no" else "bfloat16"
    campaign.expect(f"{training.name}: {fault}", case, not seen, "; ".join(seen))
    again = run_command(words, folder / "log")
    campaign.expect(f"{training.name}: goes on without the fault", f"{case}, {fault}", again.code == 0, again.output)
    shutil.rmtree(place)


def _break_task(task: type[AutoencoderTask] | type[DiffusionTask], change: Fault) -> None:
    """Apply a fault to the losses of a task. For use in a child."""
    original, steps = task.loss, count(1)

    def loss(self: Any, module: nn.Module, batch: Losses, randomness: BatchRandomness) -> Losses:
        compute = partial(original, self, module, batch, randomness)
        return change(compute, module) if next(steps) >= BROKEN_STEP else compute()

    task.loss = loss


def _break_motion(campaign: Campaign, commands: Commands, folder: Path) -> None:
    """Train stage 2 from a stage 1 whose motion is not finite: no cache of it may stay."""
    broken = folder / "broken"
    shutil.copytree(find_model(commands.stage1, "autoencoder"), broken)
    tensors = read_tensors(broken / WEIGHTS_NAME)
    for name, value in tensors.items():
        if name.startswith("motion_predictor") and value.is_floating_point():
            value.fill_(float("nan"))
    save_file(tensors, broken / WEIGHTS_NAME)
    words = [*commands.diffusion(folder / "out"), "--autoencoder", str(broken)]
    before = {path.name for path in (commands.data / CACHE_DIR).iterdir()}
    ended = run_command(words, folder / "log")
    after = {path.name for path in (commands.data / CACHE_DIR).iterdir()}
    held = ended.is_one_line and "not finite" in ended.last_line and after == before
    campaign.expect("train diffusion: motion that is not finite", "", held, f"{ended.code}, {ended.output}, {after - before}")
