"""Short versions of the campaigns of benchmarks/faults: the promises of docs/reliability.md hold."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.faults.campaign import Campaign

OPTIONS = {"kills": [], "locks": ["--num-rounds", "1"], "disk": [], "data": ["--num-rounds", "1"], "numbers": []}


@pytest.mark.slow  # starts processes that start others
@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
@pytest.mark.parametrize("name", OPTIONS)
def test_a_short_campaign_finds_nothing(name: str, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from benchmarks.faults.__main__ import run_campaign\n"
        f"sys.exit(run_campaign({name!r}, {['--short', *OPTIONS[name]]!r}, Path({str(tmp_path)!r})) > 0)"
    )
    root = Path(__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=root)
    assert (tmp_path / f"{name}.json").exists(), ended.stderr
    campaign = Campaign.load(tmp_path / f"{name}.json")
    assert campaign.failures == []
    assert campaign.counts.total() > 1
    assert ended.returncode == 0
