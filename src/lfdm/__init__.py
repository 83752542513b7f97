"""Generate a video from one image and a condition by latent flow diffusion."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
    from lfdm.condition.encoder import ConditionEncoder
    from lfdm.denoiser.unet3d import MotionUNet3D
    from lfdm.diffusion.schedulers import MotionScheduler
    from lfdm.motion.codec import FrameCodec
    from lfdm.motion.learned_codec import LearnedCodec
    from lfdm.motion.motion import Motion
    from lfdm.pipeline.pipeline import LatentFlowPipeline

__version__ = "0.1.0"
__all__ = [
    "ConditionEncoder",
    "FrameCodec",
    "LatentFlowAutoencoder",
    "LatentFlowPipeline",
    "LearnedCodec",
    "Motion",
    "MotionScheduler",
    "MotionUNet3D",
]
"""The public classes; a model folder may name these as components."""

_HOMES = {
    "ConditionEncoder": "lfdm.condition.encoder",
    "FrameCodec": "lfdm.motion.codec",
    "LatentFlowAutoencoder": "lfdm.autoencoder.autoencoder",
    "LatentFlowPipeline": "lfdm.pipeline.pipeline",
    "LearnedCodec": "lfdm.motion.learned_codec",
    "Motion": "lfdm.motion.motion",
    "MotionScheduler": "lfdm.diffusion.schedulers",
    "MotionUNet3D": "lfdm.denoiser.unet3d",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lfdm' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
