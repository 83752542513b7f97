"""Actions: joint angles over time, one function per action.

Angles are in radians from straight down. Limbs turn *outward*: on either side, pi/2 points away from the body and
negative angles cross it. Torso and head turn towards the right edge of the image. Lengths are fractions of the frame,
y points down, time is in seconds. Every action begins exactly at the rest pose, so that the first frame does not reveal
the label.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from lfdm.data.curves import ease
from lfdm.errors import UserError

Curve = np.ndarray
"""One value per frame: (t,) float64."""

REST_ARM = 0.2
REST_LEG = 0.1
"""Angles of the limbs at rest, slightly outward."""
SIDES = (-1, 1)
"""Image left and image right: the order of the arms and legs of a pose."""


@dataclass(frozen=True, kw_only=True)
class Style:
    """How an action is performed in one clip."""

    tempo: float = 1.0
    """Relative speed of the action."""
    amplitude: float = 1.0
    """Relative size of the movement."""
    lag: float = 0.05
    """Seconds by which the outer joints (elbows, knees, neck) follow the inner ones."""


@dataclass(frozen=True, kw_only=True)
class Reach:
    """The lengths of a figure that its actions depend on, as fractions of the frame."""

    arm: float
    """Length of the upper arm, and of the forearm."""
    leg: float
    """Length of the thigh, and of the shin."""
    shoulder: float
    """Distance from the middle of the body to a shoulder."""


@dataclass(eq=False)
class Pose:
    """A figure's joints over time: at rest in every frame until an action sets the ones that it moves."""

    num_frames: int
    reach: Reach
    root: np.ndarray = field(init=False)
    """Displacement of the hips, (t, 2)."""
    torso: Curve = field(init=False)
    head: Curve = field(init=False)
    upper_arm: list[Curve] = field(init=False)
    forearm: list[Curve] = field(init=False)
    thigh: list[Curve] = field(init=False)
    shin: list[Curve] = field(init=False)
    foot: list[Curve] = field(init=False)
    """Angles of the feet, 0 when flat on the floor."""

    def __post_init__(self) -> None:
        zero = np.zeros(self.num_frames)
        self.root = np.zeros((self.num_frames, 2))
        self.torso, self.head = zero, zero
        self.upper_arm = [zero + REST_ARM, zero + REST_ARM]
        self.forearm = [zero + REST_ARM / 2, zero + REST_ARM / 2]
        self.thigh = [zero + REST_LEG, zero + REST_LEG]
        self.shin = [zero + REST_LEG, zero + REST_LEG]
        self.foot = [zero, zero]

    def raise_arm(self, side: int, amount: Curve, upper: float, lag_amount: Curve, fore: float) -> None:
        """Move arm `side` (0 left, 1 right) from rest towards two angles in degrees, by amounts 0 (rest) to 1."""
        self.upper_arm[side] = REST_ARM + amount * (np.radians(upper) - REST_ARM)
        self.forearm[side] = REST_ARM / 2 + lag_amount * (np.radians(fore) - REST_ARM / 2)

    def crouch(self, depth: Curve) -> None:
        """Lower the hips by `depth` over feet that stay where they are; the knees go outward."""
        leg = self.reach.leg
        angles = two_links(2 * leg * np.sin(REST_LEG) + 0 * depth, 2 * leg * np.cos(REST_LEG) - depth, leg)
        moved = depth != 0
        self.root[:, 1] += depth
        for side in range(2):
            self.thigh[side] = np.where(moved, angles[0], REST_LEG)
            self.shin[side] = np.where(moved, angles[1], REST_LEG)


def two_links(outward: Curve, down: Curve, length: float) -> tuple[Curve, Curve]:
    """Return the angles of two links of equal `length` that reach a point, the joint between them bent outward."""
    distance = np.minimum(np.hypot(outward, down), 2 * length)
    direction, bend = np.arctan2(outward, down), np.arccos(distance / (2 * length))
    return direction + bend, direction - bend


def pulse(time: Curve, rate: float, floor: float) -> Curve:
    """Rise from 0 to 1 in half a period, then swing between `floor` and 1, so that the rest pose never returns."""
    wave = 0.5 - 0.5 * np.cos(2 * np.pi * rate * np.maximum(time, 0))
    return np.where(time * rate < 0.5, wave, floor + (1 - floor) * wave)


def _wave(pose: Pose, time: Curve, style: Style) -> None:
    late = time - style.lag
    swing = np.sin(2 * np.pi * 1.45 * style.tempo * late) * ease(late, 0.5)
    pose.raise_arm(1, ease(time, 0.5 / style.tempo), 118, ease(late, 0.5 / style.tempo), 168)
    pose.forearm[1] = pose.forearm[1] + np.radians(40) * style.amplitude * swing
    pose.torso = np.radians(-4) * ease(time, 0.6)
    pose.head = np.radians(5) * swing


def _raise_arms(pose: Pose, time: Curve, style: Style) -> None:
    late = time - style.lag
    for side in range(2):
        pose.raise_arm(side, ease(time, 0.62 / style.tempo), 138 + 14 * style.amplitude, ease(late, 0.62 / style.tempo), 174)
        sway = np.radians(7) * style.amplitude * np.sin(2 * np.pi * 0.6 * style.tempo * time) * ease(time - 0.4, 0.5)
        pose.upper_arm[side] = pose.upper_arm[side] + sway
        pose.forearm[side] = pose.forearm[side] + sway


