"""Motion that is no action: smooth random trajectories of a figure's joints, within the limits of the joints.

Angles are those of `lfdm.data.puppets.actions`.
"""

import numpy as np

from lfdm.data.curves import Wander
from lfdm.data.puppets.actions import Curve, Pose, Reach

_ARM, _ELBOW = (-0.7, 2.9), (-2.4, 1.5)
_LEG, _KNEE = (-0.4, 1.5), (-1.3, 0.2)
_TORSO, _HEAD = (-0.6, 0.6), (-0.5, 0.5)
"""Limits of the joints in radians; elbow and knee relative to the upper arm and the thigh."""
_SHIFT, _LIFT = 0.12, (-0.12, 0.02)
"""Limits of the hips' displacement to either side, and upwards (negative) and down, as fractions of the frame."""
_MAX_CROUCH = 0.85
"""Largest depth of a crouch in lengths of a thigh."""
_FEW_PROBABILITY = 0.5
"""Share of clips in which only one or two limbs move, as when a user drags a hand."""
_LIMBS = {"left arm": 0.35, "right arm": 0.35, "leg": 0.2, "head": 0.1}
"""Probabilities of the limbs that move in such clips."""
_ARM_PROBABILITY, _BODY_PROBABILITY = 0.65, 0.35
_LOWER_BODY = {"still": 0.35, "leg": 0.25, "crouch": 0.2, "shift": 0.2}
"""Probabilities of what hips and legs do in other clips: nothing, lift a leg, crouch over standing feet, or shift the figure."""


def move_freely(reach: Reach, time: Curve, rng: np.random.Generator) -> Pose:
    """Sample a motion that begins at rest: the joints of a figure at each of the times (t,) in seconds.

    Some joints move and the others stay at rest, so that which parts move together varies. At least one limb moves.
    """
    time = np.asarray(time, np.float64)
    pose = Pose(len(time), reach)
    moving = _choose(rng)
    for side in range(2):
        if ("left arm", "right arm")[side] in moving:
            pose.upper_arm[side], pose.forearm[side] = _move_limb(
                pose.upper_arm[side], pose.forearm[side], _ARM, _ELBOW, time, rng
            )
    if "leg" in moving:
        side = int(rng.integers(2))
        pose.thigh[side], pose.shin[side] = _move_limb(pose.thigh[side], pose.shin[side], _LEG, _KNEE, time, rng)
        pose.foot[side] = 0.8 * (pose.shin[side] - pose.shin[side][0])
    elif "crouch" in moving:
        pose.crouch(_wander(0.0, (0.0, _MAX_CROUCH * reach.leg), time, rng))
    elif "shift" in moving:
        pose.root = np.stack([_wander(0.0, (-_SHIFT, _SHIFT), time, rng), _wander(0.0, _LIFT, time, rng)], axis=-1)
    if "torso" in moving:
        pose.torso = _wander(0.0, _TORSO, time, rng)
    if "head" in moving:
        pose.head = _wander(0.0, _HEAD, time, rng)
    return pose


def _choose(rng: np.random.Generator) -> set[str]:
    """Sample what moves: one or two limbs, or any part of the figure by its own probability."""
    if rng.random() < _FEW_PROBABILITY:
        return set(rng.choice(list(_LIMBS), size=rng.integers(1, 3), replace=False, p=list(_LIMBS.values())))
    arms = rng.random(2) < _ARM_PROBABILITY
    lower = str(rng.choice(list(_LOWER_BODY), p=list(_LOWER_BODY.values())))
    if not arms.any() and lower == "still":
        arms[rng.integers(2)] = True
    body = rng.random(2) < _BODY_PROBABILITY
    chosen = zip(("left arm", "right arm", "torso", "head"), (*arms, *body), strict=True)
    return {name for name, moves in chosen if moves} | {lower}


def _move_limb(
    upper: Curve,
    lower: Curve,
    limits: tuple[float, float],
    bend_limits: tuple[float, float],
    time: Curve,
    rng: np.random.Generator,
) -> tuple[Curve, Curve]:
    """Return the angles of a limb's two links; the joint between them has limits relative to the upper link."""
    moved = _wander(float(upper[0]), limits, time, rng)
    return moved, moved + _wander(float(lower[0] - upper[0]), bend_limits, time, rng)


def _wander(start: float, limits: tuple[float, float], time: Curve, rng: np.random.Generator) -> Curve:
    return Wander.sample(start, limits, time[-1], rng)(time)
