"""`python -m benchmarks.length` on motion with known figures."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import length
from lfdm.config.presets import Preset
from lfdm.pipeline.pipeline import LatentFlowPipeline


def wave(cycles_per_frame: float, num_frames: int = 32) -> np.ndarray:
    """Return a flow (2, t, 4, 4) whose x oscillates by 3 pixels."""
    flow = np.zeros((2, num_frames, 4, 4))
    flow[0] = 3 * np.cos(2 * np.pi * cycles_per_frame * np.arange(num_frames))[:, None, None]
    return flow


def test_jitter_is_power_above_a_quarter_cycle_per_frame() -> None:
    assert length.measure_flow(wave(1 / 16), 16)["jitter"] < 0.01
    assert length.measure_flow(wave(0.45), 16)["jitter"] > 0.99
    half = length.measure_flow(wave(1 / 16) + wave(0.4375), 16)["jitter"]
    assert half == pytest.approx(0.5, abs=0.02)
    assert length.measure_flow(wave(0.5), 16) == pytest.approx({"amount": 3, "step": 6, "jitter": 1}, abs=0.02)


def test_colour_drift_equals_an_added_constant() -> None:
    source = np.full((8, 8, 3), 100, np.uint8)
    same = length.measure_colours(np.stack([source] * 3), source)
    assert same == {"colour": 0, "likeness": 1}
    assert length.measure_colours(np.stack([source + 50] * 3), source) == {"colour": 50, "likeness": 0}


def test_the_script_writes_every_row(
    tiny_preset: Preset, puppets_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    LatentFlowPipeline.from_preset(tiny_preset, ("jump", "wave")).save_pretrained(tmp_path / "model")
    monkeypatch.setattr(length, "FACTORS", (1, 5))
    out = tmp_path / "length.json"
    words = ["--data", str(puppets_dir), "--model", str(tmp_path / "model"), "--num-clips", "2", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["length.py", *words])
    length.main()
    figures = json.loads(out.read_text())["figures"]
    assert list(figures) == ["real", "1x", "5x", "1x loop", "2x loop", "4x loop"]
    assert all(np.isfinite(value) for name, row in figures.items() if name != "real" for value in row.values())
    assert figures["real"]["amount"] == 0  # of stage 1 as initialised
    assert "seam" in figures["5x"]
    assert "seam" not in figures["1x"]
    assert figures["1x loop"]["closing"] < figures["1x"]["closing"]
    assert figures["1x"]["colour_first"] == figures["1x"]["colour_last"]
    assert "5x" in capsys.readouterr().out
