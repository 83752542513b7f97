"""Checks that the components of a pipeline belong together."""

import math
from typing import get_args

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.condition.encoder import ConditionEncoder
from lfdm.config.checks import check
from lfdm.config.video import MIN_MOTION_SIDE, MIN_SIDE, Fit, Size
from lfdm.denoiser.network import DenoiserNetwork
from lfdm.errors import UserError
from lfdm.motion.codec import MotionCodec


def check_components(
    autoencoder: LatentFlowAutoencoder,
    unet: DenoiserNetwork,
    condition: ConditionEncoder,
    motion_codec: MotionCodec,
    *,
    image_size: Size,
    fit: object,
    num_frames: int,
) -> None:
    """Raise UserError naming the first setting or component that does not match the others."""
    check_image(image_size, fit, multiple=side_multiple(autoencoder, unet), stride=autoencoder.stride)
    if condition.dim != unet.config["condition_dim"]:
        raise UserError(f"condition must have dim={unet.config['condition_dim']}, as the unet takes; got {condition.dim}")
    cells = image_size.cells(autoencoder.stride)
    channels, taken = motion_codec.sample_shape(num_frames, *cells)[0], unet.config["sample_channels"]
    if taken != channels:
        raise UserError(f"unet must have sample_channels={channels}, as the motion codec gives; got {taken}")
    if motion_codec.corners != autoencoder.corners:
        raise UserError(f"motion_codec must have corners={autoencoder.corners}, as the auto-encoder; got {motion_codec.corners}")


def side_multiple(autoencoder: LatentFlowAutoencoder, unet: DenoiserNetwork) -> int:
    """Return the number that height and width of images must be multiples of."""
    return math.lcm(autoencoder.size_multiple, autoencoder.stride * unet.size_multiple)


def min_side(*, multiple: int, stride: int) -> int:
    """Return the smallest height and width of images, for which motion has at least `MIN_MOTION_SIDE` cells."""
    return multiple * math.ceil(max(MIN_SIDE, MIN_MOTION_SIDE * stride) / multiple)


def check_image(image_size: Size, fit: object, *, multiple: int, stride: int) -> None:
    """Raise UserError for a size that networks of `multiple` and `stride` cannot take, and for an unknown `fit`."""
    least = min_side(multiple=multiple, stride=stride)
    fits = all(side >= least and side % multiple == 0 for side in image_size)
    allowed = f"a multiple of {multiple} for these networks, at least {least}, or HEIGHTxWIDTH of two such numbers"
    check(fits, "image_size", image_size.setting, allowed)
    check(fit in get_args(Fit), "fit", fit, f"one of {', '.join(get_args(Fit))}")
