"""Random backgrounds for figures with alpha."""

import numpy as np
from PIL import Image

WHITE_PROBABILITY = 0.25
"""Part of the backgrounds in training that are white: pictures with alpha lie over white when they are animated."""


def sample_background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Sample a plain colour, soft blotches or tiles, muted so that the figure stands out: (height, width, 3) uint8."""
    first, second = rng.uniform(60, 200, (2, 3))
    kind = rng.integers(3)
    if kind == 0:
        blend = np.zeros((height, width))
    elif kind == 1:
        coarse = Image.fromarray(rng.random((7, 7)).astype(np.float32))
        blend = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).clip(0, 1)
    else:
        tile = int(rng.choice([8, 16]))
        row, column = np.indices((height, width)) // tile
        blend = 0.4 * ((row + column) % 2)
    colour = first + blend[..., None] * (second - first)
    return np.rint(colour).astype(np.uint8)


def sample_training_background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Sample white or a random background: (height, width, 3) uint8."""
    if rng.random() < WHITE_PROBABILITY:
        return np.full((height, width, 3), 255, np.uint8)
    return sample_background(rng, height, width)
