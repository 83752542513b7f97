"""`fit`: one training loop for both stages, resumed exactly by the same command.

Sample order, augmentation and noise are pure functions of (seed, position), so that a checkpoint needs only the step it was
written at beside weights, average and optimizer moments. A run folder holds

    config.json                        the whole configuration
    metrics.jsonl, tensorboard/        logged scalars and panels      samples/   pictures
    checkpoints/step-00001000/NAME/        averaged weights, a model folder (`from_pretrained` reads it)
    checkpoints/step-00001000/training.safetensors, state.json        what resuming needs
"""

import copy
import io
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lfdm.config import OptimizationConfig
from lfdm.models.loading import (
    CHECKPOINTS_DIR,
    STATE_NAME,
    find_checkpoints,
    load_exactly,
    read_json,
    read_tensors,
    replace_folder,
)

logger = logging.getLogger(__name__)

TRAINING_NAME = "training.safetensors"
FREE_TO_CHANGE = ("num_steps", "num_workers", "checkpoint_steps", "checkpoint_minutes", "keep_checkpoints", "log_steps", "sample_steps")


class TrainingTask(Protocol):
    """What a stage brings to the loop."""

    name: str
    """Folder of the model inside a checkpoint: `autoencoder` or `unet`."""
    module: nn.Module
    """The model that is trained."""
    dataset: Dataset[Any]
    """Takes (position, index); its random draws depend on (seed, position) alone."""

    def loss(self, module: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """The scalar `loss` and its parts for one batch."""
        ...

    def panel(self, module: nn.Module) -> np.ndarray:
        """A picture (H, W, 3) or clip (t, H, W, 3), uint8, of what the model does now."""
        ...


@dataclass(frozen=True)
class StepReport:
    """Progress of a training: the latest metrics and steps per second since the last report."""

    step: int
    num_steps: int
    metrics: dict[str, float]
    steps_per_second: float


class NonFiniteLossError(ValueError):
    """Training met a loss that is not a finite number."""


def sample_order(seed: int, step: int, batch_size: int, num_samples: int) -> list[tuple[int, int]]:
    """The (position, index) pairs of one step: every epoch visits the samples in an order of its own.

    >>> sorted(index for step in range(3) for _, index in sample_order(0, step, 2, 6))
    [0, 1, 2, 3, 4, 5]
    """
    pairs = []
    for position in range(step * batch_size, (step + 1) * batch_size):
        epoch, offset = divmod(position, num_samples)
        pairs.append((position, int(_epoch_order(seed, epoch, num_samples)[offset])))
    return pairs


def _epoch_order(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    key = (seed, epoch, num_samples)
    if key not in _ORDERS:
        _ORDERS.clear()
        _ORDERS[key] = np.random.default_rng((seed, epoch, 1)).permutation(num_samples)
    return _ORDERS[key]


_ORDERS: dict[tuple[int, int, int], np.ndarray] = {}


class StepSampler:
    """Batches of (position, index) from a step on, this process's share of each."""

    def __init__(self, config: OptimizationConfig, num_samples: int, start: int, accelerator: Accelerator) -> None:
        self.config, self.num_samples, self.start = config, num_samples, start
        self.rank, self.world = accelerator.process_index, accelerator.num_processes

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.start, self.config.num_steps):
            yield sample_order(self.config.seed, step, self.config.batch_size, self.num_samples)[self.rank :: self.world]

    def __len__(self) -> int:
        return self.config.num_steps - self.start


def learning_rate(config: OptimizationConfig, step: int) -> float:
    """The rate of one step: linear warm-up, then a cosine to zero or x0.1 at each milestone."""
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "milestones":
        decay = 0.1 ** sum(step >= milestone for milestone in config.milestones)
    else:
        decay = 0.5 * (1 + math.cos(math.pi * step / config.num_steps))
    return config.learning_rate * warmup * decay


@torch.no_grad()
def update_average(average: nn.Module, module: nn.Module, decay: float, step: int) -> None:
    """Move the averaged weights towards the current ones, quickly at first; buffers are copied."""
    decay = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - decay)
    for mean, value in zip(average.buffers(), module.buffers(), strict=True):
        mean.copy_(value)


def prepare_run(out: Path, config: dict[str, Any]) -> None:
    """Write `out`/config.json, or check that a run to be resumed has the same settings.

    Raises:
        ValueError: the folder holds a run of other settings (each that differs is named), or something else.
    """
    path = out / "config.json"
    if path.exists():
        differing = list(_differences(read_json(path), json.loads(json.dumps(config))))
        if differing:
            raise ValueError(f"{out} holds a run of other settings: {'; '.join(differing)}. Use them, or another --out")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not empty and holds no run of ours; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    temporary = out / ".config.json"
    temporary.write_text(json.dumps(config, indent=2) + "\n")
    temporary.rename(path)


