"""The training loop on a small regression."""

import json
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from lfdm.cli.options import ModelOptions
from lfdm.config.registration import register_to_config
from lfdm.config.training import OptimizationConfig
from lfdm.errors import UserError
from lfdm.folders.components import Model
from lfdm.folders.run_folder import find_checkpoints
from lfdm.training.batches import BatchRandomness
from lfdm.training.interruption import SIGNALS, TrainingInterrupted
from lfdm.training.loop import DivergedError, train
from lfdm.training.optimization import learning_rate, uses_bf16
from lfdm.training.reports import RunSummary, StepReport
from tests.full_disk import file_size_limit

CONFIG = OptimizationConfig(
    num_steps=10,
    batch_size=4,
    learning_rate=0.01,
    ema_decay=0.9,
    checkpoint_steps=5,
    checkpoint_minutes=1e6,
    log_steps=5,
    sample_steps=1000,
)


class Network(Model):
    """Two layers and a scalar factor, optionally with batch norm, and an optional layer that is not trained."""

    blocks = (nn.Linear,)

    @register_to_config
    def __init__(self, *, width: int = 8, batch_norm: bool = True, frozen: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(3, width)
        self.norm = nn.BatchNorm1d(width) if batch_norm else nn.Identity()
        self.last = nn.Linear(width, 1)
        self.factor = nn.Parameter(torch.tensor(0.5))
        self.tail = nn.Linear(1, 1).requires_grad_(False) if frozen else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.factor * self.last(torch.tanh(self.norm(self.first(x)))))


class Points(Dataset[dict[str, Tensor]]):
    """Seven inputs with noise that depends on the position; NaN from position `broken_from` on."""

    def __init__(self, broken_from: float = math.inf) -> None:
        self.broken_from = broken_from

    def __len__(self) -> int:
        return 7

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        position, index = key
        noise = np.random.default_rng((1, position)).normal(size=3)
        x = torch.tensor(np.sin([index, 2 * index, 3 * index]) + 0.1 * noise, dtype=torch.float32)
        return {"x": x if position < self.broken_from else x * math.nan}


class Regression:
    """Sum of the inputs, plus random noise."""

    def __init__(self, *, dataset: Points | None = None, picture: np.ndarray | None = None, **network: Any) -> None:
        torch.manual_seed(0)
        self.module = Network(**network)
        self.dataset = dataset or Points()
        self.picture = picture

    def models(self, module: nn.Module) -> dict[str, nn.Module]:
        return {"network": module}

    def loss(self, module: nn.Module, batch: dict[str, Tensor], randomness: BatchRandomness) -> dict[str, Tensor]:
        target = batch["x"].sum(1, keepdim=True)
        target = target + 0.1 * randomness.sample(lambda size, generator: torch.randn(size, 1, generator=generator))
        error = (module(batch["x"]) - target).square().mean()
        return {"loss": error, "error": error}

    def panel(self, module: nn.Module) -> np.ndarray:
        assert not module.training
        assert self.picture is not None
        return self.picture


def tensors(checkpoint: Path) -> dict[str, Tensor]:
    """Everything stored in a checkpoint: weights, moments, and averages under `average.`."""
    average = load_file(checkpoint / "network" / "diffusion_pytorch_model.safetensors")
    return load_file(checkpoint / "training.safetensors") | {f"average.{name}": value for name, value in average.items()}


