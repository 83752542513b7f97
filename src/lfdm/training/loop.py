"""`train`: one training loop for both stages, resumed exactly by the same call.

Sample order, augmentation and noise are functions of (seed, position) or (seed, step). A checkpoint therefore needs only
the step next to weights, averaged weights and optimizer moments. A run folder holds

    config.json                        the whole configuration
    metrics.jsonl, tensorboard/        logged scalars and panels      samples/   pictures
    checkpoints/step-00001000/NAME/        averaged weights, a model folder for `from_pretrained`
    checkpoints/step-00001000/training.safetensors, state.json        what resuming needs
"""

import contextlib
import copy
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lfdm.config.training import OptimizationConfig
from lfdm.errors import UserError
from lfdm.folders.run_folder import CHECKPOINTS_DIR
from lfdm.training.allocator import advise_on_memory, keep_freed_memory, peak_memory
from lfdm.training.batches import BatchRandomness, ShardOrder, StepSampler, micro_batches, shared_rows
from lfdm.training.checkpoint import TrainingState, checkpoint_path, remove_unfinished
from lfdm.training.interruption import TrainingInterrupted, catch_interruption, leave_interruption_to_parent
from lfdm.training.log import RunLog
from lfdm.training.optimization import lay_out, learning_rate, make_optimizer, set_training, update_average, uses_bf16
from lfdm.training.processes import make_accelerator, samples_at_once, synchronize_norms
from lfdm.training.reports import RunSummary, StepReport, summarize
from lfdm.training.sharding import average_scalar_gradients, clip_gradients, gather_into, read_fsdp_settings, shard

ESTIMATE_STEPS = 4
"""Steps whose time predicts the rest of a run, after a first one, which is slower."""
MAX_NAMES = 8
"""Most names of tensors in an error message."""


class TrainingTask(Protocol):
    """A stage, as the loop sees it."""

    @property
    def module(self) -> nn.Module:
        """The module to train; parameters without gradient stay as they are. It generates no random numbers itself."""
        ...

    def models(self, module: nn.Module) -> dict[str, nn.Module]:
        """Return the models in `module` (or in a copy of it) that a checkpoint stores, by folder name, the main one first.

        Every trained parameter belongs to one of them.
        """
        ...

    @property
    def dataset(self) -> Dataset[Any]:
        """Map (position, index) to a sample; augmentation depends only on the seed and the position.

        One whose clips are in shards has their `shard_sizes` and a method `prefetch` (see `ShardOrder`).
        """
        ...

    def loss(self, module: nn.Module, batch: dict[str, Tensor], randomness: BatchRandomness) -> dict[str, Tensor]:
        """Return the scalar `loss`, a mean over the samples of the batch, and its parts."""
        ...

    def panel(self, module: nn.Module) -> np.ndarray:
        """Return a picture (H, W, 3) or clip (t, H, W, 3), uint8, that shows the current quality."""
        ...


class DivergedError(UserError):
    """Loss, gradient or weights that no training can go on from: not finite, or a gradient of exactly zero."""


def train(
    task: TrainingTask,
    config: OptimizationConfig,
    out: Path,
    *,
    report: Callable[[StepReport], None] | None = None,
    summary: Callable[[RunSummary], None] | None = None,
    stop_after: int | None = None,
) -> Path:
    """Train `task.module` up to step `config.num_steps` and return the folder of the last checkpoint.

    Continues from the newest checkpoint in `out`. Every process calls this, after `require_equal_shares`. In float32 on the CPU,
    with the same machine and number of threads, the result equals that of an uninterrupted run bit for bit (some CUDA kernels
    add in varying order).

    The first Ctrl-C or SIGTERM ends the training after the current step with a checkpoint (several processes: at the next
    multiple of `log_steps`), Ctrl-C again at once.

    Args:
        report: called every `log_steps` on the main process.
        summary: called before the first step and again after `1 + ESTIMATE_STEPS`, on the main process.
        stop_after: end this call at that step, with a checkpoint.

    Raises:
        TrainingInterrupted: ended by a signal.
        DivergedError: the loss or the weights are not finite any more, or the gradient is zero; the last checkpoint is intact.
        OSError: a checkpoint could not be written; the last one is intact.
        UserError: no samples, a checkpoint of another model, or not enough memory.
    """
    stop = config.num_steps if stop_after is None else min(stop_after, config.num_steps)
    if stop < 1:
        raise UserError(f"stop_after must be at least 1; got {stop_after}")
    return _Trainer(task, config, out, report, summary).run(stop)