def _differences(old: object, new: object, name: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            if key not in FREE_TO_CHANGE:
                yield from _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif old != new:
        yield f"{name} is {old!r} there, {new!r} here"


def fit(
    task: TrainingTask,
    config: OptimizationConfig,
    out: Path,
    *,
    report: Callable[[StepReport], None] | None = None,
    stop_after: int | None = None,
) -> Path:
    """Train `task.module` up to `config.num_steps` and return the folder of the last checkpoint.

    Continues from the newest checkpoint in `out`: the outcome equals that of a run never stopped, bit for bit on the same
    machine with the same threads in float32. `stop_after` ends this call early at that step (with a checkpoint).

    Raises:
        NonFiniteLossError: the loss stopped being a number; the last checkpoint is intact.
        OSError: a checkpoint could not be written; the last one is intact.
    """
    return _Trainer(task, config, out, report).run(stop_after or config.num_steps)


class _Trainer:
    """The state of one call of `fit`."""

    def __init__(
        self, task: TrainingTask, config: OptimizationConfig, out: Path, report: Callable[[StepReport], None] | None
    ) -> None:
        self.task, self.config, self.out, self.report = task, config, out, report
        self.accelerator = Accelerator(mixed_precision=config.mixed_precision)
        if config.batch_size % self.accelerator.num_processes:
            raise ValueError(f"batch_size must divide by the {self.accelerator.num_processes} processes; got {config.batch_size}")
        module = task.module.to(self.accelerator.device)
        if config.mixed_precision == "bf16" or self.accelerator.device.type == "cuda":
            module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # slower in float32 on a CPU
        self.names = [name for name, value in module.named_parameters() if value.requires_grad]
        parameters = [value for value in module.parameters() if value.requires_grad]
        self.plain = module
        self.average = copy.deepcopy(module).requires_grad_(False) if config.ema_decay else module
        self.optimizer = torch.optim.Adam(parameters, lr=config.learning_rate, betas=config.betas)
        self.step = self._resume()
        self.module, self.prepared_optimizer = self.accelerator.prepare(module, self.optimizer)
        self.log = _Log(out, enabled=self.accelerator.is_main_process)

    def run(self, stop: int) -> Path:
        config = self.config
        loader = DataLoader(
            self.task.dataset,
            batch_sampler=StepSampler(config, len(self.task.dataset), self.step, self.accelerator),  # type: ignore[arg-type]
            num_workers=config.num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
        )
        last_saved, last_report = time.monotonic(), (time.monotonic(), self.step)
        total: dict[str, Tensor] = {}
        folder = self.out / CHECKPOINTS_DIR / f"step-{self.step:08d}"
        saved_step = self.step
        self.module.train()
        for batch in loader:
            if self.step >= stop:
                break
            for name, value in self._train_step(batch).items():
                total[name] = total.get(name, 0) + value
            self.step += 1
            if self.step % config.log_steps == 0 or self.step == stop:
                seconds, steps = time.monotonic() - last_report[0], self.step - last_report[1]
                self._report(total, steps, steps / max(seconds, 1e-9))
                total, last_report = {}, (time.monotonic(), self.step)
            if self.step % config.sample_steps == 0:
                self._sample()
            if self._checkpoint_due(last_saved) or self.step == stop:
                self._check_finite(total)
                folder, saved_step = self._save(), self.step
                last_saved = time.monotonic()
        if saved_step != self.step or not folder.exists():
            folder = self._save()
        self.log.close()
        return folder

    def _train_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        device = self.accelerator.device
        generator = torch.Generator(device)
        stream = np.random.SeedSequence((self.config.seed, self.step, self.accelerator.process_index))
        generator.manual_seed(int(stream.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step)
        losses = self.task.loss(self.module, {k: v.to(device, non_blocking=True) for k, v in batch.items()}, generator)
        self.prepared_optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(losses["loss"])
        if self.config.max_grad_norm is not None:
            losses["grad_norm"] = self.accelerator.clip_grad_norm_(self.module.parameters(), self.config.max_grad_norm)
        self.prepared_optimizer.step()
        if self.config.ema_decay:
            update_average(self.average, self.plain, self.config.ema_decay, self.step)
        return {name: value.detach() for name, value in losses.items()}

    def _report(self, total: dict[str, Tensor], steps: int, speed: float) -> None:
        self._check_finite(total)
        metrics = {name: float(value) / steps for name, value in total.items()}
        metrics["learning_rate"] = learning_rate(self.config, self.step - 1)
        self.log.scalars(self.step, {**metrics, "steps_per_second": speed})
        if self.report is not None and self.accelerator.is_main_process:
            self.report(StepReport(self.step, self.config.num_steps, metrics, speed))

    def _check_finite(self, total: dict[str, Tensor]) -> None:
        bad = [name for name, value in total.items() if not math.isfinite(float(value))]
        if bad:
            raise NonFiniteLossError(
                f"{', '.join(bad)} stopped being finite before step {self.step}; the last checkpoint in "
                f"{self.out / CHECKPOINTS_DIR} is intact. Lower learning_rate or use mixed_precision='no'"
            )

    @torch.no_grad()
    def _sample(self) -> None:
        if not self.accelerator.is_main_process:
            return
        self.average.eval()
        self.log.panel(self.step, self.task.panel(self.average))
        self.average.train(self.average is self.plain)

    def _checkpoint_due(self, last_saved: float) -> bool:
        due = self.step % self.config.checkpoint_steps == 0 or time.monotonic() - last_saved > 60 * self.config.checkpoint_minutes
        if self.accelerator.num_processes == 1:
            return due
        flag = torch.tensor(float(due), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "max") > 0)  # type: ignore[operator]

    def _save(self) -> Path:
        folder = self.out / CHECKPOINTS_DIR / f"step-{self.step:08d}"
        if self.accelerator.is_main_process:
            replace_folder(folder, self._write)
            for old in find_checkpoints(self.out)[: -self.config.keep_checkpoints]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()
        return folder

    def _write(self, folder: Path) -> None:
        self.average.save_pretrained(folder / self.task.name)  # type: ignore[operator]
        tensors = {f"model.{name}": value for name, value in self.plain.state_dict().items()}
        for name, parameter in zip(self.names, self.optimizer.param_groups[0]["params"], strict=True):
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = value
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, folder / TRAINING_NAME)
        (folder / STATE_NAME).write_text(json.dumps({"step": self.step}))

    def _resume(self) -> int:
        """Load the newest checkpoint of the run folder, if there is one; the step to go on from."""
        checkpoints = find_checkpoints(self.out)
        if not checkpoints:
            return 0
        folder = checkpoints[-1]
        tensors = read_tensors(folder / TRAINING_NAME)
        load_exactly(self.plain, _pick(tensors, "model"), str(folder / TRAINING_NAME))
        if self.average is not self.plain:
            load_exactly(self.average, read_tensors(folder / self.task.name / "diffusion_pytorch_model.safetensors"), str(folder))
        states = {key: _pick(tensors, key) for key in ("step", "exp_avg", "exp_avg_sq")}
        for name, parameter in zip(self.names, self.optimizer.param_groups[0]["params"], strict=True):
            if name in states["step"]:
                state = {key: values[name] for key, values in states.items()}
                moments = {k: v.to(parameter.device).clone(memory_format=torch.preserve_format) for k, v in state.items() if k != "step"}
                self.optimizer.state[parameter] = {"step": state["step"], **moments}
        return int(read_json(folder / STATE_NAME)["step"])


