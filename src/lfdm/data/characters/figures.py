"""Subjects of rendered clips: a skeleton with a mesh, made of the parts of one or two characters in random colours.

Characters of one kind share a skeleton and the names of their parts (`*_Head`, `*_Body`, `*_Legs`, `*_Feet`). A mixed subject
has the head of one, the body of another, and legs and feet of a third, because boots fit only the legs of their own file.
"""

import colorsys
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lfdm.data.characters.gltf import Character, Material, Part
from lfdm.data.characters.skeleton import Action, Pose, Skeleton

_GROUPS = {"Head": "head", "Body": "body", "Legs": "legs", "Pants": "legs", "Feet": "legs"}
"""Endings of the names of parts that can be exchanged, and what is exchanged together."""
_SKIN = re.compile("skin", re.IGNORECASE)
_HAIR = re.compile("hair|eyebrow|moustache|beard", re.IGNORECASE)
_KEPT = re.compile("eye(?!brow)|white|black|visor|teeth", re.IGNORECASE)
"""Materials that keep their colour."""
_SKIN_TONES = ((0.93, 0.76, 0.65), (0.84, 0.62, 0.48), (0.70, 0.47, 0.33), (0.50, 0.32, 0.22), (0.32, 0.20, 0.14))
"""sRGB, from light to dark."""
_HAIR_TONES = (
    (0.10, 0.08, 0.07),
    (0.27, 0.16, 0.09),
    (0.47, 0.28, 0.14),
    (0.78, 0.60, 0.32),
    (0.60, 0.58, 0.56),
    (0.55, 0.20, 0.10),
)


