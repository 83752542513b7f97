"""Clip-consistent augmentation: the same random change for all frames of a sample, from the generator passed in.

Shapes: frames (t, H, W, 3) uint8.
"""

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class ColorJitter:
    """Random brightness, contrast, saturation and hue, the same for all frames."""

    amounts: tuple[float, float, float, float] = (0.1, 0.1, 0.1, 0.1)
    """Largest relative change of brightness, of contrast about each frame's mean grey, of saturation about each pixel's grey, and
    largest shift of hue in turns of the colour circle."""
    random_order: bool = True
    """Apply the four changes in random order instead of the order above."""
    spare_borders: bool = False
    """Keep rows and columns at the edges that are black in every frame black, as if padding came afterwards."""

    def apply(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Recolour frames (t, H, W, 3) uint8. The number of random values is always the same."""
        order = rng.permutation(4) if self.random_order else range(4)
        changes = [amount * unit for amount, unit in zip(self.amounts, rng.uniform(-1.0, 1.0, 4), strict=True)]
        if not any(changes):
            return frames
        if not (self.spare_borders and frames.any()):
            return _recolour(frames, changes, order)
        rows, columns = _inside_borders(frames)
        result = frames.copy()
        result[:, rows, columns] = _recolour(frames[:, rows, columns], changes, order)
        return result


def _recolour(frames: np.ndarray, changes: Sequence[float], order: Iterable[int]) -> np.ndarray:
    """Apply the four `changes` to frames (t, H, W, 3) uint8 in the given order."""
    planes = np.ascontiguousarray(frames.transpose(3, 0, 1, 2).reshape(3, len(frames), -1), np.float32)
    for step in order:
        if changes[step]:
            planes = _JITTERS[step](planes, float(changes[step]))
    planes += 0.5  # rounds, as the values are not negative
    return np.ascontiguousarray(planes.astype(np.uint8).reshape(3, *frames.shape[:3]).transpose(1, 2, 3, 0))


def _inside_borders(frames: np.ndarray) -> tuple[slice, slice]:
    """Return the rows and columns of frames (t, H, W, 3) from the first to the last that is not all black."""
    rows, columns = (np.flatnonzero(frames.any(axis=axes)) for axes in ((0, 2, 3), (0, 1, 3)))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


# Each maps planes (3, t, n) float32 in [0, 255] to such planes, and may overwrite its argument.


def _brighten(planes: np.ndarray, amount: float) -> np.ndarray:
    planes *= np.float32(1.0 + amount)
    return np.minimum(planes, 255.0, out=planes)


def _change_contrast(planes: np.ndarray, amount: float) -> np.ndarray:
    mean = _grey(planes).mean(axis=-1, keepdims=True)
    planes *= np.float32(1.0 + amount)
    planes -= np.float32(amount) * mean
    return np.clip(planes, 0.0, 255.0, out=planes)


def _saturate(planes: np.ndarray, amount: float) -> np.ndarray:
    grey = _grey(planes)
    planes *= np.float32(1.0 + amount)
    planes -= np.float32(amount) * grey
    return np.clip(planes, 0.0, 255.0, out=planes)


def _grey(planes: np.ndarray) -> np.ndarray:
    """Return the ITU-R BT.601 luma: (t, n)."""
    return np.float32(0.299) * planes[0] + np.float32(0.587) * planes[1] + np.float32(0.114) * planes[2]


def _shift_hue(planes: np.ndarray, amount: float) -> np.ndarray:
    """Turn the hue of the HSV hexcone by `amount` of a full turn; value and chroma stay (A. R. Smith, 1978)."""
    red, green, blue = planes
    value = np.maximum(np.maximum(red, green), blue)
    chroma = value - np.minimum(np.minimum(red, green), blue)
    scale = 1.0 / np.maximum(chroma, np.float32(1e-6))
    hue = (red - green) * scale + np.float32(4.0)  # in sixths of a turn: blue is the largest
    np.copyto(hue, (blue - red) * scale + np.float32(2.0), where=value == green)
    np.copyto(hue, (green - blue) * scale, where=value == red)
    hue += np.float32(6.0 * amount)
    for channel, offset in enumerate((5.0, 3.0, 1.0)):
        sixth = hue + np.float32(offset)
        sixth -= np.float32(6.0) * np.floor(sixth * np.float32(1 / 6))  # six times quicker than %
        ramp = np.minimum(sixth, np.float32(4.0) - sixth)
        planes[channel] = value - chroma * np.clip(ramp, 0.0, 1.0, out=ramp)
    return planes


_JITTERS = (_brighten, _change_contrast, _saturate, _shift_hue)


@dataclass(frozen=True, kw_only=True)
class PairAugmentation:
    """Augmentation of stage-1 pairs as published: swap the two frames, or else mirror both; then change colours."""

    swap_probability: float = 0.5
    """Probability that source and driving are swapped (motion runs backwards)."""
    flip_probability: float = 0.5
    """Probability that both are mirrored left to right, if they are not swapped."""
    mirror_sided_labels: bool = False
    """Also mirror pairs whose label names left or right, as published."""
    jitter: ColorJitter = ColorJitter()
    """Colour change, the same for both frames."""


@functools.lru_cache(maxsize=4096)
def names_a_side(label: str) -> bool:
    """Return whether a label names left or right, so that mirroring would make it wrong.

    >>> names_a_side("Turn Left"), names_a_side("right-hand_wave"), names_a_side("leftHand"), names_a_side("bright")
    (True, True, True, False)
    """
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label).lower()
    return re.search(r"(?<![a-z])(left|right)(?![a-z])", words) is not None


def mirror_motion(motion: np.ndarray) -> np.ndarray:
    """Mirror motion (c, ..., w), flow first: reverse the columns and negate flow x."""
    mirrored = motion[..., ::-1].copy()
    mirrored[0] *= -1
    return mirrored


def augment_pair(
    pair: np.ndarray,
    augment: PairAugmentation,
    rng: np.random.Generator,
    *,
    may_swap: bool = True,
    may_mirror: bool = True,
) -> tuple[np.ndarray, bool]:
    """Swap a pair (2, H, W, 3) uint8, or else mirror it, then recolour it; also return whether it was mirrored."""
    swap, flip = rng.random(2)
    swapped = may_swap and swap < augment.swap_probability
    mirrored = not swapped and may_mirror and bool(flip < augment.flip_probability)
    if swapped:
        pair = pair[::-1]
    elif mirrored:
        pair = pair[:, :, ::-1]
    return augment.jitter.apply(pair, rng), mirrored
