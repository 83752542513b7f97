"""Several processes that train together: how they are started, and what must be equal among them.

`torchrun` and `accelerate launch` describe the processes in environment variables, which accelerate reads.
"""

import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object, parse_flag_from_env
from torch import Tensor, nn

from lfdm.config.training import OptimizationConfig
from lfdm.errors import UserError
from lfdm.folders.run_folder import differences
from lfdm.training.sharding import read_fsdp_settings

RENDEZVOUS_SECONDS = 300.0
"""Time that the first process has to begin to listen."""
LOST_PROCESS = re.compile(r"connection (closed|reset) by peer|broken pipe|remote process exited", re.IGNORECASE)
"""Matches the errors of gloo and NCCL after another process of the training has ended."""


def process_state() -> PartialState:
    """Return the processes of this training; without a GPU they exchange tensors by gloo.

    accelerate leaves it to its caller to say that there is no GPU, and prefers MPI where PyTorch was built with it, as Debian's
    is: in either case each process would train on its own.

    Raises:
        UserError: the processes do not find each other, or accelerate is configured for what they cannot do.
    """
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        raise UserError("accelerate's distributed_type must be a MULTI_... one or FSDP; got DEEPSPEED")
    read_fsdp_settings()
    place = ":".join(os.environ.get(name, f"({name} is not set)") for name in ("MASTER_ADDR", "MASTER_PORT"))
    try:
        if not dist.is_initialized() and int(os.environ.get("RANK", "0")) > 0:
            _find_first_process(*place.rsplit(":", 1))
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        return PartialState(cpu=_on_cpu(), **({"backend": "gloo"} if several and _on_cpu() else {}))
    except (dist.DistError, OSError, ValueError) as error:
        world, rank = (os.environ.get(name, "1") for name in ("WORLD_SIZE", "RANK"))
        if world == "1":
            raise
        reason = str(error).partition("\n")[0]
        raise UserError(f"{world} processes must meet at {place}, start them with torchrun; process {rank}: {reason}") from error


@contextmanager
def naming_a_lost_process() -> Iterator[None]:
    """Raise UserError where processes are exchanging tensors and one of them has ended; that one's own message says why."""
    try:
        yield
    except RuntimeError as error:
        if not dist.is_initialized() or not LOST_PROCESS.search(str(error)):
            raise
        raise UserError(
            "another process of this training has ended, its message says why; the same command continues the run"
        ) from error


def _find_first_process(host: str, port: str) -> None:
    """Wait until the first process listens. Raises OSError after `RENDEZVOUS_SECONDS`, where PyTorch would wait half an hour."""
    until = time.monotonic() + RENDEZVOUS_SECONDS
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=RENDEZVOUS_SECONDS).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def make_accelerator() -> Accelerator:
    """Return accelerate's handle on the processes; its precision is left to the training loop. Raises as `process_state`."""
    process_state()
    return Accelerator(cpu=_on_cpu(), mixed_precision="no")


def samples_at_once(config: OptimizationConfig, accelerator: Accelerator) -> int:
    """Return the most samples that a process computes at once, of `micro_batch_size` or accelerate's gradient accumulation.

    Raises:
        UserError: both are set.
    """
    steps, share = accelerator.gradient_accumulation_steps, config.batch_size // accelerator.num_processes
    if steps > 1 and config.micro_batch_size is not None:
        raise UserError(
            f"micro_batch_size must be None with accelerate's gradient_accumulation_steps={steps}; got {config.micro_batch_size}"
        )
    return min(config.micro_batch_size or -(-share // steps), share)


def _on_cpu() -> bool:
    return not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")


def require_equal_shares(settings: dict[str, Any], batch_size: int) -> None:
    """Compare the settings of all processes, in every process, before anything is written.

    Raises:
        UserError: a process has other settings than the first one, the message names the first that differ; or a batch that the
            processes cannot share.
    """
    require_same_settings(settings)
    if batch_size % (world := process_state().num_processes):
        raise UserError(f"batch_size must divide by the {world} processes; got {batch_size}")


def require_same_settings(settings: dict[str, Any]) -> None:
    """Compare the settings of all processes, in every process.

    Raises:
        UserError: a process has other settings than the first one; the message names the first that differ.
    """
    state = process_state()
    if state.num_processes == 1:
        return
    first, *others = gather_object([settings])
    for rank, other in enumerate(others, start=1):
        if differing := list(differences(first, other)):
            raise UserError(f"process {rank} (here) must have the settings of process 0 (there): {'; '.join(differing)}")


class _Sum(torch.autograd.Function):
    """Sum over all processes; the functions of PyTorch for this are deprecated, or private and without gradients before 2.13."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        del ctx
        total = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Sum.forward(ctx, *gradients)


def _sum(values: Tensor) -> Tensor:
    return _Sum.apply(values)


class SynchronizedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the samples of all processes, (n, c, ...), on any device; `nn.SyncBatchNorm` lacks the CPU.

    Every process must hold as many samples as the others.
    """

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 - PyTorch's name
        """Accept any shape (n, c, ...)."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - PyTorch's name
        """Normalize (n, c, ...) over all but c and over the processes; in evaluation mode by the running statistics."""
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        axes = [axis for axis in range(input.ndim) if axis != 1]
        values, world = input.float(), dist.get_world_size()
        count = world * values.numel() // values.shape[1]
        mean = _sum(values.mean(axes)) / world
        shape = (1, -1) + (1,) * (input.ndim - 2)
        centred = values - mean.view(shape)
        variance = _sum(centred.square().mean(axes)) / world
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        normed = centred * (variance + self.eps).rsqrt().view(shape)
        return (normed * self.weight.view(shape) + self.bias.view(shape)).to(input.dtype)


def synchronize_norms(module: nn.Module, device: torch.device) -> None:
    """Let the batch norms in `module` share their statistics among the processes, in place, for use on `device`.

    Parameters, buffers and their names stay the same. A GPU gets PyTorch's own kernels.
    """
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
                parent.add_module(name, _synchronized(child, device))


def _synchronized(norm: nn.modules.batchnorm._BatchNorm, device: torch.device) -> nn.Module:
    if device.type != "cpu":
        return nn.SyncBatchNorm.convert_sync_batchnorm(norm)
    result = SynchronizedBatchNorm(norm.num_features, norm.eps, norm.momentum)
    result.weight, result.bias = norm.weight, norm.bias
    result.running_mean, result.running_var = norm.running_mean, norm.running_var
    result.num_batches_tracked = norm.num_batches_tracked
    return result.train(norm.training)
