"""Training on several processes of this machine."""

import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from lfdm.data.puppets.data_set import write_puppets
from lfdm.errors import UserError
from lfdm.folders.model_folder import WEIGHTS_NAME, read_tensors
from lfdm.folders.run_folder import find_checkpoints
from lfdm.training import processes
from lfdm.training.batches import BatchRandomness
from lfdm.training.checkpoint import checkpoint_path
from lfdm.training.loop import train
from lfdm.training.processes import (
    SynchronizedBatchNorm,
    naming_a_lost_process,
    process_state,
    require_equal_shares,
    require_same_settings,
    synchronize_norms,
)
from tests.training.test_loop import CONFIG, Regression, assert_same_checkpoints, metrics, tensors

TIMEOUT = 120
"""Seconds after which a hanging process fails its test."""
TWENTY_STEPS = replace(CONFIG, num_steps=20, batch_size=12, checkpoint_steps=10, log_steps=1)

TOLERANCES: dict[str, Any] = {"without_effect": (".bias", "running_mean"), "tolerance": 1e-3, "moments": 1e-2}
"""Of stage 1, whose small weights Adam moves by rounding error, too."""

FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
"""What `accelerate launch --use_fsdp --fsdp_version 2` sets."""


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def test_processes_without_a_gpu_use_gloo_where_pytorch_was_built_with_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    used: dict[str, Any] = {}
    monkeypatch.setattr(processes, "PartialState", lambda **options: used.update(options))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    process_state()
    assert used == {"cpu": True, "backend": "gloo"}


