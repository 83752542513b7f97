"""How a video of a given number of frames is sampled: at once, in windows of frames, or as a chain of latents."""

from dataclasses import dataclass

from lfdm.diffusion.windows import Window, plan_windows
from lfdm.errors import UserError
from lfdm.motion.codec import MotionCodec, SampleSpace
from lfdm.motion.latent_chain import LatentChain
from lfdm.motion.learned_codec import LearnedCodec

MAX_PASS_FACTOR = 4
"""A video up to this many times as long as training clips is sampled at once, a longer one in windows of that length."""


@dataclass(frozen=True, eq=False)
class SamplePlan:
    """How the samples of a call are made."""

    space: SampleSpace
    windows: tuple[Window, ...] = ()
    """Parts of a sample that the network predicts separately; none = it predicts the whole sample."""


def plan_samples(codec: MotionCodec, num_frames: int, *, trained: int, slow_motion: bool) -> SamplePlan:
    """Return how videos of `num_frames` are sampled by a model that was trained on clips of `trained` frames.

    Raises:
        UserError: slow motion of a codec with a frame axis, or more frames than a codec can make.
    """
    if codec.has_frame_axis:
        if slow_motion:
            raise UserError(f"slow_motion must be False with a {type(codec).__name__}, which samples every frame")
        return SamplePlan(codec, plan_windows(num_frames, longest=MAX_PASS_FACTOR * trained))
    if slow_motion or num_frames <= trained:
        return SamplePlan(codec)
    if not isinstance(codec, LearnedCodec):
        raise UserError(f"num_frames must be at most {trained} with a {type(codec).__name__}; got {num_frames}")
    chain = LatentChain(codec, trained)
    return SamplePlan(chain, plan_windows(chain.num_latents(num_frames), longest=1))
