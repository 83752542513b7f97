"""The page that animates pictures in the browser: it makes the frames that Python makes."""

import functools
import http.server
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lfdm.data.video import read_video
from lfdm.export.runtime import OnnxPipeline

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'lfdm[dev]'")
pytest.importorskip("onnxruntime")
CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
ROOT = Path(__file__).parents[2]
MODULES = ROOT / "web/static-demo/node_modules"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
    pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm: apt-get install npm"),
]

GENERATE = """async ({noise, pixels}) => {
    const request = {condition: "wave", frames: 4, steps: 2, guidance: 2};
    const data = {pixels: Uint8ClampedArray.from(pixels), noise: Float32Array.from(noise)};
    return (await lfdm.generate({...request, ...data})).map((frame) => Array.from(frame));
}"""


class _Handler(http.server.SimpleHTTPRequestHandler):
    """A static host."""

    def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002 - the base's names


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page, built as `make site-demo` builds it, from the checkout's files."""
    folder = tmp_path_factory.mktemp("site")
    for name in ("Makefile", "web/static-demo", "src/lfdm/assets/puppets64/images"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        source = ROOT / name
        shutil.copytree(source, folder / name) if source.is_dir() else shutil.copy(source, folder / name)
    (folder / ".venv").symlink_to(ROOT / ".venv")
    command = ["make", "-o", ".venv/installed-dev", "site-demo"]
    built = subprocess.run(command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if "EAI_AGAIN" in built.stderr or "ENOTFOUND" in built.stderr:
        pytest.skip("the npm registry cannot be reached")
    assert built.returncode == 0, built.stderr
    return folder / "site-demo"


@pytest.fixture(scope="module")
def page(site: Path) -> Iterator[Any]:
    """The page in a browser, with its model loaded; requests to other hosts are errors."""
    handler = functools.partial(_Handler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, playwright.sync_playwright() as started:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page()
        opened.foreign = []
        opened.on("request", lambda one: None if one.url.startswith((url, "data:", "blob:")) else opened.foreign.append(one.url))
        opened.goto(f"{url}/index.html")
        opened.wait_for_function("window.lfdm && lfdm.state.pixels", timeout=240_000)
        yield opened
        browser.close()
        server.shutdown()


def test_frames_are_those_of_python(page: Any, site: Path) -> None:
    noise = np.random.default_rng(0).standard_normal((3, 4, 32, 32), np.float32)
    image = site / "images" / "puppet-1.png"
    pixels = np.array(Image.open(image).convert("RGBA"))
    frames = page.evaluate(GENERATE, {"noise": noise.ravel().tolist(), "pixels": pixels.ravel().tolist()})
    ours = np.array(frames).reshape(4, 64, 64, 4)[..., :3]
    options = {"num_frames": 4, "num_inference_steps": 2, "guidance_scale": 2.0}
    theirs = OnnxPipeline(site / "model", num_threads=1)(image, "wave", noise=noise, **options)
    assert np.abs(ours - theirs.astype(int)).max() <= 2


def test_a_dropped_picture_is_animated_and_downloaded(page: Any, site: Path, tmp_path: Path) -> None:
    Image.open(site / "images" / "puppet-2.png").resize((300, 200)).save(tmp_path / "photo.jpg")
    page.set_input_files("#file", str(tmp_path / "photo.jpg"))
    page.select_option("#action", "jump")
    page.click("summary")
    page.fill("#frames", "5")
    page.fill("#steps", "1")
    page.click("#generate")
    page.wait_for_function("!lfdm.state.busy", timeout=240_000)
    assert "5 frames in" in page.inner_text("#status")
    for button in ("gif", "webm"):
        with page.expect_download() as download:
            page.click(f"#{button}")
        assert download.value.suggested_filename == f"jump.{button}"
        download.value.save_as(tmp_path / f"jump.{button}")
    video = read_video(tmp_path / "jump.gif")
    assert video.shape == (5, 256, 256, 3)
    assert read_video(tmp_path / "jump.webm").shape[1:] == (256, 256, 3)
    assert np.abs(video[0].astype(int) - video[-1]).max() > 20  # it moves
    assert page.foreign == []


def test_a_file_that_is_no_picture_is_one_line(page: Any, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("no picture")
    page.set_input_files("#file", str(tmp_path / "note.txt"))
    page.wait_for_function("document.getElementById('status').classList.contains('error')")
    assert "note.txt is not a picture" in page.inner_text("#status")


def test_the_page_fits_a_phone(page: Any) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
