"""Commands that train and evaluate models."""

import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lfdm.cli.run_summary import describe_run
from lfdm.training.reports import RunSummary
from tests.command_line import Lfdm

TINY_NETWORKS = shlex.split(
    "--size 32 --num-frames 4 --autoencoder.channels 4 --autoencoder.max-channels 8 --autoencoder.num-res-blocks 1 "
    "--autoencoder.predictor.channels 8 8 16 16 --autoencoder.predictor.match-channels 8 --unet.latent-channels 8 "
    "--unet.condition-dim 8 --unet.dim 8 --unet.channel-multipliers 1 1 2 --unet.num-heads 2 --unet.head-dim 8"
)


def short_run(stage: str) -> list[str]:
    values = {"num-steps": "2", "batch-size": "2", "warmup-steps": "0", "mixed-precision": "no"}
    return [word for name, value in values.items() for word in (f"--{stage}.optimization.{name}", value)]


@pytest.mark.slow  # starts processes
def test_a_full_disk_stops_a_training_with_one_line_and_the_last_checkpoint(puppets_dir: Path, tmp_path: Path) -> None:
    def train(num_steps: int, limit: int | None) -> subprocess.CompletedProcess[str]:
        line = ["train", "autoencoder", "flow64", "--data", str(puppets_dir), "--out", "run", *TINY_NETWORKS]
        line += [*short_run("autoencoder-training"), "--autoencoder-training.optimization.num-steps", str(num_steps)]
        code = (
            "import resource, sys, lfdm.training.stage1\n"
            "from lfdm.cli import COMMANDS\n"
            "from lfdm.cli.console import run\n"
            f"{'' if limit is None else f'resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))'}\n"
            f"sys.exit(run(COMMANDS, {line!r}, ''))"
        )
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)

    assert train(2, None).returncode == 0
    checkpoints = tmp_path / "run" / "checkpoints"
    kept = {path: path.read_bytes() for path in checkpoints.rglob("*") if path.is_file()}
    full = train(4, max(map(len, kept.values())) - 1)
    assert full.returncode == 2
    assert "Traceback" not in full.stderr
    assert "step-00000004 could not be written: it would be larger" in full.stderr.splitlines()[-1]
    assert {path: path.read_bytes() for path in checkpoints.rglob("*") if path.is_file()} == kept
    assert [path for path in tmp_path.rglob("*") if path.name.startswith(".") or path.suffix == ".tmp"] == []
    assert train(4, None).returncode == 0


def test_a_non_finite_loss_is_one_line(lfdm: Lfdm, puppets_dir: Path) -> None:
    line = ["train", "autoencoder", "flow64", "--data", puppets_dir, "--out", "run", *TINY_NETWORKS]
    line += [*short_run("autoencoder-training"), "--autoencoder-training.optimization.learning-rate", "1e30"]
    code, _, err = lfdm(*line)
    assert code == 2
    assert "stopped being finite at step 2; the last checkpoint" in err.splitlines()[-1]
    assert "Traceback" not in err


def test_training_both_stages_and_sampling_from_the_run(lfdm: Lfdm, puppets_dir: Path, image: Path) -> None:
    def train(stage: str, *more: object) -> tuple[int, str, str]:
        return lfdm("train", stage, "flow64", "--data", puppets_dir, *more, *TINY_NETWORKS, *short_run(f"{stage}-training"))

    code, printed, err = train("autoencoder", "--out", "one")
    assert (code, printed) == (0, "one/checkpoints/step-00000002\n"), err
    for line in ("device        cpu, float32", "clips         8", "steps         2 of 2 samples", "run folder    one"):
        assert line in err.splitlines()
    assert f"next: lfdm train diffusion flow64 --data {puppets_dir} --autoencoder one --out RUN2  (with the same model" in err
    config = json.loads(Path("one/config.json").read_text())["preset"]
    assert (config["image_size"], config["autoencoder_training"]["optimization"]["num_steps"]) == (32, 2)
    code, printed, err = train("diffusion", "--autoencoder", "one", "--out", "two")
    assert (code, printed) == (0, "two/checkpoints/step-00000002\n"), err
    assert "next: lfdm generate IMAGE LABEL --model two\n" in err
    code, printed, err = lfdm("generate", image, "wave", "--model", "two", "--num-inference-steps", 1)
    assert (code, printed) == (0, "wave.mp4\n"), err
    code, _, err = train("autoencoder", "--out", "one", "--autoencoder-training.l1-weight", 2)
    assert code == 2
    assert "l1_weight is 1.0 there, 2.0 here" in err
    short = ["--optimization.num-steps", 1, "--optimization.batch-size", 2, "--l1-weight", 2]
    code, printed, err = lfdm("adapt", "--model", "two", "--data", puppets_dir, "--out", "adapted", *short)
    assert (code, printed) == (0, "adapted\n"), err
    code, printed, err = lfdm("generate", image, "wave", "--model", "adapted", "--num-inference-steps", 1)
    assert (code, printed) == (0, "wave-2.mp4\n"), err
    code, printed, err = lfdm(
        "train", "few-steps", "two", "--data", puppets_dir, "--out", "fast", *short[:4], "--optimization.warmup-steps", 0
    )
    assert (code, printed) == (0, "fast/checkpoints/step-00000001\n"), err
    code, printed, err = lfdm("generate", image, "wave", "--model", "fast", "--guidance-scale", 3)
    assert (code, printed) == (0, "wave-3.mp4\n"), err
    code, _, err = lfdm("generate", image, "wave", "--model", "fast", "--guidance-scale", 5)
    assert (code, err) == (2, "lfdm: guidance_scale must be a finite number, 1 to 4; got 5.0\n")


