"""`fit`: one training loop for both stages, resumed exactly by the same command.

Sample order, augmentation and noise are pure functions of (seed, position), so that a checkpoint needs only the step it was
written at beside weights, average and optimizer moments. A run folder holds

    config.json                        the whole configuration
    metrics.jsonl, tensorboard/        logged scalars and panels      samples/   pictures
    checkpoints/step-00001000/NAME/        averaged weights, a model folder (`from_pretrained` reads it)
    checkpoints/step-00001000/training.safetensors, state.json        what resuming needs
"""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lfdm.autoencoder.convolution import channels_last_kernels
from lfdm.config.training import MixedPrecision, OptimizationConfig
from lfdm.errors import UserError
from lfdm.folders.run_folder import CHECKPOINTS_DIR
from lfdm.training.allocator import keep_freed_memory
from lfdm.training.batches import StepSampler
from lfdm.training.checkpoint import TrainingState, checkpoint_path, remove_unfinished
from lfdm.training.log import RunLog


class TrainingTask(Protocol):
    """What a stage brings to the loop."""

    @property
    def module(self) -> nn.Module:
        """What is trained, but for parameters without gradient. It draws no random numbers of its own."""
        ...

    def models(self, module: nn.Module) -> dict[str, nn.Module]:
        """The models in `module` (or in a copy of it) that a checkpoint holds, by folder: all that is trained, main one first."""
        ...

    @property
    def dataset(self) -> Dataset[Any]:
        """Takes (position, index); its random draws depend on (seed, position) alone."""
        ...

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


class NonFiniteLossError(UserError):
    """Training met a loss that is not a finite number."""


def uses_bf16(choice: MixedPrecision, device: torch.device) -> bool:
    """Whether to compute in bfloat16. `auto` asks the device: a processor without the instructions is ten times slower in it."""
    if choice != "auto":
        return choice == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def learning_rate(config: OptimizationConfig, step: int) -> float:
    """The rate of one step: linear warm-up, then a cosine to zero, x0.1 at each milestone, or no decay."""
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "cosine":
        decay = 0.5 * (1 + math.cos(math.pi * step / config.num_steps))
    else:
        decay = 0.1 ** sum(step >= milestone for milestone in config.milestones)
    return config.learning_rate * warmup * decay


def lay_out(module: nn.Module, *, bf16: bool) -> None:
    """Bring the convolutions' weights into the memory layout that training is fastest in on the device they are on."""
    on_gpu = any(parameter.is_cuda for parameter in module.parameters())
    if bf16 or on_gpu:
        channels_last_kernels(module)  # slower in float32 on a processor


def make_optimizer(module: nn.Module, config: OptimizationConfig) -> torch.optim.Adam:
    """Adam over what is trained of `module`, fused on a processor."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    on_processor = all(parameter.device.type == "cpu" for parameter in parameters)
    fused = True if on_processor else None  # six times as fast; CUDA's wants step counts on the device
    return torch.optim.Adam(parameters, lr=config.learning_rate, betas=config.betas, fused=fused)


@torch.no_grad()
def update_average(average: nn.Module, module: nn.Module, decay: float, step: int) -> None:
    """Move the averaged weights towards the current ones, quickly at first; buffers are copied, frozen weights left alone."""
    decay = min(decay, (1 + step) / (10 + step))
    pairs = zip(average.parameters(), module.parameters(), strict=True)
    means, values = zip(*(pair for pair in pairs if pair[1].requires_grad), strict=True)
    torch._foreach_lerp_(means, values, 1 - decay)  # type: ignore[attr-defined]
    for mean, value in zip(average.buffers(), module.buffers(), strict=True):
        mean.copy_(value)


def set_training(module: nn.Module) -> None:
    """Training mode, but evaluation mode for layers whose weights are all frozen: their batch-norm statistics are, too."""
    module.train()
    for layer in module.modules():
        weights = list(layer.parameters())
        if weights and not any(weight.requires_grad for weight in weights):
            layer.eval()


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
    machine with the same threads in float32 on the CPU (some CUDA kernels add up in any order). `stop_after` ends this call
    early at that step (with a checkpoint).

    Raises:
        NonFiniteLossError: the loss or the weights stopped being numbers; the last checkpoint is intact.
        OSError: a checkpoint could not be written; the last one is intact.
        UserError: no samples, a batch size that does not divide by the processes, a checkpoint of another model.
    """
    stop = config.num_steps if stop_after is None else min(stop_after, config.num_steps)
    if stop < 1:
        raise UserError(f"stop_after must be at least 1; got {stop_after}")
    return _Trainer(task, config, out, report).run(stop)


