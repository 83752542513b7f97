"""What the tests of data files share."""

import os
import resource
import subprocess
import sys
from collections.abc import Callable

import pytest

OnFullDisk = Callable[[str, int], str]


@pytest.fixture
def on_full_disk() -> OnFullDisk:
    """Run Python code in a process whose files may have at most this many bytes, and return what it printed to stderr."""

    def run(code: str, num_bytes: int) -> str:
        result = subprocess.run(
            [sys.executable, "-c", code],
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes)),
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        )
        assert result.returncode != 0
        return result.stderr

    return run
