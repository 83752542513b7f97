"""The limbs of a character and the limits of their joints, found from its mesh, the tree of its joints, and their names.

A limb is what hangs on the trunk: an arm, a leg, neck and head, a tail. Joints turn about three axes of their own: `bend` towards
the front, `sway` to the side (outward for an arm or a leg), `twist` about the bone (outward, too).
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lfdm.data.characters.skeleton import Skeleton

Interval = tuple[float, float]

_BRANCH_REACH = 0.2
"""A joint with two subtrees that reach at least this far, in sizes of the figure, belongs to the trunk."""
_LIMB_REACH = 0.08
"""Subtrees of joints that do not reach this far move with the trunk."""
_JOINT_REACH = 0.04
"""Subtrees that do not reach this far, such as fingers, move with their limb."""
_FLOOR = 0.1
"""A limb that comes closer to the floor stands on it."""
_SIDE = 0.02
"""Joints closer to the middle belong to no side."""
_FOREIGN = 0.1
"""A joint that shares fewer vertices with its parent, relative to those shared with another, hangs on the other."""
_FRONT = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Angles in radians from the pose at rest."""

    bend: Interval = (0.0, 0.0)
    sway: Interval = (0.0, 0.0)
    twist: Interval = (0.0, 0.0)

    def shared(self, count: int) -> "Limits":
        """Return the limits of each of `count` joints of a limb, whose random angles together vary as those of one would."""
        return Limits(**{name: (low / count**0.5, high / count**0.5) for name, (low, high) in vars(self).items()})


_STILL = Limits()
_ARM = Limits(bend=(-0.5, 1.9), sway=(0.0, 2.6), twist=(-0.5, 1.2))
"""The sway of an arm is measured from hanging down, whatever the pose at rest."""
_NAMED = (
    (r"finger|thumb|index|middle|(?<![a-z])ring|pinky|toe|eye|jaw", _STILL),
    (r"(?<![a-z])ear", Limits(bend=(-0.6, 0.6), sway=(-0.5, 0.5))),
    (r"tail", Limits(bend=(-0.8, 0.8), sway=(-1.4, 1.4))),
    (r"spine|torso|chest|back", Limits(bend=(-0.3, 0.3), sway=(-0.3, 0.3), twist=(-0.3, 0.3))),
    (r"head|neck|skull", Limits(bend=(-0.45, 0.5), sway=(-0.45, 0.45), twist=(-0.9, 0.9))),
    (r"wrist|hand", Limits(bend=(-0.5, 0.5), sway=(-0.3, 0.3))),
    (r"(lower|fore)[_ ]?arm|elbow", Limits(bend=(0.0, 2.1))),
    (r"arm", _ARM),
    (r"shoulder|clavicle|collar", Limits(sway=(-0.05, 0.2))),
    (r"foot|ankle|paw|hoof", Limits(bend=(-0.4, 0.4))),
    (r"(lower|down)[_ ]?leg|shin|calf|knee", Limits(bend=(-1.9, 0.0))),
    (r"leg|thigh", Limits(bend=(-0.4, 1.4), sway=(-0.05, 0.8), twist=(-0.2, 0.4))),
)
"""Limits by the name of a joint; the first expression that is found counts."""
_SPINE = Limits(bend=(-0.25, 0.6), sway=(-0.5, 0.5), twist=(-0.6, 0.6))
_STANDING = Limits(bend=(-1.0, 1.0), sway=(-0.2, 0.4))
"""Legs of an animal, whose knees bend either way."""
_OTHER = Limits(bend=(-0.9, 0.9), sway=(-0.9, 0.9), twist=(-0.5, 0.5))


@dataclass(frozen=True, eq=False)
class Joint:
    """A joint that moves freely, in the pose at rest."""

    node: int
    position: np.ndarray
    """(3,)."""
    axes: np.ndarray
    """(3, 3): rows are the axes of bend, sway and twist."""
    limits: Limits


