"""Checks that the components of a pipeline belong together."""

import math
from typing import get_args

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.condition.encoder import ConditionEncoder
from lfdm.config.checks import check
from lfdm.config.video import Fit
from lfdm.denoiser.network import DenoiserNetwork
from lfdm.errors import UserError
from lfdm.motion.codec import MotionCodec


def check_components(
    autoencoder: LatentFlowAutoencoder,
    unet: DenoiserNetwork,
    condition: ConditionEncoder,
    motion_codec: MotionCodec,
    *,
    image_size: object,
    fit: object,
    num_frames: int,
) -> None:
    """Raise UserError naming the first setting or component that does not match the others."""
    multiple = math.lcm(autoencoder.size_multiple, autoencoder.stride * unet.size_multiple)
    latent_size = check_image(image_size, fit, multiple=multiple) // autoencoder.stride
    if condition.dim != unet.config["condition_dim"]:
        raise UserError(f"condition must have dim={unet.config['condition_dim']}, as the unet takes; got {condition.dim}")
    channels, taken = motion_codec.sample_shape(num_frames, latent_size, latent_size)[0], unet.config["sample_channels"]
    if taken != channels:
        raise UserError(f"unet must have sample_channels={channels}, as the motion codec gives; got {taken}")
    if motion_codec.corners != autoencoder.corners:
        raise UserError(f"motion_codec must have corners={autoencoder.corners}, as the auto-encoder; got {motion_codec.corners}")


def check_image(image_size: object, fit: object, *, multiple: int) -> int:
    """Return the image size. Raises UserError for one that is not a multiple of `multiple`, and for an unknown `fit`."""
    if isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < multiple or image_size % multiple:
        raise UserError(f"image_size must be a multiple of {multiple} for these networks; got {image_size!r}")
    check(fit in get_args(Fit), "fit", fit, f"one of {', '.join(get_args(Fit))}")
    return image_size
