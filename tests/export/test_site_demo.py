"""The page that animates pictures in the browser: it makes the frames that Python makes."""

import functools
import http.server
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from lfdm.config.control import Control, Drag
from lfdm.config.presets import Preset
from lfdm.data.video import read_video
from lfdm.errors import UserError
from lfdm.export.exporting import export_pipeline
from lfdm.export.runtime import OnnxPipeline
from lfdm.pipeline.pipeline import LatentFlowPipeline

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

GENERATE = """async ({noise, pixels, points}) => {
    const request = {condition: "wave", frames: 4, steps: 2, guidance: 2};
    const data = {pixels: Uint8ClampedArray.from(pixels), noise: Float32Array.from(noise), points};
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
def following(tiny_preset: Preset) -> LatentFlowPipeline:
    """An untrained pipeline that follows tracks, with no layer at zero."""
    preset = replace(tiny_preset, unet=replace(tiny_preset.unet, track_inputs=True))
    pipe = LatentFlowPipeline.from_preset(preset, ("free", "jump", "wave"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in (*pipe.unet.parameters(), *pipe.autoencoder.parameters()):
            if not parameter.any():
                parameter.normal_(std=0.05, generator=generator)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def exported_following(following: LatentFlowPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline as ONNX files."""
    folder = tmp_path_factory.mktemp("following") / "model"
    export_pipeline(following, folder)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(site: Path, browser: Any) -> Iterator[Any]:
    with opened_page(site, browser) as page:
        yield page


@pytest.fixture(scope="module")
def points_page(site: Path, browser: Any, exported_following: Path) -> Iterator[Any]:
    """The page with a small model that follows tracks."""
    folder = exported_following.parent / "site"
    shutil.copytree(site, folder, ignore=shutil.ignore_patterns("model"))
    shutil.copytree(exported_following, folder / "model")
    with opened_page(folder, browser) as page:
        yield page