def _clap(pose: Pose, time: Curve, style: Style) -> None:
    closed = two_links(np.array(0.03 - pose.reach.shoulder), np.array(0.45 * pose.reach.arm), pose.reach.arm)
    late = time - style.lag / 2
    swing = 0.5 - 0.5 * np.cos(2 * np.pi * 1.55 * style.tempo * (time - 0.4))
    beat = swing * ease(time - 0.4, 0.2) * min(style.amplitude, 1.15)
    raised, bent = ease(time, 0.5 / style.tempo), ease(late, 0.5 / style.tempo)
    for side in range(2):
        pose.raise_arm(side, raised, float(np.degrees(closed[0])), bent, float(np.degrees(closed[1])))
        pose.upper_arm[side] = pose.upper_arm[side] + np.radians(20) * beat
        pose.forearm[side] = pose.forearm[side] - np.radians(52) * beat


def _jump(pose: Pose, time: Curve, style: Style) -> None:
    cycle = 1.1 * style.tempo * time % 1.0
    on_floor = cycle < 0.35
    air = np.where(on_floor, 0, (cycle - 0.35) / 0.65)
    flight = 4 * air * (1 - air)
    pose.crouch(np.where(on_floor, np.sin(np.pi * cycle / 0.35), 0) * 0.32 * pose.reach.leg)
    pose.root[:, 1] -= 0.135 * style.amplitude * flight
    arms = ease(time - style.lag, 0.35) * (0.25 + 0.75 * flight)
    for side in range(2):
        pose.raise_arm(side, arms, 125, arms, 140)
        pose.thigh[side] = pose.thigh[side] + 0.3 * flight
        pose.shin[side] = pose.shin[side] - 0.1 * flight
        pose.foot[side] = -0.5 * flight


def _squat(pose: Pose, time: Curve, style: Style) -> None:
    down = pulse(time, 0.8 * style.tempo, 0.3)
    arms = pulse(time - style.lag, 0.8 * style.tempo, 0.3)
    pose.crouch(down * 0.92 * pose.reach.leg * min(style.amplitude, 1.1))
    for side in range(2):
        pose.raise_arm(side, arms, 88, arms, 92)


def _kick(pose: Pose, time: Curve, style: Style) -> None:
    swing, late = pulse(time, 0.95 * style.tempo, 0.15), pulse(time - style.lag, 0.95 * style.tempo, 0.15)
    turn = np.radians(82) * style.amplitude
    pose.thigh[1] = REST_LEG + turn * swing
    pose.shin[1] = REST_LEG + turn * late
    pose.foot[1] = 0.8 * turn * late
    pose.torso = np.radians(-13) * swing
    pose.head = np.radians(6) * late
    for side in range(2):
        pose.raise_arm(side, swing, 50, late, 62)


def _walk(pose: Pose, time: Curve, style: Style) -> None:
    phase, start = 2 * np.pi * 1.1 * style.tempo * time, ease(time, 0.4)
    pose.root[:, 0] = 0.15 * style.amplitude * ease(time, 2.2 / style.tempo)
    pose.root[:, 1] = 0.012 * start * (1 - np.cos(2 * phase)) / 2
    for index, side in enumerate(SIDES):
        forward = side * np.sin(phase) * start * np.radians(33) * style.amplitude
        lifted = np.maximum(side * np.cos(phase - 2 * np.pi * 1.1 * style.lag), 0) * start * np.radians(48)
        pose.thigh[index] = REST_LEG + side * (forward + 0.35 * lifted)
        pose.shin[index] = REST_LEG + side * (forward - 0.65 * lifted)
        pose.foot[index] = side * (0.6 * forward - 0.5 * lifted)
        pose.upper_arm[index] = REST_ARM - side * 1.1 * forward
        pose.forearm[index] = REST_ARM / 2 - side * (1.1 * forward - np.radians(38) * start)
    pose.torso = np.radians(4) * start


def _bow(pose: Pose, time: Curve, style: Style) -> None:
    down, late = pulse(time, 0.72 * style.tempo, 0.3), pulse(time - style.lag, 0.72 * style.tempo, 0.3)
    lean = np.radians(58) * min(style.amplitude, 1.1)
    pose.torso = lean * down
    pose.head = np.radians(20) * late
    pose.root[:, 0] = -0.02 * down
    pose.raise_arm(1, down, 30, late, 5)
    pose.raise_arm(0, down, -18, late, -34)


_MOVES: dict[str, Callable[[Pose, Curve, Style], None]] = {
    "bow": _bow,
    "clap": _clap,
    "jump": _jump,
    "kick": _kick,
    "raise arms": _raise_arms,
    "squat": _squat,
    "walk": _walk,
    "wave": _wave,
}
ACTIONS: tuple[str, ...] = tuple(_MOVES)
"""The labels, in alphabetical order."""


def act(action: str, style: Style, reach: Reach, time: Curve) -> Pose:
    """Return the joints of a figure that performs `action`, at each of the times (t,) in seconds.

    Raises UserError for a label that is not one of ACTIONS.
    """
    if action not in _MOVES:
        raise UserError(f"action must be one of {', '.join(ACTIONS)}; got {action!r}")
    pose = Pose(len(time), reach)
    _MOVES[action](pose, np.asarray(time, np.float64), style)
    return pose