def assert_same_checkpoints(a: Path, b: Path) -> None:
    first, second = tensors(a), tensors(b)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def metrics(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


# ------------------------------------------------------------------------------------------------------------ resuming


@pytest.mark.parametrize("changes", [{}, {"frozen": True}, {"ema_decay": 0.0}, {"mixed_precision": "bf16"}])
def test_a_stopped_run_continues_bit_for_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    network = {"frozen": changes.pop("frozen")} if "frozen" in changes else {}
    config = replace(CONFIG, **changes)
    whole = train(Regression(**network), config, tmp_path / "whole")
    stopped = train(Regression(**network), config, tmp_path / "parts", stop_after=3)  # in the middle of the first epoch
    assert stopped.name == "step-00000003"
    assert whole.name == "step-00000010"
    assert_same_checkpoints(train(Regression(**network), config, tmp_path / "parts"), whole)


class TwoModels(Regression):
    """A second model next to the main one, stored in its own folder."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.ModuleDict({"main": Network(), "scale": Network(width=1, batch_norm=False)})

    def models(self, module: nn.Module) -> dict[str, nn.Module]:
        return dict(module.items())  # type: ignore[operator]

    def loss(self, module: nn.Module, batch: dict[str, Tensor], randomness: BatchRandomness) -> dict[str, Tensor]:
        parts = self.models(module)
        noise = randomness.sample(lambda size, generator: torch.rand(size, 1, generator=generator))
        return {"loss": (parts["main"](batch["x"]) + parts["scale"](batch["x"]) - noise).square().mean()}


def test_several_models_are_trained_averaged_and_resumed_together(tmp_path: Path) -> None:
    whole = train(TwoModels(), CONFIG, tmp_path / "whole")
    train(TwoModels(), CONFIG, tmp_path / "parts", stop_after=3)
    parts = train(TwoModels(), CONFIG, tmp_path / "parts")
    files = ("training.safetensors", *(f"{name}/diffusion_pytorch_model.safetensors" for name in ("main", "scale")))
    stored = [
        {f"{file}/{name}": value for file in files for name, value in load_file(run / file).items()} for run in (whole, parts)
    ]
    assert stored[0].keys() == stored[1].keys()
    assert all(torch.equal(stored[0][name], stored[1][name]) for name in stored[0])
    names = {name.split("/")[-1] for name in stored[0] if name.startswith("training")}
    assert {"model.first.weight", "exp_avg.first.weight", "scale-model.first.weight", "scale-exp_avg_sq.last.bias"} <= names
    averaged = stored[0]["scale/diffusion_pytorch_model.safetensors/first.weight"]
    assert not torch.equal(averaged, stored[0]["training.safetensors/scale-model.first.weight"])


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_frozen_layers_keep_their_weights_and_statistics(tmp_path: Path, ema_decay: float) -> None:
    task = Regression(picture=np.zeros((4, 4, 3), np.uint8))
    task.module.norm.requires_grad_(False)
    task.module.first.requires_grad_(False)
    before = {name: value.clone() for name, value in task.module.state_dict().items()}
    folder = train(task, replace(CONFIG, sample_steps=4, ema_decay=ema_decay), tmp_path)
    after = tensors(folder)
    same = {name for name, value in before.items() if torch.equal(after[f"average.{name}"], value)}
    assert same == {name for name in before if not name.startswith(("last", "factor"))}


def test_a_stored_moment_matters(tmp_path: Path) -> None:
    """Guards the tests above: training from the same weights without moments gives other weights."""
    whole = train(Regression(), CONFIG, tmp_path / "whole")
    train(Regression(), CONFIG, tmp_path / "parts", stop_after=5)
    state = tmp_path / "parts" / "checkpoints" / "step-00000005" / "training.safetensors"
    from safetensors.torch import save_file

    kept = {name: value for name, value in load_file(state).items() if name.startswith("model.")}
    save_file(kept, state)
    resumed = train(Regression(), CONFIG, tmp_path / "parts")
    assert not torch.equal(tensors(resumed)["model.first.weight"], tensors(whole)["model.first.weight"])


def test_loader_processes_may_change_in_mid_epoch(tmp_path: Path) -> None:
    whole = train(Regression(), CONFIG, tmp_path / "whole")
    train(Regression(), replace(CONFIG, num_workers=2), tmp_path / "parts", stop_after=4)
    assert_same_checkpoints(train(Regression(), replace(CONFIG, num_workers=1), tmp_path / "parts"), whole)


def test_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    folder = train(Regression(), CONFIG, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))}
    task = Regression()
    assert train(task, CONFIG, tmp_path, stop_after=2) == folder
    assert {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))} == before
    torch.testing.assert_close(task.module.first.weight, tensors(folder)["model.first.weight"])


def test_a_finished_run_may_be_extended(tmp_path: Path) -> None:
    constant = replace(CONFIG, schedule="constant")
    whole = train(Regression(), constant, tmp_path / "whole")
    train(Regression(), replace(constant, num_steps=6), tmp_path / "parts")
    assert_same_checkpoints(train(Regression(), constant, tmp_path / "parts"), whole)


def test_remains_of_a_killed_process_are_removed_and_never_loaded(tmp_path: Path) -> None:
    whole = train(Regression(), CONFIG, tmp_path / "whole")
    train(Regression(), CONFIG, tmp_path / "parts", stop_after=5)
    checkpoints = tmp_path / "parts" / "checkpoints"
    for leftover in (".step-00000008.12345678.tmp", "step-00000009"):
        (checkpoints / leftover / "network").mkdir(parents=True)
        (checkpoints / leftover / "training.safetensors").write_bytes(b"half")
    assert_same_checkpoints(train(Regression(), CONFIG, tmp_path / "parts"), whole)
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-00000005", "step-00000010"]


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    train(Regression(), CONFIG, tmp_path, stop_after=5)
    with pytest.raises(UserError, match=r"training\.safetensors .*Network: .*first\.weight \(8, 3\), needs \(9, 3\)"):
        train(Regression(width=9), CONFIG, tmp_path)


def test_the_model_folder_of_a_checkpoint_holds_the_average(tmp_path: Path) -> None:
    folder = train(Regression(), CONFIG, tmp_path)
    loaded = Network.from_pretrained(folder / "network")
    stored = tensors(folder)
    assert torch.equal(loaded.first.weight, stored["average.first.weight"])
    assert not torch.equal(loaded.first.weight, stored["model.first.weight"])


def test_checkpoints_are_written_by_steps_and_minutes_and_old_ones_removed(tmp_path: Path) -> None:
    train(Regression(), replace(CONFIG, checkpoint_steps=2, keep_checkpoints=3), tmp_path / "steps")
    assert [path.name for path in find_checkpoints(tmp_path / "steps")] == [f"step-{i:08d}" for i in (6, 8, 10)]
    train(Regression(), replace(CONFIG, checkpoint_minutes=1e-9, keep_checkpoints=100), tmp_path / "minutes")
    assert len(find_checkpoints(tmp_path / "minutes")) == 10


def test_precision_may_differ_between_trainings_of_one_process(tmp_path: Path) -> None:
    half = tensors(train(Regression(), replace(CONFIG, mixed_precision="bf16"), tmp_path / "bf16"))
    full = tensors(train(Regression(), CONFIG, tmp_path / "no"))
    assert half["model.first.weight"].dtype == torch.float32
    torch.testing.assert_close(half["model.first.weight"], full["model.first.weight"], atol=0.05, rtol=0)
    assert not torch.equal(half["model.first.weight"], full["model.first.weight"])


@pytest.mark.parametrize("has_amx", [True, False])
def test_automatic_precision_is_bf16_if_the_cpu_has_matrix_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, *, has_amx: bool
) -> None:
    device = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx)
    assert uses_bf16("auto", device) == has_amx
    assert ModelOptions(device="cpu", dtype="auto").torch_dtype() == (torch.bfloat16 if has_amx else torch.float32)
    assert ModelOptions(device="cpu").torch_dtype() == torch.float32
    assert uses_bf16("bf16", device)
    assert not uses_bf16("no", device)


# -------------------------------------------------------------------------------------------------------- interruption


class Slow(Points):
    """Each sample takes a while."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        time.sleep(self.seconds)
        return super().__getitem__(key)


ENDLESS = replace(CONFIG, num_steps=10**6, schedule="constant", checkpoint_steps=10**6, log_steps=1)
INTERRUPTED, STOPPED = 100, 99
"""Exit codes of a child process: the first plus the signal's number."""


def _train_until_stopped(seconds: float, config: OptimizationConfig, out: Path, ready: Any) -> None:
    os.setpgrp()  # a terminal sends Ctrl-C to all processes of a group, the loader's included
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs, and so the tests, may ignore it
    try:
        train(Regression(dataset=Slow(seconds)), config, out, report=lambda _: ready.set(), summary=lambda _: ready.set())
    except TrainingInterrupted as interrupted:
        os._exit(INTERRUPTED + interrupted.signal_number)
    except KeyboardInterrupt:
        os._exit(STOPPED)


@pytest.mark.parametrize(
    ("numbers", "num_workers", "seconds"),
    [([signal.SIGINT], 0, 0.002), ([signal.SIGINT], 2, 0.002), ([signal.SIGTERM, signal.SIGTERM], 0, 0.2)],
)
def test_signals_end_the_step_and_the_run_resumes_bit_for_bit(
    tmp_path: Path, numbers: list[int], num_workers: int, seconds: float
) -> None:
    """SLURM and torchrun both send SIGTERM to a process of theirs."""
    context = multiprocessing.get_context("fork")  # spares the imports
    ready = context.Event()
    config = replace(ENDLESS, num_workers=num_workers)
    child = context.Process(target=_train_until_stopped, args=(seconds, config, tmp_path / "parts", ready))
    child.start()
    assert ready.wait(60)
    for number in numbers:
        time.sleep(0.1)  # into the steps
        os.killpg(child.pid or 0, number)
    child.join(60)
    assert child.exitcode == INTERRUPTED + numbers[0]
    (checkpoint,) = find_checkpoints(tmp_path / "parts")
    step = int(checkpoint.name.removeprefix("step-"))
    assert metrics(tmp_path / "parts")[-1]["step"] == step
    config = replace(config, num_steps=step + 3)
    assert_same_checkpoints(train(Regression(), config, tmp_path / "parts"), train(Regression(), config, tmp_path / "whole"))


def test_ctrl_c_again_stops_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    child = context.Process(target=_train_until_stopped, args=(1000, ENDLESS, tmp_path, ready))
    child.start()
    assert ready.wait(60)
    for _ in range(300):  # the first may come before the handlers are installed
        if not child.is_alive():
            break
        os.kill(child.pid or 0, signal.SIGINT)
        child.join(0.2)
    assert child.exitcode == STOPPED
    assert find_checkpoints(tmp_path) == []


@pytest.fixture
def heeded_interrupts() -> Iterator[None]:
    """Heed Ctrl-C, which a shell's background jobs, and so these tests, may ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded_interrupts")
def test_handlers_are_installed_only_during_the_training_and_only_in_the_main_thread(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    during: list[Any] = []
    train(Regression(), CONFIG, tmp_path / "a", report=lambda _: during.extend(signal.getsignal(number) for number in SIGNALS))
    assert not set(during) & set(before)
    assert [signal.getsignal(number) for number in SIGNALS] == before
    thread = threading.Thread(target=train, args=(Regression(), CONFIG, tmp_path / "b"))
    thread.start()
    thread.join(60)
    assert_same_checkpoints(*(find_checkpoints(tmp_path / name)[-1] for name in "ab"))


# ------------------------------------------------------------------------------------------------------ micro-batches


@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_micro_batches_give_the_gradient_of_the_batch(tmp_path: Path, micro_batch_size: int) -> None:
    config = replace(CONFIG, num_steps=4, log_steps=1)
    whole = tensors(train(Regression(batch_norm=False), config, tmp_path / "whole"))
    divided = replace(config, micro_batch_size=micro_batch_size)
    parts = tensors(train(Regression(batch_norm=False), divided, tmp_path / "parts"))
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-6)
    for a, b in zip(metrics(tmp_path / "whole"), metrics(tmp_path / "parts"), strict=True):
        assert all(b[name] == pytest.approx(a[name], rel=1e-4) for name in ("loss", "error", "grad_norm"))


class Small(Regression):
    """A device that can hold two samples."""

    def loss(self, module: nn.Module, batch: dict[str, Tensor], randomness: BatchRandomness) -> dict[str, Tensor]:
        if len(batch["x"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().loss(module, batch, randomness)


def test_running_out_of_memory_names_the_option_that_helps(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"out of memory on cpu with 4 samples .*micro_batch_size to 2 or less"):
        train(Small(), CONFIG, tmp_path)
    train(Small(), replace(CONFIG, micro_batch_size=2), tmp_path)


def test_other_errors_of_a_step_are_left_alone(tmp_path: Path) -> None:
    class Faulty(Regression):
        def loss(self, module: nn.Module, batch: dict[str, Tensor], randomness: BatchRandomness) -> dict[str, Tensor]:  # noqa: ARG002
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        train(Faulty(), CONFIG, tmp_path)


# ------------------------------------------------------------------------------------------------------------- summary


def test_a_run_is_summarized_at_its_start_and_once_its_speed_is_known(tmp_path: Path) -> None:
    summaries: list[RunSummary] = []
    train(Regression(frozen=True), CONFIG, tmp_path, summary=summaries.append, stop_after=2)
    train(Regression(frozen=True), replace(CONFIG, micro_batch_size=3), tmp_path, summary=summaries.append)
    first, resumed, estimated = summaries
    assert (first.start_step, first.seconds_left, first.peak_memory) == (0, None, None)
    assert (first.parameters, first.trained_parameters) == (60, 58)
    assert (first.device, first.precision, first.num_processes, first.num_clips) == ("cpu", "float32", 1, 7)
    assert (first.batch_size, first.micro_batch_size, resumed.micro_batch_size) == (4, 4, 3)
    assert (resumed.start_step, resumed.num_steps) == (2, 10)
    assert resumed == replace(estimated, seconds_left=None, peak_memory=None)
    assert estimated.seconds_left is not None
    assert estimated.seconds_left > 0
    assert estimated.peak_memory is not None
    assert estimated.peak_memory > 10**7


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("log_steps", [1, 100])
def test_a_loss_that_is_not_finite_ends_the_training_with_the_last_checkpoint_intact(tmp_path: Path, log_steps: int) -> None:
    config = replace(CONFIG, log_steps=log_steps)
    broken = Regression(dataset=Points(broken_from=7 * 4))
    with pytest.raises(DivergedError, match=r"loss, error, grad_norm stopped being finite at step 8;.*learning_rate$"):
        train(broken, config, tmp_path / "run")
    assert [path.name for path in find_checkpoints(tmp_path / "run")] == ["step-00000005"]
    assert all(math.isfinite(value) for line in metrics(tmp_path / "run") for value in line.values())
    whole = train(Regression(), config, tmp_path / "whole")
    assert_same_checkpoints(train(Regression(), config, tmp_path / "run"), whole)  # once the cause is gone


def test_what_a_kill_after_the_last_step_left_is_removed(tmp_path: Path) -> None:
    train(Regression(), CONFIG, tmp_path)
    left = tmp_path / "samples" / ".step-00000010.png.12345678.tmp"
    left.parent.mkdir(exist_ok=True)
    left.touch()
    train(Regression(), CONFIG, tmp_path)
    assert not left.exists()


def test_a_failing_panel_costs_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        train(Regression(picture=None), replace(CONFIG, sample_steps=5), tmp_path)
    assert [path.name for path in find_checkpoints(tmp_path)] == ["step-00000005"]


class BrokenGradient(Regression):
    """A finite loss whose gradient is not: the root of zero."""

    def loss(self, module: nn.Module, batch: dict[str, Tensor], randomness: BatchRandomness) -> dict[str, Tensor]:
        losses = super().loss(module, batch, randomness)
        assert isinstance(module, Network)
        return {"loss": losses["loss"] + (0 * module.first.weight).sum().sqrt()}


@pytest.mark.parametrize("log_steps", [1, 100])
def test_a_gradient_that_overflows_is_named_with_its_step(tmp_path: Path, log_steps: int) -> None:
    with pytest.raises(DivergedError, match=r"^grad_norm stopped being finite at step 1;"):
        train(BrokenGradient(), replace(CONFIG, log_steps=log_steps), tmp_path)
    assert find_checkpoints(tmp_path) == []


class VanishingGradient(Regression):
    """A loss so small that its gradient is zero in bfloat16 and float32."""

    def loss(self, module: nn.Module, batch: dict[str, Tensor], randomness: BatchRandomness) -> dict[str, Tensor]:
        return {name: value * 1e-44 for name, value in super().loss(module, batch, randomness).items()}


def test_a_gradient_of_zero_ends_the_training(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"^grad_norm is zero in steps 1 to 5"):
        train(VanishingGradient(), CONFIG, tmp_path)
    assert find_checkpoints(tmp_path) == []


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"model\.first\.weight"):
        train(BrokenGradient(), replace(CONFIG, checkpoint_steps=1, max_grad_norm=None), tmp_path)
    assert find_checkpoints(tmp_path) == []


@pytest.mark.parametrize("fraction", [0.5, 1.5])  # of the model's file; the second fails later, in the moments
def test_a_full_disk_leaves_the_last_checkpoint_and_nothing_half_written(tmp_path: Path, fraction: float) -> None:
    task = Regression(width=2000)
    first = train(task, CONFIG, tmp_path, stop_after=5)
    before = tensors(first)
    size = (first / "network" / "diffusion_pytorch_model.safetensors").stat().st_size
    with (
        file_size_limit(int(fraction * size)),
        pytest.raises(OSError, match="step-00000010 could not be written"),
    ):
        train(Regression(width=2000), CONFIG, tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [first.name]
    after = tensors(first)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert train(Regression(width=2000), CONFIG, tmp_path).name == "step-00000010"


def test_impossible_calls_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="stop_after must be at least 1; got 0"):
        train(Regression(), CONFIG, tmp_path, stop_after=0)


# -------------------------------------------------------------------------------------------------------------- logs


def test_metrics_are_averages_since_the_last_line(tmp_path: Path) -> None:
    reports: list[StepReport] = []
    train(Regression(), replace(CONFIG, log_steps=1, checkpoint_steps=100), tmp_path / "every", report=reports.append)
    train(Regression(), replace(CONFIG, log_steps=4, checkpoint_steps=100), tmp_path / "fourth")
    single = metrics(tmp_path / "every")
    assert [line["step"] for line in single] == list(range(1, 11)) == [report.step for report in reports]
    assert [report.metrics["loss"] for report in reports] == [line["loss"] for line in single]
    assert set(single[0]) == {"step", "loss", "error", "grad_norm", "learning_rate", "steps_per_second"}
    lines = metrics(tmp_path / "fourth")
    assert [line["step"] for line in lines] == [4, 8, 10]
    expected = [np.mean([line["loss"] for line in single[a:b]]) for a, b in ((0, 4), (4, 8), (8, 10))]
    np.testing.assert_allclose([line["loss"] for line in lines], expected, rtol=1e-5)
    assert lines[-1]["learning_rate"] == learning_rate(CONFIG, 9)


def test_a_resumed_run_logs_every_step_once(tmp_path: Path) -> None:
    config = replace(CONFIG, log_steps=2)
    train(Regression(), config, tmp_path / "whole")
    train(Regression(), config, tmp_path / "parts", stop_after=5)
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:  # as left by a kill at step 7
        file.write('{"step": 6, "loss": 1.0}\n{"step": 7, "lo')
    train(Regression(), config, tmp_path / "parts")
    whole, parts = metrics(tmp_path / "whole"), metrics(tmp_path / "parts")
    assert [line["step"] for line in parts] == [2, 4, 5, 6, 8, 10] == [line["step"] for line in whole]
    assert [line["loss"] for line in parts] == [line["loss"] for line in whole]


@pytest.mark.parametrize(("shape", "name"), [((6, 8, 3), "step-00000004.png"), ((3, 6, 8, 3), "step-00000004.gif")])
def test_panels_are_kept_as_pictures_and_in_tensorboard(tmp_path: Path, shape: tuple[int, ...], name: str) -> None:
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    picture = np.broadcast_to(np.arange(shape[0], dtype=np.uint8).reshape(-1, *(1,) * (len(shape) - 1)) * 40, shape)
    train(Regression(picture=np.ascontiguousarray(picture)), replace(CONFIG, num_steps=5, sample_steps=4), tmp_path)
    assert [path.name for path in (tmp_path / "samples").iterdir()] == [name]
    with Image.open(tmp_path / "samples" / name) as image:
        assert image.size == (8, 6)
        assert getattr(image, "n_frames", 1) == (shape[0] if len(shape) == 4 else 1)
        if len(shape) == 3:
            assert np.array_equal(np.asarray(image), picture)
    (events,) = (tmp_path / "tensorboard").iterdir()
    tags = {value.tag for event in loader.EventFileLoader(str(events)).Load() for value in event.summary.value}
    assert tags == {"panel", "loss", "error", "grad_norm", "learning_rate", "steps_per_second"}


# ------------------------------------------------------------------------------------------------- parts of the loop


def test_learning_rate_warms_up_and_decays() -> None:
    cosine = replace(CONFIG, num_steps=100, learning_rate=1.0, warmup_steps=10)
    assert learning_rate(cosine, 0) == pytest.approx(0.1)
    assert learning_rate(cosine, 4) == pytest.approx(0.5 * 0.5 * (1 + math.cos(0.04 * math.pi)))
    assert learning_rate(cosine, 50) == pytest.approx(0.5)
    assert 0 < learning_rate(cosine, 99) < 3e-4
    steps = replace(CONFIG, learning_rate=2e-4, schedule="milestones", milestones=(3, 5))
    assert [learning_rate(steps, i) for i in range(7)] == pytest.approx([2e-4] * 3 + [2e-5] * 2 + [2e-6] * 2)


def test_the_average_follows_its_definition(tmp_path: Path) -> None:
    config = replace(CONFIG, checkpoint_steps=1, keep_checkpoints=10)
    train(Regression(), config, tmp_path)
    expected = Regression().module.first.weight.detach().clone()
    for step, folder in enumerate(find_checkpoints(tmp_path)):
        stored = tensors(folder)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * stored["model.first.weight"]
        torch.testing.assert_close(stored["average.first.weight"], expected, rtol=0, atol=1e-6)
        assert torch.equal(stored["average.norm.running_mean"], stored["model.norm.running_mean"])
