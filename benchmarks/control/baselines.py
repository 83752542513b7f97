"""Baselines for drags: projections of a model that was not trained on tracks, and bending its finished motion.

In every step of sampling the predicted clean motion is replaced by the nearest one in which the point is at the asked place;
"touched" changes the cells at that place only, "kernel" also those around it in space, and "bent" the finished motion only.
"""

from collections.abc import Callable

from torch import Tensor

from benchmarks.control.scenes import SIDE, DragScene
from lfdm.motion.codec import FrameCodec
from lfdm.motion.motion import Motion
from lfdm.pipeline.pipeline import LatentFlowPipeline
from lfdm.pipeline.result import LatentFlowOutput

RADII = {"touched": 0.4, "kernel": 3.0, "bent": 3.0}
"""Standard deviation in cells of the correction."""


class ProjectingCodec(FrameCodec):
    """A codec whose `clamp`, which sampling applies to every predicted clean sample, also projects it."""

    project: Callable[[Motion], Motion] = staticmethod(lambda motion: motion)

    def clamp(self, sample: Tensor) -> Tensor:
        sample = super().clamp(sample)
        return self.encode(self.project(self.decode(sample, sample.shape[2])))


def sample_baseline(pipe: LatentFlowPipeline, scene: DragScene, label: str, way: str, seed: int) -> LatentFlowOutput:
    """Return a video of a model without tracks whose point is forced to the asked place by a baseline."""
    placed = scene.place(pipe.config["num_frames"])

    def project(motion: Motion) -> Motion:
        return placed.settle(motion, max_correction=SIDE, radius=RADII[way])[0]

    plain = pipe.motion_codec
    if way != "bent":
        codec = ProjectingCodec(**{name: value for name, value in plain.config.items() if not name.startswith("_")})
        codec.project = project
        pipe.motion_codec = codec
    try:
        motion = pipe(scene.image, label, generator=seed, output_type="latent").motion
    finally:
        pipe.motion_codec = plain
    return pipe.animate(scene.image, project(motion), output_type="uint8")
