"""The page in a real browser (Chromium, driven by Playwright), at desktop and phone width.

Screenshots go to outputs/web, or to the folder that LFDM_SCREENSHOTS names.
"""

import base64
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.serving.server import Server
from lfdm.data.video import write_video

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'lfdm[dev]'")
CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
SCREENSHOTS = Path(os.environ.get("LFDM_SCREENSHOTS", "outputs/web"))
LONG = 60_000
"""Milliseconds; the machine may be busy."""
CANVASES = "[...document.querySelectorAll('.lf-has-result canvas[data-frame]')].filter((c) => c.offsetParent)"
FRAMES = f"() => {CANVASES}.map((c) => c.dataset.frame)"
PICTURES = f"() => {CANVASES}.map((c) => c.toDataURL())"


class Visit:
    """One page in one browser window, with a record of everything it requested."""

    def __init__(self, page: Any, url: str, name: str) -> None:
        self.page = page
        self.name = name
        self.url = url
        self.elsewhere: list[str] = []
        self.errors: list[str] = []
        page.set_default_timeout(LONG)
        page.on("request", self._note)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(url)
        page.locator(".lf-stage.lf-filled").first.wait_for()

    def _note(self, request: Any) -> None:
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.elsewhere.append(request.url)

    def shoot(self, what: str) -> None:
        """A screenshot of the whole page, which fills the window's width or its own, whatever it shows, and no more."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{self.name}-{what}.png", full_page=True)
        width = self.page.viewport_size["width"]
        assert self.page.evaluate("document.documentElement.scrollWidth") <= width
        assert self.page.evaluate("document.querySelector('.gradio-container').offsetWidth") == min(width, 1180)

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).locator("visible=true").click()

    def type_number(self, label: str, value: float) -> None:
        """Type a slider's value until the slider next to the number follows, which a page that is still loading does not do."""
        number = self.page.get_by_label(f"number input for {label}").locator("visible=true")
        slider = self.page.get_by_label(f"range slider for {label}").locator("visible=true")
        for _ in range(10):
            number.fill(str(value))
            self.page.keyboard.press("Tab")
            self.page.wait_for_timeout(1000)
            if slider.input_value() == str(value):
                break
        playwright.expect(slider).to_have_value(str(value))
        self.page.wait_for_timeout(1000)  # only then does the next request hold the value

    def run(self, name: str) -> None:
        """Press a button and wait until its result is on the screen."""
        self.page.evaluate("() => document.querySelectorAll('[data-ready]').forEach((e) => delete e.dataset.ready)")
        self.press(name)
        self.page.locator("[data-ready]").first.wait_for()

    def scrub(self, frame: int) -> list[str]:
        """Move the timeline; the pictures of all canvases, as data URLs."""
        self.page.locator(".lf-has-result .lf-timeline input").locator("visible=true").evaluate(
            "(slider, frame) => { slider.value = frame; slider.dispatchEvent(new Event('input', {bubbles: true})); }", frame
        )
        assert set(self.page.evaluate(FRAMES)) == {str(frame)}
        return self.page.evaluate(PICTURES)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(params=list(SIZES))
def visit(browser: Any, server: Server, request: pytest.FixtureRequest) -> Iterator[Visit]:
    width, height = SIZES[request.param]
    page = browser.new_page(viewport={"width": width, "height": height})
    made = Visit(page, server.url, request.param)
    yield made
    page.close()
    assert not made.elsewhere  # no fonts, scripts or reports: the page works without the internet
    assert not made.errors


def test_generate_play_scrub_and_hold_still(visit: Visit) -> None:
    page = visit.page
    visit.shoot("1-open")
    page.get_by_role("button", name="puppet-2").first.click()
    page.get_by_label("Label").first.click()
    page.get_by_role("option", name="kick").click()
    visit.run("Generate")
    before = page.evaluate(FRAMES)
    assert len(before) == 3
    page.wait_for_function(f"(before) => String(({FRAMES})()) !== String(before)", arg=before)  # it plays
    visit.press("Pause")
    first, later = visit.scrub(0), visit.scrub(9)
    visit.shoot("2-generated")
    assert all(a != b for a, b in zip(first, later, strict=True))  # video, flow and occlusion, all in step
    # strength 0: every frame is the picture itself
    visit.type_number("Motion strength", 0)
    visit.run("Generate")
    visit.press("Pause")
    first, later = visit.scrub(0), visit.scrub(9)
    assert first == later
    visit.shoot("3-still")


