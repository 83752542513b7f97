"""Skeletons and their poses: sampling actions, blending, and matrices of nodes.

A pose is the local transform of every node: translations (n, 3), rotations (n, 4) as quaternions (x, y, z, w), scales (n, 3).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True, eq=False)
class Pose:
    """Local transforms of all nodes."""

    translations: np.ndarray
    rotations: np.ndarray
    scales: np.ndarray

    def blend(self, other: "Pose", share: float) -> "Pose":
        """Return the pose that is `share` (0 to 1) of the way to `other`; 0 returns this pose itself."""
        if share == 0:
            return self
        return Pose(
            self.translations + share * (other.translations - self.translations),
            slerp(self.rotations, other.rotations, np.full(len(self.rotations), share)),
            self.scales + share * (other.scales - self.scales),
        )


@dataclass(frozen=True, eq=False)
class Skeleton:
    """Nodes with their parents (-1 = none), each parent before its children, and the pose of the file."""

    names: list[str]
    parents: np.ndarray
    rest: Pose

    def matrices(self, pose: Pose) -> np.ndarray:
        """Return the transform of every node to the space of the character: (n, 4, 4)."""
        local = local_matrices(pose)
        result = np.empty_like(local)
        for node, parent in enumerate(self.parents):
            result[node] = local[node] if parent < 0 else result[parent] @ local[node]
        return result


@dataclass(frozen=True, eq=False)
class Channel:
    """Keyframes of one property of one node."""

    node: int
    path: Literal["translation", "rotation", "scale"]
    interpolation: Literal["LINEAR", "STEP", "CUBICSPLINE"]
    times: np.ndarray
    """(k,) seconds, increasing."""
    values: np.ndarray
    """(k, 3 or 4); for CUBICSPLINE (3 k, ...): in-tangent, value and out-tangent of each keyframe."""

    def sample(self, time: float) -> np.ndarray:
        """Return the value at a time in seconds; before the first and after the last keyframe it stays."""
        last = len(self.times) - 1
        right = int(np.searchsorted(self.times, time, side="right"))
        if right == 0 or right > last:
            return self._value(0 if right == 0 else last)
        left, span = right - 1, self.times[right] - self.times[right - 1]
        share = (time - self.times[left]) / span
        if self.interpolation == "STEP":
            return self._value(left)
        if self.interpolation == "CUBICSPLINE":  # glTF 2.0 specification, appendix C
            squared, cubed = share**2, share**3
            result = (2 * cubed - 3 * squared + 1) * self._value(left) + (3 * squared - 2 * cubed) * self._value(right)
            result = result + span * (cubed - 2 * squared + share) * self.values[3 * left + 2]
            return result + span * (cubed - squared) * self.values[3 * right]
        if self.path == "rotation":
            return slerp(self._value(left)[None], self._value(right)[None], np.array([share]))[0]
        return self._value(left) + share * (self._value(right) - self._value(left))

    def _value(self, key: int) -> np.ndarray:
        return self.values[3 * key + 1] if self.interpolation == "CUBICSPLINE" else self.values[key]


@dataclass(frozen=True, eq=False)
class Action:
    """A named animation."""

    name: str
    channels: Sequence[Channel]

    @property
    def duration(self) -> float:
        """Seconds until the last keyframe."""
        return max(float(channel.times[-1]) for channel in self.channels)

    def sample(self, rest: Pose, time: float) -> Pose:
        """Return the pose at a time in seconds; nodes without keyframes keep their `rest`."""
        values = {"translation": rest.translations.copy(), "rotation": rest.rotations.copy(), "scale": rest.scales.copy()}
        for channel in self.channels:
            values[channel.path][channel.node] = channel.sample(time)
        rotations = values["rotation"]
        return Pose(values["translation"], rotations / np.linalg.norm(rotations, axis=-1, keepdims=True), values["scale"])


def slerp(start: np.ndarray, end: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Interpolate quaternions (n, 4) along the shorter arc; `share` (n,) from 0 to 1."""
    cosine = (start * end).sum(-1)
    end = np.where(cosine[:, None] < 0, -end, end)
    angle = np.arccos(np.clip(np.abs(cosine), 0, 1))
    sine = np.sin(angle)
    straight = sine < 1e-6  # nearly equal: the arc is a line
    sine = np.where(straight, 1, sine)
    first = np.where(straight, 1 - share, np.sin((1 - share) * angle) / sine)
    second = np.where(straight, share, np.sin(share * angle) / sine)
    result = first[:, None] * start + second[:, None] * end
    return result / np.linalg.norm(result, axis=-1, keepdims=True)


def quaternion_of(rotation: np.ndarray) -> np.ndarray:
    """Return the quaternion (x, y, z, w) of a rotation matrix, as the largest eigenvector (Bar-Itzhack, 2000)."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation
    symmetric = np.array(
        [
            [xx - yy - zz, 0, 0, 0],
            [yx + xy, yy - xx - zz, 0, 0],
            [zx + xz, zy + yz, zz - xx - yy, 0],
            [zy - yz, xz - zx, yx - xy, xx + yy + zz],
        ]
    )
    _, vectors = np.linalg.eigh(symmetric)
    return vectors[:, -1]


def local_matrices(pose: Pose) -> np.ndarray:
    """Return the matrices (n, 4, 4) that scale, then rotate, then translate."""
    x, y, z, w = pose.rotations.T
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    ).transpose(2, 0, 1)
    result = np.zeros((len(rotation), 4, 4))
    result[:, :3, :3] = rotation * pose.scales[:, None, :]
    result[:, :3, 3] = pose.translations
    result[:, 3, 3] = 1
    return result
