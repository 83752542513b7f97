"""Read rigged, animated characters from glTF 2.0 files (.gltf, .glb), which may come from anyone.

Buffers and textures are read from the file itself, or from files in its folder; nothing else is opened. The JSON is read as it
is: pygltflib took 3 s for a file of 2,800 accessors, which takes 0.07 s here.
"""

import base64
import io
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from PIL import Image

from lfdm.data.characters.skeleton import Action, Channel, Pose, Skeleton, quaternion_of
from lfdm.data.images import decoding, read_image
from lfdm.errors import UserError

MAX_FILE_BYTES = 256 * 2**20
MAX_VERTICES = 1_000_000
"""Most vertices of all parts together."""
MAX_NODES = 2_000
MAX_VALUES = 20_000_000
"""Most numbers of all accessors together: a small file may refer to the same ones many times."""
MAX_TEXTURES = 64
TEXTURE_SIZE = 256
"""Side to which textures are scaled."""
_TYPES = {5120: np.int8, 5121: np.uint8, 5122: np.int16, 5123: np.uint16, 5125: np.uint32, 5126: np.float32}
_SIZES = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
_TRIANGLES = 4
_TEXTURE_FORMATS = ("PNG", "JPEG", "WEBP")
_UNSUPPORTED = ("KHR_draco_mesh_compression", "EXT_meshopt_compression")


@dataclass(frozen=True, eq=False)
class Material:
    """A colour in linear RGB, and an optional texture (H, W, 3) uint8 that multiplies it."""

    name: str
    color: np.ndarray
    texture: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Surface:
    """Triangles of one material, with the influence of up to four joints on each vertex."""

    material: Material
    positions: np.ndarray
    """(v, 3) in the bind pose."""
    normals: np.ndarray
    texture_coordinates: np.ndarray
    """(v, 2)."""
    joints: np.ndarray
    """(v, 4): indices into the part's `joint_names`."""
    weights: np.ndarray
    """(v, 4), adding up to 1."""
    triangles: np.ndarray
    """(f, 3) indices of vertices."""


@dataclass(frozen=True, eq=False)
class Part:
    """A mesh of a character, such as its head."""

    name: str
    surfaces: Sequence[Surface]
    joint_names: list[str]
    inverse_bind: np.ndarray
    """(j, 4, 4): from the bind pose to the space of each joint."""


@dataclass(frozen=True, eq=False)
class Character:
    """A rigged character and its actions by name."""

    path: Path
    skeleton: Skeleton
    parts: Sequence[Part]
    actions: dict[str, Action]


def read_character(path: Path) -> Character:
    """Read a character.

    Raises:
        UserError: a damaged or too large file, one without skins or animations, or one that refers to files elsewhere.
        FileNotFoundError: no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with decoding(path):
        return _Reader(path, *_parse(_read_bytes(path))).character()


def _read_bytes(path: Path) -> bytes:
    if path.stat().st_size > MAX_FILE_BYTES:
        raise UserError(f"{path}: at most {MAX_FILE_BYTES // 2**20} MB are read; it has {path.stat().st_size // 2**20} MB")
    return path.read_bytes()


def _parse(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the JSON document and the binary chunk of a .gltf or .glb file."""
    if not data.startswith(b"glTF"):
        return json.loads(data), b""
    chunks, start = {}, 12
    while start + 8 <= len(data):
        length, kind = struct.unpack_from("<I4s", data, start)
        chunks[kind] = data[start + 8 : start + 8 + length]
        start += 8 + length
    return json.loads(chunks[b"JSON"]), chunks.get(b"BIN\0", b"")