class _Trainer:
    """The state of one call of `train`."""

    def __init__(
        self,
        task: TrainingTask,
        config: OptimizationConfig,
        out: Path,
        report: Callable[[StepReport], None] | None = None,
        summary: Callable[[RunSummary], None] | None = None,
    ) -> None:
        self.task, self.config, self.out = task, config, out
        self.accelerator = make_accelerator()  # its precision is fixed once per process; `_backward` casts
        self.device, self.is_main = self.accelerator.device, self.accelerator.is_main_process
        self.report, self.summary = (report, summary) if self.is_main else (None, None)
        self.num_samples = len(task.dataset)  # type: ignore[arg-type]
        if self.num_samples < 1:
            raise UserError("the data set has no samples to train on")
        self.bf16 = uses_bf16(config.mixed_precision, self.device)
        self.fsdp = read_fsdp_settings() if self.accelerator.num_processes > 1 else None
        self.trained = self.average = task.module
        self.shown: nn.Module | None = task.module
        self._place_modules()
        self.state = TrainingState(task.models(self.trained), task.models(self.average), make_optimizer(self.trained, config))
        self.step = self.state.load_newest(out)
        # Not the optimizer: accelerate would move its step counts.
        self.module = self.trained if self.fsdp else self.accelerator.prepare_model(self.trained)
        self.totals: dict[str, Tensor] = {}
        self.finite_steps: dict[str, Tensor] = {}
        self.reported_step, self.reported_at = self.step, time.monotonic()
        self.saved_at = self.timed_from = self.reported_at

    def _place_modules(self) -> None:
        """Bring the weights to the device, and make their average, if there is one, and `shown`, which is written and drawn.

        Of sharded weights `shown` is a copy in the main process' memory, which `_gather` fills.
        """
        module = self.trained
        if self.accelerator.num_processes > 1:
            synchronize_norms(module, self.device)
        if self.fsdp is None:
            lay_out(module.to(self.device), bf16=self.bf16)
        if self.config.ema_decay:
            self.average = self.shown = copy.deepcopy(module).requires_grad_(False).eval()
        if self.fsdp is not None:
            self.shown = copy.deepcopy(self.average).eval() if self.is_main else None
            for each in dict.fromkeys((module, self.average)):
                shard(each, self.accelerator, self.fsdp)

    def run(self, stop: int) -> Path:
        if self.is_main:
            remove_unfinished(self.out)
        if self.step < stop:
            log = RunLog(self.out, step=self.step) if self.is_main else None
            try:
                self._train(stop, log)
            finally:
                if log is not None:
                    log.close()
        return checkpoint_path(self.out, self.step)

    def _train(self, stop: int, log: RunLog | None) -> None:
        config = self.config
        summary = summarize(
            self.trained, config, self.out, self.accelerator, num_clips=self.num_samples, start_step=self.step, bf16=self.bf16
        )
        if self.summary is not None:
            self.summary(summary)
        set_training(self.module)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.saved_at = time.monotonic()
        with catch_interruption() as interruption:
            for batch in self._loader(stop):
                with advise_on_memory(self.device, summary.micro_batch_size):
                    losses = self._train_step(batch)
                for name, value in losses.items():
                    self.totals[name] = self.totals.get(name, 0) + value
                    self.finite_steps[name] = self.finite_steps.get(name, 0) + self.totals[name].isfinite()
                self.step += 1
                self._estimate(summary, stop)
                due, interrupted = self._decide(interruption.signal_number is not None)
                save = due or interrupted or self.step == stop or self.step % config.checkpoint_steps == 0
                if save or self.step % config.log_steps == 0:
                    self._report(log)
                if save:
                    self._save()
                if interrupted and self.step < stop:
                    raise TrainingInterrupted(self.step, config.num_steps, interruption.signal_number)
                if self.step % config.sample_steps == 0:  # after saving: it may run out of memory
                    self._sample(log)

    def _loader(self, stop: int) -> DataLoader[Any]:
        share = {"rank": self.accelerator.process_index, "world": self.accelerator.num_processes}
        dataset: Any = self.task.dataset
        sizes, order = getattr(dataset, "shard_sizes", None), None
        if sizes is not None:
            order = ShardOrder(self.config.seed, sizes, self.config.epoch_repeats, dataset.prefetch)
        return DataLoader(
            dataset,
            batch_sampler=StepSampler(self.config, self.num_samples, self.step, stop, **share, shard_order=order),
            num_workers=self.config.num_workers,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=leave_interruption_to_parent,
        )

    def _train_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Update the weights once; the losses and the gradient's norm stay on the device, so that nothing waits for it."""
        config, state = self.config, self.state
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step)
        state.optimizer.zero_grad(set_to_none=True)
        losses = self._backward({name: value.to(self.device, non_blocking=True) for name, value in batch.items()})
        if self.fsdp is not None:
            average_scalar_gradients(self.module)
        if config.max_grad_norm is not None:
            losses["grad_norm"] = clip_gradients(self.module, config.max_grad_norm)
        state.optimizer.step()
        if config.ema_decay:
            update_average(self.average, self.trained, config.ema_decay, self.step)
        return losses

    def _backward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add the gradient of the batch's mean loss, one micro-batch after the other, and return the mean losses."""
        size = len(next(iter(batch.values())))
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        means: dict[str, Tensor] = {}
        for rows in micro_batches(size, samples_at_once(self.config, self.accelerator)):
            part = {name: value[rows] for name, value in batch.items()}
            randomness = BatchRandomness(self._generator(), size * world, shared_rows(rows, rank, world), self.step)
            share = (rows.stop - rows.start) / size
            # Processes add up their gradients in the last backward pass of a step only; shares of them, to save memory, in each.
            at_once = rows.stop == size or self.fsdp is not None
            with contextlib.nullcontext() if at_once else self.accelerator.no_sync(self.module):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                    losses = self.task.loss(self.module, part, randomness)
                (share * losses["loss"]).backward()
            for name, value in losses.items():
                means[name] = means.get(name, 0) + share * value.detach()
        return means

    def _generator(self) -> torch.Generator:
        """Return the random generator of this step, on the device; it is the same in every process."""
        entropy = np.random.SeedSequence((self.config.seed, self.step, 0))
        seed = int(entropy.generate_state(1, np.uint64)[0] >> np.uint64(1))
        return torch.Generator(self.device).manual_seed(seed)

    def _estimate(self, summary: RunSummary, stop: int) -> None:
        """Predict time and memory after a few steps, for which the host waits for the device twice in a run."""
        done = self.step - summary.start_step
        if self.summary is None or done not in (1, 1 + ESTIMATE_STEPS):
            return
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        if done == 1:
            self.timed_from = time.monotonic()
            return
        seconds = (time.monotonic() - self.timed_from) / ESTIMATE_STEPS * (stop - self.step)
        self.summary(replace(summary, seconds_left=seconds, peak_memory=peak_memory(self.device)))

    def _report(self, log: RunLog | None) -> None:
        """Average the losses since the last report over steps and processes, check and log them."""
        steps = self.step - self.reported_step
        values = torch.stack([value.float() for value in self.totals.values()]) / steps
        averaged: Tensor = self.accelerator.reduce(values, "mean")  # type: ignore[assignment]
        metrics = dict(zip(self.totals, averaged.tolist(), strict=True))
        self._check_metrics(metrics)
        metrics["learning_rate"] = learning_rate(self.config, self.step - 1)
        now = time.monotonic()
        speed = steps / max(now - self.reported_at, 1e-9)
        self.totals, self.finite_steps, self.reported_step, self.reported_at = {}, {}, self.step, now
        if log is not None:
            log.scalars(self.step, {**metrics, "steps_per_second": speed})
            if self.report is not None:
                self.report(StepReport(self.step, self.config.num_steps, metrics, speed))

    def _check_metrics(self, metrics: dict[str, float]) -> None:
        """Raise DivergedError with the first step since the last report that broke a loss, and the losses that broke there."""
        if not all(map(math.isfinite, metrics.values())):
            counts: Tensor = self.accelerator.gather(torch.stack(list(self.finite_steps.values()))[None])  # type: ignore[assignment]
            finite = dict(zip(self.finite_steps, counts.amin(0).tolist(), strict=True))
            first = min(finite.values())
            names = [name for name, count in finite.items() if count == first]
            self._stop(names, f"stopped being finite at step {self.reported_step + first + 1}")
        if metrics.get("grad_norm") == 0:
            self._stop(["grad_norm"], f"is zero in steps {self.reported_step + 1} to {self.step}: nothing is learned")

    def _stop(self, names: list[str], fault: str) -> None:
        hint = " or mixed_precision='no'" if self.bf16 else ""
        more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
        raise DivergedError(
            f"{', '.join(names[:MAX_NAMES])}{more} {fault}; the last checkpoint in {self.out / CHECKPOINTS_DIR} is intact. Train "
            f"in another --out with a lower learning_rate{hint}"
        )

    @torch.no_grad()
    def _sample(self, log: RunLog | None) -> None:
        self._gather()
        if log is None or self.shown is None:
            return
        log.panel(self.step, self.task.panel(self.shown.to(self.device).eval()))
        if self.fsdp is not None:
            self.shown.cpu()
        if self.shown is self.trained:
            set_training(self.module)

    def _gather(self) -> None:
        if self.fsdp is not None:
            gather_into(self.shown, self.average)

    def _decide(self, interrupted: bool) -> tuple[bool, bool]:
        """Return whether `checkpoint_minutes` have passed and whether to end the training.

        Several processes vote, which makes them wait for each other and is therefore done every `log_steps` only.
        """
        minutes = (time.monotonic() - self.saved_at) / 60
        votes = [minutes > self.config.checkpoint_minutes, interrupted]
        if self.accelerator.num_processes > 1:
            if self.step % self.config.log_steps:
                return False, False
            counts: Tensor = self.accelerator.reduce(torch.tensor(votes, device=self.device).float(), "sum")  # type: ignore[assignment]
            votes = [count > 0 for count in counts.tolist()]
        return votes[0], votes[1]

    def _save(self) -> None:
        if bad := self.state.non_finite():
            self._stop(bad, f"not finite after step {self.step}")
        self._gather()
        averages = self.task.models(self.shown) if self.is_main and self.shown is not None else None
        self.state.save(self.out, self.step, keep=self.config.keep_checkpoints, averages=averages)
        self.accelerator.wait_for_everyone()
        self.saved_at = time.monotonic()
