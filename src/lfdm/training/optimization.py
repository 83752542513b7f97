"""The parts of an optimizer step: precision, learning rate, memory layout, Adam and the averaged weights."""

import math

import torch
from torch import nn

from lfdm.autoencoder.convolution import channels_last_kernels
from lfdm.config.training import MixedPrecision, OptimizationConfig
from lfdm.folders.components import has_fast_bfloat16
from lfdm.training.sharding import by_sharing, own_share


def uses_bf16(choice: MixedPrecision, device: torch.device) -> bool:
    """Return whether to compute in bfloat16; `auto` means where it is faster."""
    return has_fast_bfloat16(device) if choice == "auto" else choice == "bf16"


def learning_rate(config: OptimizationConfig, step: int) -> float:
    """Return the learning rate of a step: linear warm-up, then a cosine to zero, x0.1 at each milestone, or no decay."""
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "cosine":
        decay = 0.5 * (1 + math.cos(math.pi * step / config.num_steps))
    else:
        decay = 0.1 ** sum(step >= milestone for milestone in config.milestones)
    return config.learning_rate * warmup * decay


def lay_out(module: nn.Module, *, bf16: bool) -> None:
    """Store the convolutions' weights in the memory layout that trains fastest on their device."""
    on_gpu = any(parameter.is_cuda for parameter in module.parameters())
    if bf16 or on_gpu:
        channels_last_kernels(module)  # slower in float32 on a CPU


def make_optimizer(module: nn.Module, config: OptimizationConfig) -> torch.optim.Adam:
    """Return Adam over the parameters of `module` that require gradients."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    on_cpu = all(parameter.device.type == "cpu" for parameter in parameters)
    fused = True if on_cpu else None  # six times as fast; on CUDA, fused needs the step counts on the device
    groups = [{"params": each} for each in by_sharing(parameters)]
    return torch.optim.Adam(groups, lr=config.learning_rate, betas=config.betas, fused=fused)


@torch.no_grad()
def update_average(average: nn.Module, module: nn.Module, decay: float, step: int) -> None:
    """Move the averaged weights towards the current ones, faster in the first steps.

    Buffers are copied; parameters without gradient are skipped, as they never change.
    """
    decay = min(decay, (1 + step) / (10 + step))
    pairs = zip(average.parameters(), module.parameters(), strict=True)
    means, values = zip(*(map(own_share, pair) for pair in pairs if pair[1].requires_grad), strict=True)
    torch._foreach_lerp_(means, values, 1 - decay)  # type: ignore[attr-defined]
    for mean, value in zip(average.buffers(), module.buffers(), strict=True):
        mean.copy_(value)


def set_training(module: nn.Module) -> None:
    """Set training mode, except for layers that are frozen as a whole, so that their batch-norm statistics stay as well."""
    module.train()
    for layer in module.modules():
        weights = list(layer.parameters())
        if weights and not any(weight.requires_grad for weight in weights):
            layer.eval()