class _Reader:
    """The parts of one document; any failure in it means that the file is damaged."""

    def __init__(self, path: Path, document: dict[str, Any], binary: bytes) -> None:
        self.path, self.document, self.binary = path, document, binary
        self.buffers: dict[int, bytes] = {}
        self.textures: dict[int, np.ndarray] = {}
        self.num_vertices = self.num_values = 0
        unsupported = set(_UNSUPPORTED).intersection(document.get("extensionsRequired", ()))
        if unsupported:
            raise UserError(f"{path}: needs the glTF extension {min(unsupported)}, which is not read; export it uncompressed")
        if len(document["nodes"]) > MAX_NODES:
            raise UserError(f"{path}: at most {MAX_NODES} nodes are read; it has {len(document['nodes'])}")

    def character(self) -> Character:
        """Return what the document describes; UserError if it lacks a skin, a mesh or an animation."""
        if not self.document.get("skins"):
            raise UserError(f"{self.path}: has no skin; only rigged characters can be animated")
        order = self._order()
        place = {node: index for index, node in enumerate(order)}
        nodes = [self.document["nodes"][node] for node in order]
        parents = np.full(len(nodes), -1)
        for index, node in enumerate(nodes):
            parents[[place[child] for child in node.get("children", ())]] = index
        transforms = [_transform(node) for node in nodes]
        rest = Pose(*(np.array(values, np.float64) for values in zip(*transforms, strict=True)))
        if not all(np.isfinite(values).all() for values in vars(rest).values()) or not rest.rotations.any(1).all():
            raise UserError(f"{self.path}: has nodes whose transform is not finite, or whose rotation is zero")
        names = _unique([node.get("name") or f"node {order[index]}" for index, node in enumerate(nodes)])
        parts = [self._part(node, names[index], names, place) for index, node in enumerate(nodes) if "mesh" in node]
        actions = [self._action(animation, number, place) for number, animation in enumerate(self.document.get("animations", ()))]
        moving = {action.name: action for action in actions if action.channels}
        if not moving:
            raise UserError(f"{self.path}: has no animations")
        if not parts:
            raise UserError(f"{self.path}: has no meshes")
        if not any(
            surface.positions.size and np.ptp(surface.positions, axis=0).any() for part in parts for surface in part.surfaces
        ):
            raise UserError(f"{self.path}: has meshes without a surface")
        return Character(self.path, Skeleton(names, parents, rest), parts, moving)

    def _order(self) -> list[int]:
        """Return the indices of all nodes below the scene's roots, parents first."""
        children = [node.get("children", []) for node in self.document["nodes"]]
        below = {child for group in children for child in group}
        order = [node for node in range(len(children)) if node not in below]
        for node in order:  # grows while it is read
            order += children[node]
            if len(order) > len(children):
                raise UserError(f"{self.path}: its nodes form a circle")
        return order

    def _part(self, node: dict[str, Any], name: str, names: list[str], place: dict[int, int]) -> Part:
        mesh = self.document["meshes"][node["mesh"]]
        skin = self.document["skins"][node["skin"]] if "skin" in node else None
        if skin is None:  # moves with its own node
            joint_names, inverse_bind = [name], np.eye(4)[None]
        else:
            joint_names = [names[place[joint]] for joint in skin["joints"]]
            count = len(joint_names)
            inverse_bind = np.tile(np.eye(4), (count, 1, 1))
            if "inverseBindMatrices" in skin:
                inverse_bind = self._array(skin["inverseBindMatrices"]).reshape(count, 4, 4).transpose(0, 2, 1)
        surfaces = [
            self._surface(primitive, len(joint_names), skinned=skin is not None)
            for primitive in mesh["primitives"]
            if primitive.get("mode", _TRIANGLES) == _TRIANGLES
        ]
        return Part(name, surfaces, joint_names, inverse_bind)

    def _surface(self, primitive: dict[str, Any], num_joints: int, *, skinned: bool) -> Surface:
        given = primitive["attributes"]
        positions = self._array(given["POSITION"]).astype(np.float64)
        count = len(positions)
        self.num_vertices += count
        if self.num_vertices > MAX_VERTICES:
            raise UserError(f"{self.path}: at most {MAX_VERTICES} vertices are read; it has more, reduce the mesh")
        if not np.isfinite(positions).all():
            raise UserError(f"{self.path}: has vertices whose position is not finite")
        triangles = self._array(primitive["indices"]).astype(np.int64).ravel() if "indices" in primitive else np.arange(count)
        triangles = triangles[: len(triangles) // 3 * 3].reshape(-1, 3)
        normals = self._array(given["NORMAL"]).astype(np.float64) if "NORMAL" in given else _normals(positions, triangles)
        coordinates = self._array(given["TEXCOORD_0"]) if "TEXCOORD_0" in given else np.zeros((count, 2))
        joints, weights = np.zeros((count, 4), np.int64), np.tile([1.0, 0, 0, 0], (count, 1))
        if skinned and "JOINTS_0" in given and "WEIGHTS_0" in given:
            joints = self._array(given["JOINTS_0"], normalize=False).astype(np.int64)
            weights = self._array(given["WEIGHTS_0"]).astype(np.float64)
            weights = weights / np.maximum(weights.sum(1, keepdims=True), 1e-9)
        if not all(len(values) == count for values in (normals, coordinates, joints, weights)):
            raise UserError(f"{self.path}: its vertex attributes have different lengths")
        if not all(np.isfinite(values).all() for values in (normals, coordinates, weights)):
            raise UserError(f"{self.path}: has vertex attributes that are not finite")
        in_range = (triangles.min(initial=0) >= 0, triangles.max(initial=-1) < count, joints.min(initial=0) >= 0)
        if not all(in_range) or joints.max(initial=-1) >= num_joints:
            raise UserError(f"{self.path}: refers to a vertex or joint that does not exist")
        return Surface(self._material(primitive.get("material")), positions, normals, coordinates, joints, weights, triangles)

    def _material(self, index: int | None) -> Material:
        if index is None:
            return Material("", np.full(3, 0.8), None)
        material = self.document["materials"][index]
        surface = material.get("pbrMetallicRoughness", {})
        color = np.array(surface.get("baseColorFactor", [1, 1, 1, 1]), np.float64)[:3]
        texture = self._texture(surface["baseColorTexture"]["index"]) if "baseColorTexture" in surface else None
        return Material(material.get("name", ""), color, texture)

    def _texture(self, index: int) -> np.ndarray:
        """Return a texture (256, 256, 3) uint8; materials share it."""
        if index not in self.textures:
            if len(self.textures) >= MAX_TEXTURES:
                raise UserError(f"{self.path}: at most {MAX_TEXTURES} textures are read; it has more")
            picture = Image.fromarray(self._read_texture(index))
            self.textures[index] = np.asarray(picture.resize((TEXTURE_SIZE, TEXTURE_SIZE), Image.Resampling.LANCZOS))
        return self.textures[index]

    def _read_texture(self, index: int) -> np.ndarray:
        image = self.document["images"][self.document["textures"][index]["source"]]
        if "bufferView" in image:
            view = self.document["bufferViews"][image["bufferView"]]
            start = view.get("byteOffset", 0)
            data = self._buffer(view["buffer"])[start : start + view["byteLength"]]
        else:
            data = self._resource(image["uri"])
        return read_image(Image.open(io.BytesIO(data), formats=_TEXTURE_FORMATS))

    def _action(self, animation: dict[str, Any], number: int, place: dict[int, int]) -> Action:
        channels = []
        for channel in animation["channels"]:
            path, node = channel["target"]["path"], channel["target"].get("node")
            if node is None or path not in ("translation", "rotation", "scale"):
                continue  # morph targets
            sampler = animation["samplers"][channel["sampler"]]
            times = self._array(sampler["input"]).ravel().astype(np.float64)
            values = self._array(sampler["output"]).astype(np.float64)
            interpolation = sampler.get("interpolation", "LINEAR")
            width = 4 if path == "rotation" else 3
            keys = len(times) * (3 if interpolation == "CUBICSPLINE" else 1)
            finite = np.isfinite(times).all() and np.isfinite(values).all()
            if not len(times) or values.shape != (keys, width) or (np.diff(times) <= 0).any() or not finite:
                raise UserError(f"{self.path}: animation {animation.get('name')!r} has broken keyframes")
            channels.append(Channel(place[node], path, interpolation, times, values))
        return Action(animation.get("name") or f"animation {number}", channels)

    def _array(self, index: int, *, normalize: bool = True) -> np.ndarray:
        """Return the values of an accessor: (count, size); integers marked as normalized become floats."""
        accessor = self.document["accessors"][index]
        if "sparse" in accessor or "bufferView" not in accessor:
            raise UserError(f"{self.path}: has sparse accessors, which are not read")
        view = self.document["bufferViews"][accessor["bufferView"]]
        dtype, size, count = np.dtype(_TYPES[accessor["componentType"]]), _SIZES[accessor["type"]], accessor["count"]
        if not 0 <= count <= MAX_VERTICES:
            raise UserError(f"{self.path}: at most {MAX_VERTICES} values per accessor are read; got {count}")
        self.num_values += count * size
        if self.num_values > MAX_VALUES:
            raise UserError(f"{self.path}: at most {MAX_VALUES} numbers are read; it has more, reduce meshes or animations")
        width = size * dtype.itemsize
        stride = view.get("byteStride", width)
        start = view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
        data = self._buffer(view["buffer"])
        if start < 0 or stride < width or (count and start + (count - 1) * stride + width > len(data)):
            raise UserError(f"{self.path}: an accessor reads beyond its buffer")
        values = np.ndarray((count, size), dtype, data, start, (stride, dtype.itemsize)).copy()
        if accessor.get("normalized") and normalize and values.dtype.kind in "iu":
            return values / np.iinfo(dtype).max
        return values

    def _buffer(self, index: int) -> bytes:
        if index not in self.buffers:
            buffer = self.document["buffers"][index]
            self.buffers[index] = self._resource(buffer["uri"]) if "uri" in buffer else self.binary
        return self.buffers[index]

    def _resource(self, uri: str) -> bytes:
        """Return the bytes of a data URI or of a file in the document's own folder."""
        if uri.startswith("data:"):
            return base64.b64decode(uri.partition(",")[2])
        folder = self.path.parent.resolve()
        target = (folder / unquote(uri)).resolve()
        if not target.is_relative_to(folder) or "://" in uri:
            raise UserError(f"{self.path}: refers to {uri!r}, which is outside its folder")
        if not target.is_file():
            raise UserError(f"{self.path}: refers to {uri!r}, which does not exist")
        return _read_bytes(target)


def _transform(node: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Return translation, rotation and scale of a node, which may give a matrix instead."""
    if "matrix" not in node:
        return node.get("translation", (0, 0, 0)), node.get("rotation", (0, 0, 0, 1)), node.get("scale", (1, 1, 1))
    matrix = np.array(node["matrix"], np.float64).reshape(4, 4).T
    scale = np.linalg.norm(matrix[:3, :3], axis=0)
    if np.linalg.det(matrix[:3, :3]) < 0:
        scale[0] *= -1
    return matrix[:3, 3], quaternion_of(matrix[:3, :3] / scale), scale


def _normals(positions: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Return smooth vertex normals (v, 3)."""
    first, second, third = (positions[triangles[:, corner]] for corner in range(3))
    faces = np.cross(second - first, third - first)
    result = np.zeros_like(positions)
    for corner in range(3):
        np.add.at(result, triangles[:, corner], faces)
    return result / np.maximum(np.linalg.norm(result, axis=1, keepdims=True), 1e-12)


def _unique(names: list[str]) -> list[str]:
    """Number repeated names.

    >>> _unique(["Arm", "Leg", "Arm"])
    ['Arm', 'Leg', 'Arm 2']
    """
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name} {seen[name]}")
    return result
