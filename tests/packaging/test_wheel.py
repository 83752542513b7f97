"""The wheel, installed without the checkout, generates, trains, evaluates and serves."""

import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
import venv
from pathlib import Path

import pytest

pytest.importorskip("build", reason="needs build: pip install 'lfdm[dev]'")

ROOT = Path(__file__).parents[2]
SHORT_TRAINING = (
    "--{stage}.optimization.num-steps 2 --{stage}.optimization.batch-size 2 --{stage}.optimization.micro-batch-size None "
    "--{stage}.optimization.num-workers 0 --{stage}.optimization.warmup-steps 0"
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source archive and the wheel made of it, from a copy of the sources."""
    copy = tmp_path_factory.mktemp("sources")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(copy / "dist"), str(copy)]
    subprocess.run(command, check=True, capture_output=True)
    return copy / "dist"


@pytest.fixture(scope="module")
def lfdm(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of an environment with the wheel, and with the dependencies of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    packages_dir = next(folder.glob("lib/python*/site-packages"))
    (packages_dir / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python, (wheel,) = folder / "bin" / "python", packages.glob("*.whl")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "--ignore-installed"]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    return folder / "bin" / "lfdm"


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("elsewhere")


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(lfdm: Path, folder: Path, line: str) -> str:
    done = subprocess.run([lfdm, *line.split()], cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_index_accepts_the_packages(packages: Path) -> None:
    pytest.importorskip("twine", reason="needs twine: pip install 'lfdm[dev]'")
    files = [str(path) for path in packages.iterdir()]
    assert sorted(path.suffix for path in packages.iterdir()) == [".gz", ".whl"]
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_wheel_generates_trains_and_evaluates(lfdm: Path, elsewhere: Path) -> None:
    where = subprocess.run(
        [lfdm.parent / "python", "-c", "import lfdm; print(lfdm.__file__)"],
        cwd=elsewhere,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert where.startswith(str(lfdm.parents[1]))
    run(lfdm, elsewhere, "data puppets --out data --num-subjects 4 --num-takes 1 --test-fraction 0.5 --num-workers 1")
    image = Path(where.strip()).parent / "assets" / "puppets64" / "images" / "puppet-1.png"
    assert run(lfdm, elsewhere, f"generate {image} wave --num-frames 4 --num-inference-steps 2 --out wave.gif") == "wave.gif\n"
    run(lfdm, elsewhere, f"train autoencoder flow64 --data data --out one {SHORT_TRAINING.format(stage='autoencoder-training')}")
    run(
        lfdm,
        elsewhere,
        f"train diffusion flow64 --data data --autoencoder one --out two {SHORT_TRAINING.format(stage='diffusion-training')}",
    )
    judges = "--classifier.num-steps 2 --classifier.batch-size 8 --frame-network.num-steps 2 --frame-network.batch-size 8"
    results = run(
        lfdm, elsewhere, f"evaluate --model two --data data --out results --num-clips 2 --num-diversity-clips 1 {judges} --json"
    )
    assert json.loads(results)["generation"]["frame_0"]["num_clips"] == 2
    assert (elsewhere / "results" / "report.html").is_file()


def test_the_wheel_serves(lfdm: Path, elsewhere: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen(
        [lfdm, "serve", "--port", str(port)], cwd=elsewhere, env=environment(), stdout=subprocess.PIPE
    ) as server:
        try:
            assert "lfdm" in page(f"http://127.0.0.1:{port}/", server)
        finally:
            server.terminate()


def page(url: str, server: "subprocess.Popen[bytes]") -> str:
    """Return the page of a server that is starting."""
    while True:
        assert server.poll() is None, "the server has ended"
        try:
            with urllib.request.urlopen(url) as answer:
                return answer.read().decode()
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.5)