@pytest.mark.slow  # trains both stages
def test_a_label_is_found_in_every_form_of_its_text_after_training(lfdm: Lfdm, puppets_dir: Path, image: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"  # the second as Macs name folders
    clip = min(puppets_dir.rglob("*.avi"))
    for place in (f"tree/{label}/{subject}" for label in (decomposed, "the") for subject in "abc"):
        Path(place).mkdir(parents=True)
        shutil.copy(clip, place)
    assert lfdm("data", "folder", "tree", "--out", "data", "--size", 32)[0] == 0
    for stage, more in (("autoencoder", ["--out", "one"]), ("diffusion", ["--autoencoder", "one", "--out", "two"])):
        code, _, err = lfdm("train", stage, "flow64", "--data", "data", *more, *TINY_NETWORKS, *short_run(f"{stage}-training"))
        assert code == 0, err
    sampled = ["--model", "two", "--num-inference-steps", 1]
    for label, name in ((composed, composed), (decomposed, f"{composed}-2"), (f" {decomposed} ", f"{composed}-3")):
        assert lfdm("generate", image, label, *sampled)[:2] == (0, f"{name}.mp4\n")
    code, _, err = lfdm("generate", image, decomposed.upper(), *sampled)
    assert code == 2
    assert f"did you mean {composed!r}?" in err


def test_auto_names_the_preset_that_suits_the_clips(lfdm: Lfdm, puppets_dir: Path) -> None:
    code, _, err = lfdm("train", "autoencoder", "auto", "--data", puppets_dir, "--out", "run", "--init", "no-such-model")
    assert code == 2
    assert "preset flow64: the clips' median short side is 32 pixels, nearest to 64" in err.splitlines()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["autoencoder", "flow128", "--data", "x", "--out", "run", "--sizes", "64"],
            "sizes must be SIZE:STEPS, such as 64:1500; got",
        ),
        (["autoencoder", "flow64", "--data", "nothing", "--out", "run"], "nothing: no such data folder"),
        (["diffusion", "flow64", "--data", "x", "--out", "run"], "--autoencoder"),
        (["autoencoder", "flow64", "--data", "x", "--out", "run", "--unet.dim", "-1"], "unet: dim must be positive; got -1\n"),
        (
            ["autoencoder", "flow64", "--data", "x", "--out", "run", "--num-frames", "1"],
            "num_frames must be at least 2; got 1",
        ),
    ],
)
def test_a_wrong_training_setting_is_one_line(lfdm: Lfdm, arguments: list[str], message: str) -> None:
    code, out, err = lfdm("train", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not Path("run").exists()


def test_evaluate_names_a_missing_data_set(lfdm: Lfdm, model: Path) -> None:
    code, _, err = lfdm("evaluate", "--model", model, "--data", "nothing", "--out", "results")
    assert (code, err.count("\n")) == (2, 1)
    assert "nothing: no such data folder" in err
    assert not Path("results").exists()


def test_the_summary_shows_progress_and_estimates(tmp_path: Path) -> None:
    summary = RunSummary(
        out=tmp_path,
        device="cuda:0 (NVIDIA H200)",
        precision="bfloat16",
        num_processes=2,
        trained_parameters=1000,
        parameters=12_345,
        num_clips=2160,
        batch_size=100,
        micro_batch_size=10,
        num_steps=46_500,
        start_step=1000,
    )
    lines = describe_run(summary).splitlines()
    assert lines[0] == "device        cuda:0 (NVIDIA H200), bfloat16, 2 processes"
    assert lines[1] == "parameters    1,000 trained of 12,345"
    assert lines[3] == "steps         46,500 of 100 samples, computed 10 at once; 1,000 done"
    estimated = replace(summary, seconds_left=3600.0, peak_memory=3 * 2**29)
    assert describe_run(estimated) == "estimate      60 min left, 1.5 GiB of memory"
