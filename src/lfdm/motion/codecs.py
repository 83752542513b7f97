"""The codec that settings describe. A new codec is a class, a value of `DiffusionConfig.codec` and a line here."""

from lfdm.config.diffusion import DiffusionConfig
from lfdm.motion.codec import FrameCodec, MotionCodec
from lfdm.motion.learned_codec import LearnedCodec


def make_codec(config: DiffusionConfig, *, corners: bool) -> MotionCodec:
    """Return the codec that settings describe, without statistics of training motion."""
    if config.codec == "learned":
        return LearnedCodec()
    return FrameCodec(kind=config.codec, corners=corners, still_first_frame=config.still_first_frame)
