"""Reading rigged characters, their poses, and refusing hostile files."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lfdm.data.characters import gltf
from lfdm.data.characters.figures import mixed_figure, mixing_families, plain_figure
from lfdm.data.characters.gltf import read_character
from lfdm.data.characters.skeleton import Channel, local_matrices, slerp
from lfdm.errors import UserError
from tests.data.characters.character_files import SHOULDER, make_document, write_glb, write_gltf, write_people


@pytest.mark.parametrize("write", [write_gltf, write_glb])
def test_parts_joints_and_actions_are_read(tmp_path: Path, write: Any) -> None:
    character = read_character(write(tmp_path / "x.glb", make_document("Ann", (0.2, 0.4, 0.6))))
    assert [part.name for part in character.parts] == ["Ann_Body", "Ann_Head", "Ann_Legs", "Ann_Feet"]
    assert set(character.actions) == {"Idle", "Wave_Left", "Point"}
    assert character.parts[0].joint_names == ["Root", "Arm"]
    np.testing.assert_allclose(character.parts[2].surfaces[0].material.color, [0.2, 0.4, 0.6])
    assert character.actions["Point"].duration == 1


def test_skinning_turns_the_arm_about_the_shoulder(tmp_path: Path) -> None:
    character = read_character(write_gltf(tmp_path / "x.gltf", make_document("Ann", (0, 0, 0), swing=np.pi)))
    figure = plain_figure(character, np.random.default_rng(0))
    at_rest, _ = figure.skin(character.actions["Wave_Left"].sample(figure.skeleton.rest, 0.0))
    raised, normals = figure.skin(character.actions["Wave_Left"].sample(figure.skeleton.rest, 0.5))
    moved = np.abs(raised - at_rest).max(1) > 1e-4
    arm = figure.joints[:, 0] == 1
    assert np.array_equal(moved, arm & moved)
    shoulder = np.array(SHOULDER) * figure.proportions
    expected = shoulder * [2, 2, 0] - at_rest[arm] * [1, 1, -1]  # half a turn about z
    np.testing.assert_allclose(raised[arm], expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-5)


def test_a_matrix_of_a_node_equals_its_parts(tmp_path: Path) -> None:
    document = make_document("Ann", (0, 0, 0))
    angle = 0.7
    rotation = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation * [2.0, 1.0, 0.5], (1, 2, 3)
    document.json["nodes"][0]["matrix"] = matrix.T.ravel().tolist()
    character = read_character(write_gltf(tmp_path / "x.gltf", document))
    np.testing.assert_allclose(local_matrices(character.skeleton.rest)[0], matrix, atol=1e-9)


def test_keyframes_are_interpolated_as_the_specification_says() -> None:
    times = np.array([0.0, 1.0, 3.0])
    values = np.array([[0.0, 0, 0], [2, 0, 0], [4, 0, 0]])
    assert Channel(0, "translation", "LINEAR", times, values).sample(2.0)[0] == 3
    assert Channel(0, "translation", "STEP", times, values).sample(2.9)[0] == 2
    assert Channel(0, "translation", "LINEAR", times, values).sample(9.0)[0] == 4
    zero = np.zeros(3)
    spline = np.stack([zero, values[0], [6, 0, 0], zero, values[1], zero, zero, values[2], zero])
    assert Channel(0, "translation", "CUBICSPLINE", times, spline).sample(0.5)[0] == pytest.approx(0.5 * 2 + 0.125 * 6)
    half = slerp(np.array([[0, 0, 0, 1.0]]), np.array([[0, 0, -1.0, 0]]), np.array([0.5]))
    np.testing.assert_allclose(np.abs(half), [[0, 0, np.sqrt(0.5), np.sqrt(0.5)]])


def test_textures_and_buffers_are_read_from_the_folder_of_the_file(tmp_path: Path) -> None:
    document = make_document("Ann", (1, 1, 1))
    Image.new("RGB", (4, 4), (200, 10, 20)).save(tmp_path / "cloth one.png")
    document.json["images"], document.json["textures"] = [{"uri": "cloth%20one.png"}], [{"source": 0}]
    document.json["materials"][1]["pbrMetallicRoughness"]["baseColorTexture"] = {"index": 0}
    (tmp_path / "x.bin").write_bytes(document.data)
    document.json["buffers"] = [{"uri": "x.bin", "byteLength": len(document.data)}]
    (tmp_path / "x.gltf").write_text(json.dumps(document.json))
    texture = read_character(tmp_path / "x.gltf").parts[0].surfaces[0].material.texture
    assert texture is not None
    assert texture[0, 0].tolist() == [200, 10, 20]


def test_characters_of_one_kind_are_mixed_with_legs_and_feet_of_one_file(tmp_path: Path) -> None:
    people = [read_character(path) for path in sorted(write_people(tmp_path / "people").iterdir())]
    other = read_character(write_gltf(tmp_path / "dog.gltf", make_document("Dog", (0, 0, 0))))
    families = mixing_families([*people, other])
    assert sorted(len(family) for family in families) == [1, 4]
    figures = [mixed_figure(people, np.random.default_rng(seed)) for seed in range(4)]
    assert len({figure.colors.tobytes() for figure in figures}) == 4
    assert all(len(figure.positions) == len(figures[0].positions) for figure in figures)


_PNG = io.BytesIO()
Image.new("RGB", (2, 2)).save(_PNG, "png")
PICTURE = "data:image/png;base64," + base64.b64encode(_PNG.getvalue()).decode()


def _break(document: Any, change: str) -> None:
    accessors, nodes = document.json["accessors"], document.json["nodes"]
    if change == "no skin":
        del document.json["skins"]
    elif change == "no animation":
        del document.json["animations"]
    elif change == "beyond the buffer":
        accessors[2]["count"] = 5000
    elif change == "a billion vertices":
        accessors[2]["count"] = 10**9
    elif change == "negative count":
        accessors[2]["count"] = -1
    elif change == "negative offset":
        document.json["bufferViews"][2]["byteOffset"] = -8
    elif change == "missing vertex":
        accessors[2]["count"] = 3
    elif change == "circle":
        nodes[1]["children"] = [0]
    elif change == "repeated child":
        nodes[0]["children"] = [1] * 10**5
    elif change == "missing mesh":
        nodes[3]["mesh"] = 99
    elif change == "same vertices again":
        document.json["meshes"][0]["primitives"] *= 50
    elif change == "compressed":
        document.json["extensionsRequired"] = ["KHR_draco_mesh_compression"]
    elif change == "node at no place":
        nodes[0]["translation"] = [0, float("nan"), 0]
    elif change == "node without direction":
        nodes[0]["rotation"] = [0, 0, 0, 0]
    elif change == "negative joint":
        document.json["meshes"][0]["primitives"][0]["attributes"]["JOINTS_0"] = document.add(np.full((24, 4), -3, np.int8))
    elif change == "no surface":
        document.json["meshes"] = [{"primitives": []}] * 4
    elif change == "one long animation again":
        document.json["animations"] *= 500
    elif change == "many textures":
        document.json["images"] = [{"uri": PICTURE}]
        document.json["textures"] = [{"source": 0}] * 100
        for number in range(100):
            document.json["materials"].append({"pbrMetallicRoughness": {"baseColorTexture": {"index": number}}})
        first = document.json["meshes"][1]["primitives"][0]
        document.json["meshes"][1]["primitives"] = [first | {"material": 2 + number} for number in range(100)]
    elif change == "wrong type":
        document.json["nodes"] = {"a": 1}


CHANGES = ["no skin", "no animation", "beyond the buffer", "a billion vertices", "negative count", "negative offset"]
CHANGES += ["missing vertex", "circle", "repeated child", "missing mesh", "same vertices again", "compressed", "wrong type"]
CHANGES += [
    "node at no place",
    "node without direction",
    "negative joint",
    "no surface",
    "one long animation again",
    "many textures",
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_broken_file_is_refused_by_name(tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gltf, "MAX_VERTICES", 3000 if change == "many textures" else 1000)
    monkeypatch.setattr(gltf, "MAX_VALUES", 50_000 if change == "many textures" else 5_000)
    document = make_document("Ann", (0, 0, 0))
    _break(document, change)
    with pytest.raises(UserError, match=r"x\.gltf"):
        read_character(write_gltf(tmp_path / "x.gltf", document))


@pytest.mark.parametrize("uri", ["../secret.bin", "/etc/passwd", "file:///etc/passwd", "http://localhost/x.bin", "no.bin"])
def test_nothing_outside_the_folder_is_read(tmp_path: Path, uri: str) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(10**5))
    document = make_document("Ann", (0, 0, 0))
    document.json["buffers"] = [{"uri": uri, "byteLength": 4}]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.gltf").write_text(json.dumps(document.json))
    with pytest.raises(UserError, match=r"x\.gltf"):
        read_character(tmp_path / "in" / "x.gltf")


@pytest.mark.parametrize("data", [b"", b"glTF", b"glTF" + bytes(100), b"{", b"[" * 10**5, b"\x00\xff"])
def test_what_is_no_gltf_file_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.glb").write_bytes(data)
    with pytest.raises(UserError, match=r"x\.glb"):
        read_character(tmp_path / "x.glb")
