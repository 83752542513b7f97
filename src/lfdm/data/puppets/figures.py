"""Figures: a subject's proportions, colours and textures, and the position of its parts in a given pose.

Parts are listed back to front in a fixed order. Lengths are fractions of the frame, colours 0 to 255.
"""

import colorsys
from dataclasses import dataclass

import numpy as np

from lfdm.data.puppets.actions import REST_LEG, SIDES, Pose, Reach
from lfdm.data.puppets.parts import Colour, Part, Shape, Texture

_SKIN = ((255, 219, 182), (240, 190, 150), (214, 155, 112), (176, 118, 78), (138, 90, 60))
_HAIR = ((40, 30, 28), (78, 48, 30), (140, 84, 40), (214, 166, 84), (178, 66, 36), (120, 120, 128))
_SHOULDER_DROP = 0.035


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """A figure and its background, both determined by a seed."""

    hips: tuple[float, float]
    """Point between the hip joints, at rest."""
    hip: float
    """Distance from there to a hip joint."""
    torso: float
    """Distance from hips to shoulder line."""
    reach: Reach
    parts: tuple[Part, ...]
    """Back to front."""
    wall: Texture
    floor: Texture
    horizon: float
    """Height at which the wall meets the floor."""


def make_subject(seed: int) -> Subject:
    """Sample a subject. The same seed always gives the same subject."""
    rng = np.random.default_rng((seed, 1))
    build = _Build.sample(rng)
    parts = tuple(_sample_parts(rng, build))
    wall, floor = _sample_background(rng, np.stack([part.texture.colour for part in parts]))
    foot_room = 2 * build.leg * float(np.cos(REST_LEG)) + build.foot_radius
    ground = rng.uniform(0.92, 0.95)
    return Subject(
        hips=(rng.uniform(0.47, 0.5), ground - foot_room),
        hip=build.hip,
        torso=build.torso,
        reach=Reach(arm=build.arm, leg=build.leg, shoulder=build.shoulder),
        parts=parts,
        wall=wall,
        floor=floor,
        horizon=rng.uniform(0.68, 0.8),
    )


