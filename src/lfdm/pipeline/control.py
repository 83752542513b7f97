"""Motion that does not come from sampling, and what strength and mask do to any motion.

Shapes: image (b, 3, S, S) in [0, 1] · mask (1, 1, S, S) in [0, 1].
"""

import itertools

from torch import Tensor

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.config.checks import check_number
from lfdm.config.video import Fit
from lfdm.motion.motion import Motion
from lfdm.pipeline.decoding import frames_per_chunk
from lfdm.pipeline.inputs import DrivingInput, MaskInput, drive, prepare_mask

MAX_STRENGTH = 2.0
"""Largest `motion_strength`."""


class MotionControl:
    """Apply `motion_strength` and `motion_mask` to a motion.

    Raises:
        UserError: a strength outside [0, 2], or not a mask.
    """

    def __init__(self, strength: float, mask: MaskInput | None, *, size: int, fit: Fit) -> None:
        self.strength = check_number("motion_strength", strength, low=0, high=MAX_STRENGTH)
        self.mask = None if mask is None else prepare_mask(mask, size=size, fit=fit)

    def __call__(self, motion: Motion) -> Motion:
        motion = motion.scaled(self.strength)
        return motion if self.mask is None else motion.masked(self.mask)


def estimate_driving_motion(
    autoencoder: LatentFlowAutoencoder, image: Tensor, driving: DrivingInput, *, relative: bool, fit: Fit
) -> Motion:
    """Estimate the motion of a driving clip for `image` (1, 3, S, S), holding one chunk of its frames at a time.

    With `relative` the reference is the clip's first frame instead of `image`, and the motion of that frame is subtracted.
    """
    size = image.shape[-1]
    chunk = frames_per_chunk(autoencoder, size, 1)
    parts = (part.to(image) for part in drive(driving, chunk, size=size, fit=fit))
    first = next(parts)
    reference = first[:, :, 0] if relative else image
    motions = list(autoencoder.estimate_motions(reference, itertools.chain([first], parts)))
    motion = Motion.concatenate(motions, dim=2)
    return motion.from_rest() if relative else motion  # a frame against itself has no motion: what is estimated there is error
