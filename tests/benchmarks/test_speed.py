"""The speed benchmarks: measurement, stored results, and the tables rendered from them."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed import calls_table, startup
from benchmarks.speed import operations as speed
from benchmarks.speed import table as performance_table
from benchmarks.speed import training as throughput
from benchmarks.speed.measuring import count_gflop, measure_together
from benchmarks.speed.records import Results, Row, Variant, results_path
from benchmarks.speed.table import DOCUMENT, END, README, START, between_markers, read_devices, render_full, updated
from benchmarks.speed.workloads import OPERATIONS
from lfdm.errors import UserError

CPU = torch.device("cpu")


@pytest.mark.slow
def test_quick_run_measures_every_operation_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = speed.run(speed.Options(quick=True, out=tmp_path))
    rows = Results.load(path).rows
    assert {row.operation for row in rows} == OPERATIONS.keys() - {"generate_10", "generate_20"}
    for row in rows:
        for name, variant in row.variants.items():
            assert not variant.skipped, (row.name, name, variant.skipped)
            assert variant.median > 0
            assert variant.gflop is not None
            assert variant.gflop > 0
            assert row.ratio(name) is not None
    capsys.readouterr()
    speed.run(speed.Options(quick=True, out=tmp_path, resume=True))
    assert "eager fast:" not in capsys.readouterr().out  # nothing is measured again
    assert Results.load(path).rows == rows


def test_unsupported_dtypes_are_skipped_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(speed, "uses_bf16", lambda *_: False)
    options = speed.Options(
        only=("encode",), sizes=("tiny",), batches=(1,), dtypes=("bfloat16",), compilation=("eager",), out=tmp_path
    )
    path = speed.run(options)
    (row,) = Results.load(path).rows
    speed.run(replace(options, only=("decode",)))  # other rows are kept
    assert [other.operation for other in Results.load(path).rows] == ["encode", "decode"]
    old = Results.load(path)
    old.software["torch"] = "1.0"
    old.save(path)
    with pytest.raises(UserError, match=r"keeps rows of .*1\.0.* measure all rows, or give --out"):
        speed.run(replace(options, only=("decode",)))
    assert {variant.skipped for variant in row.variants.values()} == {"this device does not compute in bfloat16"}


def test_expensive_forms_are_skipped(tmp_path: Path):
    one = Row(operation="encode", preset="tiny", batch=1, dtype="float32")
    one.variants = {"fast": Variant(seconds=[1.0]), "plain": Variant(seconds=[20.0], peak_bytes=10**15)}
    eight = replace(one, batch=8, variants={})
    options = speed.Options(limit_seconds=60, out=tmp_path)
    assert speed._too_much(eight, "fast", one, options, CPU) == ""
    assert speed._too_much(eight, "plain", one, options, CPU) == "about 160 s a run (8 times batch 1)"
    assert Results(device="a", rows=[eight, one, replace(one, batch=2)]).smallest(eight) is one
    assert Results(device="a", rows=[eight, replace(one, dtype="bfloat16")]).smallest(eight) is None
    patient = replace(options, limit_seconds=1e6)
    assert "GB of memory" in speed._too_much(eight, "plain", one, patient, CPU)


def test_unknown_operations_are_refused():
    with pytest.raises(UserError, match=r"warp.*unet_step"):
        speed.run(speed.Options(only=("warp",)))


def test_fused_attention_on_a_cpu_is_counted():
    q = torch.randn(2, 3, 40, 16)
    product = 2 * 2 * 3 * 40 * 40 * 16
    assert count_gflop(lambda: functional.scaled_dot_product_attention(q, q, q)) == pytest.approx(2 * product / 1e9)
    assert count_gflop(lambda: q @ q.mT) == pytest.approx(product / 1e9)
    assert count_gflop(lambda: q.requires_grad_() @ q.mT) == pytest.approx(product / 1e9)


@pytest.mark.parametrize("without_gradients", [torch.no_grad, torch.inference_mode])
def test_counts_agree_with_torch(without_gradients: Callable[[], AbstractContextManager[None]]):
    layers = nn.Sequential(nn.Conv3d(3, 8, (1, 3, 3), padding=(0, 1, 1)), nn.GroupNorm(2, 8), nn.Flatten(2, 4), nn.Linear(48, 5))
    x = torch.randn(2, 3, 3, 4, 4)

    def call() -> None:
        with torch.enable_grad():
            layers(x).sum().backward()
        with without_gradients():
            layers(x)

    with FlopCounterMode(display=False) as counter:
        call()
    assert count_gflop(call) == pytest.approx(counter.get_total_flops() / 1e9)


def test_calls_take_turns():
    order: list[str] = []
    timings = measure_together({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, CPU, repeats=3, budget=60)
    assert order == ["a", "b"] * 4
    assert [len(timing.seconds) for timing in timings.values()] == [3, 3]
    once = measure_together({"a": lambda: None}, CPU, repeats=3, budget=0)["a"]
    assert len(once.seconds) == 1  # after one that is not timed


@pytest.mark.parametrize("stage", ["autoencoder", "diffusion"])
def test_training_throughput(stage: throughput.Stage, tmp_path: Path):
    options = throughput.Options(only=(stage,), sizes=("tiny",), batch=2, steps=2, device="cpu", out=tmp_path)
    (entry,) = Results.load(throughput.run(options)).throughput
    assert entry["batch"] == 2
    assert entry["steps_per_second"] > 0
    assert 0 <= entry["share_waiting_for_loader"] < 1
    assert entry["synchronisations_per_step"] is None  # only on a GPU


def test_start_up_runs_each_command_in_turn():
    measured = startup.measure(1, choose=("python", "lfdm --help"))
    assert list(measured) == ["seconds", "processor_seconds"]
    for seconds in measured.values():
        assert list(seconds) == ["python", "lfdm --help"]
        assert all(len(runs) == 1 for runs in seconds.values())
    assert startup.above_baseline({"import torch": [1.0, 3.0, 5.0], "x": [1.5, 3.25, 9.0]}, "x") == 0.5
    assert startup.ratio_to_baseline({"import torch": [1.0, 2.0, 4.0], "x": [1.5, 3.0, 9.0]}, "x") == 1.5


def example() -> Results:
    row = Row(operation="unet_step", preset="mug128", batch=1, dtype="float32", matmul_peak=100.0, convolution_peak=200.0)
    row.variants = {
        "fast": Variant(seconds=[0.5, 0.4, 0.6], gflop=60.0, peak_bytes=5 * 10**6),
        "plain": Variant(seconds=[1.5], gflop=80.0),
        "checkpointed": Variant(skipped="too long"),
    }
    return Results(device="A Device, 2 threads", software={"torch": "2.13.0"}, rows=[row])


def test_results_round_trip_and_render(tmp_path: Path):
    path = results_path("A Device, 2 threads", tmp_path)
    assert path.name == "speed-a-device-2-threads.json"
    example().save(path)
    loaded = Results.load(path)
    assert loaded == example()
    assert read_devices(tmp_path) == [loaded]
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    full = render_full([loaded])
    assert "| U-Net step | float32 | 500 ms | 1.5 s (1 run) | 3.0x | 3.0x | 120 | 60 % | 120 % | 5 MB |" in full
    assert "too long" not in full


def test_only_the_text_between_the_markers_changes():
    readme = f"before\n{START}\nold\n{END}\nafter\n"
    assert updated(readme, "new\n") == f"before\n{START}\nnew\n{END}\nafter\n"
    with pytest.raises(UserError, match="performance: rendered"):
        between_markers("no markers")


def test_readme_and_document_show_the_stored_results():
    command = "python -m benchmarks.speed tables --update"
    devices = read_devices()
    assert between_markers(README.read_text()) == calls_table.render_short(), f"run: {command}"
    assert DOCUMENT.read_text() == render_full(devices), f"run: {command}"


def test_files_with_other_contents_are_refused(tmp_path: Path):
    (tmp_path / "speed-x.json").write_text('{"device": "x"}')
    with pytest.raises(UserError, match=r"speed-x\.json"):
        performance_table.read_devices(tmp_path)