def place(subject: Subject, pose: Pose) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return for each part's name its joint (t, 2) and the direction of its u axis (t,).

    Joints are fractions of the frame, directions radians from straight down towards the right edge of the image.
    """
    hips = np.asarray(subject.hips) + pose.root
    spine = np.pi - pose.torso
    neck = hips + subject.torso * _direction(spine)
    shoulders = neck - _SHOULDER_DROP * _direction(spine)
    across = np.stack([np.cos(pose.torso), np.sin(pose.torso)], axis=-1)
    joints = {"hips": (hips, 0 * spine), "torso": (hips, spine), "head": (neck, spine - pose.head)}
    for index, side in enumerate(SIDES):
        name = ("left", "right")[index]
        shoulder = shoulders + side * subject.reach.shoulder * across
        hip = hips + np.array([side * subject.hip, 0.0])
        for joint, upper, lower, length, names in (
            (shoulder, pose.upper_arm[index], pose.forearm[index], subject.reach.arm, ("upper arm", "forearm", "hand")),
            (hip, pose.thigh[index], pose.shin[index], subject.reach.leg, ("thigh", "shin", "foot")),
        ):
            middle = joint + length * _direction(side * upper)
            end = middle + length * _direction(side * lower)
            turn = lower if names[2] == "hand" else pose.foot[index]
            joints[f"{name} {names[0]}"] = (joint, side * upper)
            joints[f"{name} {names[1]}"] = (middle, side * lower)
            joints[f"{name} {names[2]}"] = (end, side * turn)
    return joints


def _direction(angle: np.ndarray) -> np.ndarray:
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1)


@dataclass(frozen=True, kw_only=True)
class _Build:
    """Proportions, as fractions of the frame."""

    head: float
    torso: float
    leg: float
    arm: float
    shoulder: float
    hip: float
    chest_radius: float
    arm_radius: float
    leg_radius: float
    foot_radius: float

    @classmethod
    def sample(cls, rng: np.random.Generator) -> "_Build":
        height, bulk = rng.uniform(0.67, 0.74), rng.uniform(-1, 1)
        head = rng.uniform(0.068, 0.078)
        foot = 0.03
        legs = (height - 2.4 * head - foot) * rng.uniform(0.54, 0.6)
        torso = height - 2.4 * head - foot - legs
        return cls(
            head=head,
            torso=torso,
            leg=legs / 2 / float(np.cos(REST_LEG)),
            arm=rng.uniform(0.125, 0.14),
            shoulder=0.088 + 0.012 * bulk + rng.uniform(0, 0.01),
            hip=0.042 + 0.008 * bulk,
            chest_radius=0.064 + 0.012 * bulk,
            arm_radius=0.04 + 0.002 * bulk,
            leg_radius=0.044 + 0.004 * bulk,
            foot_radius=foot,
        )


@dataclass(frozen=True)
class _Palette:
    shirt: Colour
    stripe: Colour
    sleeve: Colour
    forearm: Colour
    trousers: Colour
    shin: Colour
    shoe: Colour
    skin: Colour
    hair: Colour
    accent: Colour


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value), np.float32) * 255


def _sample_palette(rng: np.random.Generator) -> _Palette:
    hue = rng.uniform()
    other = hue + rng.uniform(0.3, 0.7)
    skin = np.array(_SKIN[rng.integers(len(_SKIN))], np.float32)
    hairs = [hair for hair in np.array(_HAIR, np.float32) if np.linalg.norm(hair - skin) > 75]
    shirt = _hsv(hue, rng.uniform(0.6, 0.8), rng.uniform(0.8, 0.95))
    stripe = _hsv(hue + rng.choice([-0.1, 0.1]), rng.uniform(0.35, 0.55), rng.choice([0.55, 1.0]))
    sleeve = _hsv(hue + rng.choice([-0.08, 0.08]), rng.uniform(0.6, 0.9), rng.uniform(0.55, 0.7))
    trousers = _hsv(other, rng.uniform(0.5, 0.75), rng.uniform(0.5, 0.75))
    long_sleeves, long_trousers = rng.uniform() < 0.35, rng.uniform() < 0.6
    return _Palette(
        shirt=shirt,
        stripe=stripe,
        sleeve=sleeve,
        forearm=_hsv(hue + rng.choice([-0.05, 0.05]), 0.55, 0.9) if long_sleeves else skin,
        trousers=trousers,
        shin=_hsv(other + rng.choice([-0.07, 0.07]), 0.6, 0.88) if long_trousers else skin * np.float32(0.94),
        shoe=_hsv(rng.uniform(), rng.uniform(0.5, 0.9), rng.uniform(0.3, 0.55)),
        skin=skin,
        hair=hairs[rng.integers(len(hairs))],
        accent=_hsv(hue + rng.uniform(0.35, 0.65), 0.75, 0.95),
    )


def _texture(
    rng: np.random.Generator,
    colour: Colour,
    strength: float,
    num_waves: int = 2,
    wavelength: tuple[float, float] = (0.17, 0.3),
    even: float = 0.6,
) -> Texture:
    """Sample waves in random directions around a colour.

    `strength` is the largest change of a channel, `even` the similarity of the channels' changes (1: brightness only).
    """
    direction, length = rng.uniform(0, 2 * np.pi, num_waves), rng.uniform(*wavelength, num_waves)
    tint = rng.uniform(even, 1.0, (num_waves, 3)) * rng.choice([-1, 1], (num_waves, 1))
    return Texture(
        colour=np.clip(colour, strength, 255 - strength).astype(np.float32),
        amplitude=(tint * strength / num_waves).astype(np.float32),
        frequency=np.stack([np.cos(direction), np.sin(direction)], -1) * 2 * np.pi / length[:, None],
        phase=rng.uniform(0, 2 * np.pi, num_waves),
    )


def _stripes(rng: np.random.Generator, colour: Colour, other: Colour) -> Texture:
    """Sample soft stripes across a part, between two colours."""
    middle, half = (colour + other) / 2, (other - colour) / 2
    length, tilt = rng.uniform(0.17, 0.2), rng.choice([-0.6, 0.0, 0.6])
    frequency = np.array([[np.cos(tilt), np.sin(tilt)]]) * 2 * np.pi / length
    return Texture(colour=middle, amplitude=half[None], frequency=frequency, phase=rng.uniform(0, 2 * np.pi, 1))


def _capsule(start: tuple[float, float], end: tuple[float, float], radius: float, end_radius: float | None = None) -> Shape:
    return Shape(start=start, end=end, start_radius=radius, end_radius=radius if end_radius is None else end_radius)


def _sample_parts(rng: np.random.Generator, build: _Build) -> list[Part]:
    colours = _sample_palette(rng)
    holding = rng.uniform() < 0.35
    parts: list[Part] = []
    for side, sign in (("left", -1), ("right", 1)):
        parts += _sample_leg(rng, build, colours, side, sign)
    parts += _sample_body(rng, build, colours) + _sample_head(rng, build, colours)
    for side in ("left", "right"):
        parts += _sample_arm(rng, build, colours, side, holding and side == "right")
    return parts


def _sample_leg(rng: np.random.Generator, build: _Build, colours: _Palette, side: str, sign: int) -> list[Part]:
    radius, foot = build.leg_radius, build.foot_radius
    thigh = _capsule((0, 0), (build.leg, 0), radius, 0.95 * radius)
    shin = _capsule((0, 0), (build.leg - 0.006, 0), 0.95 * radius, 0.9 * radius)
    shoe = _capsule((-0.004, 0), (0, 0.045 * sign), foot + 0.004, foot)
    return [
        Part(f"{side} thigh", thigh, _texture(rng, colours.trousers, 34)),
        Part(f"{side} shin", shin, _texture(rng, colours.shin, 30, even=0.85)),
        Part(f"{side} foot", shoe, _texture(rng, colours.shoe, 20)),
    ]


def _sample_body(rng: np.random.Generator, build: _Build, colours: _Palette) -> list[Part]:
    radius = build.chest_radius
    belly = _stripes(rng, colours.shirt, colours.stripe) if rng.uniform() < 0.5 else _texture(rng, colours.shirt, 46)
    neck = colours.skin * np.float32(0.85)
    return [
        Part("hips", _capsule((0.0, -build.hip), (0.0, build.hip), 0.05, 0.05), _texture(rng, colours.trousers, 26)),
        Part("head", _capsule((-0.02, 0), (0.03, 0), 0.03), _texture(rng, neck, 8, even=0.9)),
        Part("torso", _capsule((0.02, 0), (build.torso - 0.06, 0), radius, radius + 0.02), belly),
    ]


def _sample_head(rng: np.random.Generator, build: _Build, colours: _Palette) -> list[Part]:
    radius, middle = build.head, 1.12 * build.head
    back = _capsule((middle + 0.1 * radius, 0), (middle + 0.2 * radius, 0), 1.1 * radius)
    face = _capsule((middle - 0.1 * radius, 0), (middle + 0.1 * radius, 0), 0.95 * radius)
    hair = _texture(rng, colours.hair, 22, even=0.9)
    parts = [Part("head", back, hair), Part("head", face, _texture(rng, colours.skin, 14, even=0.9))]
    if rng.uniform() < 0.4:  # a cap
        dome = _capsule((middle + 0.95 * radius, 0), (middle + 1.1 * radius, 0), 0.78 * radius, 0.62 * radius)
        brim = _capsule((middle + 0.75 * radius, -1.0 * radius), (middle + 0.75 * radius, 1.0 * radius), 0.3 * radius)
        cap = _texture(rng, colours.accent, 30)
        return [*parts, Part("head", dome, cap), Part("head", brim, _texture(rng, colours.accent * np.float32(0.7), 20))]
    fringe = _capsule((middle + 0.82 * radius, -0.5 * radius), (middle + 0.82 * radius, 0.5 * radius), 0.46 * radius)
    return [*parts, Part("head", fringe, hair)]


def _sample_arm(rng: np.random.Generator, build: _Build, colours: _Palette, side: str, holding: bool) -> list[Part]:
    radius, bone = build.arm_radius, (build.arm, 0)
    upper, lower = _capsule((0, 0), bone, radius * 1.08, radius), _capsule((0, 0), bone, radius * 0.98, radius * 0.94)
    parts = [
        Part(f"{side} upper arm", upper, _texture(rng, colours.sleeve, 34)),
        Part(f"{side} forearm", lower, _texture(rng, colours.forearm, 26, even=0.85)),
    ]
    if holding:
        is_stick = rng.uniform() < 0.5
        thing = _capsule((0.0, -0.05), (0.03, 0.11), 0.026) if is_stick else _capsule((0.06, 0), (0.061, 0), 0.055)
        parts.append(Part(f"{side} hand", thing, _texture(rng, colours.accent, 34)))
    return [*parts, Part(f"{side} hand", _capsule((0, 0), (0.012, 0), 0.037), _texture(rng, colours.skin, 12, even=0.9))]


def _sample_background(rng: np.random.Generator, figure: np.ndarray) -> tuple[Texture, Texture]:
    """Sample several calm pairs of wall and floor; return the one whose colours are farthest from all of the figure's."""

    def sample() -> tuple[Colour, Colour]:
        hue, is_light = rng.uniform(), rng.uniform() < 0.7
        saturation, value = ((0.08, 0.3), (0.8, 0.95)) if is_light else ((0.25, 0.5), (0.25, 0.4))
        wall = _hsv(hue, rng.uniform(*saturation), rng.uniform(*value))
        floor = _hsv(hue + rng.uniform(-0.25, 0.25), rng.uniform(0.12, 0.35), wall.max() / 255 * rng.uniform(0.72, 0.9))
        return wall, floor

    def clearance(pair: tuple[Colour, Colour]) -> float:
        return min(float(np.linalg.norm(figure - colour, axis=1).min()) for colour in pair)

    wall, floor = max((sample() for _ in range(12)), key=clearance)
    return _texture(rng, wall, 22, 3, (0.22, 0.5)), _texture(rng, floor, 22, 3, (0.22, 0.4))
