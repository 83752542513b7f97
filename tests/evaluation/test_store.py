"""Batches that several runs and processes share."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import PartialState

from lfdm.errors import UserError
from lfdm.evaluation.protocol import evaluate
from lfdm.evaluation.settings import ClassifierTraining, EvaluationConfig
from lfdm.evaluation.store import BatchStore


def store(folder: Path, batch_size: int = 4, **settings: Any) -> BatchStore:
    return BatchStore(folder, settings, batch_size=batch_size, state=PartialState(cpu=True))


def test_batches_are_computed_once_and_read_back_in_order(tmp_path: Path) -> None:
    calls: list[list[int]] = []

    def work(items: list[int]) -> dict[str, np.ndarray]:
        calls.append(items)
        return {"square": np.array(items) ** 2, "pair": np.array([[i, -i] for i in items])}

    items = list(range(10, 20))
    first = store(tmp_path, seed=1).compute("squares", items, work)
    assert calls == [[10, 11, 12, 13], [14, 15, 16, 17], [18, 19]]
    second = store(tmp_path, seed=1).compute("squares", items, work)
    assert len(calls) == 3
    for stored in (first, second):
        assert stored["square"].tolist() == [i**2 for i in items]
        assert stored.rows("pair", [19, 10, 15]).tolist() == [[19, -19], [10, -10], [15, -15]]
        assert "square" in stored
        assert "cube" not in stored
    assert not list(tmp_path.rglob("*.tmp"))


def test_only_a_lost_batch_is_computed_again(tmp_path: Path) -> None:
    calls: list[list[int]] = []

    def work(items: list[int]) -> dict[str, np.ndarray]:
        calls.append(items)
        return {"value": np.array(items)}

    store(tmp_path).compute("values", range(8), work)
    (tmp_path / "values" / "00001.npz").unlink()
    assert store(tmp_path).compute("values", range(8), work)["value"].tolist() == list(range(8))
    assert calls == [[0, 1, 2, 3], [4, 5, 6, 7], [4, 5, 6, 7]]


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    store(tmp_path / "cache", steps=10, seed=0)
    store(tmp_path / "cache", steps=10, seed=0)
    with pytest.raises(UserError, match=r"\(steps was 10, now 4\): choose another --out, or delete .*cache"):
        store(tmp_path / "cache", steps=4, seed=0)


def test_rows_must_be_those_of_the_batch(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"4 items .* got .*3"):
        store(tmp_path).compute("values", range(4), lambda items: {"value": np.array(items[:3])})
    assert not list(tmp_path.rglob("*.npz"))


@pytest.mark.slow
def test_two_processes_give_what_one_gives(model: Path, data: Path, tmp_path: Path) -> None:
    training = ClassifierTraining(num_steps=2, batch_size=4)
    config = EvaluationConfig(
        num_clips=6,
        num_diversity_clips=2,
        num_ceiling_clips=2,
        allow_small=True,
        classifier=training,
        frame_network=training,
    )
    one = evaluate(model, data, tmp_path / "one", config, num_inference_steps=2)
    options = "--num-clips 6 --num-inference-steps 2 --num-diversity-clips 2 --num-ceiling-clips 2 --allow-small --device cpu"
    quick = [f"--{network}.{name}" for network in ("classifier", "frame-network") for name in ("num-steps=2", "batch-size=4")]
    command = ["evaluate", "--model", str(model), "--data", str(data), "--out", str(tmp_path / "two"), *options.split(), *quick]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def start(rank: int) -> subprocess.Popen[str]:
        """As `accelerate launch --cpu --num_processes 2` does."""
        distributed = {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank), "ACCELERATE_USE_CPU": "true"}
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", "lfdm", *command],
            env={**os.environ, **distributed, **address},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    processes = [start(rank) for rank in range(2)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "results.json" in outputs[0]
    assert "results.json" not in outputs[1]
    two = json.loads((tmp_path / "two" / "results.json").read_text())
    one = json.loads(json.dumps(one))
    assert (one.pop("num_processes"), two.pop("num_processes")) == (1, 2)
    for results in (one, two):
        del results["date"], results["seconds"], results["generation"]["seconds_per_video"]
    assert one == two
