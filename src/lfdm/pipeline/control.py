"""Motion that does not come from sampling, and what strength and mask do to any motion.

Shapes: image (b, 3, H, W) in [0, 1] · mask (1, 1, H, W) in [0, 1].
"""

import itertools
from collections.abc import Sequence

from torch import Tensor

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.config.checks import check_number
from lfdm.motion.motion import Motion
from lfdm.pipeline.decoding import frames_per_chunk
from lfdm.pipeline.framing import Framing
from lfdm.pipeline.inputs import DrivingInput, MaskInput, Picture, driving_chunks, picture_size, prepare_mask

MAX_STRENGTH = 2.0
"""Largest `motion_strength`."""


class MotionControl:
    """Apply `motion_strength` and `motion_mask` to a motion.

    Args:
        pictures: the images that the mask belongs to.
        framing: how they are fitted.
        reach: see `lfdm.motion.motion.feather`.

    Raises:
        UserError: a strength outside [0, 2], not a mask, or a mask of another size than its image.
    """

    def __init__(
        self, strength: float, mask: MaskInput | None, pictures: Sequence[Picture], framing: Framing, *, reach: float
    ) -> None:
        self.strength = check_number("motion_strength", strength, low=0, high=MAX_STRENGTH)
        self.reach = reach
        sizes = [picture_size(picture) for picture in pictures]
        fit = framing.fit_of(sizes[0])
        self.mask = None if mask is None else prepare_mask(mask, size=framing.size, fit=fit, image_sizes=set(sizes))

    def __call__(self, motion: Motion) -> Motion:
        motion = motion.scaled(self.strength)
        return motion if self.mask is None else motion.masked(self.mask, reach=self.reach)


def estimate_driving_motion(
    autoencoder: LatentFlowAutoencoder, image: Tensor, driving: DrivingInput, *, relative: bool, framing: Framing
) -> Motion:
    """Estimate the motion of a driving clip for `image` (1, 3, H, W), holding one chunk of its frames at a time.

    With `relative` the reference is the clip's first frame instead of `image`, and the motion of that frame is subtracted.
    """
    chunk = frames_per_chunk(autoencoder, framing.size, 1)
    parts = (part.to(image) for part in driving_chunks(driving, chunk, framing))
    first = next(parts)
    reference = first[:, :, 0] if relative else image
    motions = list(autoencoder.estimate_motions(reference, itertools.chain([first], parts), refine=True))
    motion = Motion.concatenate(motions, dim=2)
    return motion.from_rest() if relative else motion  # a frame has no motion against itself, only estimation error