class _Trainer:
    """The state of one call of `fit`."""

    def __init__(
        self, task: TrainingTask, config: OptimizationConfig, out: Path, report: Callable[[StepReport], None] | None
    ) -> None:
        self.task, self.config, self.out, self.report = task, config, out, report
        self.accelerator = Accelerator(mixed_precision="no")  # its precision is fixed once per process: `_train_step` casts
        self.device, self.is_main = self.accelerator.device, self.accelerator.is_main_process
        self.num_samples = len(task.dataset)  # type: ignore[arg-type]
        if self.num_samples < 1:
            raise UserError("the data set has no samples to train on")
        if config.batch_size % self.accelerator.num_processes:
            raise UserError(f"batch_size must divide by the {self.accelerator.num_processes} processes; got {config.batch_size}")
        module = task.module.to(self.device)
        self.bf16 = uses_bf16(config.mixed_precision, self.device)
        lay_out(module, bf16=self.bf16)
        self.trained, self.average = module, module
        if config.ema_decay:
            self.average = copy.deepcopy(module).requires_grad_(False).eval()
        self.state = TrainingState(task.models(module), task.models(self.average), make_optimizer(module, config))
        self.step = self.state.load_newest(out)
        self.module = self.accelerator.prepare_model(module)  # the optimizer stays as it is: accelerate would move its steps
        self.totals: dict[str, Tensor] = {}
        self.reported_step, self.reported_at = self.step, time.monotonic()

    def run(self, stop: int) -> Path:
        if self.step < stop:
            if self.is_main:
                remove_unfinished(self.out)
            log = RunLog(self.out, step=self.step) if self.is_main else None
            try:
                self._train(stop, log)
            finally:
                if log is not None:
                    log.close()
        return checkpoint_path(self.out, self.step)

    def _train(self, stop: int, log: RunLog | None) -> None:
        config = self.config
        set_training(self.module)
        if self.device.type == "cpu":
            keep_freed_memory()
        saved_at = time.monotonic()
        for batch in self._loader(stop):
            for name, value in self._train_step(batch).items():
                self.totals[name] = self.totals.get(name, 0) + value
            self.step += 1
            save = self.step == stop or self._checkpoint_due(saved_at)
            if save or self.step % config.log_steps == 0:
                self._report(log)
            if save:
                self._save()
                saved_at = time.monotonic()
            if log is not None and self.step % config.sample_steps == 0:  # after saving: it may fail for want of memory
                self._sample(log)

    def _loader(self, stop: int) -> DataLoader[Any]:
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        return DataLoader(
            self.task.dataset,
            batch_sampler=StepSampler(self.config, self.num_samples, self.step, stop, rank=rank, world=world),
            num_workers=self.config.num_workers,
            pin_memory=self.device.type == "cuda",
        )

    def _train_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """One update; the losses (and the gradient's norm) stay on the device, so that nothing waits for it."""
        config, state = self.config, self.state
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step)
        batch = {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            losses = self.task.loss(self.module, batch, self._generator())
        state.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(losses["loss"])
        if config.max_grad_norm is not None:
            losses["grad_norm"] = nn.utils.clip_grad_norm_(self.module.parameters(), config.max_grad_norm)
        state.optimizer.step()
        if config.ema_decay:
            update_average(self.average, self.trained, config.ema_decay, self.step)
        return {name: value.detach() for name, value in losses.items()}

    def _generator(self) -> torch.Generator:
        """The randomness of this step and process, on the device."""
        entropy = np.random.SeedSequence((self.config.seed, self.step, self.accelerator.process_index))
        seed = int(entropy.generate_state(1, np.uint64)[0] >> np.uint64(1))
        return torch.Generator(self.device).manual_seed(seed)

    def _report(self, log: RunLog | None) -> None:
        """Average the losses since the last report over steps and processes, check and log them."""
        steps = self.step - self.reported_step
        values = torch.stack([value.float() for value in self.totals.values()]) / steps
        averaged: Tensor = self.accelerator.reduce(values, "mean")  # type: ignore[assignment]
        metrics = dict(zip(self.totals, averaged.tolist(), strict=True))
        self._check_finite([name for name, value in metrics.items() if not math.isfinite(value)])
        metrics["learning_rate"] = learning_rate(self.config, self.step - 1)
        now = time.monotonic()
        speed = steps / max(now - self.reported_at, 1e-9)
        self.totals, self.reported_step, self.reported_at = {}, self.step, now
        if log is not None:
            log.scalars(self.step, {**metrics, "steps_per_second": speed})
            if self.report is not None:
                self.report(StepReport(self.step, self.config.num_steps, metrics, speed))

    def _check_finite(self, bad: list[str]) -> None:
        if bad:
            hint = " or mixed_precision='no'" if self.bf16 else ""
            more = f" and {len(bad) - 8} more" if len(bad) > 8 else ""
            raise NonFiniteLossError(
                f"{', '.join(bad[:8])}{more} stopped being finite between steps {self.reported_step} and {self.step}; the last "
                f"checkpoint in {self.out / CHECKPOINTS_DIR} is intact. Train in another --out with a lower learning_rate{hint}"
            )

    @torch.no_grad()
    def _sample(self, log: RunLog) -> None:
        self.average.eval()
        log.panel(self.step, self.task.panel(self.average))
        if self.average is self.trained:
            set_training(self.module)

    def _checkpoint_due(self, saved_at: float) -> bool:
        """By steps or minutes; several processes agree on the minutes, which costs a wait, at `log_steps` only."""
        if self.step % self.config.checkpoint_steps == 0:
            return True
        due = time.monotonic() - saved_at > 60 * self.config.checkpoint_minutes
        if self.accelerator.num_processes == 1 or self.step % self.config.log_steps:
            return due and self.accelerator.num_processes == 1
        votes: Tensor = self.accelerator.reduce(torch.tensor(float(due), device=self.device), "sum")  # type: ignore[assignment]
        return bool(votes > 0)

    def _save(self) -> None:
        self._check_finite(self.state.non_finite())
        if self.is_main:
            self.state.save(self.out, self.step, keep=self.config.keep_checkpoints)
        self.accelerator.wait_for_everyone()
