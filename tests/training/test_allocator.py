"""Large tensors are allocated where freed memory stays with the process."""

import subprocess
import sys

import pytest

from lfdm.training.allocator import keep_freed_memory

WHERE = """
import torch
from pathlib import Path
from lfdm.training.allocator import keep_freed_memory

def heap():
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith("[heap]")]
    return [int(end, 16) for end in (lines[0].split()[0].split("-") if lines else ("0", "0"))]

if {keep}:
    assert keep_freed_memory()
tensor = torch.ones(20_000_000)
start, end = heap()
inside = start <= tensor.data_ptr() < end
del tensor
print(inside, heap()[1] - end)
"""


def heap_of(keep: bool) -> str:
    """Return whether a tensor of 80 MB lies in the heap, and by how much the heap shrinks when it is freed."""
    code = WHERE.format(keep=keep)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.strip()


@pytest.mark.slow
def test_freed_memory_stays() -> None:
    if not sys.platform.startswith("linux"):
        assert not keep_freed_memory()
        pytest.skip("only glibc has the setting")
    assert heap_of(keep=True) == "True 0"
    assert heap_of(keep=False).startswith("False")