@dataclass(frozen=True, eq=False)
class JointTree:
    """The joints of a figure that move its mesh."""

    order: Sequence[int]
    """Nodes of the joints, each after the one that carries it."""
    carriers: Mapping[int, int]
    """The node that carries each joint, -1 for none. A foot that the file leaves to inverse kinematics is carried by its shin."""
    limbs: Mapping[str, Sequence[Joint]]
    """Joints that move together, by the name of the first; `spine` are those of the trunk that no leg hangs on."""
    rest: np.ndarray
    """Matrices of all nodes of the skeleton at rest, (n, 4, 4)."""
    size: float
    """Largest side of the figure's box."""


def find_joints(
    skeleton: Skeleton, matrices: np.ndarray, positions: np.ndarray, vertex_nodes: np.ndarray, weights: np.ndarray
) -> JointTree:
    """Return the joints of a mesh at rest.

    Args:
        matrices: (n, 4, 4) of the skeleton's nodes at rest.
        positions: (v, 3) of the mesh at rest, in the space of `matrices`.
        vertex_nodes: (v, 4) nodes that move each vertex.
        weights: (v, 4), adding up to 1.
    """
    shared = _shared_weights(len(skeleton.names), vertex_nodes, weights)
    carriers = _find_carriers(skeleton, np.flatnonzero(shared.diagonal()), shared)
    size = float(np.ptp(positions, axis=0).max())
    shape = _Shape(skeleton.names, matrices, positions, vertex_nodes[np.arange(len(weights)), weights.argmax(1)], carriers, size)
    return JointTree(list(shape.chains), carriers, shape.limbs(), matrices, size)


