"""Drags, pins, strengths and an end pose on the page, by mouse at desktop width and by touch at phone width."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.serving.server import Server, running_server
from lfdm.config.presets import Preset
from lfdm.pipeline.pipeline import LatentFlowPipeline
from tests.web.test_browser import SIZES, Visit, browser, playwright, pytestmark  # noqa: F401 - a fixture, and marks

PICTURE = "figure"


@pytest.fixture(scope="module")
def following(tiny_preset: Preset, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of a tiny model that has inputs for tracks."""
    folder = tmp_path_factory.mktemp("following")
    preset = replace(tiny_preset, unet=replace(tiny_preset.unet, track_inputs=True))
    LatentFlowPipeline.from_preset(preset, ("bow", "free", "wave")).save_pretrained(folder / "model")
    picture = np.full((32, 32, 3), 200, np.uint8)
    picture[8:28, 12:20] = (180, 60, 40)
    (folder / "model" / "images").mkdir()
    Image.fromarray(picture).save(folder / "model" / "images" / f"{PICTURE}.png")
    with running_server(folder, ["--model", str(folder / "model")]) as server:
        yield server


@pytest.fixture(params=list(SIZES))
def visit(browser: Any, following: Server, request: pytest.FixtureRequest) -> Iterator[Visit]:  # noqa: F811
    width, height = SIZES[request.param]
    page = browser.new_page(viewport={"width": width, "height": height}, has_touch=request.param == "phone")
    made = Visit(page, following.url, f"{request.param}-control")
    yield made
    page.close()
    assert not made.errors


def stroke(visit: Visit, *places: tuple[float, float]) -> None:
    """Press, move and release in the picture, whose sides are 1: with a finger on the phone."""
    page = visit.page
    layer = page.locator(".lf-paths").locator("visible=true")
    layer.scroll_into_view_if_needed()
    box = layer.bounding_box()
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in places]
    if visit.name.startswith("phone"):
        touch = page.context.new_cdp_session(page)
        for kind, at in [("touchStart", points[0]), *(("touchMove", point) for point in points[1:]), ("touchEnd", None)]:
            touched = [] if at is None else [{"x": at[0], "y": at[1]}]
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touched})
            page.wait_for_timeout(40)
        return
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=3)
        page.wait_for_timeout(40)
    page.mouse.up()


def sent_control(sent: Any) -> dict[str, Any]:
    """Return the control in a page's request."""
    return json.loads(sent.value.post_data_json["data"][0]["control"])


def test_a_drag_a_pin_a_strength_and_an_end_pose(visit: Visit, tmp_path: Path) -> None:
    page = visit.page
    assert page.get_by_label("Label").first.input_value() == "free"  # an action would work against the drag
    visit.press("Drag a point")
    stroke(visit, (0.4, 0.3), (0.5, 0.25), (0.7, 0.2), (0.75, 0.5))
    page.get_by_text("Drag 1").locator("visible=true").wait_for()
    visit.press("Pin")
    stroke(visit, (0.5, 0.8))
    page.get_by_text("Pin 1").locator("visible=true").wait_for()
    visit.press("Strength of a part")
    stroke(visit, (0.4, 0.6), (0.6, 0.6))
    Image.fromarray(np.full((32, 32, 3), 200, np.uint8)).save(tmp_path / "pose.png")
    page.locator(".lf-end-file").first.set_input_files(tmp_path / "pose.png")
    page.get_by_text("End pose: pose.png").wait_for()
    visit.shoot("1-drawn")
    with page.expect_request("**/queue/join*") as sent:
        visit.run("Generate")
    control = sent_control(sent)
    assert control["size"] == [32, 32]
    (drag,), (pin,), (strength,) = control["drags"], control["pins"], control["strengths"]
    assert drag["from"] == pytest.approx([12.8, 9.6], abs=1)
    assert drag["path"][-1] == pytest.approx([1, 24, 16], abs=1)
    assert [step[0] for step in drag["path"]] == [k / 8 for k in range(1, 9)]
    assert pin == pytest.approx([16, 25.6], abs=1)
    assert strength["value"] == 0.5
    assert sent.value.post_data_json["data"][0]["end_image"]["path"].endswith("pose.png")
    visit.press("Pause")
    visit.scrub(1)
    ring = page.locator(".lf-ring").first
    assert ring.count() == 1
    playwright.expect(page.locator(".lf-errors").first).to_contain_text("drag 1:")
    visit.shoot("2-reached")


@pytest.mark.parametrize("visit", ["desktop"], indirect=True)
def test_a_path_keeps_its_timing_and_can_lose_it(visit: Visit) -> None:
    page = visit.page
    visit.press("Drag a point")
    stroke(visit, (0.2, 0.5), (0.25, 0.5), (0.3, 0.5), (0.35, 0.5), (0.9, 0.5))
    paths = []
    for timing in ("drawn", "even", "eased"):
        page.get_by_label("Timing of drag 1").select_option(timing)
        with page.expect_request("**/queue/join*") as sent:
            visit.run("Generate")
        (drag,) = sent_control(sent)["drags"]
        paths.append(np.array(drag["path"]))
    drawn, even, eased = paths
    assert len(eased) == 1
    assert np.ptp(np.diff(even[:, 1])) < 0.1
    assert np.ptp(np.diff(drawn[:, 1])) > 0.5
    page.get_by_role("button", name="Remove").click()
    with page.expect_request("**/queue/join*") as sent:
        visit.run("Generate")
    assert sent.value.post_data_json["data"][0]["control"] is None


def test_a_model_without_track_inputs_says_so(browser: Any, server: Server) -> None:  # noqa: F811
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    visit = Visit(page, server.url, "desktop-no-tracks")
    assert page.get_by_role("button", name="Drag a point").first.is_disabled()
    page.get_by_text("need a model with track inputs").first.wait_for()
    visit.press("Strength of a part")
    stroke(visit, (0.3, 0.3), (0.7, 0.3))
    page.get_by_label("Label").first.fill("wave@0-0.5, jump@0.5-1")
    page.keyboard.press("Enter")
    visit.run("Generate")
    page.get_by_text("wave@0-0.5, jump@0.5-1, seed 0").wait_for()
    visit.shoot("3-labels-over-time")
    page.close()
