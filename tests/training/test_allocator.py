"""Freed memory stays with the process."""

import subprocess
import sys

import pytest

from lfdm.training.allocator import keep_freed_memory

REUSE = """
import resource, torch
from lfdm.training.allocator import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
for _ in range(2):
    torch.ones(20_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    torch.ones(20_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def fresh_pages(keep: bool) -> int:
    """Pages that three tensors of 80 MB take from the system after two others of that size have gone."""
    return int(subprocess.run([sys.executable, "-c", REUSE.format(keep=keep)], capture_output=True, check=True, text=True).stdout)


def test_the_next_tensor_takes_the_pages_of_the_last():
    if not sys.platform.startswith("linux"):
        assert not keep_freed_memory()
        pytest.skip("glibc alone is told to keep memory")
    assert fresh_pages(keep=True) < 0.1 * fresh_pages(keep=False)