def test_only_the_painted_area_moves(visit: Visit) -> None:
    page = visit.page
    visit.press("Paint the moving area")
    box = page.locator(".lf-frame canvas").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] * 0.3, steps=5)
    page.mouse.up()
    visit.shoot("4-painted")
    visit.run("Generate")
    visit.press("Pause")
    page.locator(".lf-result canvas[data-kind=video]").wait_for()
    difference = """(rows) => { const c = document.querySelector('.lf-result canvas[data-kind=video]');
      return [...c.getContext('2d').getImageData(0, rows[0], c.width, rows[1]).data]; }"""
    frames = []
    for frame in (0, 9):
        visit.scrub(frame)
        frames.append([np.array(page.evaluate(difference, rows), float) for rows in ([0, 30], [52, 12])])
    moved, still = (float(np.abs(a - b).mean()) for a, b in zip(*frames, strict=True))
    assert still < 0.5
    assert moved > 2 * still
    visit.press("Clear")


@pytest.mark.parametrize("shape", [(300, 900), (900, 300), (64, 64)])
def test_the_mask_is_where_it_is_painted(visit: Visit, tmp_path: Path, shape: tuple[int, int]) -> None:
    """On a red square of the picture, which is looked for on the screen."""
    page, (height, width) = visit.page, shape
    top, left, side = int(0.7 * height), int(0.2 * width), max(shape) // 45
    picture = np.full((height, width, 3), 90, np.uint8)
    picture[top : top + side, left : left + side] = (255, 0, 0)
    Image.fromarray(picture).save(tmp_path / "marked.png")
    page.locator(".lf-picker input[type=file]").first.set_input_files(tmp_path / "marked.png")
    page.locator(".lf-frame img[alt='marked.png']").wait_for()
    visit.press("Paint the moving area")
    brush = page.get_by_label("Brush").locator("visible=true")
    brush.evaluate("(slider) => { slider.value = slider.min; }")
    page.locator(".lf-stage").first.scroll_into_view_if_needed()
    x, y = centre_of_red(page)
    page.mouse.move(x - 1, y)
    page.mouse.down()
    page.mouse.move(x, y)
    page.mouse.up()
    with pytest.raises(AssertionError, match="no red"):
        centre_of_red(page)  # the paint covers it
    visit.shoot(f"9-painted-{width}x{height}")
    with page.expect_request("**/queue/join*") as sent:
        visit.run("Generate")
    url = sent.value.post_data_json["data"][0]["mask"]
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("L"), float)
    assert mask.shape == (round(256 * height / max(shape)), round(256 * width / max(shape)))
    rows, columns = np.indices(mask.shape) + 0.5
    scale = max(shape) / 256
    assert abs((mask * rows).sum() / mask.sum() * scale - (top + side / 2)) < 0.02 * max(shape)
    assert abs((mask * columns).sum() / mask.sum() * scale - (left + side / 2)) < 0.02 * max(shape)
    visit.press("Clear")


def test_a_wide_picture_stays_wide(visit: Visit, tmp_path: Path) -> None:
    page = visit.page
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 96, 3), dtype=np.uint8)).save(tmp_path / "wide.png")
    page.locator(".lf-picker input[type=file]").first.set_input_files(tmp_path / "wide.png")
    page.locator(".lf-frame img[alt='wide.png']").wait_for()
    page.get_by_text("More settings", exact=True).first.click()
    page.get_by_label("The picture's own").first.click()
    visit.run("Generate")
    shapes = page.evaluate(f"() => {CANVASES}.map((c) => [c.width / c.height, c.offsetWidth / c.offsetHeight])")
    assert [round(ratio, 1) for pair in shapes for ratio in pair] == [2.0] * 6
    visit.shoot("10-wide")


def centre_of_red(page: Any) -> tuple[float, float]:
    """Of what the window shows."""
    shown = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB")).astype(int)
    red = (shown[..., 0] > 200) & (shown[..., 1:] < 60).all(axis=-1)
    assert red.sum() > 3, "no red"
    rows, columns = np.nonzero(red)
    return float(columns.mean() + 0.5), float(rows.mean() + 0.5)


