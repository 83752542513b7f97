"""The site builds without warnings, loads nothing from other servers, and shows what the code says."""

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import sync_playwright

pytest.importorskip("mkdocs", reason="needs the site's tools: pip install 'lfdm[docs]'")

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)

ROOT = Path(__file__).parents[2]
EXTERNAL = re.compile(r"""(?:src|data|poster|srcset)=["'](?:https?:)?//|url\(["']?(?:https?:)?//|@import""")
"""An address of another server that a page loads; links (`href` of `a`) load nothing."""


def build(project: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site), "-f", str(project / "mkdocs.yml")]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of what the site is built from, which a test may damage."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
    for name in ("mkdocs.yml", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


@pytest.mark.slow
def test_pages_load_nothing_from_other_servers(site: Path) -> None:
    pages = [*site.rglob("*.html"), *site.rglob("*.css")]
    assert len(pages) > 60
    for page in pages:
        text = page.read_text()
        assert not EXTERNAL.search(text), page
        for tag in re.findall(r"<link[^>]*>", text):
            assert 'rel="canonical"' in tag or not re.search(r'href="(?:https?:)?//', tag), f"{page}: {tag}"


@pytest.mark.slow
def test_every_command_and_every_preset_is_listed(site: Path) -> None:
    commands = (site / "reference" / "commands.html").read_text()
    for command in ("lfdm generate", "lfdm data folder", "lfdm train autoencoder flow64", "lfdm evaluate", "lfdm info"):
        assert re.search(rf"<h[23] id=\"[\w-]+\">{command}", commands), command
    for option in ("--num-inference-steps INT", "--autoencoder-training.optimization.num-steps INT", "--queue-size INT"):
        assert option in commands or option.replace(" INT", " {None}|INT") in commands, option
    presets = (site / "reference" / "presets.html").read_text()
    for name in ("flow64", "flow512", "mug128", "diffusion-training.optimization.batch-size"):
        assert f"<code>{name}</code>" in presets


@pytest.mark.slow
def test_public_names_are_documented(site: Path) -> None:
    page = (site / "reference" / "api" / "pipeline.html").read_text()
    assert 'id="lfdm.pipeline.pipeline.LatentFlowPipeline"' in page
    assert "&gt;&gt;&gt;" in (site / "reference" / "api" / "data.html").read_text()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_pages_open_from_the_disk(site: Path, scheme: Literal["light", "dark"], width: int) -> None:
    requests: list[str] = []
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.set_default_timeout(300_000)  # the index is read in the browser, which takes long next to other tests
        page.on("request", lambda request: requests.append(request.url))
        for name in ("index", "explanation/how-it-works", "reference/commands"):
            page.goto(f"file://{site}/{name}.html")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.goto(f"file://{site}/index.html")
        page.locator("label[for=__search]").first.click() if width < 1000 else None
        page.locator("input[name=query]").press_sequentially("occlusion")
        page.locator(".md-search-result__link").first.wait_for()
        browser.close()
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []


def test_every_public_name_has_a_docstring() -> None:
    assert list(runpy.run_path(str(ROOT / "docs" / "hooks" / "pages.py"))["undocumented_names"]()) == []


def test_every_decision_is_listed() -> None:
    listed = set(re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", (ROOT / "docs" / "decisions" / "README.md").read_text()))
    assert listed == {path.name for path in (ROOT / "docs" / "decisions").glob("0*.md")}


@pytest.mark.slow
def test_broken_links_fail(copied: Path) -> None:
    with (copied / "docs" / "index.md").open("a") as text:
        text.write("\n[nowhere](no-such-page.md) and [nowhere](tutorials/first-video.md#no-such-heading)\n")
    done = build(copied, copied / "site")
    assert done.returncode != 0
    assert "no-such-page.md" in done.stderr
    assert "no-such-heading" in done.stderr


@pytest.mark.slow
def test_an_undocumented_name_fails(copied: Path) -> None:
    with (copied / "src" / "lfdm" / "errors.py").open("a") as text:
        text.write("\n\ndef undescribed() -> None: ...\n")
    done = build(copied, copied / "site")
    assert done.returncode != 0
    assert "lfdm.errors.undescribed" in done.stderr
