"""Measure calls: time in turns, arithmetic, memory, and the peak rates of the device."""

import ctypes
import functools
import re
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks.experiment.machine import processor_name

Call = Callable[[], object]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


@dataclass(frozen=True)
class PeakProblems:
    """Problems for measuring peak rates: the side of a square matrix product, and 3x3 convolutions."""

    side: int
    convolutions: tuple[tuple[int, int, int], ...]
    """(images, channels, side) each."""


CPU_PROBLEMS = PeakProblems(2048, ((40, 64, 32), (8, 256, 32), (8, 128, 64)))
CUDA_PROBLEMS = PeakProblems(8192, ((320, 64, 64), (320, 256, 32), (64, 256, 128)))
QUICK_PROBLEMS = PeakProblems(128, ((1, 32, 16),))


@dataclass(frozen=True)
class Peaks:
    """Peak rates of the device at this moment, in GFLOP/s."""

    matmul: float
    convolution: float


@dataclass(frozen=True)
class Timing:
    """Measurements of a call: seconds of every run, arithmetic of one run, peak memory above the level before it."""

    seconds: list[float]
    gflop: float
    peak_bytes: int | None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def device_name(device: torch.device) -> str:
    """Return the name of the GPU, or of the processor with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{processor_name()}, {threads} thread{'s' if threads > 1 else ''}"


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class FlopCounter(TorchDispatchMode):
    """Count operations by torch's formulas (`torch.utils.flop_counter`), plus fused attention on a CPU, which they lack.

    torch's `FlopCounterMode` also tracks modules, which takes as long as a small step.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        formula = _FORMULAS.get(func.overloadpacket)
        if formula is None and _is_composite(func):  # in inference mode linear layers and attention arrive whole
            with self:
                return func.decompose(*args, **kwargs)
        result = func(*args, **kwargs)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=result)
        return result


@functools.cache
def _is_composite(func: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


def _attention(q: Tensor, k: Tensor, v: Tensor, *_: object, **__: object) -> int:
    return sdpa_flop_count(q.shape, k.shape, v.shape)


def _attention_backward(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: object, **__: object) -> int:
    return sdpa_backward_flop_count(gradient.shape, q.shape, k.shape, v.shape)


_FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def count_gflop(call: Call) -> float:
    """Return the GFLOP of one run (a multiply-add is two) in matrix products, convolutions and attention."""
    with FlopCounter() as counter:
        call()
    return counter.flops / 1e9


class PeakMemory:
    """`bytes`: peak memory growth since `measure_memory` began; None if the system does not report it."""

    bytes: int | None = None


@contextmanager
def measure_memory(device: torch.device) -> Iterator[PeakMemory]:
    """Measure torch's allocations on a GPU, and the resident set on a CPU (Linux). Slows the call down: do not time it."""
    peak = PeakMemory()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    with _freed_memory_returned():
        if not _reset_resident_maximum():
            yield peak
            return
        before = _resident("VmRSS")
        yield peak
        peak.bytes = max(0, _resident("VmHWM") - before)


@contextmanager
def _freed_memory_returned() -> Iterator[None]:
    """Return freed memory to the system at once, so that resident memory is memory in use.

    Otherwise glibc keeps and fragments much of it, depending on earlier calls: a checkpointed training step that needs 0.4 GB
    grew by 0.8 GB in a fresh process and by 1.2 GB after another form.
    """
    libc = _libc()
    if libc is None:
        yield
        return
    libc.mallopt(_M_MMAP_THRESHOLD, 2**20)
    libc.malloc_trim(0)
    try:
        yield
    finally:  # what glibc's own adjustment ends at where large blocks come and go
        libc.mallopt(_M_MMAP_THRESHOLD, 2**25)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**26)


def _libc() -> ctypes.CDLL | None:
    """Return glibc if it is the C library."""
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    return libc if hasattr(libc, "mallopt") else None


def _reset_resident_maximum() -> bool:
    """Return whether Linux could reset the maximum of the resident set."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _resident(field: str) -> int:
    return int(re.findall(rf"^{field}:\s*(\d+) kB", _read("/proc/self/status"), flags=re.MULTILINE)[0]) * 1024


def _read(path: str) -> str:
    return Path(path).read_text() if Path(path).is_file() else ""


def available_bytes(device: torch.device) -> int | None:
    """Return the free memory; None if the system does not report it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = re.findall(r"^MemAvailable:\s*(\d+) kB", _read("/proc/meminfo"), flags=re.MULTILINE)
    return int(found[0]) * 1024 if found else None


@torch.no_grad()
def measure_peaks(device: torch.device, dtype: torch.dtype, problems: PeakProblems, *, seconds: float) -> Peaks:
    """Measure the best rates of a matrix product and of 3x3 convolutions (several shapes, both memory layouts)."""
    on = {"device": device, "dtype": dtype}
    side = problems.side
    a, b = torch.randn(side, side, **on), torch.randn(side, side, **on)
    matmul = _best_rate(lambda: a @ b, 2e-9 * side**3, device, seconds)
    best = 0.0
    for images, channels, size in problems.convolutions:
        gflop = 2e-9 * 9 * images * channels**2 * size**2
        for layout in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(images, channels, size, size, **on).to(memory_format=layout)
            weight = torch.randn(channels, channels, 3, 3, **on).to(memory_format=layout)
            best = max(best, _best_rate(_convolution(x, weight), gflop, device, seconds / (2 * len(problems.convolutions))))
    return Peaks(matmul, best)


def _convolution(x: Tensor, weight: Tensor) -> Call:
    return lambda: F.conv2d(x, weight, padding=1)


def _best_rate(call: Call, gflop: float, device: torch.device, seconds: float) -> float:
    call()
    best, end = 0.0, time.perf_counter() + seconds
    while best == 0 or time.perf_counter() < end:
        best = max(best, gflop / time_once(call, device))
    return best


def time_once(call: Call, device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def measure_together(
    calls: Mapping[str, Call], device: torch.device, *, repeats: int, budget: float, uncounted: Collection[str] = ()
) -> dict[str, Timing]:
    """Measure calls in turns, so that noise affects all of them alike.

    The first run of each is not timed: it warms up and measures memory and arithmetic (0 for `uncounted`, since compiled code
    falls back to eager under a counter). Up to `repeats` rounds follow, as many as fit into `budget` seconds, but at least one.
    """
    started = time.perf_counter()
    first = {name: _first_run(call, device, counted=name not in uncounted) for name, call in calls.items()}
    rounds = max(1, min(repeats, int(budget / max(1e-9, time.perf_counter() - started))))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            seconds[name].append(time_once(call, device))
    return {name: Timing(seconds[name], *first[name]) for name in calls}


def _first_run(call: Call, device: torch.device, *, counted: bool) -> tuple[float, int | None]:
    """Return the GFLOP (0 if not `counted`) and the peak memory of a call."""
    gflop = 0.0
    with measure_memory(device) as memory:
        if counted:
            gflop = count_gflop(call)
        else:
            call()
        synchronize(device)
    return gflop, memory.bytes