def test_transfer(visit: Visit, tmp_path: Path) -> None:
    page = visit.page
    frames = np.full((12, 64, 64, 3), 90, np.uint8)
    for k in range(12):
        frames[k, 20:50, 10 + 2 * k : 30 + 2 * k] = (200, 120, 40)
    clip = write_video(tmp_path / "driving.mp4", frames, fps=8)
    page.get_by_role("tab", name="Transfer").click()
    page.locator(".lf-clip input[type=file]").set_input_files(clip)
    page.locator(".lf-clip .lf-filled").wait_for()
    visit.run("Transfer")
    visit.press("Pause")
    assert visit.scrub(0) != visit.scrub(11)
    visit.shoot("5-transfer")


def test_a_long_clip_with_sound_and_a_heic(visit: Visit, tmp_path: Path, long_clip: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs pillow-heif: pip install 'lfdm[heif]'")
    page, picture = visit.page, Image.open("src/lfdm/assets/puppets64/images/puppet-3.png").convert("RGB")
    pillow_heif.from_pillow(picture).save(tmp_path / "IMG_0001.HEIC")
    page.get_by_role("tab", name="Transfer").click()
    page.locator(".lf-picker:visible input[type=file]").first.set_input_files(tmp_path / "IMG_0001.HEIC")
    page.get_by_text("the model may still read it").locator("visible=true").wait_for()
    page.locator(".lf-clip input[type=file]").set_input_files(long_clip)
    page.locator(".lf-clip .lf-filled").wait_for()
    visit.run("Transfer")
    page.get_by_text("The first 40 of the clip's 60 frames were used").wait_for()
    sound = page.get_by_role("button", name="Sound")
    sound.click()
    assert sound.get_attribute("aria-pressed") == "true"
    visit.press("Pause")
    visit.shoot("10-long-clip")
    page.get_by_label("Keep the clip's sound").click()
    visit.run("Transfer")
    assert sound.count() == 0


def test_a_mix_and_no_label(visit: Visit) -> None:
    page = visit.page
    label = page.get_by_label("Label").first
    label.fill("wave=0.5, kick=0.5")
    page.keyboard.press("Enter")
    visit.run("Generate")
    page.get_by_text("wave=0.5,kick=0.5, seed 0").wait_for()
    visit.shoot("11-mix")
    page.get_by_role("button", name="More settings").first.click()
    page.get_by_label("Ignore the label").click()
    visit.run("Generate")
    page.get_by_text("unconditional, seed 0").wait_for()
    visit.shoot("12-unconditional")


def test_a_broken_file_gives_a_message(visit: Visit, tmp_path: Path) -> None:
    page = visit.page
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nthis is no picture")
    page.locator(".lf-picker input[type=file]").first.set_input_files(broken)
    page.get_by_text("the browser cannot show this file").wait_for()
    visit.press("Generate")
    message = page.get_by_role("alert").filter(has_text="broken.png")
    message.wait_for()
    assert "not a readable" in message.inner_text()
    visit.shoot("6-broken")
    large = tmp_path / "large.png"
    large.write_bytes(bytes(2_500_000))
    page.locator(".lf-picker input[type=file]").first.set_input_files(large)
    page.get_by_text("a file may have at most 2 MB").wait_for()


def test_cancel_and_the_model_page(visit: Visit) -> None:
    page = visit.page
    page.get_by_role("button", name="More settings").first.click()
    # long enough for a browser that gets little of a busy machine
    for label, value in (("Videos", 4), ("Steps", 100), ("Frames", 64)):
        visit.type_number(label, value)
    visit.press("Generate")
    page.get_by_text("of 400").locator("visible=true").wait_for()
    visit.press("Cancel")
    page.get_by_text("Cancelled").locator("visible=true").wait_for()
    visit.shoot("7-cancelled")
    for label, value in (("Videos", 1), ("Steps", 1), ("Frames", 16)):
        visit.type_number(label, value)
    visit.run("Generate")  # the cancelled one has made room
    page.get_by_role("tab", name="Model").click()
    page.get_by_text("Measured quality").wait_for()
    visit.shoot("8-model")
