"""The diffusion process of stage 2 and sampling from it.

A sampler (`samplers`) asks a `Denoiser` for the clean sample at a sequence of noise levels (`process`); `guidance` makes one
of a network, and `sampling` puts them together. `schedulers` holds what a pipeline saves of this.
"""

__all__ = ["guidance", "mean_flow", "process", "samplers", "sampling", "schedulers", "windows"]
