"""Small rigged characters for tests, written as glTF files."""

import base64
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

COMPONENTS = {np.dtype(np.float32): 5126, np.dtype(np.uint16): 5123, np.dtype(np.uint8): 5121, np.dtype(np.int8): 5120}
KINDS = {(): "SCALAR", (2,): "VEC2", (3,): "VEC3", (4,): "VEC4", (4, 4): "MAT4"}
CUBE = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
FACES = np.array([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]])
Box = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Centre and size."""
BOXES: dict[str, Box] = {
    "Body": ((0, 1.2, 0), (0.5, 0.7, 0.3)),
    "Head": ((0, 1.75, 0), (0.3, 0.3, 0.3)),
    "Legs": ((0, 0.5, 0), (0.4, 0.7, 0.3)),
    "Feet": ((0, 0.08, 0.05), (0.4, 0.16, 0.4)),
}
ARM: Box = ((0.45, 1.2, 0), (0.15, 0.7, 0.15))
"""Part of the body that moves with the second joint, at the shoulder."""
SHOULDER = (0.45, 1.55, 0.0)


class Document:
    """A glTF document under construction, with one buffer."""

    def __init__(self) -> None:
        self.data = b""
        self.json: dict[str, Any] = {"asset": {"version": "2.0"}, "bufferViews": [], "accessors": []}

    def add(self, values: np.ndarray) -> int:
        """Store an array and return its accessor."""
        self.data += b"\0" * (-len(self.data) % 4)
        shape = values.shape[1:]
        data = (values.transpose(0, 2, 1) if shape == (4, 4) else values).tobytes()
        self.json["bufferViews"].append({"buffer": 0, "byteOffset": len(self.data), "byteLength": len(data)})
        accessor = {"bufferView": len(self.json["bufferViews"]) - 1, "count": len(values), "type": KINDS[shape]}
        self.json["accessors"].append(accessor | {"componentType": COMPONENTS[values.dtype]})
        self.data += data
        return len(self.json["accessors"]) - 1


def make_document(name: str, color: tuple[float, float, float], *, swing: float = 2.0) -> Document:
    """Return a figure of boxes whose left arm waves by `swing` radians; `Idle` keeps still, `Wave_Left` and `Point` do not."""
    document = Document()
    materials = [("Skin", (0.6, 0.4, 0.3)), ("Cloth", color)]
    document.json["materials"] = [
        {"name": material, "pbrMetallicRoughness": {"baseColorFactor": [*values, 1.0]}} for material, values in materials
    ]
    document.json["nodes"] = [{"name": "Root", "children": [1]}, {"name": "Arm", "translation": list(SHOULDER), "children": [2]}]
    document.json["nodes"].append({"name": "Hand", "translation": [0, -0.7, 0]})
    bind = np.tile(np.eye(4, dtype=np.float32), (2, 1, 1))
    bind[1, :3, 3] = -np.array(SHOULDER)
    document.json["skins"] = [{"joints": [0, 1], "inverseBindMatrices": document.add(bind)}]
    document.json["meshes"] = []
    for part, box in BOXES.items():
        boxes = [(box, 0), (ARM, 1)] if part == "Body" else [(box, 0)]
        primitives = [_box(document, place, joint, material=0 if part == "Head" else 1) for place, joint in boxes]
        document.json["meshes"].append({"primitives": primitives})
        document.json["nodes"].append({"name": f"{name}_{part}", "mesh": len(document.json["meshes"]) - 1, "skin": 0})
    times = document.add(np.array([0, 0.5, 1], np.float32))
    document.json["animations"] = [
        _animation(document, title, times, angles)
        for title, angles in (
            ("Idle", [0.0, 0.0, 0.0]),
            ("Wave_Left", [0.0, swing, 0.0]),
            ("Point", [0.0, -0.6 * swing, -0.6 * swing]),
        )
    ]
    return document


def _box(document: Document, box: Box, joint: int, *, material: int) -> dict[str, Any]:
    centre, size = box
    corners = (CUBE * size + centre)[FACES.ravel()].astype(np.float32)
    sides = corners.reshape(6, 4, 3)
    normals = np.cross(sides[:, 1] - sides[:, 0], sides[:, 2] - sides[:, 0])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    triangles = (4 * np.arange(6)[:, None] + [0, 1, 2, 0, 2, 3]).ravel().astype(np.uint16)
    joints = np.zeros((24, 4), np.uint8)
    joints[:, 0] = joint
    weights = np.tile(np.array([1, 0, 0, 0], np.float32), (24, 1))
    attributes = {
        "POSITION": corners,
        "NORMAL": normals.repeat(4, 0).astype(np.float32),
        "JOINTS_0": joints,
        "WEIGHTS_0": weights,
    }
    return {
        "attributes": {key: document.add(values) for key, values in attributes.items()},
        "indices": document.add(triangles),
        "material": material,
    }


def _animation(document: Document, name: str, times: int, angles: list[float]) -> dict[str, Any]:
    half = np.array(angles, np.float32) / 2
    rotations = np.stack([0 * half, 0 * half, np.sin(half), np.cos(half)], axis=1)
    sampler = {"input": times, "output": document.add(rotations)}
    return {"name": name, "samplers": [sampler], "channels": [{"sampler": 0, "target": {"node": 1, "path": "rotation"}}]}


def write_gltf(path: Path, document: Document) -> Path:
    """Write a document with its buffer inside."""
    uri = "data:application/octet-stream;base64," + base64.b64encode(document.data).decode()
    buffers = [{"uri": uri, "byteLength": len(document.data)}]
    path.write_text(json.dumps(document.json | {"buffers": buffers}))
    return path


def write_glb(path: Path, document: Document) -> Path:
    """Write a document in the binary form."""
    text = json.dumps(document.json | {"buffers": [{"byteLength": len(document.data)}]}).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(document.data), b"BIN\0") + document.data
    path.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)
    return path


def write_people(folder: Path, count: int = 4) -> Path:
    """Write `count` characters of one kind, in different colours."""
    folder.mkdir()
    for number in range(count):
        document = make_document(f"Person{number}", (0.2 * number + 0.1, 0.5, 0.8 - 0.2 * number))
        write_gltf(folder / f"men-{number}.gltf", document)
    return folder