@contextmanager
def opened_page(site: Path, browser: Any) -> Iterator[Any]:
    """The page in a browser, with its model loaded; requests to other hosts are errors."""
    handler = functools.partial(_Handler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        opened = browser.new_page(has_touch=True)
        opened.foreign = []
        opened.on("request", lambda one: None if one.url.startswith((url, "data:", "blob:")) else opened.foreign.append(one.url))
        opened.goto(f"{url}/index.html")
        opened.wait_for_function("window.lfdm && lfdm.state.pixels", timeout=240_000)
        yield opened
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
    with Image.open(tmp_path / "jump.gif") as gif:
        shown = sum(frame.info["duration"] for frame in ImageSequence.Iterator(gif))
    assert shown == pytest.approx(1000 * 5 / 8, abs=10)  # 8 frames a second, in hundredths of one
    recorded = read_video(tmp_path / "jump.webm")
    assert recorded.shape[1:] == (256, 256, 3)
    assert np.abs(recorded[0].astype(int) - video[0]).mean() < 5  # the same colours
    assert np.abs(video[0].astype(int) - video[-1]).max() > 20  # it moves
    assert page.foreign == []


def test_a_dropped_picture_is_shown_with_its_name(page: Any) -> None:
    dropped = """() => {
        const data = new DataTransfer();
        data.items.add(new File([lfdm.red], "red.png", {type: "image/png"}));
        document.getElementById("drop").dispatchEvent(new DragEvent("drop", {dataTransfer: data}));
    }"""
    page.evaluate(
        "async () => { const sheet = new OffscreenCanvas(8, 8), pen = sheet.getContext('2d'); "
        "pen.fillStyle = 'red'; pen.fillRect(0, 0, 8, 8); lfdm.red = await sheet.convertToBlob(); }"
    )
    page.evaluate(dropped)
    page.wait_for_function("lfdm.state.pixels[0] === 255 && lfdm.state.pixels[1] === 0")
    assert page.evaluate("document.getElementById('file').files[0].name") == "red.png"
    page.locator("#examples button").first.click()
    page.wait_for_function("lfdm.state.pixels[0] !== 255")
    assert page.evaluate("document.getElementById('file').files.length") == 0


def test_a_file_that_is_no_picture_is_one_line(page: Any, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("no picture")
    page.set_input_files("#file", str(tmp_path / "note.txt"))
    page.wait_for_function("document.getElementById('status').classList.contains('error')")
    assert "note.txt is not a picture" in page.inner_text("#status")


def test_dragged_frames_are_those_of_python(points_page: Any, following: LatentFlowPipeline, exported_following: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((3, 4, 16, 16), np.float32)
    picture = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    pixels = np.concatenate((picture, np.full((32, 32, 1), 255, np.uint8)), axis=2)
    places = {"source": (10.3, 12.6), "target": (20.7, 9.4)}, {"source": (5.2, 28.7), "target": (5.2, 28.7)}
    points = [{name: [2 * x / 32 - 1 for x in place] for name, place in one.items()} for one in places]
    data = {"noise": noise.ravel().tolist(), "pixels": pixels.ravel().tolist()}
    ours = {}
    for name, given in (("dragged", points), ("free", [])):
        frames = points_page.evaluate(GENERATE, {**data, "points": given})
        ours[name] = np.array(frames).reshape(4, 32, 32, 4)[..., :3]
    control = Control(drags=(Drag(source=(10.3, 12.6), path=((1, 20.7, 9.4),)),), pins=((5.2, 28.7),))
    options: dict[str, Any] = {"num_frames": 4, "num_inference_steps": 2, "guidance_scale": 2.0}
    python = OnnxPipeline(exported_following, num_threads=1)
    latents = torch.from_numpy(noise)[None]
    for name, given in (("dragged", control), ("free", None)):
        theirs = python(picture, "wave", control=given, noise=noise, **options).astype(int)
        assert np.abs(ours[name] - theirs).max() <= 2
        uncorrected = replace(given, correct=False) if given else None  # exported models have no derivatives
        pipeline = following(picture, "wave", control=uncorrected, latents=latents, output_type="uint8", **options).frames
        assert isinstance(pipeline, np.ndarray)
        assert np.abs(pipeline[0] - theirs).max() <= 1
    assert np.abs(ours["dragged"] - ours["free"]).max() > 2


def test_contradicting_points_are_named_as_in_python(points_page: Any, exported_following: Path) -> None:
    picture = np.full((32, 32, 3), 128, np.uint8)
    drags = tuple(Drag(source=source, path=((1, 16, 16),)) for source in ((4, 16), (28, 16)))
    with pytest.raises(UserError, match="4,16 and 28,16") as error:
        OnnxPipeline(exported_following, num_threads=1)(picture, "wave", control=Control(drags=drags), num_frames=4)
    points = [{"source": [2 * x / 32 - 1, 0], "target": [0, 0]} for x in (4, 28)]
    data = {"noise": [0] * (3 * 4 * 16 * 16), "pixels": [128] * (32 * 32 * 4), "points": points}
    with pytest.raises(playwright.Error) as refused:
        points_page.evaluate(GENERATE, data)
    assert str(error.value) in str(refused.value)


def test_paths_and_radii_are_those_of_the_pipeline(following: LatentFlowPipeline, exported_following: Path) -> None:
    rng = np.random.default_rng(1)
    picture, noise = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8), rng.standard_normal((3, 5, 16, 16), np.float32)
    path = ((0.4, 20.3, 12.6), (1.0, 24.8, 9.4))
    control = Control(drags=(Drag(source=(10.3, 12.2), path=path, radius=3),), pins=((5.3, 29.2),), correct=False)
    python = OnnxPipeline(exported_following, num_threads=1)
    for condition, scale in (("wave", 0.0), (None, 2.0)):
        options: dict[str, Any] = {"num_frames": 5, "num_inference_steps": 2, "guidance_scale": scale, "control": control}
        latents = torch.from_numpy(noise)[None]
        ours = following(picture, condition, latents=latents, output_type="uint8", **options).frames
        assert isinstance(ours, np.ndarray)
        assert np.abs(ours[0] - python(picture, condition, noise=noise, **options).astype(int)).max() <= 1


def test_points_are_dragged_by_mouse_and_by_touch(points_page: Any) -> None:
    page = points_page
    assert page.input_value("#action") == "free"
    box = page.locator("#points").bounding_box()

    def at(x: float, y: float) -> tuple[float, float]:
        return box["x"] + (x + 1) / 2 * box["width"], box["y"] + (y + 1) / 2 * box["height"]

    page.mouse.move(*at(0.1, -0.2))
    page.mouse.down()
    page.mouse.move(*at(0.4, -0.6), steps=3)
    page.mouse.up()
    page.touchscreen.tap(*at(-0.5, 0.5))
    (drag, pin) = page.evaluate("lfdm.state.points.map(({source, target}) => ({source, target}))")
    assert np.allclose([drag["source"], drag["target"]], [[0.1, -0.2], [0.4, -0.6]], atol=0.02)
    assert pin["source"] == pin["target"]
    assert np.allclose(pin["source"], [-0.5, 0.5], atol=0.02)
    assert page.locator("#points circle").count() == 3
    finger = page.context.new_cdp_session(page)
    for kind, place in (("touchStart", (0.6, 0.6)), ("touchMove", (0.5, 0.3)), ("touchMove", (0.2, 0.1)), ("touchEnd", None)):
        touches = [] if place is None else [dict(zip("xy", at(*place), strict=True))]
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})
    last = page.evaluate("lfdm.state.points.at(-1)")
    assert np.allclose([last["source"], last["target"]], [[0.6, 0.6], [0.2, 0.1]], atol=0.02)
    page.click("#generate")
    page.wait_for_function("!lfdm.state.busy", timeout=60_000)
    assert "4 frames in" in page.inner_text("#status")
    page.click("#clear")
    assert page.evaluate("lfdm.state.points") == []


def test_a_model_without_tracks_shows_no_points(page: Any) -> None:
    assert not page.locator("#points").is_visible()
    assert not page.locator("#hint").is_visible()


def test_the_page_fits_a_phone(page: Any) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.evaluate("scrollTo(0, 0)")
    page.evaluate("document.getElementById('frames').value = 2")
    page.evaluate("document.getElementById('play').click()")  # pause
    page.click("#generate")
    page.wait_for_function("!lfdm.state.busy", timeout=240_000)
    assert page.evaluate("lfdm.state.playing")  # a new video plays
    box = page.locator("#canvas").bounding_box()
    assert box["y"] >= 0
    assert box["y"] + box["height"] <= 740