def run_processes(world: int, work: Callable[..., Any], *args: Any) -> None:
    """Call `work` in as many forked processes, which spare the imports, and require that all succeed."""
    port, context = free_port(), multiprocessing.get_context("fork")
    processes = [context.Process(target=_work_as, args=(rank, world, port, work, args)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(TIMEOUT)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * world


def _work_as(rank: int, world: int, port: str, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    AcceleratorState._reset_state(reset_partial_state=True)  # which this process has from the tests before
    work(*args)
    torch.distributed.destroy_process_group()


def relative_error(value: Tensor, expected: Tensor) -> float:
    return float((value.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-12))


def assert_equal_training(run: Path, other: Path) -> None:
    """Compare the last checkpoints, and the losses of all steps: equal to a millionth, Adam's moments to 1e-5.

    A bias before batch norm has no effect. Its gradient is rounding error, which Adam enlarges.
    """
    one, two = tensors(find_checkpoints(run)[-1]), tensors(find_checkpoints(other)[-1])
    assert one.keys() == two.keys()
    for name, value in one.items():
        if name.endswith(("first.bias", "norm.running_mean")):
            continue
        error = relative_error(two[name], value)
        assert error <= (1e-6 if name.startswith(("model.", "average.")) else 1e-5), (name, error)
    losses = [[line["loss"] for line in metrics(folder)] for folder in (run, other)]
    np.testing.assert_allclose(*losses, rtol=1e-6)


def assert_equal_stages(
    run: Path, other: Path, model: str, without_effect: tuple[str, ...], *, tolerance: float = 1e-5, moments: float = 1e-5
) -> None:
    """Compare losses of all steps, and the last checkpoints but for tensors whose names end in one of `without_effect`.

    These are biases before norms. Their gradient is rounding error, which Adam enlarges, and the mean of a norm follows them.

    Args:
        tolerance: largest relative error of weights, averages and batch-norm statistics.
        moments: largest relative error of Adam's moments.
    """
    checkpoints = [find_checkpoints(folder)[-1] for folder in (run, other)]
    assert checkpoints[0].name == checkpoints[1].name
    for file in ("training.safetensors", f"{model}/{WEIGHTS_NAME}"):
        one, two = (read_tensors(checkpoint / file) for checkpoint in checkpoints)
        assert one.keys() == two.keys()
        errors = {name: relative_error(two[name], value) for name, value in one.items()}
        large = {name: error for name, error in errors.items() if error > (moments if name.startswith("exp_avg") else tolerance)}
        assert {name: error for name, error in large.items() if not name.endswith(without_effect)} == {}
    losses = [[line["loss"] for line in metrics(folder)] for folder in (run, other)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.parametrize("world", [2, 4])
def test_several_processes_train_as_one(tmp_path: Path, world: int) -> None:
    """Loss curve, weights, moments, averages and batch-norm statistics are those of one process with the whole batch."""
    train(Regression(), TWENTY_STEPS, tmp_path / "one")
    run_processes(world, lambda: train(Regression(), TWENTY_STEPS, tmp_path / "several"))
    assert_equal_training(tmp_path / "one", tmp_path / "several")


def test_a_checkpoint_resumes_on_another_number_of_processes(tmp_path: Path) -> None:
    train(Regression(), TWENTY_STEPS, tmp_path / "one")
    out = tmp_path / "elastic"
    for world, stop in ((2, 5), (3, 9), (1, 12), (4, 20)):
        run_processes(world, lambda stop=stop: train(Regression(), TWENTY_STEPS, out, stop_after=stop))
    assert_equal_training(tmp_path / "one", out)


class LossCalls(Regression):
    """Record the sizes of the batches whose loss is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def loss(self, module: nn.Module, batch: dict[str, Tensor], randomness: BatchRandomness) -> dict[str, Tensor]:
        self.sizes.append(len(batch["x"]))
        return super().loss(module, batch, randomness)


def test_gradient_accumulation_of_accelerate_makes_micro_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(Regression(), replace(CONFIG, num_steps=2, micro_batch_size=2), tmp_path / "ours")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2")
    task = LossCalls()
    train(task, replace(CONFIG, num_steps=2), tmp_path / "theirs")
    assert task.sizes == [2, 2, 2, 2]
    assert_same_checkpoints(*(checkpoint_path(tmp_path / name, 2) for name in ("ours", "theirs")))
    with pytest.raises(UserError, match=r"micro_batch_size must be None .* gradient_accumulation_steps=2; got 1"):
        train(task, replace(CONFIG, num_steps=2, micro_batch_size=1), tmp_path / "both")


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"micro_batch_size": 2, "ema_decay": 0.0}])
def test_processes_with_shares_of_the_weights_train_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """With and without FSDP on 1, 2 and 4 processes, one run continues as if one process had all of it."""
    network: dict[str, Any] = {"frozen": True, "batch_norm": not changes}  # statistics of micro-batches are others
    train(Regression(**network), replace(TWENTY_STEPS, ema_decay=changes.get("ema_decay", 0.9)), tmp_path / "one")
    config, out = replace(TWENTY_STEPS, **changes), tmp_path / "elastic"
    for world, fsdp, stop in ((2, True, 6), (1, False, 9), (4, True, 13), (2, False, 16), (2, True, 20)):
        for name, value in FSDP2.items():
            monkeypatch.setenv(name, value) if fsdp else monkeypatch.delenv(name, raising=False)
        run_processes(world, lambda stop=stop: train(Regression(**network), config, out, stop_after=stop))
    assert_equal_training(tmp_path / "one", out)


def test_processes_agree_on_when_to_save(tmp_path: Path) -> None:
    config = replace(CONFIG, checkpoint_minutes=1e-9, log_steps=2, micro_batch_size=1)
    run_processes(2, lambda: train(Regression(batch_norm=False), config, tmp_path))
    assert [path.name for path in find_checkpoints(tmp_path)] == ["step-00000008", "step-00000010"]


class ByShare(Regression):
    """Record the random numbers that each process's share of the batch gets."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def loss(self, module: nn.Module, batch: dict[str, Tensor], randomness: BatchRandomness) -> dict[str, Tensor]:
        values = randomness.sample(lambda size, generator: torch.rand(size, generator=generator))
        path = self.folder / f"{os.environ.get('RANK', '0')}.txt"
        path.open("a").writelines(f"{first:.6f} {value:.6f}\n" for first, value in zip(batch["x"][:, 0], values, strict=True))
        return super().loss(module, batch, randomness)


def test_a_sample_gets_the_same_random_numbers_in_any_process(tmp_path: Path) -> None:
    found = []
    for world in (1, 2):
        folder = tmp_path / str(world)
        folder.mkdir()
        run_processes(world, lambda folder=folder: train(ByShare(folder), replace(CONFIG, num_steps=3), folder / "run"))
        found.append(sorted(line for path in folder.glob("*.txt") for line in path.read_text().splitlines()))
    assert found[0] == found[1]
    assert len(set(found[0])) == 12


def _check_settings(out: Path) -> None:
    rank = os.environ["RANK"]
    with pytest.raises(UserError, match=r"^process 1 .* preset.learning_rate is '0' there, '1' here$"):
        require_same_settings({"preset": {"learning_rate": rank, "batch_size": 4}})
    require_same_settings({"preset": {"batch_size": 4}})
    (out / rank).touch()


def test_different_settings_in_two_processes_are_an_error_in_both(tmp_path: Path) -> None:
    run_processes(2, _check_settings, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1"}


def _divide() -> None:
    with pytest.raises(UserError, match="batch_size must divide by the 2 processes; got 3"):
        require_equal_shares({"batch_size": 3}, 3)


def test_a_batch_that_processes_cannot_share_is_an_error_in_all() -> None:
    run_processes(2, _divide)


def _lose_the_first_process() -> None:
    state = process_state()
    state.wait_for_everyone()
    if state.is_main_process:
        os._exit(0)
    with pytest.raises(UserError, match="another process"):
        _exchange()


@naming_a_lost_process()
def _exchange() -> None:
    for _ in range(10):  # a message can be sent before the end of the other process is noticed
        torch.distributed.all_reduce(torch.ones(1))
        time.sleep(0.2)


def test_the_end_of_another_process_is_one_line() -> None:
    run_processes(2, _lose_the_first_process)
    with pytest.raises(RuntimeError, match="by peer"), naming_a_lost_process():
        raise RuntimeError("Connection closed by peer")  # no other process: a fault of ours


@pytest.mark.parametrize("missing", [None, "MASTER_PORT"])
def test_processes_that_do_not_meet_are_one_line(monkeypatch: pytest.MonkeyPatch, missing: str | None) -> None:
    place = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    if missing:
        monkeypatch.delenv(missing)
    monkeypatch.setattr(processes, "RENDEZVOUS_SECONDS", 0.1)
    with pytest.raises(
        UserError, match=rf"^2 processes must meet at 127.0.0.1:.*{missing or place['MASTER_PORT']}.*process 1: .+$"
    ):
        process_state()


def _compare_norms(dtype: torch.dtype) -> None:
    rank = int(os.environ["RANK"])
    process_state()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, 5, 6, generator=generator)
    target = torch.randn(4, 3, 5, 6, generator=generator)
    whole, shared = nn.BatchNorm2d(3), nn.Sequential(nn.BatchNorm2d(3))
    for parameter in (*whole.parameters(), *shared.parameters()):
        nn.init.constant_(parameter, 1.5)
    synchronize_norms(shared, torch.device("cpu"))
    assert isinstance(shared[0], SynchronizedBatchNorm)
    assert shared.state_dict().keys() == nn.Sequential(whole).state_dict().keys()
    expected_x, x = x.clone().requires_grad_(), x[rank::2].to(dtype).requires_grad_()
    expected = whole(expected_x)
    (expected * target).sum().backward()
    result = shared(x)
    (result * target[rank::2]).sum().backward()
    assert result.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(result.float(), expected[rank::2], rtol=tolerance, atol=tolerance)
    assert x.grad is not None
    assert expected_x.grad is not None
    torch.testing.assert_close(x.grad.float(), expected_x.grad[rank::2], rtol=tolerance, atol=tolerance)
    for name, value in whole.named_buffers():
        torch.testing.assert_close(shared[0].get_buffer(name), value, rtol=tolerance, atol=tolerance)
    shared.eval()
    torch.testing.assert_close(shared(x).float(), whole.eval()(x.float()), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "distributed_type .* DEEPSPEED"),
        ({"ACCELERATE_USE_FSDP": "true"}, "fsdp_version must be 2; got 1"),
        ({**FSDP2, "FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params"),
        ({**FSDP2, "FSDP_ACTIVATION_CHECKPOINTING": "true"}, "fsdp_activation_checkpointing .* gradient_checkpointing"),
    ],
)
def test_settings_of_accelerate_without_effect_are_an_error(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], message: str
) -> None:
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        process_state()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_synchronized_batch_norm_equals_that_of_the_whole_batch(dtype: torch.dtype) -> None:
    run_processes(2, _compare_norms, dtype)


# ------------------------------------------------------------------------------------------------- the command line


def start_torchrun(out: Path, data: Path, settings: dict[str, int]) -> subprocess.Popen[str]:
    options = [f"--autoencoder-training.optimization.{name}={value}" for name, value in settings.items()]
    words = ["train", "autoencoder", "flow64", "--data", str(data), "--out", str(out), *options]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port(), "-m", "lfdm"]
    return subprocess.Popen([sys.executable, *launch, *words], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.slow
def test_torchrun_trains_one_run_and_survives_the_death_of_a_process(tmp_path: Path) -> None:
    """Without a GPU, too, both processes share one training; after one is killed the same command continues."""
    write_puppets(tmp_path / "data", num_subjects=2, num_takes=1, num_frames=4, truth="none", num_workers=1)
    small = {"num-steps": 100_000, "batch-size": 4, "warmup-steps": 0, "checkpoint-steps": 1, "log-steps": 1}
    out = tmp_path / "run"
    training = start_torchrun(out, tmp_path / "data", small)
    deadline = time.monotonic() + TIMEOUT
    while not find_checkpoints(out):
        assert training.poll() is None, training.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    children = Path(f"/proc/{training.pid}/task/{training.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    output = training.communicate(timeout=60)[0]
    assert training.returncode != 0
    assert re.search(r"2 processes", output), output
    done = int(find_checkpoints(out)[-1].name.removeprefix("step-"))
    again = start_torchrun(out, tmp_path / "data", {**small, "num-steps": done + 3})
    output = again.communicate(timeout=TIMEOUT)[0]
    assert again.returncode == 0, output
    assert [line["step"] for line in metrics(out)] == list(range(1, done + 4))