@dataclass(frozen=True, eq=False)
class Figure:
    """A subject: skeleton, actions, and one mesh that moves with the skeleton."""

    skeleton: Skeleton
    actions: dict[str, Action]
    positions: np.ndarray
    """(v, 3) in the bind pose."""
    normals: np.ndarray
    joints: np.ndarray
    """(v, 4): rows of `joint_nodes`."""
    weights: np.ndarray
    triangles: np.ndarray
    colors: np.ndarray
    """(v, 3) linear RGB."""
    texture_coordinates: np.ndarray
    layers: np.ndarray
    """(v,): index of the vertex's texture, -1 for none."""
    textures: Sequence[np.ndarray]
    joint_nodes: np.ndarray
    """(m,): the skeleton's node of every joint of every part."""
    inverse_bind: np.ndarray
    """(m, 4, 4)."""
    proportions: np.ndarray
    """(3,): factors of width, height and depth."""

    def skin(self, pose: Pose) -> tuple[np.ndarray, np.ndarray]:
        """Return positions and normals (v, 3) float32 in a pose."""
        return self.skin_matrices(self.skeleton.matrices(pose))

    def skin_matrices(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return positions and normals (v, 3) float32, given the matrices (n, 4, 4) of all nodes (linear blend skinning)."""
        matrices = nodes[self.joint_nodes] @ self.inverse_bind
        blended = np.einsum("vk,vkij->vij", self.weights, matrices[self.joints])
        positions = np.einsum("vij,vj->vi", blended[:, :3, :3], self.positions) + blended[:, :3, 3]
        normals = np.einsum("vij,vj->vi", blended[:, :3, :3], self.normals) / self.proportions
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
        return (positions * self.proportions).astype(np.float32), normals.astype(np.float32)


def plain_figure(character: Character, rng: np.random.Generator) -> Figure:
    """Return a character as it is, with random colours and proportions."""
    return _assemble(character, character.parts, rng)


def mixed_figure(characters: Sequence[Character], rng: np.random.Generator) -> Figure:
    """Return a random subject made of the parts of characters that share a skeleton, see `can_mix`."""
    base, head, legs = (characters[int(rng.integers(len(characters)))] for _ in range(3))
    sources = {"body": base, "head": head, "legs": legs}
    parts = [part for group, source in sources.items() for part in source.parts if _group(part) == group]
    return _assemble(base, parts, rng)


def mixing_families(characters: Sequence[Character]) -> list[list[Character]]:
    """Group characters whose parts can be exchanged: the same joints, actions, kind (the file's name up to `-`) and parts.

    A character without exchangeable parts is a family of its own.
    """
    families: dict[object, list[Character]] = defaultdict(list)
    for character in characters:
        groups = {_group(part) for part in character.parts} - {None}
        joints = frozenset(name for part in character.parts if _group(part) for name in part.joint_names)
        kind = character.path.stem.partition("-")[0]
        mixable = groups == {"head", "body", "legs"}
        families[(kind, joints, frozenset(character.actions)) if mixable else character.path].append(character)
    return list(families.values())


def _group(part: Part) -> str | None:
    return _GROUPS.get(part.name.rpartition("_")[2])


def _assemble(base: Character, parts: Sequence[Part], rng: np.random.Generator) -> Figure:
    nodes = {name: node for node, name in enumerate(base.skeleton.names)}
    has_skin = any(_SKIN.search(surface.material.name) for part in parts for surface in part.surfaces)
    palette = _Palette(rng, dressed=has_skin)
    textures: list[np.ndarray] = []
    layers: dict[int, int] = {}
    columns: dict[str, list[np.ndarray]] = defaultdict(list)
    num_vertices = num_joints = 0
    for part in parts:
        for surface in part.surfaces:
            count = len(surface.positions)
            layer = -1
            if surface.material.texture is not None:
                layer = layers.setdefault(id(surface.material.texture), len(textures))
                if layer == len(textures):
                    textures.append(surface.material.texture)
            columns["positions"].append(surface.positions)
            columns["normals"].append(surface.normals)
            columns["joints"].append(surface.joints + num_joints)
            columns["weights"].append(surface.weights)
            columns["triangles"].append(surface.triangles + num_vertices)
            columns["colors"].append(np.tile(palette.color(surface.material), (count, 1)))
            columns["texture_coordinates"].append(surface.texture_coordinates)
            columns["layers"].append(np.full(count, layer))
            num_vertices += count
        columns["joint_nodes"].append(np.array([nodes[name] for name in part.joint_names]))
        columns["inverse_bind"].append(part.inverse_bind)
        num_joints += len(part.joint_names)
    width, height = rng.uniform(0.92, 1.1), rng.uniform(0.94, 1.06)
    arrays = {name: np.concatenate(values) for name, values in columns.items()}
    return Figure(base.skeleton, base.actions, textures=textures, proportions=np.array([width, height, width]), **arrays)


class _Palette:
    """Random colours by the name of a material: the same name has the same colour throughout a subject.

    Clothes get any colour; an animal, which is not `dressed`, gets variations of its own colours.
    """

    def __init__(self, rng: np.random.Generator, *, dressed: bool) -> None:
        self.rng, self.dressed = rng, dressed
        self.brightness = rng.uniform(0.6, 1.3)
        self.skin, self.hair = _linear(_mix(_SKIN_TONES, rng)), _linear(_mix(_HAIR_TONES, rng))
        self.others: dict[str, np.ndarray] = {}

    def color(self, material: Material) -> np.ndarray:
        """Return the linear RGB colour of a material."""
        if material.texture is not None or _KEPT.search(material.name):
            return material.color
        if _SKIN.search(material.name):
            return self.skin * (0.8 if "dark" in material.name.lower() else 1)
        if _HAIR.search(material.name):
            return self.hair
        if material.name not in self.others:
            self.others[material.name] = self._other(material)
        return self.others[material.name]

    def _other(self, material: Material) -> np.ndarray:
        if not self.dressed:
            return np.clip(material.color * self.brightness * self.rng.uniform(0.8, 1.2, 3), 0, 1)
        hue, saturation, value = self.rng.random(), self.rng.uniform(0.15, 0.85), self.rng.uniform(0.25, 0.95)
        return _linear(np.array(colorsys.hsv_to_rgb(hue, saturation, value)))


def _mix(tones: Sequence[tuple[float, float, float]], rng: np.random.Generator) -> np.ndarray:
    """Return a random colour between two neighbouring tones."""
    first = int(rng.integers(len(tones) - 1))
    share = rng.random()
    return (1 - share) * np.array(tones[first]) + share * np.array(tones[first + 1])


def _linear(color: np.ndarray) -> np.ndarray:
    """Convert sRGB in [0, 1] to linear RGB, by the approximation of a power."""
    return color**2.2
