"""Joints of characters and their free motion, on a figure of sticks."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lfdm.data.characters.figures import plain_figure
from lfdm.data.characters.free_motion import FreeMotion
from lfdm.data.characters.gltf import read_character
from lfdm.data.characters.joints import JointTree, find_joints
from lfdm.data.characters.skeleton import Pose, Skeleton
from tests.data.characters.character_files import make_document, write_gltf

STICKS = {
    "Root": ("", (0, 1, 0), (0, 1.1, 0)),
    "Chest": ("Root", (0, 1.1, 0), (0, 1.5, 0)),
    "Neck": ("Chest", (0, 1.5, 0), (0, 1.6, 0)),
    "Head": ("Neck", (0, 1.6, 0), (0, 1.8, 0)),
}
"""Bones: parent, beginning and end; those of `LIMBS` are there on both sides.

Feet have no parent, as in files whose legs follow them by inverse kinematics.
"""

LIMBS = {
    "UpperArm": ("Chest", (0.2, 1.4, 0), (0.3, 1.15, 0)),
    "LowerArm": ("UpperArm", (0.3, 1.15, 0), (0.35, 0.9, 0)),
    "Finger": ("LowerArm", (0.35, 0.9, 0), (0.35, 0.85, 0)),
    "UpperLeg": ("Root", (0.1, 1.0, 0), (0.1, 0.5, 0)),
    "LowerLeg": ("UpperLeg", (0.1, 0.5, 0), (0.1, 0.05, 0)),
    "Foot": ("", (0.1, 0.05, 0), (0.1, 0.0, 0.2)),
}
for side, sign in (("L", 1), ("R", -1)):
    for name, (parent, begin, end) in LIMBS.items():
        mirrored = [(sign * x, y, z) for x, y, z in (begin, end)]
        STICKS[f"{name}.{side}"] = (f"{parent}.{side}" if parent in LIMBS else parent, *mirrored)


def make_tree(names: dict[str, str] | None = None) -> JointTree:
    """Return the joints of the figure of sticks; `names` renames bones."""
    bones = list(STICKS)
    parents = np.array([bones.index(parent) if parent else -1 for parent, _, _ in STICKS.values()])
    begins, ends = (np.array([stick[index] for stick in STICKS.values()], float) for index in (1, 2))
    matrices = np.tile(np.eye(4), (len(bones), 1, 1))
    matrices[:, :3, 3] = begins
    shares = np.linspace(0, 1, 9)
    positions = begins[:, None] + shares[:, None] * (ends - begins)[:, None]
    nodes = np.zeros((len(bones), 9, 4), int)
    weights = np.zeros((len(bones), 9, 4))
    nodes[:, :, 0], weights[:, :, 0] = np.arange(len(bones))[:, None], 1
    for bone, begin in enumerate(begins):  # the first vertices belong to the bone that ends there, too
        before = np.flatnonzero(np.linalg.norm(ends - begin, axis=1) < 1e-6)
        before = before if len(before) else np.flatnonzero(parents[bone] == np.arange(len(bones)))
        nodes[bone, 0, 1] = before[0] if len(before) else 0
        weights[bone, 0, :2] = (0.5, 0.5) if len(before) else (1, 0)
    still = Pose(np.zeros((len(bones), 3)), np.tile([0, 0, 0, 1.0], (len(bones), 1)), np.ones((len(bones), 3)))
    skeleton = Skeleton([(names or {}).get(bone, bone) for bone in bones], parents, still)
    return find_joints(skeleton, matrices, positions.reshape(-1, 3), nodes.reshape(-1, 4), weights.reshape(-1, 4))


def test_limbs_hang_on_the_trunk_and_feet_on_shins() -> None:
    tree, names = make_tree(), list(STICKS)
    assert tree.carriers[names.index("Foot.L")] == names.index("LowerLeg.L")
    limbs = {name: [names[joint.node] for joint in joints] for name, joints in tree.limbs.items()}
    assert limbs == {
        "Neck": ["Neck", "Head"],
        "UpperArm.L": ["UpperArm.L", "LowerArm.L"],
        "UpperArm.R": ["UpperArm.R", "LowerArm.R"],
        "UpperLeg.L": ["UpperLeg.L", "LowerLeg.L", "Foot.L"],
        "UpperLeg.R": ["UpperLeg.R", "LowerLeg.R", "Foot.R"],
        "spine": ["Chest"],
    }


def test_limbs_are_found_without_names() -> None:
    tree = make_tree({name: f"bone{index}" for index, name in enumerate(STICKS)})
    assert len(tree.limbs) == 6
    assert all(
        low <= 0 <= high for joints in tree.limbs.values() for joint in joints for low, high in vars(joint.limits).values()
    )


@pytest.mark.parametrize(("side", "sign"), [("L", 1), ("R", -1)])
def test_joints_bend_as_bodies_do(side: str, sign: int) -> None:
    """Arms sway outward, elbows bend to the front and knees to the back."""
    joints = {list(STICKS)[joint.node]: joint for joints in make_tree().limbs.values() for joint in joints}

    def move(name: str, axis: int) -> np.ndarray:
        """Return where a bone that hangs down goes when it turns a little about an axis."""
        return np.cross(joints[name].axes[axis], [0, -1, 0])

    assert sign * move(f"UpperArm.{side}", 1)[0] > 0.5
    assert move(f"LowerArm.{side}", 0)[2] > 0.5
    assert joints[f"LowerArm.{side}"].limits.bend[0] == 0
    assert move(f"LowerLeg.{side}", 0)[2] > 0.5
    assert joints[f"LowerLeg.{side}"].limits.bend[1] == 0


def test_motion_begins_at_rest_stays_within_limits_and_often_has_one_limb(tmp_path: Path) -> None:
    figure = plain_figure(
        read_character(write_gltf(tmp_path / "x.gltf", make_document("Ann", (0, 0, 0)))), np.random.default_rng(0)
    )
    tree, moved = make_tree(), Counter[int]()
    limb_of = {joint.node: name for name, joints in tree.limbs.items() for joint in joints}
    for seed in range(200):
        motion = FreeMotion.sample(figure, tree, 2.0, np.random.default_rng(seed))
        assert np.array_equal(motion.matrices(0.0), tree.rest)
        moved[len({limb_of[node] for node in motion.angles})] += 1
        for joint, curves in motion.angles.values():
            for (low, high), curve in zip(vars(joint.limits).values(), curves, strict=True):
                angles = curve(np.linspace(0, 2, 50))
                assert low - 1e-9 <= angles.min() <= angles.max() <= high + 1e-9
                assert np.abs(np.diff(angles)).max(initial=0) <= 0.15 * (high - low)
    assert moved[1] > 60
    assert moved[2] > 40
    assert moved[3] + moved[4] + moved[5] > 20
