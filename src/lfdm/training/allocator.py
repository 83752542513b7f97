"""Memory of a training: what the C library does with freed memory, and how much is in use."""

import contextlib
import ctypes
import sys
from collections.abc import Iterator

import torch

from lfdm.errors import UserError

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from glibc's malloc.h


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory for the next step; return False with another C library.

    By default it returns blocks of 32 MB and more to the system, which clears every page of the next one: a stage-2 step
    of four clips at 128x128 then takes 1.2 to 1.5 times as long. The process keeps its peak memory until it ends.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    return bool(libc.mallopt(_M_MMAP_MAX, 0)) and bool(libc.mallopt(_M_TRIM_THRESHOLD, -1))


def peak_memory(device: torch.device) -> int | None:
    """Return the most bytes used so far, by tensors on a CUDA device or else by this process; None on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource  # Windows lacks it

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@contextlib.contextmanager
def advise_on_memory(device: torch.device, num_samples: int) -> Iterator[None]:
    """Raise a UserError that names the setting to change where a step of `num_samples` at once runs out of memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        smaller = f"set optimization.micro_batch_size to {num_samples // 2} or less" if num_samples > 1 else "use a smaller model"
        raise UserError(f"out of memory on {device} with {num_samples} samples at once; {smaller}") from error


def _is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed, for which torch raises different types on different devices."""
    message = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in message or "can't allocate memory" in message
