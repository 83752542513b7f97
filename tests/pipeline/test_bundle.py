"""The bundled models: `puppets64`, which is distilled, so that four predictions make a video, and `puppets64-control`."""

import numpy as np
import pytest

from lfdm.config.control import Control, Drag
from lfdm.diffusion.schedulers import MotionScheduler
from lfdm.errors import UserError
from lfdm.folders.sources import bundled_images, bundled_models
from lfdm.pipeline.pipeline import LatentFlowPipeline


@pytest.fixture(scope="module")
def pipe() -> LatentFlowPipeline:
    return LatentFlowPipeline.from_pretrained("puppets64")


def amount_of_motion(pipe: LatentFlowPipeline, num_steps: int) -> float:
    image = bundled_images("puppets64")[0]
    made = pipe(image, "wave", num_inference_steps=num_steps, generator=0, output_type="uint8").frames
    return float(np.abs(np.diff(np.asarray(made, dtype=int)[0], axis=0)).mean())


def test_one_of_two_follows_tracks() -> None:
    assert bundled_models() == ["puppets64", "puppets64-control"]
    assert LatentFlowPipeline.from_pretrained("puppets64-control").unet.track_inputs


def test_a_dragged_hand_moves_and_a_pinned_foot_does_not() -> None:
    pipe = LatentFlowPipeline.from_pretrained("puppets64-control")
    control = Control(drags=(Drag(source=(42, 41), path=((1.0, 54, 32),)),), pins=((27, 58),))
    out = pipe(bundled_images("puppets64-control")[0], control=control, generator=0, output_type="latent")
    assert out.control is not None
    moved, held = out.control.distance[0, :, -1].tolist()
    assert moved < 3
    assert held < 0.5


def test_one_pass_a_step_moves_the_puppet_about_as_far_as_many_small_steps(pipe: LatentFlowPipeline) -> None:
    passes: list[int] = []
    hook = pipe.unet.register_forward_hook(lambda _, inputs, __: passes.append(inputs[2].shape[0]))
    assert pipe.config["num_inference_steps"] == 4
    fast = amount_of_motion(pipe, 4)
    assert passes == [1, 1, 1, 1]
    other = LatentFlowPipeline.from_pipe(pipe, scheduler=MotionScheduler(prediction_type="v_prediction", sampler="dpmpp_2m"))
    slow = amount_of_motion(other, 10)
    hook.remove()
    assert passes == [1] * 14
    assert 0.7 < fast / slow < 1.3


def test_scales_that_it_was_not_trained_for_are_refused(pipe: LatentFlowPipeline) -> None:
    with pytest.raises(UserError, match=r"guidance_scale.*1.*4.*9"):
        pipe(bundled_images("puppets64")[0], "wave", guidance_scale=9.0)