def _shared_weights(count: int, nodes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return how many vertices each pair of nodes shares, weighted by skin weights (n, n); the diagonal has each node's own."""
    shared = np.zeros((count, count))
    for i in range(4):
        for j in range(4):
            np.add.at(shared, (nodes[:, i], nodes[:, j]), np.minimum(weights[:, i], weights[:, j]))
    return shared


def _find_carriers(skeleton: Skeleton, used: np.ndarray, shared: np.ndarray) -> dict[int, int]:
    """Return what each used node hangs on: its nearest used ancestor, unless it shares vertices mostly with another joint."""
    carriers = {int(node): _used_ancestor(skeleton, node, used) for node in used}
    heaviest = max(carriers, key=lambda node: sum(shared[other, other] for other in carriers if _is_below(other, node, carriers)))
    for node in carriers:
        others = [other for other in carriers if not _is_below(other, node, carriers)]
        nearest = max(others, key=lambda other: shared[node, other], default=-1)
        if node == heaviest or nearest < 0:
            continue
        if carriers[node] < 0 or shared[node, carriers[node]] < _FOREIGN * shared[node, nearest]:
            carriers[node] = nearest if shared[node, nearest] > 0 else carriers[node]
    return carriers


def _used_ancestor(skeleton: Skeleton, node: int, used: np.ndarray) -> int:
    parent = int(skeleton.parents[node])
    while parent >= 0 and parent not in used:
        parent = int(skeleton.parents[parent])
    return parent


def _is_below(node: int, above: int, carriers: Mapping[int, int]) -> bool:
    while node >= 0 and node != above:
        node = carriers[node]
    return node == above


@dataclass(frozen=True, eq=False)
class _Shape:
    """The mesh at rest by joints."""

    names: Sequence[str]
    matrices: np.ndarray
    positions: np.ndarray
    owners: np.ndarray
    """(v,): the node that moves each vertex most."""
    carriers: Mapping[int, int]
    size: float

    @cached_property
    def chains(self) -> dict[int, list[int]]:
        """The chain from each joint to the root, through the joints that carry it; short chains come first."""
        chains = {node: [node] for node in self.carriers}
        for chain in chains.values():
            while self.carriers[chain[-1]] >= 0:
                chain.append(self.carriers[chain[-1]])
        return dict(sorted(chains.items(), key=lambda item: len(item[1])))

    @cached_property
    def reaches(self) -> dict[int, float]:
        """Distance from each joint to the farthest vertex that it carries, in sizes of the figure."""
        lengths = {node: np.linalg.norm(self._vertices(node) - self._position(node), axis=1) for node in self.chains}
        return {node: float(values.max(initial=0)) / self.size for node, values in lengths.items()}

    def limbs(self) -> dict[str, list[Joint]]:
        """Return the joints of each limb and of the spine."""
        trunk = self._trunk()
        roots = [node for node in self.chains if self.carriers[node] in trunk and node not in trunk]
        limbs = {root: self._below(root) for root in roots if self.reaches[root] >= _LIMB_REACH}
        floor = self.positions[:, 1].min() + _FLOOR * self.size
        legs = [root for root in limbs if self._vertices(root)[:, 1].min() < floor]
        spine = [
            node for node in trunk if self.carriers[node] >= 0 and not any(_is_below(leg, node, self.carriers) for leg in legs)
        ]
        found = {
            self.names[root]: self._joints(nodes, _STANDING if len(legs) > 2 and root in legs else None)
            for root, nodes in limbs.items()
        }
        found["spine"] = self._joints(spine, _SPINE)
        return {name: joints for name, joints in found.items() if joints}

    def _trunk(self) -> set[int]:
        """Return the joints at which the figure branches, and those that carry them."""
        far = Counter(self.carriers[node] for node in self.carriers if self.reaches[node] >= _BRANCH_REACH)
        branches = [node for node in self.carriers if far[node] > 1 or self.carriers[node] < 0]
        return {carrier for node in branches for carrier in self.chains[node]}

    def _joints(self, nodes: Sequence[int], limits: Limits | None) -> list[Joint]:
        chosen = {node: limits or self._named_limits(node) for node in nodes if self.reaches[node] >= _JOINT_REACH}
        counts = Counter(chosen.values())
        return [self._joint(node, value.shared(counts[value])) for node, value in chosen.items() if value != _STILL]

    def _named_limits(self, node: int) -> Limits:
        name = self.names[node].lower()
        found = next((limits for pattern, limits in _NAMED if re.search(pattern, name)), _OTHER)
        bone, side = self._bone(node), self._side(node)
        if found is not _ARM or side == 0:
            return found
        raised = float(np.arctan2(side * bone[0], -bone[1]))
        return Limits(bend=found.bend, sway=(found.sway[0] - raised, found.sway[1] - raised), twist=found.twist)

    def _joint(self, node: int, limits: Limits) -> Joint:
        bone, side = self._bone(node), self._side(node) or 1
        bend = np.cross(bone, _FRONT)
        if np.linalg.norm(bend) < 0.2:  # the bone points to the front or the back
            bend = np.array([1.0, 0.0, 0.0])
        bend /= np.linalg.norm(bend)
        return Joint(node, self._position(node), np.stack([bend, side * np.cross(bend, bone), -side * bone]), limits)

    def _bone(self, node: int) -> np.ndarray:
        """Return the direction from a joint to the only long part that it carries, or else to what it moves."""
        carried = [other for other, carrier in self.carriers.items() if carrier == node and self.reaches[other] >= _JOINT_REACH]
        own = self.positions[self.owners == node]
        end = self._position(carried[0]) if len(carried) == 1 else (own if len(own) else self._vertices(node)).mean(0)
        bone = end - self._position(node)
        length = np.linalg.norm(bone)
        return bone / length if length > 1e-6 * self.size else np.array([0.0, -1.0, 0.0])

    def _side(self, node: int) -> int:
        across = self._position(node)[0] - np.median(self.positions[:, 0])
        return 0 if abs(across) < _SIDE * self.size else int(np.sign(across))

    def _vertices(self, node: int) -> np.ndarray:
        return self.positions[np.isin(self.owners, self._below(node))]

    def _below(self, node: int) -> list[int]:
        return [other for other, chain in self.chains.items() if node in chain]

    def _position(self, node: int) -> np.ndarray:
        return self.matrices[node, :3, 3]
