"""Free motion of characters: smooth random trajectories of their joints, from the rest pose and within limits."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np

from lfdm.data.characters.figures import Figure
from lfdm.data.characters.joints import Interval, Joint, JointTree
from lfdm.data.curves import Wander

_SECONDS = (0.5, 1.4)
"""Duration of a movement from one random angle to the next; shorter ones are too fast for clips of 8 frames a second."""
_ONE_PROBABILITY, _TWO_PROBABILITY = 0.45, 0.25
"""Shares of clips in which one limb moves, and two, as when a user drags a hand; in the others each limb may."""
_LIMB_PROBABILITY = 0.5
_JOINT_PROBABILITY = 0.8
"""Probability that a joint of a moving limb moves."""
_SHIFT_PROBABILITY = 0.1
_SHIFT = ((-0.1, 0.1), (0.0, 0.1), (-0.05, 0.05))
"""Limits of the displacement of the whole figure along x, y and z, in its sizes."""


@dataclass(frozen=True, eq=False)
class FreeMotion:
    """A random motion of a figure; call it with a time in seconds."""

    figure: Figure
    tree: JointTree
    angles: Mapping[int, tuple[Joint, Sequence[Wander]]]
    """The joints that move, by node, with their angles of bend, sway and twist over time."""
    shift: Sequence[Wander]
    """Displacement of the figure along x, y and z; empty for none."""

    @classmethod
    def sample(cls, figure: Figure, tree: JointTree, seconds: float, rng: np.random.Generator) -> Self:
        """Sample a motion of a figure with the joints `tree` that begins at rest and lasts for `seconds`."""
        chosen = [joint for name in _choose_limbs(list(tree.limbs), rng) for joint in _choose_joints(tree.limbs[name], rng)]
        angles = {joint.node: (joint, _wander(vars(joint.limits).values(), seconds, rng)) for joint in chosen}
        shifts = rng.random() < _SHIFT_PROBABILITY or not angles
        shift = _wander([(low * tree.size, high * tree.size) for low, high in _SHIFT], seconds, rng) if shifts else ()
        return cls(figure, tree, angles, shift)

    def __call__(self, time: float) -> tuple[np.ndarray, np.ndarray]:
        """Return positions and normals of the mesh (v, 3) float32; at time 0 exactly those at rest."""
        positions, normals = self.figure.skin_matrices(self.matrices(time))
        positions[:, 1] -= max(positions[:, 1].min() - self.floor, 0)  # a figure that bends its legs sinks
        for axis, curve in enumerate(self.shift):
            positions[:, axis] += curve(time)
        return positions, normals

    @cached_property
    def floor(self) -> float:
        """Height of the figure's lowest point at rest."""
        return self.figure.skin_matrices(self.tree.rest)[0][:, 1].min()

    def matrices(self, time: float) -> np.ndarray:
        """Return the matrices of the skeleton's nodes at a time in seconds, (n, 4, 4), the figure not shifted."""
        moved, result = {-1: np.eye(4)}, self.tree.rest.copy()
        for node in self.tree.order:
            moved[node] = moved[self.tree.carriers[node]]
            if node in self.angles:
                joint, curves = self.angles[node]
                moved[node] = moved[node] @ _turn(joint, *(float(curve(time)) for curve in curves))
            result[node] = moved[node] @ self.tree.rest[node]
        return result


def _choose_limbs(names: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Sample one limb, two, or each by its own probability."""
    kind = rng.random()
    if kind < _ONE_PROBABILITY + _TWO_PROBABILITY or not names:
        count = min(1 if kind < _ONE_PROBABILITY else 2, len(names))
        return [names[int(index)] for index in rng.permutation(len(names))[:count]]
    return [name for name in names if rng.random() < _LIMB_PROBABILITY]


def _choose_joints(joints: Sequence[Joint], rng: np.random.Generator) -> list[Joint]:
    """Sample which joints of a limb move, at least one."""
    chosen = [joint for joint in joints if rng.random() < _JOINT_PROBABILITY]
    return chosen or [joints[int(rng.integers(len(joints)))]]


def _wander(limits: Iterable[Interval], seconds: float, rng: np.random.Generator) -> list[Wander]:
    return [Wander.sample(0.0, interval, seconds, rng, _SECONDS) for interval in limits]


def _turn(joint: Joint, bend: float, sway: float, twist: float) -> np.ndarray:
    """Return the matrix (4, 4) that twists about a joint and then bends and sways; the identity, exactly, for zeros."""
    rotation = _rotation(bend * joint.axes[0] + sway * joint.axes[1]) @ _rotation(twist * joint.axes[2])
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = joint.position - rotation @ joint.position
    return matrix


def _rotation(vector: np.ndarray) -> np.ndarray:
    """Return the rotation (3, 3) about a vector by its length in radians (Rodrigues' formula)."""
    x, y, z = vector
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = float(np.linalg.norm(vector))
    return np.eye(3) + np.sinc(angle / np.pi) * cross + 0.5 * np.sinc(angle / (2 * np.pi)) ** 2 * cross @ cross
