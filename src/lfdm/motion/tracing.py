"""Whether code runs to be traced by `torch.export`."""

from collections.abc import Callable

import torch

is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
"""Return whether `torch.export` traces the code; before torch 2.7, which cannot tell them apart, `torch.compile`, too."""