def _pick(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): value for name, value in tensors.items() if name.startswith(f"{prefix}.")}


class _Log:
    """Scalars to metrics.jsonl, panels to samples/, both to TensorBoard where it is installed."""

    def __init__(self, out: Path, *, enabled: bool) -> None:
        self.out, self.enabled = out, enabled
        self.writer = None
        if not enabled:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            logger.info("TensorBoard is not installed (pip install 'lfdm[train]'); scalars go to metrics.jsonl alone")
            return
        self.writer = SummaryWriter(out / "tensorboard")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        if not self.enabled:
            return
        with (self.out / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def panel(self, step: int, picture: np.ndarray) -> None:
        """Keep a picture, or a clip as a GIF, and show the same file in TensorBoard."""
        frames = [Image.fromarray(frame) for frame in (picture if picture.ndim == 4 else picture[None])]
        encoded = io.BytesIO()
        if len(frames) > 1:
            frames[0].save(encoded, "GIF", save_all=True, append_images=frames[1:], duration=125, loop=0)
        else:
            frames[0].save(encoded, "PNG")
        path = self.out / "samples" / f"step-{step:08d}.{'gif' if len(frames) > 1 else 'png'}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded.getvalue())
        if self.writer is not None:
            from tensorboard.compat.proto.summary_pb2 import Summary

            height, width = picture.shape[-3:-1]
            image = Summary.Image(height=height, width=width, encoded_image_string=encoded.getvalue())
            self.writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag="panel", image=image)]), step)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
