"""FSDP2: weights, gradients, moments and averages of a training, each process holding its share of them.

accelerate's configuration chooses it (`ACCELERATE_USE_FSDP`, `FSDP_VERSION`). accelerate's own `prepare` shards modules on GPUs
only; PyTorch's `fully_shard`, which it calls, is called here, so that processes without a GPU train in the same way.
"""

import os
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from lfdm.errors import UserError

TensorT = TypeVar("TensorT", bound=Tensor)


def read_fsdp_settings() -> FullyShardedDataParallelPlugin | None:
    """Return accelerate's settings of FSDP2, or None where every process is to hold all weights.

    Raises:
        UserError: a setting that would have no effect.
    """
    if not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return None
    # transformers would load a text encoder in the first process only, and expect FSDP to send it to the others.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    if (version := os.environ.get("FSDP_VERSION", "1")) != "2":
        raise UserError(f"accelerate's fsdp_version must be 2; got {version}")
    for name, instead in (("offload_params", ""), ("activation_checkpointing", ": use our gradient_checkpointing")):
        if parse_flag_from_env(f"FSDP_{name.upper()}"):
            raise UserError(f"accelerate's fsdp_{name} must be false{instead}; got true")
    return FullyShardedDataParallelPlugin()


def shard(module: nn.Module, accelerator: Accelerator, settings: FullyShardedDataParallelPlugin) -> None:
    """Leave to each process its share of the parameters of `module`, in place, on the training's device.

    Modules of the types that a network lists as `blocks` gather their weights one after the other; the others are gathered
    together for the whole step. `fully_shard` refuses scalars, which every process keeps; see `average_scalar_gradients`.
    """
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    scalars = [parameter for parameter in module.parameters() if parameter.ndim == 0]
    for parameter in scalars:
        parameter.data = parameter.data.to(accelerator.device)
    ignored: dict[str, Any] = {"ignored_params": set(scalars)} if scalars else {}
    for block in outer_blocks(module):
        fully_shard(block, mesh=mesh, reshard_after_forward=settings.reshard_after_forward is True, **ignored)
    fully_shard(module, mesh=mesh, **ignored)


def outer_blocks(module: nn.Module, kinds: tuple[type[nn.Module], ...] = ()) -> Iterator[nn.Module]:
    """Yield the modules inside `module` that gather their weights by themselves, and are inside no other one."""
    kinds = getattr(type(module), "blocks", kinds)  # of the type: modules may have a list of blocks
    for child in module.children():
        if isinstance(child, kinds):
            yield child
        else:
            yield from outer_blocks(child, kinds)


def whole(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor that the processes hold shares of; all of them must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def by_sharing(tensors: Iterable[TensorT]) -> list[list[TensorT]]:
    """Divide tensors into those that processes hold shares of, and the others; PyTorch's functions take no mixture."""
    lists: tuple[list[TensorT], list[TensorT]] = [], []
    for tensor in tensors:
        lists[isinstance(tensor, DTensor)].append(tensor)
    return [each for each in lists if each]


def average_scalar_gradients(module: nn.Module) -> None:
    """Average over the processes the gradients that `fully_shard` does not, in place; all processes must call this."""
    gradients = [parameter.grad for parameter in module.parameters() if parameter.ndim == 0 and parameter.grad is not None]
    if gradients:
        mean = torch.stack(gradients) / dist.get_world_size()
        dist.all_reduce(mean)
        for gradient, value in zip(gradients, mean, strict=True):
            gradient.copy_(value)


def clip_gradients(module: nn.Module, max_norm: float) -> Tensor:
    """Scale the gradients of `module` to a norm of at most `max_norm`, in place, and return the norm before."""
    groups = by_sharing(parameter for parameter in module.parameters() if parameter.grad is not None)
    if len(groups) == 1:
        return whole(nn.utils.clip_grad_norm_(groups[0], max_norm)).detach()
    gradients = [[gradient for parameter in group if (gradient := parameter.grad) is not None] for group in groups]
    norms = [whole(nn.utils.get_total_norm(group)) for group in gradients]
    norm = torch.stack(norms).norm()
    for group in groups:
        nn.utils.clip_grads_with_norm_(group, max_norm, norm)
    return norm


def own_share(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor, without a copy."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shared_as(tensor: Tensor, other: Tensor) -> Tensor:
    """Return the share of `tensor`, which is equal in all processes, that belongs to this process' share of `other`."""
    if not isinstance(other, DTensor):
        return tensor
    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None)


@torch.no_grad()
def gather_into(target: nn.Module | None, module: nn.Module) -> None:
    """Copy weights and buffers of `module` into `target`, an unsharded copy; processes without one only send their share."""
    targets = {} if target is None else target.state_dict()
    for name, value in module.state_dict().items():
        tensor = whole(value)
        if target is not None:
            targets[name].copy_(tensor)
