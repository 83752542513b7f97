"""Baselines for drags: a model that is not given the tracks is forced to follow them; and what the real motion reaches.

In every step of sampling the predicted clean motion is replaced by the nearest one in which the point is at the target:
"touched" changes the cells at that place only, "kernel" also those around it in space, "guided" along the covariance of
`lfdm.diffusion.guidance`; "bent" changes the finished motion only.
"""

from collections.abc import Callable
from unittest import mock

import torch
from torch import Tensor

from benchmarks.control.scenes import SIDE, DragScene, Scene
from lfdm.motion.codec import FrameCodec
from lfdm.motion.motion import Motion
from lfdm.pipeline.pipeline import LatentFlowPipeline
from lfdm.pipeline.placed_control import PlacedControl
from lfdm.pipeline.result import LatentFlowOutput
from lfdm.training.exact_motion import with_exact_figure

RADII = {"touched": 0.4, "kernel": 3.0, "bent": 3.0}
"""Standard deviation in cells of the correction."""
BASELINES = (*RADII, "guided", "real")


class ProjectingCodec(FrameCodec):
    """A codec whose `clamp`, which sampling applies to every predicted clean sample, also projects it."""

    project: Callable[[Motion], Motion] = staticmethod(lambda motion: motion)

    def clamp(self, sample: Tensor) -> Tensor:
        sample = super().clamp(sample)
        return self.encode(self.project(self.decode(sample, sample.shape[2])))


def sample_baseline(pipe: LatentFlowPipeline, scene: DragScene, label: str, way: str, seed: int) -> LatentFlowOutput:
    """Return a video whose point is forced to the target by a baseline, or with the motion of the real clip."""
    if way == "real":
        return pipe.animate(scene.image, real_motion(pipe, scene.real), output_type="uint8")
    if way == "guided":
        with mock.patch.object(PlacedControl, "maps", return_value=None):
            return pipe(scene.image, label, control=scene.control, generator=seed, output_type="uint8")
    placed = scene.place(pipe.config["num_frames"])

    def project(motion: Motion) -> Motion:
        return placed.correct_motion(motion, max_correction=SIDE, radius=RADII[way])[0]

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


def real_motion(pipe: LatentFlowPipeline, scene: Scene) -> Motion:
    """Return the motion that the network would be trained on, on its grid of cells: stage 1's with the figure's exact flow."""
    frames = torch.from_numpy(scene.frames).permute(3, 0, 1, 2)[None].float() / 255
    with torch.inference_mode():
        motion = pipe.autoencoder.estimate_motion(frames[:, :, 0], frames)
    values = torch.cat((motion.flow, motion.occlusion), dim=1)[0].transpose(0, 1).numpy()
    exact = torch.from_numpy(with_exact_figure(values, scene.truth)).transpose(0, 1)[None]
    return Motion(exact[:, :2], exact[:, 2:], motion.corners, motion.offset)
